"""Augmented views of a training image, and the boxes that follow them."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from edgevis.data.rng import draw_at
from edgevis.training.tasks.segment import Example, fitted, flipped
from edgevis.training.views import (
    color_jitter,
    random_crop,
    random_erasing,
    random_horizontal_flip,
    random_resized_crop,
)
from runtime.bundle.spec import Preprocess
from runtime.images.preprocess import Preprocessor

pytestmark = pytest.mark.torch


def test_views_are_drawn_from_the_position_alone() -> None:
    image = np.random.default_rng(0).integers(0, 256, (60, 40, 3), np.uint8)

    def view(seed: int) -> np.ndarray[Any, Any]:
        draw = draw_at(seed)
        jittered = color_jitter(
            random_horizontal_flip(random_resized_crop(image, draw, height=32, width=16, least=0.4), draw),
            draw,
            strength=0.3,
        )
        return random_erasing(random_crop(jittered, draw, pad=3), draw, chance=1.0)

    assert view(1).shape == (32, 16, 3)
    assert np.array_equal(view(1), view(1))
    assert not np.array_equal(view(1), view(2))
    assert np.array_equal(random_resized_crop(image, draw_at(0), height=60, width=40, least=1.0), image)
    assert color_jitter(image, draw_at(0), strength=0.0) is image


def test_boxes_follow_their_image() -> None:
    mask = np.zeros((20, 30), bool)
    mask[4:8, 6:18] = True
    example = Example(np.zeros((20, 30, 3), np.uint8), mask, np.array([[6, 4, 17, 7]]))
    larger = fitted(example, Preprocessor(Preprocess(40, 60)))
    assert larger.boxes.tolist() == [[12, 8, 35, 15]]
    for columns, both in ((True, False), (False, True), (True, True)):
        turned = flipped(larger, columns=columns, rows=both)
        x1, y1, x2, y2 = turned.boxes[0]
        assert turned.mask[y1 : y2 + 1, x1 : x2 + 1].all()
        assert turned.mask.sum() == (y2 - y1 + 1) * (x2 - x1 + 1)
    assert fitted(example, Preprocessor(Preprocess(2, 3))).boxes.tolist() == [[1, 0, 1, 0]]
