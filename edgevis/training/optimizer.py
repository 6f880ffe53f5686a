"""The optimiser that a recipe asks for."""

from __future__ import annotations

from typing import Any

from torch import nn, optim

from edgevis.models.recipe import Recipe

_FACTOR = "factor"  # of a group: what the learning rate is multiplied by


def optimizer_of(module: nn.Module, recipe: Recipe) -> optim.Optimizer:
    """An optimiser of the module's parameters that are not frozen, in groups where the recipe treats them unlike."""
    groups: dict[tuple[float, bool], list[nn.Parameter]] = {}
    for name, parameter in module.named_parameters():
        if parameter.requires_grad:
            undecayed = not recipe.decay_vectors and parameter.ndim <= 1
            groups.setdefault((recipe.rate_factor(name), undecayed), []).append(parameter)
    trained: list[dict[str, Any]] = [
        {"params": parameters, _FACTOR: factor, **({"weight_decay": 0.0} if undecayed else {})}
        for (factor, undecayed), parameters in sorted(groups.items(), key=lambda item: item[0])
    ]
    betas = (recipe.momentum, recipe.adam_beta2)
    if recipe.optimizer == "sgd":
        return optim.SGD(trained, recipe.learning_rate, momentum=recipe.momentum, weight_decay=recipe.weight_decay)
    kind = optim.Adam if recipe.optimizer == "adam" else optim.AdamW
    return kind(trained, recipe.learning_rate, betas=betas, weight_decay=recipe.weight_decay)


def set_rate(optimizer: optim.Optimizer, rate: float) -> None:
    """Set the learning rate, times each group's factor."""
    for group in optimizer.param_groups:
        group["lr"] = rate * group[_FACTOR]
