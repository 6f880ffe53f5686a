"""Freezes parts of a model during training."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from runtime.errors import InputError


def freeze(model: nn.Module, prefixes: Sequence[str]) -> int:
    """Disable gradients of the parameters behind the prefixes; autograd then stores no activations for them.

    Args:
        model: Whose parameters.
        prefixes: Of their names, whole parts between dots: ``blocks.1`` is not ``blocks.10``.

    Returns:
        How many parameters are behind them.

    Raises:
        InputError: A prefix is no parameter's, or no parameter is left to train.
    """
    named = dict(model.named_parameters())
    frozen: set[str] = set()
    for prefix in prefixes:
        matching = {name for name in named if f"{name}.".startswith(f"{prefix}.")}
        if not matching:
            # The module of each parameter, two levels deep.
            modules = dict.fromkeys(".".join(name.split(".")[:-1][:2]) for name in named)
            raise InputError(
                f"recipe: frozen has {prefix!r}, which no parameter of a {type(model).__name__} has before it; "
                f"its prefixes: {', '.join(modules)}"
            )
        frozen |= matching
    if prefixes and not any(parameter.requires_grad for name, parameter in named.items() if name not in frozen):
        raise InputError(f"recipe: frozen is {', '.join(prefixes)}, which leaves nothing to train")
    for name in frozen:
        named[name].requires_grad_(False)
    return sum(named[name].numel() for name in frozen)


def train_but_frozen(module: nn.Module) -> None:
    """``module.train()``, but batch norms without a trained parameter stay in evaluation mode: statistics and all."""
    module.train()
    for part in module.modules():
        if isinstance(part, _BatchNorm):
            parameters = list(part.parameters())
            if parameters and not any(parameter.requires_grad for parameter in parameters):
                part.eval()


@torch.no_grad()
def measure_new_statistics(model: nn.Module, images: Iterable[Tensor]) -> int:
    """Give the batch norms that have seen nothing the statistics of images; the others keep theirs.

    A part that is new beside trained ones would otherwise scale nothing. What is new is recognised by a mean of 0 and a
    variance of 1 throughout.

    Args:
        model: Run by ``model.pooled``.
        images: Batches (N, 3, h, w) float32, as it takes them.

    Returns:
        The number of new batch norms.
    """
    new = [part for part in model.modules() if isinstance(part, nn.BatchNorm2d) and _unused(part)]
    kept = [part.momentum for part in new]
    model.eval()
    for part in new:
        part.train()
        part.momentum = None  # the mean of all batches
        part.reset_running_stats()
    if new:
        for image in images:
            cast(Any, model).pooled(image)
    for part, momentum in zip(new, kept, strict=True):
        part.eval()
        part.momentum = momentum
    return len(new)


def _unused(norm: nn.BatchNorm2d) -> bool:
    if norm.running_mean is None or norm.running_var is None:
        return False
    return not norm.running_mean.any() and bool((norm.running_var == 1).all())


@torch.no_grad()
def fold_statistics(model: nn.Module) -> None:
    """Move the statistics of all batch norms into scale and shift: the same outputs, and nothing said of any pictures.

    Published weights may carry statistics of pictures under other licences than theirs.
    """
    for part in model.modules():
        if isinstance(part, _BatchNorm) and part.affine and part.running_mean is not None:
            variance = torch.as_tensor(part.running_var)
            scale = part.weight / (variance + part.eps).sqrt()
            part.bias.sub_(part.running_mean * scale)
            part.weight.copy_(scale)
            part.running_mean.zero_()
            variance.fill_(1 - part.eps)
