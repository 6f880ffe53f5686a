"""Losses in float32, whatever precision the model runs in."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor


def in_float32(criterion: Callable[..., Any], *inputs: Tensor | Sequence[Tensor], **options: Any) -> Any:
    """The loss of a model's outputs, computed in float32 and outside of mixed precision.

    Sums over many values, logarithms and distances lose what matters in 16 bits, and a loss that autocast reaches into
    has some of its tensors in 16 bits and some in 32.

    Args:
        criterion: The loss.
        inputs: Its positional arguments: tensors, or sequences of them. Integers stay as they are.
        options: Its keyword arguments.
    """
    first = inputs[0] if isinstance(inputs[0], Tensor) else inputs[0][0]
    with torch.autocast(first.device.type, enabled=False):
        return criterion(*(_float(value) for value in inputs), **options)


def _float(value: Tensor | Sequence[Tensor]) -> Tensor | tuple[Tensor, ...]:
    if isinstance(value, Tensor):
        return value.float() if value.is_floating_point() else value
    return tuple(part.float() for part in value)
