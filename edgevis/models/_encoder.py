"""What the encoders for few-shot classification share: sides, preprocessing and the graph ``encode``.

Provenance: our own code.
Licence: this file, as the rest of edgevis.
"""

from __future__ import annotations

from edgevis.layers.imagenet import MEAN, STD
from edgevis.models.allowed import whole
from runtime.bundle.spec import Deployment, Graph, Preprocess, TensorSpec

SIDE = 224
SIDES = whole(64, 640, multiple=32)
"""Of an encoder whose last map has a 32nd of the image's sides."""


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
