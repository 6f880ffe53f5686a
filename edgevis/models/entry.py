"""What a model file declares about each model it builds."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from torch import nn

from runtime.spec import Deployment


@dataclass(frozen=True, slots=True)
class ModelEntry:
    """One model that :func:`edgevis.models.create` can build.

    Attributes:
        name: The model's public name, e.g. ``"osnet-x0-25"``.
        build: Makes the module with random weights; its keyword arguments are the model's options.
        deployment: What the runtime must know of it.
        paper: Authors, title, venue, year.
        licence: SPDX identifier of the code of the model and of the weights that ship with it.
        parameters: Trainable and frozen parameters of the default build.
        weights: The file in ``edgevis/weights/`` that ships with the package, or None.
    """

    name: str
    build: Callable[..., nn.Module]
    deployment: Deployment
    paper: str
    licence: str
    parameters: int
    weights: str | None = None
