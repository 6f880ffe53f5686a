"""The result of a detector: indexing, drawing, cropping, plain data."""

from __future__ import annotations

import json

import numpy as np
import pytest

from edgevis import Detection, Detections, InputError
from runtime.images.draw import color_of

from bundles import picture

LABELS = ("person", "dog", "person")
FOUND = Detections(
    np.array([[10, 20, 50, 90], [60.4, 30.6, 99.5, 80], [0, 0, 160, 120]], np.float32),
    np.array([0.875, 0.75, 0.5], np.float32),
    LABELS,
    np.array([0, 16, 0]),
    {"inference": 1.5},
)
NOTHING = FOUND[:0]


def test_plain_data_for_json() -> None:
    assert json.loads(json.dumps(FOUND.to_dict())) == {
        "detections": [
            {"box_xyxy": [10, 20, 50, 90], "score": 0.875, "label": "person", "class_id": 0},
            {"box_xyxy": [pytest.approx(60.4), pytest.approx(30.6), 99.5, 80], "score": 0.75, "label": "dog"}
            | {"class_id": 16},
            {"box_xyxy": [0, 0, 160, 120], "score": 0.5, "label": "person", "class_id": 0},
        ],
        "speed_ms": {"inference": 1.5},
    }
    assert NOTHING.to_dict() == {"detections": [], "speed_ms": {"inference": 1.5}}


def test_cells() -> None:
    assert FOUND.cells() == ("2 person, 1 dog", "0.88 to 0.50")
    assert FOUND[1:2].cells() == ("1 dog", "0.75")
    assert NOTHING.cells() == ("nothing", "–")


def test_iteration_and_indexing() -> None:
    first = Detection((10, 20, 50, 90), 0.875, "person", 0)
    assert next(iter(FOUND)) == FOUND[0] == FOUND[np.int64(-3)] == first
    assert type(FOUND[0].score) is float
    assert len(FOUND) == 3
    assert [item.label for item in FOUND] == list(LABELS)
    for index in (3, -4):
        with pytest.raises(IndexError):
            FOUND[index]
    persons = FOUND[FOUND.class_ids == 0]
    assert persons.labels == ("person", "person")
    assert persons.scores.tolist() == [0.875, 0.5]
    assert persons.speed_ms == FOUND.speed_ms
    assert FOUND[[2, 0]].scores.tolist() == [0.5, 0.875]
    assert FOUND[[True, False, False]].labels == ("person",)
    assert FOUND[1:].labels == ("dog", "person")
    for chosen in (FOUND[[]], FOUND[np.zeros(3, bool)], FOUND[3:], NOTHING[[]]):
        assert (len(chosen), chosen.boxes_xyxy.shape, chosen.labels, list(chosen)) == (0, (0, 4), (), [])
    with pytest.raises(IndexError):
        FOUND[np.zeros(2, bool)]


def test_crops_hold_the_box() -> None:
    image = picture(1, 120, 160)
    crops = FOUND.crops(image)
    assert [crop.shape for crop in crops] == [(70, 40, 3), (50, 40, 3), (120, 160, 3)]
    np.testing.assert_array_equal(crops[0], image[20:90, 10:50])
    np.testing.assert_array_equal(crops[1], image[30:80, 60:100])  # whole pixels, outwards
    crops[0][:] = 0
    assert image[20:90, 10:50].any()
    wider = FOUND.crops(image, margin=0.5)
    np.testing.assert_array_equal(wider[0], image[:, :70])
    assert wider[2].shape == (120, 160, 3)
    assert NOTHING.crops(image) == []
    sliver = Detections(np.array([[5, 5, 5.25, 5.25]], np.float32), FOUND.scores[:1], ("a",), np.array([0]))
    assert sliver.crops(image)[0].shape == (1, 1, 3)
    with pytest.raises(InputError, match="give the image predicted on"):
        FOUND.crops(image[:, :50])
    for margin in (-0.1, float("nan"), float("inf")):
        with pytest.raises(InputError, match="margin is"):
            FOUND.crops(image, margin=margin)


@pytest.mark.parametrize("shape", [(120, 160), (1, 1), (40, 30), (500, 400)])
def test_plot_draws_on_a_copy(shape: tuple[int, int]) -> None:
    image = picture(2, *shape)
    image.flags.writeable = False
    drawn = FOUND.plot(image)
    assert drawn.shape == image.shape
    assert (drawn != image).any()
    np.testing.assert_array_equal(NOTHING.plot(image), image)


def test_boxes_have_their_labels_colour() -> None:
    image = np.zeros((120, 160, 3), np.uint8)
    drawn = FOUND.plot(image)
    assert tuple(drawn[89, 20].tolist()) == color_of("person")
    assert tuple(drawn[79, 70].tolist()) == color_of("dog")
    assert tuple(drawn[119, 80].tolist()) == color_of("person")
    assert not drawn[60:70, 20:40].any()


def test_what_is_no_image_is_neither_cut_nor_drawn() -> None:
    grey = np.zeros((64, 64), np.uint8)
    for use in (FOUND.crops, FOUND.plot):
        with pytest.raises(InputError, match="a grey image becomes one by"):
            use(grey)
