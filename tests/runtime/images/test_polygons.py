"""Masks of polygons: the pixels whose centres are inside, whatever the polygon."""

from __future__ import annotations

import numpy as np
import pytest

from runtime.images.polygons import polygon_area, polygon_ious, polygon_mask, polygon_patch

from bundles import Array

SIZE = (30, 40)


def inside(polygon: Array, x: float, y: float) -> bool:
    """The even-odd rule at one point: how many edges a ray to the left crosses."""
    crossed = 0
    for (x0, y0), (x1, y1) in zip(polygon, np.roll(polygon, -1, axis=0), strict=True):
        if min(y0, y1) <= y < max(y0, y1) and x0 + (y - y0) * (x1 - x0) / (y1 - y0) <= x:
            crossed += 1
    return crossed % 2 == 1


@pytest.mark.parametrize("seed", range(6))
def test_pixels_are_those_whose_centres_are_inside(seed: int) -> None:
    random = np.random.default_rng(seed)
    polygon = random.uniform(-10, 45, (int(random.integers(3, 9)), 2))  # crosses itself, and leaves the image
    expected = [[inside(polygon, x + 0.5, y + 0.5) for x in range(SIZE[1])] for y in range(SIZE[0])]
    mask = polygon_mask(polygon, SIZE)
    assert mask.any()
    np.testing.assert_array_equal(mask, expected)
    rows, columns, part = polygon_patch(polygon, SIZE)
    assert part.shape == (rows.stop - rows.start, columns.stop - columns.start)
    assert part.sum() == mask.sum()


def test_a_box_of_whole_pixels_has_these_pixels() -> None:
    mask = polygon_mask(np.array([[3, 5], [12, 5], [12, 9], [3, 9]], np.float32), SIZE)
    assert mask.sum() == 9 * 4
    assert mask[5:9, 3:12].all()
    assert polygon_area(np.array([[3, 5], [12, 5], [12, 9], [3, 9]])[::-1]) == 36


@pytest.mark.parametrize(
    "polygon",
    [
        np.zeros((0, 2)),
        np.full((4, 2), np.nan),
        np.array([[3.2, 4], [3.3, 4], [3.3, 9], [3.2, 9]]),  # between two centres
        np.array([[50, 50], [60, 50], [60, 60]]),
        np.array([[-5.0, -5], [-1, -5], [-1, -1]]),
        np.array([[1e9, 1e9], [2e9, 1e9], [1e9, 2e9]]),
    ],
)
def test_nothing_is_inside(polygon: Array) -> None:
    assert not polygon_mask(polygon, SIZE).any()


def test_a_polygon_around_the_image_holds_all_of_it() -> None:
    assert polygon_mask(np.array([[-1e9, -1e9], [1e9, -1e9], [1e9, 1e9], [-1e9, 1e9]]), SIZE).all()
    assert polygon_mask(np.array([[-1.0, -1], [50, -1], [50, 50], [-1, 50]]), (0, 0)).shape == (0, 0)


def test_overlaps_of_pairs() -> None:
    square = np.array([[0, 0], [10, 0], [10, 10], [0, 10]], np.float32)
    triangle = square[[0, 1, 2, 2]]
    pairs = [
        (square, square, 1.0),
        (square, square + np.array([5, 0]), 1 / 3),
        (square, triangle, 0.5),
        (square * (1e6, 1e-3), triangle * (1e6, 1e-3), 0.5),
        (square, square + 20, 0.0),
        (square, np.full_like(square, np.nan), 0.0),
        (square * 0, square * 0, 0.0),
        (square * (1, 0), square * (1, 0), 0.0),
    ]
    first, second = (np.stack([pair[place] for pair in pairs] * 40) for place in (0, 1))
    expected = [pair[2] for pair in pairs] * 40
    np.testing.assert_allclose(polygon_ious(first, second), expected, atol=0.02)
    assert polygon_ious(first[:0], second[:0]).shape == (0,)
