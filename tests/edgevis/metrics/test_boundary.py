"""Boundary IoU by hand: strips of drawn squares, the image's border, sums over slices, and what is refused."""

from __future__ import annotations

import numpy as np
import pytest

from edgevis.metrics import boundary, boundary_iou_per_volume
from runtime.common.arrays import Array
from runtime.errors import InputError

SHAPE = (60, 80)  # a diagonal of 100: strips of 2 pixels


def square(top: int, left: int, side: int) -> Array:
    mask = np.zeros(SHAPE, np.bool_)
    mask[top : top + side, left : left + side] = True
    return mask


def test_a_strip_along_the_outline() -> None:
    mask = square(10, 20, 12)
    assert np.array_equal(boundary(mask), mask & ~square(12, 22, 8))
    assert np.array_equal(boundary(mask, share=0), mask & ~square(11, 21, 10))
    # Thinner than two strips: all of it.
    assert np.array_equal(boundary(square(3, 3, 4)), square(3, 3, 4))
    assert not boundary(np.zeros(SHAPE, np.bool_)).any()


def test_the_image_s_border_is_an_outline() -> None:
    assert np.array_equal(boundary(np.ones(SHAPE, np.bool_)).sum(), 60 * 80 - 56 * 76)
    mask = np.zeros(SHAPE, np.bool_)
    mask[:, 40:] = True
    strip = mask.copy()
    strip[2:-2, 42:-2] = False
    assert np.array_equal(boundary(mask), strip)


def test_by_hand() -> None:
    """A square of 20 and one that is a pixel larger on all sides: IoU 0.83, strips that share one of three rings."""
    target, prediction = square(20, 30, 20), square(19, 29, 22)
    shared = 20 * 20 - 18 * 18
    either = 22 * 22 - 16 * 16
    values = boundary_iou_per_volume([prediction, target], [target, target], ["a", "b"])
    assert values == {"a": pytest.approx(shared / either), "b": 1.0}
    # Slices of one volume: sums, not means.
    both = boundary_iou_per_volume([prediction, target], [target, target], ["a", "a"])
    ring = 20 * 20 - 16 * 16
    assert both == {"a": pytest.approx((shared + ring) / (either + ring))}


def test_nothing_and_nothing_agree() -> None:
    nothing = np.zeros(SHAPE, np.bool_)
    assert boundary_iou_per_volume([nothing, nothing], [nothing, square(5, 5, 9)], ["a", "b"]) == {"a": 1.0, "b": 0.0}


def test_what_is_refused() -> None:
    mask = square(5, 5, 9)
    with pytest.raises(InputError, match="dtype float64"):
        boundary(mask * 1.0)
    with pytest.raises(InputError, match="share is -1"):
        boundary(mask, share=-1)
    with pytest.raises(InputError, match="1 predictions, 1 targets and 2 names"):
        boundary_iou_per_volume([mask], [mask], ["a", "b"])
    with pytest.raises(InputError, match="slice 0 is"):
        boundary_iou_per_volume([mask], [mask[1:]], ["a"])
