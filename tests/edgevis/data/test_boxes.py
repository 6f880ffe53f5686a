"""Boxes around what masks show."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays

from edgevis.data import boxes_from_class_ids, boxes_from_instances
from runtime.errors import InputError

MASKS = np.array(
    [
        [[0, 2, 0, 2], [0, 2, 0, 0], [1, 0, 0, 0]],
        [[0, 0, 0, 0], [0, 0, 0, 0], [0, 0, 0, 0]],
        [[255, 0, 0, 0], [0, 1, 0, 1], [0, 0, 1, 0]],
    ],
    np.uint8,
)


def test_one_box_for_each_class_of_an_image() -> None:
    assert boxes_from_class_ids(MASKS, class_ids=(2, 1)).tolist() == [
        [0, 0, 1, 0, 3, 1],
        [0, 1, 0, 2, 0, 2],
        [2, 1, 1, 1, 3, 2],
    ]


def test_one_box_for_each_region_corners_connect() -> None:
    assert boxes_from_class_ids(MASKS, class_ids=(1, 2), each="region").tolist() == [
        [0, 0, 0, 2, 0, 2],
        [0, 1, 1, 0, 1, 1],
        [0, 1, 3, 0, 3, 0],
        [2, 0, 1, 1, 3, 2],
    ]


def test_nothing_shown_is_no_box() -> None:
    for found in (boxes_from_class_ids(np.zeros((2, 3, 3), bool)), boxes_from_instances(np.zeros((2, 3, 3), int))):
        assert (found.shape, found.dtype) == ((0, 6), np.int64)


_SHAPES = st.tuples(st.integers(1, 2), st.integers(1, 9), st.integers(1, 9))


@given(arrays.arrays(np.uint16, _SHAPES, elements=st.integers(0, 4)))
def test_boxes_of_instances_are_what_a_loop_finds(instances: np.ndarray) -> None:
    expected = []
    for image, mask in enumerate(instances):
        for instance in sorted(set(mask.ravel().tolist()) - {0}):
            rows, columns = np.where(mask == instance)
            expected.append([image, 7, columns.min(), rows.min(), columns.max(), rows.max()])
    assert boxes_from_instances(instances, class_index=7).tolist() == expected


def test_the_loss_takes_them() -> None:
    torch = pytest.importorskip("torch")
    from edgevis import losses

    boxes = torch.from_numpy(boxes_from_class_ids(MASKS, class_ids=(1, 2)))
    assert losses.pairwise_loss(torch.full((3, 2, 3, 4), 0.5), boxes).shape == (2,)


@pytest.mark.parametrize(
    ("masks", "message"),
    [
        (np.zeros((3, 3), int), r"shape \(3, 3\)"),
        (np.full((1, 3, 3), np.nan), "float64"),
        (np.zeros((1, 0, 3), int), r"shape \(1, 0, 3\)"),
        ([], r"shape \(0,\)"),
    ],
)
def test_wrong_masks(masks: object, message: str) -> None:
    for make in (boxes_from_class_ids, boxes_from_instances):
        with pytest.raises(InputError, match=message):
            make(masks)  # type: ignore[arg-type]


def test_wrong_arguments() -> None:
    with pytest.raises(InputError, match="one or more, each once"):
        boxes_from_class_ids(MASKS, class_ids=(1, 1))
    with pytest.raises(InputError, match="one or more, each once"):
        boxes_from_class_ids(MASKS, class_ids=())
    with pytest.raises(InputError, match="allowed: class, region"):
        boxes_from_class_ids(MASKS, each="pixel")  # type: ignore[arg-type]
    with pytest.raises(InputError, match="instances hold -1"):
        boxes_from_instances(-np.ones((1, 2, 2), int))
