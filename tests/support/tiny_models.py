"""A PyTorch model small enough to be exported, compiled and proved in seconds, with all that makes INT8 difficult.

Batch norms with statistics, biases that are not zero, a depthwise convolution, a residual, ReLU and ReLU6, a matrix
product at the end.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional

from calibration.data.samples import SampleSet, sample_set
from edgevis.models import ModelEntry
from runtime.bundle.spec import Deployment, Graph, Preprocess, TensorSpec
from runtime.common.arrays import Array
from runtime.images.preprocess import Preprocessor

HEIGHT, WIDTH, DIMENSION = 32, 16, 24
IMAGE = TensorSpec("image", "float32", ("N", 3, HEIGHT, WIDTH))
EMBEDDING = TensorSpec("embedding", "float32", ("N", DIMENSION))
GRAPH = Graph("embed", (IMAGE,), (EMBEDDING,))
PREPROCESS = Preprocess(HEIGHT, WIDTH, mean=(0.5, 0.45, 0.4), std=(0.25, 0.3, 0.35))
DEPLOYMENT = Deployment("reid", (GRAPH,), PREPROCESS, max_batch=16)


class TinyNet(nn.Module):
    """image (N, 3, 32, 16) -> embedding (N, 24)."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 16, 3, stride=2, padding=1, bias=False)
        self.stem_norm = nn.BatchNorm2d(16)
        self.depthwise = nn.Conv2d(16, 16, 3, padding=1, groups=16)
        self.pointwise = nn.Conv2d(16, 16, 1)
        self.norm = nn.BatchNorm2d(16)
        self.head = nn.Linear(16, DIMENSION)

    def embed(self, image: Tensor) -> Tensor:
        x = torch.relu(self.stem_norm(self.stem(image)))
        x = x + functional.relu6(self.norm(self.pointwise(torch.relu(self.depthwise(x)))))
        embedding: Tensor = self.head(x.mean((2, 3)))
        return embedding


def tiny_net(seed: int = 0) -> TinyNet:
    """The model with biases and statistics as training leaves them; the same seed gives the same numbers."""
    random = torch.Generator().manual_seed(seed)
    model = TinyNet()
    with torch.no_grad():
        for name, tensor in model.state_dict().items():
            if name.endswith(("running_var", "norm.weight")):
                tensor.copy_(0.5 + torch.rand(tensor.shape, generator=random))
            elif tensor.is_floating_point():
                tensor.copy_(torch.randn(tensor.shape, generator=random) * (0.5 if tensor.ndim == 1 else 0.3))
    return model.eval()


def tiny_entry(*, deployment: Deployment = DEPLOYMENT, name: str = "tiny") -> ModelEntry:
    """The declaration of the tiny model, as a file in edgevis/models would make it."""
    parameters = sum(parameter.numel() for parameter in tiny_net().parameters())
    return ModelEntry(name, tiny_net, deployment, "none: a model of the tests", "Apache-2.0", parameters)


def pictures(count: int = 48, *, seed: int = 1, labels: int = 4) -> SampleSet:
    """Smooth coloured pictures of several sizes; those of one label have the same base colour."""
    random = np.random.default_rng(seed)
    images = []
    for index in range(count):
        base = 60 + 40 * (index % labels)
        coarse = np.clip(base + random.normal(0, 50, (6, 3, 3)), 0, 255).astype(np.uint8)
        images.append(np.ascontiguousarray(np.kron(coarse, np.ones((8 + index % 3, 8, 1), np.uint8))))
    return sample_set(images, [f"label {index % labels}" for index in range(count)], "pictures drawn in code")


def reference_of(model: TinyNet, samples: SampleSet) -> dict[str, Array]:
    """What :func:`export.parity.check_parity` compares with: inputs and PyTorch's outputs."""
    images = Preprocessor(PREPROCESS)(samples.images)
    with torch.no_grad():
        return {"embed/image": images, "embed/embedding": model.embed(torch.from_numpy(images)).numpy()}


def feeds_of(samples: SampleSet, *, batch: int = 4) -> Sequence[Mapping[str, Array]]:
    """Batches of preprocessed images."""
    images = Preprocessor(PREPROCESS)(samples.images)
    return [{"image": images[start : start + batch]} for start in range(0, len(images), batch)]


def write_pictures(folder: Path, samples: SampleSet) -> Path:
    """Save the pictures as PNG files, one sub-folder for each label."""
    import cv2

    for index, (image, label) in enumerate(zip(samples.images, samples.labels, strict=True)):
        path = folder / label / f"{index:03}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        assert cv2.imwrite(str(path), image)
    return folder
