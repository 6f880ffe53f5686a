"""What the encoders for few-shot classification share: options, preprocessing, the graph ``encode``, deployments.

Provenance: our own code.
Licence: this file, as the rest of edgevis.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import cast

from torch import nn

from edgevis.layers.imagenet import MEAN, STD
from edgevis.models.allowed import CLASSES_OR_NONE, whole
from runtime.bundle.spec import Deployment, Graph, Preprocess, TensorSpec

SIDE = 224
SIDES = whole(64, 640, multiple=32)
"""Of an encoder whose last map has a 32nd of the image's sides."""


def check_options(*, num_classes: int, side: int) -> None:
    """Raise a ModelError where an encoder takes no such number of classes (0: no classifier) or no such side."""
    CLASSES_OR_NONE.require("num_classes", num_classes)
    SIDES.require("side", side)


def preprocess(
    side: int = SIDE, *, mean: tuple[float, float, float] = MEAN, std: tuple[float, float, float] = STD
) -> Preprocess:
    """The centre of an image as ``side`` x ``side`` RGB, of ImageNet's mean and deviation or others, 0..1."""
    return Preprocess(height=side, width=side, color="RGB", mean=mean, std=std, fit="center-crop", interpolation="area")


def encode_graph(image: Preprocess, embedding: int, *, float32: bool = False) -> Graph:
    """The graph from an image, as preprocessed, to an embedding (N, ``embedding``) float32.

    Args:
        image: The preprocessing.
        embedding: The embedding's size.
        float32: Whether engines compute the embedding in float32 in every precision.
    """
    output = TensorSpec("embedding", "float32", ("N", embedding))
    return Graph("encode", (image.input,), (output,), float32_outputs=(output.name,) if float32 else ())


def deployment(image: Preprocess, embedding: int, *, float32: bool = False) -> Deployment:
    """The deployment of an encoder with that graph alone; arguments as of :func:`encode_graph`."""
    return Deployment("classify", graphs=(encode_graph(image, embedding, float32=float32),), preprocess=image)


def deployment_by_side(image: Preprocess, embedding: int) -> Callable[[nn.Module], Deployment]:
    """The function of a module, whose ``side`` is its images', that gives its deployment: ``ModelEntry.deploy``.

    Args:
        image: The preprocessing, of any side.
        embedding: The embedding's size.
    """

    def deploy(module: nn.Module) -> Deployment:
        side = cast(int, module.side)
        return deployment(replace(image, height=side, width=side), embedding)

    return deploy
