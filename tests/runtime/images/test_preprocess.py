"""Preprocessing against a naive reference: float64, one pixel formula at a time, no OpenCV."""

from __future__ import annotations

import threading
import tracemalloc
from typing import get_args

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from runtime.bundle.spec import Color, Fit, Interpolation, Preprocess
from runtime.images.preprocess import PreparedImages, Preprocessor
from runtime.verification.answers.definition import TOLERANCE, defined_tensor

from bundles import picture

IMAGENET = {"mean": (0.485, 0.456, 0.406), "std": (0.229, 0.224, 0.225)}


def noise(seed: int, height: int, width: int) -> npt.NDArray[np.uint8]:
    return np.random.default_rng(seed).integers(0, 256, (height, width, 3)).astype(np.uint8)


def check(image: npt.NDArray[np.uint8], spec: Preprocess, *, uncut: bool = False) -> None:
    tensor = Preprocessor(spec)([image])
    assert tensor.shape == (1, spec.channels, spec.height, spec.width)
    assert tensor.dtype == np.float32
    level = (np.array(spec.std) / spec.scale)[:, None, None]  # what one grey level is in the tensor, inverted
    difference = np.abs(tensor[0] - defined_tensor(image, spec, uncut=uncut)) * level
    rounding = 0.51 if spec.color == "GRAY" else 0.0  # OpenCV rounds the luma to a whole grey level
    assert difference.max() <= TOLERANCE[spec.interpolation] + rounding + 1e-3, np.unravel_index(
        difference.argmax(), tensor[0].shape
    )


@pytest.mark.parametrize("color", get_args(Color))
@pytest.mark.parametrize("fit", get_args(Fit))
@pytest.mark.parametrize("interpolation", get_args(Interpolation))
def test_every_declaration_against_the_reference(fit: Fit, interpolation: Interpolation, color: Color) -> None:
    for seed, (height, width) in enumerate([(37, 23), (11, 50), (64, 31), (16, 16), (5, 7), (1, 9), (9, 1), (1, 1)]):
        for spec_height, spec_width in [(32, 16), (15, 31), (1, 8), (8, 1)]:
            level = {"mean": (0.4,), "std": (0.2,)} if color == "GRAY" else IMAGENET
            spec = Preprocess(spec_height, spec_width, color, fit=fit, interpolation=interpolation, **level)
            check(noise(seed, height, width), spec)


@given(
    height=st.integers(1, 80),
    width=st.integers(1, 80),
    spec=st.builds(
        Preprocess,
        height=st.integers(1, 40),
        width=st.integers(1, 40),
        color=st.sampled_from(["RGB", "BGR"]),
        scale=st.sampled_from([1 / 255, 1.0, 1 / 128]),
        mean=st.tuples(*[st.floats(-2, 2)] * 3),
        std=st.tuples(*[st.floats(0.1, 2)] * 3),
        fit=st.sampled_from(get_args(Fit)),
        interpolation=st.sampled_from(get_args(Interpolation)),
        pad_value=st.integers(0, 255),
    ),
    seed=st.integers(0, 9),
)
@settings(max_examples=300)
def test_any_shape_against_the_reference(height: int, width: int, spec: Preprocess, seed: int) -> None:
    check(noise(seed, height, width), spec)


def test_normalisation_is_correctly_rounded() -> None:
    """Every pixel value in every channel, at the input's own size, to the last bit of float32."""
    spec = Preprocess(16, 16, "RGB", **IMAGENET)
    image = np.stack([np.arange(256).reshape(16, 16)] * 3, axis=-1).astype(np.uint8)
    np.testing.assert_array_equal(Preprocessor(spec)([image])[0], defined_tensor(image, spec).astype(np.float32))


def test_channel_order() -> None:
    blue = np.zeros((4, 4, 3), np.uint8)
    blue[..., 0] = 255  # OpenCV's first channel
    assert Preprocessor(Preprocess(4, 4, "BGR"))([blue])[0, :, 0, 0].tolist() == [1, 0, 0]
    assert Preprocessor(Preprocess(4, 4, "RGB"))([blue])[0, :, 0, 0].tolist() == [0, 0, 1]
    mean = Preprocess(4, 4, "RGB", mean=(0.0, 0.0, 0.5), std=(1.0, 1.0, 0.25))
    assert Preprocessor(mean)([blue])[0, :, 0, 0].tolist() == [0, 0, 2]


def test_letterbox_pads_evenly_with_the_grey_of_the_declaration() -> None:
    spec = Preprocess(8, 20, scale=1.0, fit="letterbox", pad_value=77)
    tensor = Preprocessor(spec)([np.full((16, 8, 3), 200, np.uint8)])[0, 0]
    assert (tensor[:, :8] == 77).all()
    assert (tensor[:, 8:12] == 200).all()
    assert (tensor[:, 12:] == 77).all()


def test_center_crop_takes_the_centre() -> None:
    image = np.zeros((10, 30, 3), np.uint8)
    image[:, 10:20] = 255
    assert Preprocessor(Preprocess(10, 10, fit="center-crop"))([image]).min() == 1.0


