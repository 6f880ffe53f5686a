"""What a model file declares about each model it builds."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Literal

from torch import nn

from edgevis.models.recipe import Recipe
from runtime.bundle.spec import Deployment, Precision


@dataclass(frozen=True, slots=True)
class PaperCount:
    """The number of parameters that a paper prints for its model.

    Attributes:
        text: As printed, such as ``"7.41 M"``.
        parameters: The printed number, such as 7_410_000.
        counted: What of our model it is to be compared with: all parameters, all but the classifiers, or those that
            are trained (a frozen backbone left out).
        source: Table or section of the paper.
    """

    text: str
    parameters: int
    counted: Literal["total", "without classifier", "trainable"]
    source: str


@dataclass(frozen=True, slots=True)
class ModelEntry:
    """One model that :func:`edgevis.models.create` can build.

    Attributes:
        name: The model's public name, e.g. ``"osnet-x0-25"``; of another package's model its path,
            ``package.module:NAME``.
        build: Makes the module with random weights; its keyword arguments are the model's options.
        deployment: What the runtime must know of it.
        paper: Authors, title, venue, year.
        licence: SPDX identifier of the code of the model and of the weights that ship with it.
        parameters: Trainable and frozen parameters of the default build.
        weights: The file in ``edgevis/weights/`` that ships with the package, the absolute path of one in another
            package, or None.
        deploy: The deployment of a module that was built with other options than the default ones, for models whose
            options change a graph's shapes; None where ``deployment`` holds for all.
        classifier: Prefixes of the names of those parameters that only training needs: heads over the training
            classes, which no exported graph runs.
        added: Prefixes of the names of those parameters that weights published for the network lack; a training that
            starts from these begins them anew.
        class_predictors: Prefixes of the names of those parameters that an exported graph has for each class: their
            first axis is the classes, or several places with the classes innermost. A model that has them takes the
            options ``num_classes`` and ``labels``.
        printed: The parameters that the paper prints; None where it prints none.
        precisions: What a build makes unless it is told; None for what the target makes.
        recipes: How it is trained, by name; ``paper`` and ``small`` where there are any.
    """

    name: str
    build: Callable[..., nn.Module]
    deployment: Deployment
    paper: str
    licence: str
    parameters: int
    weights: str | None = None
    deploy: Callable[[nn.Module], Deployment] | None = None
    classifier: tuple[str, ...] = ()
    added: tuple[str, ...] = ()
    class_predictors: tuple[str, ...] = ()
    printed: PaperCount | None = None
    precisions: tuple[Precision, ...] | None = None
    recipes: Mapping[str, Recipe] = field(default_factory=dict)
