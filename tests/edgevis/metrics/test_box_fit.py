"""Box fit against the Dice that it estimates: on planted predictions of drawn objects, and what holds of any mask."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import cv2
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from benchmarks.box_fit import rank_correlation
from edgevis.metrics import box_fit, box_fit_per_volume, dice_per_volume
from runtime.errors import InputError

Mask = NDArray[np.bool_]
Box = tuple[int, int, int, int]

SIDE = 128
SHAPES: dict[str, Callable[[NDArray[np.float64], NDArray[np.float64]], Mask]] = {
    # Of coordinates from -1 to 1 within the box.
    "rectangle": lambda x, y: (abs(x) <= 1) & (abs(y) <= 1),
    "ellipse": lambda x, y: x * x + y * y <= 1,
    "diamond": lambda x, y: abs(x) + abs(y) <= 1,
    "triangle": lambda x, y: (abs(y) <= 1) & (y >= 2 * abs(x) - 1),
    "L": lambda x, y: (abs(x) <= 1) & (abs(y) <= 1) & ((x < 0) | (y > 0)),
}


def dice(found: Mask, target: Mask) -> float:
    return dice_per_volume([found], [target], ["image"])["image"]


def box_of(mask: Mask) -> Box:
    rows, columns = np.flatnonzero(mask.any(1)), np.flatnonzero(mask.any(0))
    return int(columns[0]), int(rows[0]), int(columns[-1]), int(rows[-1])


def objects(shape: str) -> tuple[Mask, list[Box]]:
    """Three objects of one shape and of different sizes, and their boxes."""
    target, boxes = np.zeros((SIDE, SIDE), bool), []
    y, x = np.mgrid[:SIDE, :SIDE] + 0.5
    for left, top, width, height in ((10, 15, 40, 30), (75, 18, 30, 44), (35, 77, 50, 36)):
        mask = SHAPES[shape]((x - left) / width * 2 - 1, (y - top) / height * 2 - 1)
        target |= mask
        boxes.append(box_of(mask))
    return target, boxes


def core(target: Mask, boxes: list[Box], share: float) -> Mask:
    """Each object shrunk to a share of its sides about its middle."""
    found = np.zeros_like(target)
    for x1, y1, x2, y2 in boxes:
        part = target[y1 : y2 + 1, x1 : x2 + 1].astype(np.uint8)
        height, width = (max(1, round(size * share)) for size in part.shape)
        top, left = y1 + (part.shape[0] - height) // 2, x1 + (part.shape[1] - width) // 2
        small = cv2.resize(part, (width, height), interpolation=cv2.INTER_NEAREST) > 0
        found[top : top + height, left : left + width] |= small
    return found


def grown(target: Mask, pixels: int) -> Mask:
    kernel = np.ones((2 * abs(pixels) + 1,) * 2, np.uint8)
    change = cv2.dilate if pixels > 0 else cv2.erode
    return np.asarray(change(target.astype(np.uint8), kernel) > 0)


def predictions(shape: str) -> tuple[Mask, list[Box], dict[str, Mask]]:
    target, boxes = objects(shape)
    draw = np.random.default_rng(0)

    def noise(share: float) -> Mask:
        return np.asarray(draw.random(target.shape) < share)

    two, halves, filled = (np.zeros_like(target) for _ in range(3))
    one_missed = target.copy()
    for x1, y1, x2, y2 in boxes:
        two[[y1, y2], [x1, x2]] = True
        filled[y1 : y2 + 1, x1 : x2 + 1] = True
        left = np.s_[y1 : y2 + 1, x1 : (x1 + x2) // 2 + 1]
        halves[left] = target[left]
    x1, y1, x2, y2 = boxes[0]
    one_missed[y1 : y2 + 1, x1 : x2 + 1] = False
    blobs = cv2.GaussianBlur(draw.standard_normal(target.shape), (0, 0), 3)
    alarms = target.copy()
    alarms[:8] = alarms[-8:] = True
    found = {
        "perfect": target,
        "nothing": np.zeros_like(target),
        "everything": np.ones_like(target),
        "two pixels in each box": two,
        "one object missed": one_missed,
        "left halves": halves,
        "outline": filled & ~grown(filled, -1),
        "false alarms far away": alarms,
        "blobs anywhere": blobs > np.percentile(blobs, 90),
        "shifted a little": np.roll(target, (4, 4), (0, 1)),
        "shifted by half": np.roll(target, (15, 15), (0, 1)),
        "noise of half the pixels in the boxes": filled & noise(0.5),
    }
    found |= {f"core of {share}": core(target, boxes, share) for share in (0.9, 0.8, 0.7, 0.6, 0.5, 0.3)}
    found |= {f"grown by {pixels}": grown(target, pixels) for pixels in (1, 2, 4, 8)}
    found |= {f"noise of {share}": noise(share) for share in (0.005, 0.02, 0.05, 0.1, 0.3, 0.5)}
    found |= {f"perfect with noise of {share}": target ^ noise(share) for share in (0.02, 0.1, 0.3)}
    found["core of 0.6 with noise of 0.02"] = core(target, boxes, 0.6) | noise(0.02)
    return target, boxes, found


@pytest.mark.parametrize("shape", SHAPES)
def test_it_ranks_as_dice_does(shape: str) -> None:
    target, boxes, found = predictions(shape)
    fits = {name: box_fit(mask, boxes) for name, mask in found.items()}
    dices = {name: dice(mask, target) for name, mask in found.items()}
    correlation = rank_correlation(list(fits.values()), list(dices.values()))
    assert correlation is not None
    assert correlation > 0.95
    planted = ("perfect", "core of 0.6", "noise of 0.02", "two pixels in each box")
    assert sorted(planted, key=lambda name: -fits[name]) == sorted(planted, key=lambda name: -dices[name])
    assert fits["perfect"] == max(fits.values())
    assert fits["two pixels in each box"] < 0.01
    assert fits["noise of 0.02"] < 0.1
    assert fits["core of 0.6"] == pytest.approx(dices["core of 0.6"], abs=0.2)
    assert fits["everything"] == pytest.approx(dices["everything"], abs=0.15)


@pytest.mark.parametrize("density", [0.01, 0.02, 0.05, 0.1, 0.2])
@pytest.mark.parametrize("size", [6, 20, 60, 100])
def test_noise_never_beats_a_core(density: float, size: int) -> None:
    """Whatever the object's size: the fault that this measure replaced a measure for."""
    target = np.zeros((SIDE, SIDE), bool)
    target[10 : 10 + size, 20 : 20 + size] = True
    boxes = [box_of(target)]
    noise = np.random.default_rng(size).random(target.shape) < density
    assert box_fit(noise, boxes) < box_fit(core(target, boxes, 0.6), boxes) < box_fit(target, boxes)
    assert box_fit(noise, boxes) == pytest.approx(dice(noise, target), abs=0.15)


