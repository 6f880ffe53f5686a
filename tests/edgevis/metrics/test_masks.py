"""Overlap measures against the few-shot segmentation benchmark's, and Dice against torchmetrics'."""

from __future__ import annotations

import math

import numpy as np
import pytest

from edgevis.metrics import SegmentationScore, dice_per_volume, intersection_and_union
from runtime.errors import InputError

from locations import GOLDEN_FOLDER

GOLDEN = GOLDEN_FOLDER / "07_loss_metrics.npz"


def test_areas_and_scores_are_the_benchmarks() -> None:
    golden = np.load(GOLDEN)
    score = SegmentationScore(golden["fold_class_ids"].tolist())
    for batch in range(golden["pred"].shape[0]):
        for image in range(golden["pred"].shape[1]):
            masks = [golden[name][batch, image] for name in ("pred", "gt", "ignore")]
            areas = intersection_and_union(*masks)
            for found, name in zip(areas, ("area_inter", "area_union"), strict=True):
                np.testing.assert_array_equal(found, golden[name][batch, :, image])
            score.add(masks[0], masks[1], int(golden["class_id"][batch, image]), masks[2])
    # The reference counts in percent, and divides by all classes of the fold; one of them no episode asks for here.
    known = float(golden["miou"]) * len(golden["fold_class_ids"]) / len(score.class_iou)
    assert len(score.class_iou) == len(golden["fold_class_ids"]) - 1
    assert 100 * score.mean_iou == pytest.approx(known, abs=1e-3)
    assert 100 * score.fb_iou == pytest.approx(float(golden["fb_iou"]), abs=1e-3)


def test_ignored_pixels_count_nowhere() -> None:
    prediction, target = np.array([[1, 1, 0, 0]]), np.array([[1, 0, 1, 0]])
    intersection, union = intersection_and_union(prediction, target, np.array([[0, 1, 0, 0]], bool))
    assert intersection.tolist() == [1, 1]
    assert union.tolist() == [2, 2]


def test_iou_divides_sums_and_a_class_never_added_does_not_count() -> None:
    score = SegmentationScore([3, 8])
    score.add([[True, True, False, False]], [[True, False, False, False]], 3)
    score.add([[False, False, False, False]], [[True, True, False, False]], 3)
    assert score.class_iou == {3: 1 / 4}, "not the mean of 1/2 and 0"
    assert score.mean_iou == 1 / 4
    assert score.fb_iou == ((2 + 2) / (3 + 4) + 1 / 4) / 2


@pytest.mark.parametrize(
    ("prediction", "target", "ignore", "message"),
    [
        ([[0.2, 0.9]], [[0, 1]], None, "prediction has shape .* float64"),
        ([[math.nan]], [[1]], None, "prediction has shape .* float64"),
        ([[0, 1]], [[0, 255]], None, "target holds values from 0 to 255"),
        ([[0, 1]], [[0], [1]], None, "must be equally large"),
        ([[0, 1]], [[0, 1]], [[True]], "must be equally large"),
        ([0, 1], [0, 1], None, r"shape \(2,\)"),
        (np.zeros((0, 4), bool), np.zeros((0, 4), bool), None, r"shape \(0, 4\)"),
    ],
)
def test_wrong_masks_are_refused_and_not_counted(
    prediction: object, target: object, ignore: object, message: str
) -> None:
    score = SegmentationScore([1])
    score.add([[True, False]], [[True, True]], 1)
    with pytest.raises(InputError, match=message):
        score.add(prediction, target, 1, ignore)  # type: ignore[arg-type]
    assert score.class_iou == {1: 0.5}


def test_wrong_classes_are_refused() -> None:
    with pytest.raises(InputError, match="no class 2 in this score; allowed: 1"):
        SegmentationScore([1]).add([[True]], [[True]], 2)
    for class_ids in ([], [1, 1]):
        with pytest.raises(InputError, match="one or more, each once"):
            SegmentationScore(class_ids)


def _volume(seed: int, slices: int, size: tuple[int, int]) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(seed)
    target = rng.integers(0, 3, (slices, *size))
    return np.where(rng.random(target.shape) < 0.7, target, rng.integers(0, 3, target.shape)), target


@pytest.mark.parametrize("class_id", [1, 2])
def test_dice_of_each_volume_is_torchmetrics(class_id: int) -> None:
    torch = pytest.importorskip("torch")
    segmentation = pytest.importorskip("torchmetrics.functional.segmentation")
    pairs = {"a": _volume(0, 5, (7, 9)), "b": _volume(1, 3, (11, 4))}
    # Slices of two volumes and of two sizes in turn.
    order = [("a", 0), ("b", 2), ("a", 4), ("a", 1), ("b", 0), ("a", 2), ("b", 1), ("a", 3)]
    found = dice_per_volume(
        [pairs[name][0][place] for name, place in order],
        [pairs[name][1][place] for name, place in order],
        [name for name, _ in order],
        class_id=class_id,
    )
    assert list(found) == ["a", "b"]
    for name, (prediction, target) in pairs.items():
        stacked = [torch.from_numpy(volume)[None] for volume in (prediction, target)]
        known = segmentation.dice_score(*stacked, num_classes=3, average="none", input_format="index")
        assert found[name] == pytest.approx(float(known[0, class_id]), abs=1e-6)


def test_dice_stacks_slices_and_does_not_average_them() -> None:
    predictions = [[[True, True]], [[False, False]], [[False, False]]]
    targets = [[[True, True]], [[True, False]], [[False, False]]]
    assert dice_per_volume(predictions, targets, ["v", "v", "v"]) == {"v": 2 * 2 / 5}


def test_dice_of_a_volume_without_the_class_is_what_the_caller_says() -> None:
    nothing = [np.zeros((2, 2), np.uint8)]
    assert dice_per_volume(nothing, nothing, ["v"]) == {"v": 1.0}
    assert math.isnan(dice_per_volume(nothing, nothing, ["v"], empty=math.nan)["v"])
    assert dice_per_volume([np.ones((2, 2), np.uint8)], nothing, ["v"]) == {"v": 0.0}


def test_wrong_slices_are_refused() -> None:
    mask = np.ones((2, 2), np.uint8)
    with pytest.raises(InputError, match="1 predictions, 2 targets and 1 names"):
        dice_per_volume([mask], [mask, mask], ["v"])
    with pytest.raises(InputError, match="0 predictions"):
        dice_per_volume([], [], [])
    with pytest.raises(InputError, match=r"slice 1 are \(2, 2\) uint8 and \(2, 3\) uint8"):
        dice_per_volume([mask, mask], [mask, np.ones((2, 3), np.uint8)], ["v", "v"])
    with pytest.raises(InputError, match=r"slice 0 are .* float64"):
        dice_per_volume([np.full((2, 2), np.nan)], [mask], ["v"])
