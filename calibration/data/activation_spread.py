"""Compare the calibration images with the training images by the spread of activations.

A model with batch normalisation carries the spread of every channel over its training images, unless they were moved
into scale and shift. Where the calibration images spread the channels much less, or much more, INT8's ranges are not
those of the task: values beyond them are cut off in use. Measured on OSNet x0.25 with the published weights, median
over all channels of the spread on the images to the spread in training: persons 0.99, in grey 0.96, at a third of the
light 0.95, at a sixteenth 0.83, photographs of other things 0.92; noise 0.52, black 0.36, white 0.32. A few images may
be unlike the others: ENet's own nuclei, some dark and some bright, come to 0.5 to 3.6 in sixteens and to 0.74 in 64.
"""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from calibration.data.samples import SampleSet
from runtime.bundle.spec import Deployment
from runtime.images.preprocess import Preprocessor

_ALIKE = 0.7
"""The smallest ratio of spreads that counts as alike; the largest one is its reciprocal."""

_IMAGES = 64
_BATCH = 8


def spread_ratio(module: nn.Module, deployment: Deployment, samples: SampleSet) -> float | None:
    """The median, over the first graph's channels and batches, of the ratio of their spread to that in training.

    None for a model whose batch norms say nothing of its training, and for one whose first graph takes more than the
    image.
    """
    graph = deployment.graphs[0]
    if [tensor.name for tensor in graph.inputs] != ["image"]:
        return None
    ratios: list[Tensor] = []

    def note(norm: _BatchNorm, inputs: tuple[Tensor, ...]) -> None:
        (values,) = inputs
        if values.numel() > values.shape[1]:  # one value has no spread
            trained = torch.sqrt(norm.get_buffer("running_var") + norm.eps)
            ratios.append(values.std([0, *range(2, values.ndim)]) / trained)

    norms = [part for part in module.modules() if isinstance(part, _BatchNorm) and _knows_training(part)]
    if not norms:
        return None
    hooks = [norm.register_forward_pre_hook(note) for norm in norms]
    preprocess = Preprocessor(deployment.preprocess)
    try:
        with torch.no_grad():
            for start in range(0, min(len(samples), _IMAGES), _BATCH):
                images = preprocess(samples.images[start : start + _BATCH])
                getattr(module, graph.name)(torch.from_numpy(images))
    finally:
        for hook in hooks:
            hook.remove()
    return float(np.median(torch.cat(ratios).numpy())) if ratios else None


def _knows_training(norm: _BatchNorm) -> bool:
    """Whether a batch norm has statistics that are not neutral: mean 0 and, with or without ``eps``, variance 1."""
    if norm.running_mean is None or norm.running_var is None:
        return False
    return bool(norm.running_mean.any() or ((norm.running_var - 1).abs() > 2 * norm.eps).any())


def unlike_text(module: nn.Module, deployment: Deployment, samples: SampleSet) -> str:
    """A warning if the images are unlike the training images; empty if they are alike or nothing is known."""
    ratio = spread_ratio(module, deployment, samples)
    if ratio is None or _ALIKE <= ratio <= 1 / _ALIKE:
        return ""
    return (
        f"the calibration images are unlike those that the model was trained on: its activations spread {ratio:.2f} "
        f"times as far as in training (like images: {_ALIKE:g} to {1 / _ALIKE:.1f}), so that INT8's ranges may not be "
        "those of the task; calibrate on images as the model will see them"
    )
