"""A result as a picture, and the table that results are rows of."""

from __future__ import annotations

from typing import cast

from edgevis import Predictor
from runtime import tasks
from runtime.images.decode import Image
from runtime.results import Ranking, Result

HEADERS = ("image", "label", "score", "ms")
WIDEST = 60
"""Characters of the widest column."""


def drawn(result: Result, image: Image, pictures: dict[str, Image] | None) -> Image:
    """The annotated image; with ``pictures`` a strip of what is enrolled below it."""
    return result.plot(image) if pictures is None else cast(Ranking, result).plot(image, pictures)


def result_widths(predictor: Predictor) -> tuple[int, int]:
    """Widths of the columns label and score, estimated before the rows are known; negative aligns to the right."""
    label = max([len("unknown"), *map(len, predictor.labels)])
    if tasks.load(predictor.info.task).TRAITS.enrolment == "nothing":  # "12 person" and "0.93 to 0.31"
        return min(label + 3, WIDEST), -12
    return min(label, WIDEST), -6
