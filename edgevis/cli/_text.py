"""A result as a picture, and the table that results are rows of."""

from __future__ import annotations

from typing import cast

from edgevis import Predictor
from runtime.images.decode import Image
from runtime.results import Ranking, Result

HEADERS = ("image", "label", "score", "ms")
WIDEST = 60
"""Characters of the widest column."""


def drawn(result: Result, image: Image, pictures: dict[str, Image] | None) -> Image:
    """The annotated image; with ``pictures`` a strip of what is enrolled below it."""
    return result.plot(image) if pictures is None else cast(Ranking, result).plot(image, pictures)


def label_width(predictor: Predictor) -> int:
    """Width of the label column, estimated before the rows are known."""
    return min(max([len("unknown"), *map(len, predictor.labels)]), WIDEST)
