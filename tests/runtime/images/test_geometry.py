"""The place of an image in a graph's input, and boxes mapped to the input and back."""

from __future__ import annotations

from typing import get_args

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from runtime.bundle.identity import encoder_identity
from runtime.bundle.spec import Align, Deployment, Fit, Graph, Preprocess, TensorSpec
from runtime.common.json_data import from_json, to_json
from runtime.errors import SchemaError
from runtime.images.preprocess import Preprocessor

SIDES = st.integers(1, 3000)


@given(
    size=st.tuples(SIDES, SIDES),
    target=st.tuples(st.integers(1, 700), st.integers(1, 700)),
    fit=st.sampled_from(get_args(Fit)),
    align=st.sampled_from(get_args(Align)),
    seed=st.integers(0, 99),
)
@settings(max_examples=300)
def test_boxes_come_back(size: tuple[int, int], target: tuple[int, int], fit: Fit, align: Align, seed: int) -> None:
    spec = Preprocess(*target, fit=fit, align=align if fit == "letterbox" else "center")
    geometry = Preprocessor(spec).geometry(size)
    boxes = np.random.default_rng(seed).uniform(-10, max(size) + 10, (20, 4))
    there = geometry.to_input(boxes)
    np.testing.assert_allclose(geometry.to_image(there), boxes, rtol=1e-9, atol=1e-6)
    # In float32, as a graph gives them: within the rounding of the largest coordinate.
    largest = np.abs(there).max() / min(geometry.scale) + max(size)
    back = geometry.to_image(there.astype(np.float32))
    np.testing.assert_allclose(back, boxes, atol=largest * 2.0**-23)
    if fit != "center-crop":  # all of the image is inside the input
        corner = geometry.to_input(np.array([0.0, 0.0, size[1], size[0]]))
        assert (corner >= -1e-9).all()
        assert (corner <= np.array((target[1], target[0]) * 2) + 1e-6).all()


@pytest.mark.parametrize("align", get_args(Align))
@pytest.mark.parametrize("size", [(60, 200), (200, 60), (37, 91), (416, 416), (1000, 3), (1, 1), (832, 416)])
def test_the_box_of_the_image_is_where_its_pixels_are(align: Align, size: tuple[int, int]) -> None:
    spec = Preprocess(416, 416, scale=1.0, fit="letterbox", align=align, pad_value=0)
    preprocess = Preprocessor(spec)
    seen = preprocess([np.full((*size, 3), 255, np.uint8)])[0, 0] > 0
    rows, columns = np.flatnonzero(seen.any(axis=1)), np.flatnonzero(seen.any(axis=0))
    corner = preprocess.geometry(size).to_input(np.array([0.0, 0.0, size[1], size[0]]))
    expected = [columns[0], rows[0], columns[-1] + 1, rows[-1] + 1]
    np.testing.assert_allclose(corner, expected, atol=1e-9)
    assert (rows[0], columns[0]) == (0, 0) or align == "center"


@pytest.mark.parametrize("fit", get_args(Fit))
def test_a_marked_place_is_found_again(fit: Fit) -> None:
    """A bright square in a large picture: its box by the pixels of the input, mapped back."""
    image = np.zeros((480, 640, 3), np.uint8)
    image[200:280, 240:400] = 255
    preprocess = Preprocessor(Preprocess(96, 128 if fit == "stretch" else 96, scale=1.0, fit=fit, pad_value=0))
    seen = preprocess([image])[0, 0] > 127
    rows, columns = np.flatnonzero(seen.any(axis=1)), np.flatnonzero(seen.any(axis=0))
    box = np.array([columns[0], rows[0], columns[-1] + 1, rows[-1] + 1])
    back = preprocess.geometry((480, 640)).to_image(box)
    np.testing.assert_allclose(back, [240, 200, 400, 280], atol=640 / 96 / 2)


@pytest.mark.parametrize(
    ("size", "expected"),
    [((427, 640), (277, 416)), ((640, 427), (416, 277)), ((333, 333), (416, 416)), ((1, 999), (1, 416))],
)
def test_sides_at_the_top_left_are_cut_to_whole_pixels(size: tuple[int, int], expected: tuple[int, int]) -> None:
    """As the published detectors resize: 427 * 0.65 = 277.55 becomes 277, which in the centre would be 278."""
    place = Preprocessor(Preprocess(416, 416, fit="letterbox", align="top-left")).geometry(size)
    assert (place.height, place.width, place.top, place.left) == (*expected, 0, 0)


def test_alignment_is_checked_and_read() -> None:
    spec = Preprocess(8, 8, fit="letterbox", align="top-left")
    assert from_json(Preprocess, to_json(spec)) == spec
    written_before = {key: value for key, value in to_json(spec).items() if key != "align"}
    assert from_json(Preprocess, written_before).align == "center"
    with pytest.raises(SchemaError, match="align is 'bottom'; allowed: center, top-left"):
        Preprocess(8, 8, fit="letterbox", align="bottom")
    with pytest.raises(SchemaError, match="align is 'top-left' with fit 'stretch'; only 'letterbox' has it"):
        Preprocess(8, 8, align="top-left")


def test_enrolments_of_before_alignment_keep_their_encoder() -> None:
    """The identity does not change with a field that has its default, and does with one that has not."""
    spec = Preprocess(8, 8, fit="letterbox")
    graph = Graph("embed", (spec.input,), (TensorSpec("embedding", "float32", ("N", 4)),))
    data = to_json(Deployment("reid", (graph,), spec))
    identity = encoder_identity("model", data, "0" * 64)
    assert identity == "51d4c433b924a4af3627548c1437494493b2c1af4771cafa835da86c67765ebd"
    del data["preprocess"]["align"]
    assert encoder_identity("model", data, "0" * 64) == identity
    data["preprocess"]["align"] = "top-left"
    assert encoder_identity("model", data, "0" * 64) != identity
