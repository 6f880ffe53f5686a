"""Random views of images with boxes: boxes stay on what they are around, and draws are repeatable."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from edgevis.data.detection import box_labels
from edgevis.data.rng import below, draw_at
from edgevis.training.box_views import BoxView, flipped_view, mosaic, random_scale_crop
from edgevis.training.views import random_degradation
from runtime.bundle.spec import Align, Preprocess
from runtime.images.preprocess import Preprocessor

SPEC = Preprocess(96, 128, fit="letterbox", pad_value=0)


def view(box: tuple[int, int, int, int], size: tuple[int, int] = (150, 260), label: int = 0) -> BoxView:
    """A bright rectangle on black."""
    image = np.zeros((*size, 3), np.uint8)
    image[box[1] : box[3], box[0] : box[2]] = 250
    return BoxView(image, box_labels([box], [label]))


def bright(image: np.ndarray) -> list[int]:
    """The box around what is bright."""
    columns, rows = (np.flatnonzero((image[..., 0] > 125).any(axis)) for axis in (0, 1))
    return [columns[0], rows[0], columns[-1] + 1, rows[-1] + 1] if len(columns) else []


@pytest.mark.parametrize("scale", [(1.0, 1.0), (0.1, 2.0), (0.3, 0.3), (3.0, 5.0)])
def test_boxes_stay_around_their_objects(scale: tuple[float, float]) -> None:
    boxes = 0
    for seed in range(40):
        draw = draw_at(seed)
        left, top = below(draw, 200), below(draw, 100)
        original = view((left, top, left + 20 + below(draw, 40), top + 20 + below(draw, 30)))
        changed = flipped_view(random_scale_crop(original, draw, SPEC, scale=scale, visible=0.0), draw)
        assert changed.image.shape == (96, 128, 3)
        expected = bright(changed.image)
        for box in changed.labels.boxes.tolist():
            boxes += 1
            assert expected == pytest.approx(box, abs=1.6)
            assert min(box[:2]) >= 0
            assert box[2] <= 128
            assert box[3] <= 96
        if not len(changed.labels):  # outside, or too small to be learned
            assert not expected or min(expected[2] - expected[0], expected[3] - expected[1]) <= 3
    assert boxes > 10


@pytest.mark.parametrize("align", ["center", "top-left"])
@pytest.mark.parametrize("size", [(150, 200), (97, 211), (211, 97), (31, 40)])
def test_at_scale_one_an_image_is_resized_as_the_predictor_does(align: Align, size: tuple[int, int]) -> None:
    """The same pixels; only their place in the input is drawn."""
    spec = replace(SPEC, align=align)
    noise = np.random.default_rng(0).integers(1, 256, (*size, 3), np.uint8)
    changed = random_scale_crop(BoxView(noise, box_labels([], [])), draw_at(1), spec, scale=(1, 1), visible=0).image
    expected = Preprocessor(spec).fit(noise)
    seen, fitted = (part[(part > 0).any((1, 2))][:, (part > 0).any((0, 2))] for part in (changed, expected))
    np.testing.assert_array_equal(seen, fitted)


def test_boxes_that_are_mostly_outside_are_ignored() -> None:
    ignored = 0
    for seed in range(60):
        changed = random_scale_crop(view((60, 40, 200, 110)), draw_at(seed), SPEC, scale=(2.5, 2.5), visible=0.6)
        for box, is_ignored in zip(changed.labels.boxes, changed.labels.ignored, strict=True):
            share = float((box[2:] - box[:2]).prod()) / (140 * 70 * (2.5 * min(96 / 150, 128 / 260)) ** 2)
            assert is_ignored == (share < 0.6)
            ignored += int(is_ignored)
    assert ignored


def test_a_mosaic_shows_all_four() -> None:
    views = [view((20, 20, 200, 120), label=number) for number in range(4)]
    together = mosaic(views, draw_at(1), SPEC)
    assert together.image.shape == (192, 256, 3)
    assert together.labels.classes.tolist() == [0, 1, 2, 3]
    for x0, y0, x1, y1 in np.rint(together.labels.boxes).astype(int).tolist():
        assert (together.image[y0 + 1 : y1 - 1, x0 + 1 : x1 - 1] > 200).all()
    covered = np.zeros(together.image.shape[:2], bool)
    for x0, y0, x1, y1 in np.rint(together.labels.boxes).astype(int).tolist():
        covered[max(y0 - 1, 0) : y1 + 1, max(x0 - 1, 0) : x1 + 1] = True
    assert not (together.image[~covered] > 125).any()


def test_degradation_is_repeatable_and_grows_with_its_strength() -> None:
    image = np.random.default_rng(0).integers(0, 256, (60, 80, 3), np.uint8)
    assert random_degradation(image, draw_at(0), strength=0) is image
    changes = []
    for strength in (0.2, 1.0):
        first, again = (
            [random_degradation(image, draw_at(seed), strength=strength) for seed in range(20)] for _ in range(2)
        )
        assert all(np.array_equal(a, b) for a, b in zip(first, again, strict=True))
        assert all(part.shape == image.shape and part.dtype == np.uint8 for part in first)
        changes.append(np.mean([np.abs(part.astype(int) - image).mean() for part in first]))
    assert changes[1] > 2 * changes[0] > 0
