"""Masks of images of any size: large ones are resized in strips."""

from __future__ import annotations

import tracemalloc
from pathlib import Path

import cv2
import numpy as np
import pytest

from edgevis import Predictor
from runtime.images import draw
from runtime.images.resize import resize_aligned, rows_aligned, rows_linear, widened
from runtime.tasks import _maps as maps

from bundles import installed
from segmentation_bundles import GREEN, RED, WHITE, overlap, scene, square

pytestmark = pytest.mark.skipif(not installed("onnx"), reason="onnx makes the graphs of these tests")


def test_many_images_of_different_sizes(few_shot: Path) -> None:
    pictures = [scene((RED, 8, 8 * index), height=48 + index, width=96 + 2 * index) for index in range(9)]
    with Predictor(few_shot) as predictor:
        predictor.enroll("red", scene((RED, 8, 8)), masks=square(8, 8))
        for index, result in enumerate(predictor.predict(pictures)):
            assert result.mask.shape == pictures[index].shape[:2]
            assert overlap(result.mask, square(8, 8 * index, *pictures[index].shape[:2])) > 0.6
            alone = predictor.predict(pictures[index])
            assert (alone.mask == result.mask).mean() > 0.999


def test_a_large_image_is_put_together_from_strips(
    few_shot: Path, fixed: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The same result as in one piece: votes are counted over all of the image, whatever strip they fall into."""
    picture = scene((GREEN, 4, 4), (RED, 40, 64), (WHITE, 24, 30), height=71, width=96)
    with Predictor(few_shot) as shots, Predictor(fixed) as classes:
        shots.enroll("thing", [scene((RED, 8, 8)), scene((RED, 8, 8)), scene((GREEN, 8, 8))], masks=[square(8, 8)] * 3)
        shots.enroll("red", scene((RED, 8, 8)), masks=square(8, 8))
        for predictor in (shots, classes):
            whole = predictor.predict(picture)
            drawn = whole.plot(picture)
            for values in (1, 96 * 20, 96 * 300):
                monkeypatch.setattr(maps, "STRIP_VALUES", values)
                monkeypatch.setattr(draw, "_STRIP_PIXELS", values)
                found = predictor.predict(picture)
                np.testing.assert_array_equal(found.label_map, whole.label_map)
                np.testing.assert_array_equal(found.mask, whole.mask)
                np.testing.assert_allclose(found.probability, whole.probability, atol=1e-5)
                assert found.shares == whole.shares
                for part, other in zip(found.to_dict()["found"], whole.to_dict()["found"], strict=True):
                    assert part.pop("probability") == pytest.approx(other["probability"], abs=1e-5)
                    assert part == {name: value for name, value in other.items() if name != "probability"}
                np.testing.assert_array_equal(found.plot(picture), drawn)
                monkeypatch.undo()


def test_a_large_image_takes_little_more_memory_than_its_result(
    few_shot: Path, fixed: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A result has 7 bytes a pixel; to put it together, describe and draw it takes a buffer that does not grow."""
    monkeypatch.setattr(maps, "STRIP_VALUES", 1 << 17)
    monkeypatch.setattr(draw, "_STRIP_PIXELS", 1 << 17)
    picture = np.tile(scene((GREEN, 4, 4), (RED, 40, 64)), (32, 32, 1))
    with Predictor(few_shot) as shots, Predictor(fixed) as classes:
        shots.enroll("thing", [scene((RED, 8, 8))] * 3, masks=[square(8, 8)] * 3)
        shots.enroll("green", scene((GREEN, 8, 8)), masks=square(8, 8))
        for predictor in (shots, classes):
            predictor.predict(picture[:64])
            tracemalloc.start()
            result = predictor.predict(picture)
            predicted = tracemalloc.get_traced_memory()[1]
            result.to_dict()
            described = tracemalloc.get_traced_memory()[1]
            result.plot(picture)
            drawn = tracemalloc.get_traced_memory()[1]
            tracemalloc.stop()
            pixels = picture.shape[0] * picture.shape[1]
            assert predicted < 7 * pixels + (16 << 20)
            assert described < 7 * pixels + (16 << 20)
            assert drawn < 12 * pixels + (16 << 20)


@pytest.mark.parametrize("size", [(1, 500), (500, 1), (2, 40_000), (1, 1)])
def test_slivers(few_shot: Path, fixed: Path, size: tuple[int, int]) -> None:
    picture = np.full((*size, 3), RED, np.uint8)
    with Predictor(few_shot) as shots, Predictor(fixed) as classes:
        shots.enroll("red", scene((RED, 8, 8)), masks=square(8, 8))
        assert shots.predict(picture).mask.all()
        for predictor in (shots, classes):
            result = predictor.predict(picture)
            assert result.mask.shape == result.probability.shape == result.label_map.shape == size
            result.to_dict()
            result.plot(picture)


@pytest.mark.parametrize(
    ("old", "new"), [((5, 7), (11, 3)), ((1, 4), (6, 4)), ((32, 32), (1000, 333)), ((9, 9), (4, 5))]
)
def test_rows_resize_as_the_whole_does(old: tuple[int, int], new: tuple[int, int]) -> None:
    values = np.random.default_rng(0).random(old, np.float32)
    linear = cv2.resize(values, new[::-1], interpolation=cv2.INTER_LINEAR)
    wide = cv2.resize(values, (new[1], old[0]), interpolation=cv2.INTER_LINEAR).reshape(old[0], new[1])
    aligned, across = resize_aligned(values[None], new)[0], widened(values[None], new[1])
    for rows in (slice(0, 1), slice(1, new[0]), slice(new[0] // 2, new[0] // 2 + 1)):
        np.testing.assert_allclose(rows_linear(wide, new[0], rows), linear[rows], atol=1e-5)
        np.testing.assert_allclose(rows_aligned(across, new[0], rows)[0], aligned[rows], atol=1e-5)