def views() -> dict[str, npt.NDArray[np.uint8]]:
    """(41, 29, 3) pictures as they come out of a frame: none of them is contiguous in memory."""
    frame = noise(3, 120, 90)
    return {
        "crop": frame[13:54, 7:36],
        "mirrored": frame[:41, :29][:, ::-1],
        "upside down": frame[:41, :29][::-1],
        "every other pixel": frame[:82:2, :58:2],
        "rotated": np.rot90(frame[:29, :41]),
        "transposed": frame[:29, :41].transpose(1, 0, 2),
        "channels exchanged": frame[:41, :29][..., ::-1],
        "from CHW": np.ascontiguousarray(frame[:41, :29].transpose(2, 0, 1)).transpose(1, 2, 0),
        "Fortran order": np.asfortranarray(frame[:41, :29]),
        "from BGRA": np.dstack([frame, frame[..., :1]])[:41, :29, :3],
    }


@pytest.mark.parametrize("name", views())
@pytest.mark.parametrize("size", [(32, 16), (41, 29)])
@pytest.mark.parametrize("fit", get_args(Fit))
def test_views_of_a_frame(name: str, size: tuple[int, int], fit: Fit) -> None:
    view = views()[name]
    assert view.shape == (41, 29, 3)
    assert not view.flags.c_contiguous
    preprocess = Preprocessor(Preprocess(*size, fit=fit, **IMAGENET))
    before = view.copy()
    np.testing.assert_array_equal(preprocess([view]), preprocess([np.ascontiguousarray(view)]))
    np.testing.assert_array_equal(view, before)


@pytest.mark.parametrize("size", [(32, 16), (41, 29)])
def test_read_only_images(size: tuple[int, int]) -> None:
    image = noise(1, 41, 29)
    preprocess = Preprocessor(Preprocess(*size))
    expected = preprocess([image])
    image.flags.writeable = False
    np.testing.assert_array_equal(preprocess([image]), expected)


def test_a_batch_is_its_images_one_by_one() -> None:
    preprocess = Preprocessor(Preprocess(32, 16, **IMAGENET))
    images = [picture(seed, height, width) for seed, (height, width) in enumerate([(32, 16), (64, 40), (7, 90)])]
    batch = preprocess(images)
    assert batch.shape == (3, 3, 32, 16)
    np.testing.assert_array_equal(batch, np.concatenate([preprocess([image]) for image in images]))


def test_the_tensor_belongs_to_the_caller() -> None:
    preprocess = Preprocessor(Preprocess(32, 16))
    first = preprocess([picture(1)])
    kept = first.copy()
    preprocess([picture(2)])
    np.testing.assert_array_equal(first, kept)
    image = picture(1)
    fitted = preprocess([image])
    image[:] = 0
    np.testing.assert_array_equal(fitted, kept)


def test_threads_share_one_preprocessor() -> None:
    preprocess = Preprocessor(Preprocess(48, 40, **IMAGENET))
    images = [picture(seed, 90, 70) for seed in range(8)]
    expected = [preprocess([image]) for image in images]
    wrong: list[int] = []

    def work(index: int) -> None:
        wrong.extend(index for _ in range(40) if not np.array_equal(preprocess([images[index]]), expected[index]))

    threads = [threading.Thread(target=work, args=(index,)) for index in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert wrong == []


@pytest.mark.parametrize("fit", get_args(Fit))
@pytest.mark.parametrize("interpolation", get_args(Interpolation))
def test_extreme_proportions(fit: Fit, interpolation: Interpolation) -> None:
    """A detector's box of one row across a wide frame: what is cut before resizing does not show."""
    for height, width in [(1, 300), (300, 1)]:
        spec = Preprocess(8, 4, fit=fit, interpolation=interpolation)
        check(noise(0, height, width), spec, uncut=True)


@pytest.mark.parametrize("shape", [(1, 1920), (1920, 1), (3, 1279)])
def test_extreme_proportions_do_not_take_extreme_memory(shape: tuple[int, int]) -> None:
    # Resized as a whole to cover the input, one row of a frame would take 280 MB and a second.
    preprocess = Preprocessor(Preprocess(224, 224, fit="center-crop"))
    tracemalloc.start()
    try:
        preprocess([noise(0, *shape)])
        peak_bytes = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert peak_bytes < 100 * 224 * 224 * 3


def test_prepared_images_bring_their_tensor_to_the_preprocessor_that_made_it() -> None:
    images = list(np.random.default_rng(0).integers(0, 256, (5, 20, 30, 3), np.uint8))
    preprocess, other = Preprocessor(Preprocess(8, 8)), Preprocessor(Preprocess(4, 4))
    prepared = preprocess.prepare(images)
    assert isinstance(prepared, PreparedImages)
    assert preprocess(prepared) is prepared.tensor
    assert preprocess.prepare(images, at_most=4) is images
    np.testing.assert_array_equal(preprocess(prepared[1:3]), preprocess(images[1:3]))
    np.testing.assert_array_equal(other(prepared), other(images))
    assert len(prepared) == len(list(prepared)) == 5
    assert prepared[4] is images[4]
