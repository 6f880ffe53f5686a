"""Ray targets of PolarMask against the authors' values."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import pytest

from edgevis.data.polar_targets import (
    BACKGROUND,
    MISSING,
    contour_centre,
    outer_contour,
    polar_targets,
    ray_lengths,
)
from runtime.common.arrays import Array

from locations import GOLDEN_FOLDER

STRIDES = (8, 16, 32, 64, 128)


@pytest.fixture(scope="module")
def golden() -> Iterator[dict[str, Array]]:
    with np.load(GOLDEN_FOLDER / "polarmask.npz") as file:
        yield dict(file)


@pytest.fixture(scope="module")
def contours(golden: dict[str, Array]) -> list[Array]:
    width = int(golden["target/height_width"][1])
    return [outer_contour(mask) for mask in np.unpackbits(golden["target/masks_packed"], axis=-1)[..., :width]]


def points_of(height: int, width: int) -> tuple[Array, Array]:
    points, strides = [], []
    for stride in STRIDES:
        y, x = np.mgrid[: height // stride, : width // stride]
        points.append(np.stack([x.ravel(), y.ravel()], axis=1) * stride + stride // 2)
        strides.append(np.full((x.size, 1), stride))
    return np.concatenate(points).astype(np.float32), np.concatenate(strides).astype(np.float32)


def test_contours_centres_and_rays_are_the_authors(golden: dict[str, Array], contours: list[Array]) -> None:
    for number, contour in enumerate(contours):
        np.testing.assert_array_equal(contour, golden[f"contour/{number}"])
        centre = contour_centre(contour)
        assert list(centre) == golden["target/centres_xy"][number].tolist()
        rays = ray_lengths(contour, np.array([centre], np.float32))
        np.testing.assert_allclose(rays[0], golden[f"contour/{number}_rays_from_centre"], rtol=1e-5)


def test_the_authors_points_learn_the_authors_targets(golden: dict[str, Array], contours: list[Array]) -> None:
    points, strides = points_of(*golden["target/height_width"].tolist())
    classes = golden["target/labels_1based"].astype(np.int64) - 1
    targets = polar_targets(points, strides, contours, classes)
    places = np.flatnonzero(targets[:, 0] != BACKGROUND)
    np.testing.assert_array_equal(places, golden["target/positive_points"])
    np.testing.assert_array_equal(targets[places, 0], golden["target/positive_labels"] - 1)
    np.testing.assert_allclose(targets[places, 1:5], golden["target/positive_ltrb"], rtol=1e-5)
    np.testing.assert_allclose(targets[places, 5:], golden["target/positive_rays"], rtol=1e-5)
    assert not np.delete(targets, places, axis=0)[:, 1:].any()


def test_zero_degrees_points_down_and_rays_without_pixels_are_missing() -> None:
    below, right = np.array([[10, 15]]), np.array([[17, 10]])
    point = np.array([[10, 10]], np.float32)
    rays = ray_lengths(np.concatenate([below, right]), point)[0]
    assert rays[0] == 5
    assert rays[9] == 7
    assert (np.delete(rays, [0, 9]) == np.float32(MISSING)).all()


def test_the_search_of_a_ray_ends_at_three_degrees_and_does_not_wrap() -> None:
    point = np.zeros((1, 2), np.float32)
    at = {degree: np.rint(1000 * np.array([[np.sin(np.deg2rad(degree)), np.cos(np.deg2rad(degree))]])) for degree in
          (7.5, 13.5, 16.5, 359.5)}  # fmt: skip
    lengths = {degree: ray_lengths(pixel.astype(np.int64), point)[0] for degree, pixel in at.items()}
    assert lengths[7.5][1] > 999
    assert lengths[13.5][1] > 999
    assert lengths[16.5].max() < 1
    assert lengths[359.5][0] < 1


def test_a_contour_without_area_has_the_mean_of_its_pixels() -> None:
    assert contour_centre(np.array([[3, 4]])) == (3, 4)
    assert contour_centre(np.array([[3, 4], [4, 4], [5, 4]])) == (4, 4)


def test_nothing_is_learned_where_nothing_is() -> None:
    points, strides = points_of(128, 128)
    assert len(outer_contour(np.zeros((8, 8), np.uint8))) == 0
    targets = polar_targets(points, strides, [], np.zeros(0, np.int64))
    assert (targets[:, 0] == BACKGROUND).all()
    assert not targets[:, 1:].any()


def square_contour(*, half: int) -> Array:
    mask = np.zeros((64, 64), np.uint8)
    mask[32 - half : 33 + half, 32 - half : 33 + half] = 1
    return outer_contour(mask)


@pytest.mark.parametrize("half", [2, 5, 20])
def test_edges_end_every_ray_of_a_square(half: int) -> None:
    point = np.array([[32, 32]], np.float32)
    rays = ray_lengths(square_contour(half=half), point, ends="edges")[0]
    angles = np.deg2rad(10 * np.arange(36))
    np.testing.assert_allclose(rays, half / np.maximum(abs(np.sin(angles)), abs(np.cos(angles))), rtol=1e-6)


def test_pixels_end_few_rays_of_a_small_square() -> None:
    point = np.array([[32, 32]], np.float32)
    missing = {half: (ray_lengths(square_contour(half=half), point) == np.float32(MISSING)).sum() for half in (2, 20)}
    assert missing[2] > 18
    assert missing[20] == 0


def test_of_several_edges_the_farthest_ends_a_ray() -> None:
    """A U that opens downwards: from its left arm to the right the ray crosses both arms."""
    mask = np.zeros((32, 32), np.uint8)
    mask[4:24, 4:24] = 1
    mask[10:24, 9:19] = 0
    rays = ray_lengths(outer_contour(mask), np.array([[6, 18]], np.float32), ends="edges")[0]
    assert rays[9] == 23 - 6
    assert rays[27] == 6 - 4
    assert rays[0] == 23 - 18


def test_edges_end_rays_along_a_line_and_none_beside_it() -> None:
    mask = np.zeros((8, 32), np.uint8)
    mask[3, 4:20] = 1
    rays = ray_lengths(outer_contour(mask), np.array([[8, 3]], np.float32), ends="edges")[0]
    assert rays[9] == 11
    assert rays[27] == 4
    assert (np.delete(rays, [9, 27]) == np.float32(MISSING)).all()


def test_targets_have_the_rays_that_are_asked_for() -> None:
    points, strides = points_of(128, 128)
    contour = square_contour(half=5)
    targets = {
        ends: polar_targets(points, strides, [contour], np.zeros(1, np.int64), ends=ends)
        for ends in ("pixels", "edges")
    }
    learns = targets["edges"][:, 0] == 0
    assert learns.any()
    np.testing.assert_array_equal(targets["pixels"][:, :5], targets["edges"][:, :5])
    assert (targets["edges"][learns, 5:] > 1e-3).all()
    assert not (targets["pixels"][learns, 5:] > 1e-3).all()
