"""Compare the calibration images with the training images by the spread of activations.

A model with batch normalisation carries the spread of every channel over its training images. Where the calibration
images spread the channels much less, or much more, INT8's ranges are not those of the task: values beyond them are cut
off in use. Measured on OSNet x0.25 with the weights that ship, median over all channels of the spread on the images to
the spread in training: persons 0.96, in grey 0.93, at a third of the light 0.88, photographs of other things 0.91; at
a sixteenth of the light 0.62, noise 0.48, black 0.37, white 0.32.
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

_IMAGES = 16
_BATCH = 8


def spread_ratio(module: nn.Module, deployment: Deployment, samples: SampleSet) -> float | None:
    """The median, over the first graph's channels, of the ratio of their spread on the images to that in training.

    None for a model without batch normalisation, and for one whose first graph takes more than the image.
    """
    graph = deployment.graphs[0]
    if [tensor.name for tensor in graph.inputs] != ["image"]:
        return None
    ratios: list[Tensor] = []

    def note(norm: nn.Module, inputs: tuple[Tensor, ...]) -> None:
        (values,) = inputs
        axes = [0, *range(2, values.ndim)]
        if values.numel() == values.shape[1] or not isinstance(norm, _BatchNorm) or norm.running_var is None:
            return  # one value has no spread
        ratios.append(values.std(axes) / torch.sqrt(norm.running_var + norm.eps))

    hooks = [norm.register_forward_pre_hook(note) for norm in module.modules() if isinstance(norm, _BatchNorm)]
    try:
        few = samples.subset(range(min(len(samples), _IMAGES)))
        images = Preprocessor(deployment.preprocess)(few.images)
        with torch.no_grad():
            for start in range(0, len(images), _BATCH):
                getattr(module, graph.name)(torch.from_numpy(images[start : start + _BATCH]))
    finally:
        for hook in hooks:
            hook.remove()
    return float(np.median(torch.cat(ratios).numpy())) if ratios else None


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
