"""Checks that the losses share.

They look at values, which on an accelerator waits for it once per call; code that ``torch.compile`` traces skips
that part.
"""

from __future__ import annotations

import torch
from torch import Tensor

from runtime.errors import InputError


class NonFiniteError(InputError):
    """A loss was given NaN or infinity."""


def check_rows(name: str, tensor: Tensor) -> None:
    """InputError unless it is a floating-point (B, d) with B and d >= 1 and finite values."""
    if tensor.dim() != 2 or 0 in tensor.shape:
        raise InputError(f"{name} has shape {tuple(tensor.shape)}; allowed: (B, d) with B and d >= 1")
    check_values(name, tensor)


def check_values(name: str, tensor: Tensor) -> None:
    """InputError unless the values are floating-point, NonFiniteError unless they are finite."""
    if not tensor.is_floating_point():
        raise InputError(f"{name} is of {tensor.dtype}; allowed: a floating-point dtype")
    if not torch.compiler.is_compiling() and not bool(tensor.isfinite().all()):
        raise NonFiniteError(f"{name} holds NaN or infinity: training has diverged, or its input did")


def check_labels(labels: Tensor, rows: int, classes: int | None = None) -> None:
    """InputError unless labels are integers (rows,), and from 0 to classes - 1 if ``classes`` is given."""
    if labels.is_floating_point() or labels.is_complex() or labels.dtype == torch.bool:
        raise InputError(f"labels are of {labels.dtype}; allowed: integers")
    if labels.shape != (rows,):
        raise InputError(f"labels have shape {tuple(labels.shape)} for {rows} rows; allowed: ({rows},)")
    if classes is None or torch.compiler.is_compiling():
        return
    low, high = int(labels.min()), int(labels.max())
    if low < 0 or high >= classes:
        raise InputError(f"labels go from {low} to {high}; allowed: 0 to {classes - 1}, as there are {classes} logits")
