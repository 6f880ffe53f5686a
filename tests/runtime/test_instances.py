"""The result of instance segmentation: indexing, masks, drawing, other tools' formats."""

from __future__ import annotations

import contextlib
import io
import json
from pathlib import Path

import cv2
import numpy as np
import pytest

from edgevis import InputError, Instance, InstanceSegmentation
from edgevis.cli import main
from runtime.images.draw import color_of
from runtime.interop.coco import CocoIds, coco_dataset, coco_results

from bundles import picture
from detection_bundles import board
from instance_bundles import write_outliner

SQUARE = [[10, 20], [50, 20], [50, 90], [10, 90]]
DIAMOND = [[80, 30], [100, 55], [80, 80], [60, 55]]
FOUND = InstanceSegmentation(
    np.array([[10, 20, 50, 90], [60, 30, 100, 80]], np.float32),
    np.array([0.875, 0.75], np.float32),
    ("person", "dog"),
    np.array([0, 16]),
    {"inference": 1.5},
    polygons=np.array([SQUARE, DIAMOND], np.float32),
    size=(120, 160),
)
NOTHING = FOUND[:0]


def test_plain_data_for_json() -> None:
    data = json.loads(json.dumps(FOUND.to_dict()))
    assert data["detections"][1] == {
        "box_xyxy": [60, 30, 100, 80],
        "score": 0.75,
        "label": "dog",
        "class_id": 16,
        "polygon": DIAMOND,
    }
    assert (data["height"], data["width"], data["speed_ms"]) == (120, 160, {"inference": 1.5})


def test_iteration_and_indexing() -> None:
    first = Instance((10, 20, 50, 90), 0.875, "person", 0, tuple((float(x), float(y)) for x, y in SQUARE))
    assert next(iter(FOUND)) == FOUND[0] == FOUND[-2] == first
    dogs = FOUND[FOUND.class_ids == 16]
    assert isinstance(dogs, InstanceSegmentation)
    assert (dogs.labels, dogs.polygons.tolist(), dogs.size) == (("dog",), [DIAMOND], (120, 160))
    assert FOUND[[1, 0]].polygons.tolist() == [DIAMOND, SQUARE]
    for chosen in (FOUND[[]], FOUND[2:], NOTHING[[]]):
        assert (len(chosen), chosen.polygons.shape, chosen.masks.shape) == (0, (0, 4, 2), (0, 120, 160))
    with pytest.raises(IndexError):
        FOUND[2]
    assert FOUND.cells() == ("1 person, 1 dog", "0.88 to 0.75")


def test_masks_are_filled_when_they_are_asked_for() -> None:
    masks = FOUND.masks
    assert (masks.dtype, masks.shape) == (np.bool_, (2, 120, 160))
    assert masks[0].sum() == 40 * 70
    assert masks[0, 20:90, 10:50].all()
    assert masks[1].sum() == pytest.approx(40 * 50 / 2, rel=0.02)
    for index in range(2):
        np.testing.assert_array_equal(FOUND.mask(index), masks[index])
    with pytest.raises(IndexError):
        FOUND.mask(2)
    masks[:] = False
    assert FOUND.mask(0).any()


def test_masks_of_more_than_the_limit_are_refused() -> None:
    huge = InstanceSegmentation(
        *(FOUND.boxes_xyxy, FOUND.scores, FOUND.labels, FOUND.class_ids), polygons=FOUND.polygons, size=(30_000, 30_000)
    )
    with pytest.raises(InputError, match=r"2 masks of 30000 x 30000 pixels take 1800000000 bytes.*mask\(i\)"):
        _ = huge.masks
    assert huge[:1].masks.sum() == 40 * 70


@pytest.mark.parametrize("shape", [(120, 160), (1, 1), (500, 400)])
def test_plot_draws_on_a_copy(shape: tuple[int, int]) -> None:
    image = picture(2, *shape)
    image.flags.writeable = False
    result = InstanceSegmentation(
        *(FOUND.boxes_xyxy, FOUND.scores, FOUND.labels, FOUND.class_ids), polygons=FOUND.polygons, size=shape
    )
    drawn = result.plot(image)
    assert drawn.shape == image.shape
    assert shape == (1, 1) or (drawn != image).any()
    np.testing.assert_array_equal(result[:0].plot(image), image)