def test_images_without_boxes() -> None:
    nothing, one = np.zeros((4, 4), bool), np.eye(4, dtype=bool)
    assert box_fit(nothing, []) == 1.0
    assert box_fit(nothing, np.zeros((0, 4), np.int64), empty=0.5) == 0.5
    assert box_fit(one, []) == 0.0
    assert box_fit(nothing, [0, 0, 3, 3]) == 0.0


def test_slices_of_a_volume_are_summed() -> None:
    first, second = np.zeros((8, 8), bool), np.zeros((8, 8), bool)
    first[1:4, 1:4] = True
    second[0, 0] = True
    found = box_fit_per_volume([first, second, second], [[1, 1, 3, 3], [], []], ["a", "b", "a"])
    assert list(found) == ["a", "b"]
    assert found["a"] == pytest.approx(2 * 9 / (9 + 9 + 1))
    assert found["b"] == 0


def test_a_box_of_one_pixel() -> None:
    found = np.zeros((3, 3), bool)
    found[1, 1] = True
    assert box_fit(found, [1, 1, 1, 1]) == 1.0
    assert box_fit(~found, [1, 1, 1, 1]) == 0.0


@st.composite
def images(draw: st.DrawFn) -> tuple[Mask, list[Box]]:
    height, width = draw(st.integers(1, 24)), draw(st.integers(1, 24))
    random = np.random.default_rng(draw(st.integers(0, 1 << 30)))
    boxes = []
    for _ in range(draw(st.integers(0, 3))):
        (x1, x2), (y1, y2) = (sorted(random.integers(0, size, 2).tolist()) for size in (width, height))
        boxes.append((x1, y1, x2, y2))
    return random.random((height, width)) < draw(st.floats(0, 1)), boxes


