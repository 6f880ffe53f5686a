"""Custom losses: ``--set loss=package.module:NAME`` names it, and no file of edgevis is edited for it.

``NAME`` is a function, or a subclass of :class:`torch.nn.Module` that is built without arguments; parameters of the
latter are trained and stored with the model's. It is called with the predictions and the targets that the task's recipe
states, in float32, and returns a scalar, or scalars by name whose sum is minimised.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from edgevis.training.precision import in_float32
from runtime.errors import InputError


class FunctionLoss(nn.Module):
    """A function as a module without parameters."""

    def __init__(self, function: Callable[[Tensor, Tensor], Any]) -> None:
        super().__init__()
        self._function = function

    def forward(self, predictions: Tensor, targets: Tensor) -> Any:
        """The function's result."""
        return self._function(predictions, targets)


def custom_loss(name: str) -> nn.Module:
    """The loss that ``package.module:NAME`` names.

    Raises:
        InputError: The module cannot be imported, has no such attribute, or it is no loss.
    """
    module, _, attribute = name.partition(":")
    try:
        value = getattr(importlib.import_module(module), attribute)
    except ImportError as error:
        raise InputError(
            f"the loss {name!r} cannot be imported: {error}; allowed: a module on Python's path"
        ) from error
    except AttributeError as error:
        raise InputError(f"the loss {name!r}: the module {module!r} has no attribute {attribute!r}") from error
    if isinstance(value, type) and issubclass(value, nn.Module):
        try:
            return value()
        except TypeError as error:
            raise InputError(f"the loss {name!r} cannot be built without arguments: {error}") from error
    if isinstance(value, nn.Module) or not callable(value):
        raise InputError(
            f"the loss {name!r} is a {type(value).__name__}; allowed: a function, or a subclass of torch.nn.Module"
        )
    return FunctionLoss(value)


def custom_terms(criterion: nn.Module, predictions: Tensor, targets: Tensor) -> dict[str, Tensor]:
    """The terms of a custom loss by name.

    Raises:
        InputError: It returned something else than a scalar, or scalars by name.
    """
    result = in_float32(criterion, predictions, targets)
    terms = result if isinstance(result, dict) else {"custom": result}
    for name, term in terms.items():
        if not (isinstance(term, Tensor) and term.ndim == 0 and torch.is_floating_point(term)):
            raise InputError(
                f"the loss returned {type(term).__name__} for {name!r}; allowed: a floating-point scalar tensor, or a "
                "dictionary of such by name"
            )
    if not terms:
        raise InputError("the loss returned no terms; allowed: one or more")
    return terms