def test_what_is_inside_has_the_labels_colour() -> None:
    drawn = FOUND.plot(np.zeros((120, 160, 3), np.uint8))
    tinted = np.array(color_of("dog")) * 0.45
    np.testing.assert_allclose(drawn[55, 90], tinted, atol=1)
    assert not drawn[75, 95].any()  # in the box and not in the outline
    with pytest.raises(InputError, match=r"the image is \(60, 80\), the result's \(120, 160\)"):
        FOUND.plot(np.zeros((60, 80, 3), np.uint8))
    assert FOUND.crops(drawn)[0].shape == (70, 40, 3)


def test_supervision_takes_masks() -> None:
    supervision = pytest.importorskip("supervision")
    converted = FOUND.to_supervision()
    np.testing.assert_array_equal(converted.mask, FOUND.masks)
    np.testing.assert_array_equal(converted.xyxy, FOUND.boxes_xyxy)
    assert converted["class_name"].tolist() == ["person", "dog"]
    drawn = supervision.MaskAnnotator().annotate(np.zeros((120, 160, 3), np.uint8), converted)
    assert drawn[55, 80].any()
    assert len(NOTHING.to_supervision()) == 0


def test_coco_has_polygons() -> None:
    ids = CocoIds({"1.jpg": 3}, {"person": 1, "dog": 18}, "truth.json")
    results = coco_results("1.jpg", FOUND, ids)
    assert results[1]["segmentation"] == [[80, 30, 100, 55, 80, 80, 60, 55]]
    assert results[1]["bbox"] == [60, 30, 40, 50]
    data = coco_dataset([("1.jpg", FOUND.size, FOUND)], ["person"])
    assert [item["area"] for item in data["annotations"]] == [40 * 70, 40 * 50 / 2]
    coco, cocoeval = pytest.importorskip("pycocotools.coco"), pytest.importorskip("pycocotools.cocoeval")
    with contextlib.redirect_stdout(io.StringIO()):
        truth = coco.COCO()
        truth.dataset = {
            **coco_dataset([("1.jpg", FOUND.size, FOUND)], [f"class {index}" for index in range(17)]),
            "info": {},
        }
        truth.createIndex()
        own = [{**item, "image_id": 1, "category_id": number} for item, number in zip(results, (1, 17), strict=True)]
        evaluation = cocoeval.COCOeval(truth, truth.loadRes(own), "segm")
        evaluation.evaluate()
        evaluation.accumulate()
        evaluation.summarize()
    assert evaluation.stats[0] == pytest.approx(1.0)


def test_the_command_line_prints_outlines(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    bundle = str(write_outliner(tmp_path / "outlines.edgevis"))
    image = tmp_path / "a.png"
    cv2.imwrite(str(image), board((1, 2, (0, 0, 255)), (3, 6, (0, 255, 0)), rows=4, side=16))

    def printed(*arguments: str) -> str:
        assert main(["predict", bundle, str(image), *arguments]) == 0
        return capsys.readouterr().out

    (result,) = json.loads(printed("--json", "--output", str(tmp_path / "drawn")))["results"]
    assert result["detections"][0]["polygon"] == [[32, 32], [48, 32], [48, 16]]
    drawn = cv2.imread(result["plot"])
    assert drawn is not None
    assert np.abs(drawn.astype(int) - board(rows=4, side=16)).max() > 100
    assert printed("--format", "csv").splitlines()[1].endswith("32.00,16.00,48.00,32.00")
    assert len(printed("--format", "mot").splitlines()) == 2
    data = json.loads(printed("--format", "coco"))
    assert data["annotations"][0]["segmentation"] == [[32, 32, 48, 32, 48, 16]]
    truth = tmp_path / "truth.json"
    categories = [{"id": 7, "name": "red"}, {"id": 9, "name": "green"}]
    truth.write_text(json.dumps({"images": [{"id": 4, "file_name": "a.png"}], "categories": categories}))
    results = json.loads(printed("--format", "coco", "--annotations", str(truth)))
    assert [(item["category_id"], len(item["segmentation"][0])) for item in results] == [(7, 6), (9, 6)]
    assert main(["info", bundle]) == 0
    assert "colours (instance_segment)" in capsys.readouterr().out
    assert main(["predict", bundle, str(image), "--masks", str(tmp_path)]) == 1
    assert "--masks is for segmentation" in capsys.readouterr().err