@settings(max_examples=150, deadline=None)
@given(images())
def test_of_any_mask(image: tuple[Mask, list[Box]]) -> None:
    found, boxes = image
    width = found.shape[1]
    value = box_fit(found, boxes)
    assert 0 <= value <= 1
    # It does not depend on which side is up or left.
    mirrored = [(width - 1 - x2, y1, width - 1 - x1, y2) for x1, y1, x2, y2 in boxes]
    assert box_fit(found[:, ::-1], mirrored) == pytest.approx(value, abs=1e-12)
    turned = [(y1, x1, y2, x2) for x1, y1, x2, y2 in boxes]
    assert box_fit(found.T, turned) == pytest.approx(value, abs=1e-12)
    # A false alarm never helps.
    outside = np.ones_like(found)
    for x1, y1, x2, y2 in boxes:
        outside[y1 : y2 + 1, x1 : x2 + 1] = False
    assert box_fit(found | outside, boxes) <= value + 1e-12
    assert box_fit(found & ~outside, boxes) >= value - 1e-12
    # As its definition says for one pixel after the other.
    assert value == pytest.approx(by_definition(found, boxes), abs=1e-12)


def by_definition(found: Mask, boxes: list[Box]) -> float:
    """The measure by loops over pixels."""
    height, width = found.shape
    both = total = 0.0
    for x1, y1, x2, y2 in boxes:
        h, w = y2 - y1 + 1, x2 - x1 + 1
        shown = {(r, c) for r in range(h) for c in range(w) if found[y1 + r, x1 + c]}
        total += len(shown)
        regions: list[set[tuple[int, int]]] = []
        left = set(shown)
        while left:
            region, border = set(), [left.pop()]
            while border:
                r, c = border.pop()
                region.add((r, c))
                near = {(r + a, c + b) for a in (-1, 0, 1) for b in (-1, 0, 1)} & left
                left -= near
                border += near
            regions.append(region)
        largest = max(map(len, regions), default=0)
        shape = {place for region in regions if len(region) >= 0.1 * largest for place in region}

        def worth(r: int, c: int, h: int = h, w: int = w) -> float:
            return 1.0 if ((2 * r + 1 - h) / h) ** 2 + ((2 * c + 1 - w) / w) ** 2 <= 1 else 0.5

        filled = 0.0
        for r in range(h):
            for c in range(w):
                across, down = [x for y, x in shape if y == r], [y for y, x in shape if x == c]
                if across and down and min(across) <= c <= max(across) and min(down) <= r <= max(down):
                    filled += worth(r, c)
        both += sum(worth(*place) for place in shape)
        whole = sum(worth(r, c) for r in range(h) for c in range(w))
        size = filled
        for side, crossed in ((h, len({r for r, _ in shape})), (w, len({c for _, c in shape}))):
            size += 2 / 3 * (side - crossed) * filled / crossed if crossed else 0.0
        total += min(max(size, h * w / 2), whole)
    total += sum(
        bool(found[y, x]) and not any(x1 <= x <= x2 and y1 <= y <= y2 for x1, y1, x2, y2 in boxes)
        for y in range(height)
        for x in range(width)
    )
    return 2 * both / total if total else 1.0


@pytest.mark.parametrize(
    ("found", "boxes", "message"),
    [
        (np.zeros((4, 4)), [], r"the mask of image 0 has shape \(4, 4\) and dtype float64"),
        (np.zeros(4, bool), [], r"the mask of image 0 has shape \(4,\)"),
        (np.full((4, 4), 255, np.uint8), [], "the mask of image 0 holds 255 to 255; allowed: 0 and 1"),
        (np.zeros((4, 4), bool), [[0, 0, 1]], r"the boxes of image 0 have shape \(1, 3\)"),
        (np.zeros((4, 4), bool), [[0.0, 0.0, 1.0, 1.0]], "dtype float64; allowed"),
        (np.zeros((4, 4), bool), [[0, 0, 4, 1]], "a box of image 0 is empty or leaves its 4 x 4 pixels"),
        (np.zeros((4, 4), bool), [[2, 0, 1, 1]], "a box of image 0 is empty"),
        (np.zeros((4, 4), bool), [[-1, 0, 1, 1]], "a box of image 0 is empty"),
    ],
)
def test_what_is_no_mask_and_no_box_is_refused(found: object, boxes: object, message: str) -> None:
    with pytest.raises(InputError, match=message):
        box_fit(found, boxes)  # type: ignore[arg-type]


def test_numbers_that_differ_are_refused() -> None:
    mask = np.zeros((2, 2), bool)
    for sizes in ((1, 2, 1), (0, 0, 0)):
        arguments: tuple[list[Any], ...] = [mask] * sizes[0], [[]] * sizes[1], ["a"] * sizes[2]
        with pytest.raises(InputError, match=f"{sizes[0]} predictions, boxes of {sizes[1]} images"):
            box_fit_per_volume(*arguments)
