"""Tensors of pixels at rest are bit-equal when they are read, and hostile ones are refused."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from runtime.bundle.bundle import GOLDEN, Bundle
from runtime.bundle.spec import Preprocess
from runtime.common.arrays import write_arrays
from runtime.common.levels import compact, expand
from runtime.errors import IntegrityError
from runtime.images.preprocess import Preprocessor

from bundles import Array, replace_file

IMAGE = "embed/image"
STORED = {f"{IMAGE}/indices", f"{IMAGE}/levels"}
SPECIAL = np.array([0.0, -0.0, np.inf, -np.inf, np.nan, 1e-45, 3e38, -1.5], np.float32)


def opened(stored: Mapping[str, Array], max_bytes: int = 1 << 30) -> dict[str, Array]:
    return expand(stored, error=IntegrityError, max_bytes=max_bytes, where="golden.npz")


def bits(array: Array) -> Array:
    return array.view(np.uint32)


def photographs(count: int = 3) -> Array:
    rng = np.random.default_rng(0)
    images = [rng.integers(0, 256, (40, 30, 3), np.uint8) for _ in range(count)]
    return Preprocessor(Preprocess(32, 24, mean=(0.4, 0.5, 0.6), std=(0.2, 0.3, 0.4), fit="letterbox"))(images)


@given(
    seed=st.integers(0, 1 << 30),
    shape=st.tuples(st.integers(1, 3), st.integers(1, 4), st.integers(1, 12), st.integers(1, 12)),
    values=st.integers(1, 300),
    special=st.integers(0, len(SPECIAL)),
)
@settings(max_examples=100, deadline=None)
def test_what_is_read_is_bit_equal(seed: int, shape: tuple[int, ...], values: int, special: int) -> None:
    rng = np.random.default_rng(seed)
    # Any bits at all: also several kinds of NaN, and numbers that are no longer normal.
    levels = rng.integers(0, 1 << 32, (shape[1], values), np.uint32).view(np.float32)
    levels[:, :special] = SPECIAL[:special][: levels.shape[1]]
    array = np.stack([np.stack([rng.choice(row, shape[2:]) for row in levels]) for _ in range(shape[0])])
    other = rng.random((2, 5), np.float32)
    restored = opened(compact({IMAGE: array, "embed/embedding": other}))
    assert list(restored) == [IMAGE, "embed/embedding"]
    assert restored[IMAGE].dtype == np.float32
    np.testing.assert_array_equal(bits(restored[IMAGE]), bits(array))
    assert restored["embed/embedding"] is other


def test_preprocessed_images_take_a_quarter() -> None:
    image = photographs()
    stored = compact({IMAGE: image})
    assert set(stored) == STORED
    assert sum(array.nbytes for array in stored.values()) < 0.35 * image.nbytes
    np.testing.assert_array_equal(bits(opened(stored)[IMAGE]), bits(image))


@pytest.mark.parametrize(
    "array",
    [
        np.random.default_rng(0).random((1, 3, 32, 32), np.float32),  # more values than a pixel
        np.zeros((1, 3, 1, 1), np.float32),  # would not become smaller
        np.zeros((0, 3, 32, 32), np.float32),
        np.zeros((2, 3, 32, 32), np.float16),
        np.zeros((2, 32, 32), np.float32),
    ],
    ids=["values", "small", "empty", "half", "rank"],
)
def test_other_arrays_stay_as_they_are(array: Array) -> None:
    assert compact({IMAGE: array}) == {IMAGE: array}
    assert opened({IMAGE: array}) == {IMAGE: array}


def damaged(change: Callable[[dict[str, Array]], object]) -> dict[str, Array]:
    stored = compact({IMAGE: photographs()})
    change(stored)
    return stored


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda stored: stored.pop(f"{IMAGE}/levels"), "no levels"),
        (lambda stored: stored.update({IMAGE: photographs()}), "twice"),
        (lambda stored: stored.update({f"{IMAGE}/levels": np.zeros((3, 1), np.float32)}), "beyond the 1 levels"),
        (lambda stored: stored.update({f"{IMAGE}/levels": np.zeros((3, 0), np.float32)}), "needed"),
        (lambda stored: stored.update({f"{IMAGE}/levels": np.zeros((2, 256), np.float32)}), "needed"),
        (lambda stored: stored.update({f"{IMAGE}/levels": np.zeros((3, 257), np.float32)}), "needed"),
        (lambda stored: stored.update({f"{IMAGE}/levels": np.zeros((3, 256), np.float64)}), "needed"),
        (lambda stored: stored.update({f"{IMAGE}/indices": np.zeros((3, 32, 24), np.uint8)}), "needed"),
        (lambda stored: stored.update({f"{IMAGE}/indices": np.zeros((1, 3, 4, 4), np.int64)}), "needed"),
    ],
)
def test_damaged_arrays_are_refused(change: Callable[[dict[str, Array]], object], message: str) -> None:
    with pytest.raises(IntegrityError, match=message):
        opened(damaged(change))


def test_what_unpacks_to_too_much_is_refused() -> None:
    stored = compact({IMAGE: photographs()})
    size = photographs().nbytes + stored[f"{IMAGE}/levels"].nbytes
    assert opened(stored, max_bytes=size)
    with pytest.raises(IntegrityError, match=f"unpack to {size} bytes; at most {size - 1}"):
        opened(stored, max_bytes=size - 1)


def test_a_bundle_is_read_in_both_forms(tiny_bundle: Path) -> None:
    golden = Bundle(tiny_bundle).golden()
    pixels = np.round(8 * golden[IMAGE])
    for form in (compact, dict):
        arrays = form({**golden, IMAGE: pixels})
        assert (IMAGE in arrays) == (form is dict)
        write_arrays(tiny_bundle / GOLDEN, arrays)
        replace_file(tiny_bundle, GOLDEN, (tiny_bundle / GOLDEN).read_bytes())
        restored = Bundle(tiny_bundle).golden()
        assert set(restored) == set(golden)
        np.testing.assert_array_equal(restored[IMAGE], pixels)
