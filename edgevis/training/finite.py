"""Detects diverged trainings before their weights are stored or evaluated."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
from torch import Tensor, nn, optim

from edgevis.state_dict import non_finite
from runtime.common.arrays import Array
from runtime.errors import EdgevisError


class TrainingError(EdgevisError):
    """A training cannot go on."""


def non_finite_state(parts: Mapping[str, nn.Module], optimizer: optim.Optimizer) -> str:
    """Which parameter, buffer or moment of the optimiser is not finite, in words; empty where all are.

    One pass over all of them: for each epoch, not for each step.
    """
    tensors: dict[str, Tensor] = {}
    names: dict[Tensor, str] = {}
    for part, module in parts.items():
        behind = "" if part == "model" else f"{part}."
        tensors |= {f"{behind}{key}": tensor for key, tensor in module.state_dict().items()}
        names |= {parameter: f"{behind}{key}" for key, parameter in module.named_parameters()}
    for parameter, state in optimizer.state.items():
        for key, value in state.items():
            if isinstance(value, Tensor):
                tensors[f"{key} of {names.get(parameter, '?')}"] = value
    return non_finite(tensors)


def diverged(what: str, said: str, *, checkpoint: str) -> TrainingError:
    """The error that ends a training.

    Args:
        what: What was found, such as "the loss is not finite in epoch 2, step 3".
        said: Of :func:`non_finite_state`.
        checkpoint: What the last checkpoint is of, such as "epoch 1"; empty where there is none.
    """
    weights = said or "all weights are finite"
    left = f"the checkpoint of {checkpoint} is whole" if checkpoint else "there is no checkpoint yet"
    return TrainingError(
        f"{what}; {weights}; {left}. Begin again in another --output with a smaller learning_rate or clip_norm"
        + (", or from that checkpoint's weights with --weights" if checkpoint else "")
    )


def require_finite(values: Array, what: str) -> None:
    """Refuse to evaluate outputs that are NaN or infinite: comparisons with NaN are false, which looks like a figure.

    Args:
        values: (N, ...) floats, a row for each image.
        what: What they are, such as "the model's embeddings".

    Raises:
        TrainingError: Some are not finite.
    """
    finite = np.isfinite(values)
    if not finite.all():
        rows = int((~finite.reshape(len(values), -1).all(1)).sum())
        raise TrainingError(
            f"{what} of {rows} of {len(values)} images hold NaN or infinity: these weights cannot be evaluated. Take a "
            "checkpoint of an earlier epoch, or begin again with a smaller learning_rate"
        )
