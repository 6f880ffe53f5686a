"""One data set out of three: who trains, who evaluates, and that what is set aside is never learned."""

from __future__ import annotations

import json
from pathlib import Path

import cv2
import numpy as np
import pytest

from benchmarks.general_masks import Cutout, MaskedPicture, grabbed, main, pasted
from edgevis.data.few_shot_split import split_masked_classes
from edgevis.data.files import open_files
from edgevis.data.leakage import SplitCheck
from edgevis.data.masks import read_class_ids

pytestmark = pytest.mark.torch

SIZE = (60, 48)


def _picture(path: Path, labels: np.ndarray, seed: int) -> None:  # type: ignore[type-arg]
    """Colours by class on noise."""
    draw = np.random.default_rng(seed)
    colours = draw.integers(0, 255, (70_000, 3), dtype=np.uint8)
    image = np.where((labels > 0)[..., None], colours[labels], draw.integers(90, 160, (*labels.shape, 3)))
    path.parent.mkdir(parents=True, exist_ok=True)
    cv2.imwrite(str(path), image.astype(np.uint8))


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("general")
    clothes, things, single = folder / "clothes", folder / "things", folder / "single"
    (clothes / "masks").mkdir(parents=True)
    rows = ["stem,split"]
    for number in range(12):
        labels = np.zeros(SIZE, np.uint8)
        for place, value in enumerate((19, 41, 14, 31, 25)):
            labels[10 * place : 10 * place + 10, 8:40] = value
        _picture(clothes / "images" / f"{number}.png", labels, number)
        cv2.imwrite(str(clothes / "masks" / f"{number}.png"), labels)
        rows.append(f"{number},{'train' if number < 6 else 'val'}")
    (clothes / "index.csv").write_text("\n".join(rows) + "\n")
    (things / "instances").mkdir(parents=True)
    images = {}
    for number in range(12):
        category = number % 4 + 1
        labels = np.zeros(SIZE, np.uint16)
        labels[10:40, 10:40] = 7
        _picture(things / "images" / f"t{number}.png", labels, 100 + number)
        cv2.imwrite(str(things / "instances" / f"t{number}.png"), labels)
        images[f"t{number}"] = [{"category_id": category, "instance": 7, "iscrowd": 0}]
    categories = [{"id": number, "name": f"thing {number}"} for number in range(1, 9)]
    (things / "annotations.json").write_text(json.dumps({"categories": categories, "images": images}))
    (things / "index.csv").write_text("stem,commercial_ok\n" + "".join(f"t{i},{int(i != 4)}\n" for i in range(12)))
    rows = ["path,class_name"]
    for number in range(8):
        labels = np.zeros((80, 80), np.uint8)
        cv2.circle(labels, (40, 40), 26, number % 2 + 1, -1)
        _picture(single / f"{number}.png", labels, 200 + number)
        rows.append(f"{number}.png,{('watch', 'laptop')[number % 2]}")
    (single / "labels.csv").write_text("\n".join(rows) + "\n")
    path = folder / "general.zip"
    arguments = ["--clothing", clothes, "--things", things, "--objects", single, "--output", path]
    assert main([*map(str, arguments), "--side", "64", "--crops", "1", "--composites", "3"]) == 0
    return path


def test_what_is_set_aside_never_trains(made: Path, capsys: pytest.CaptureFixture[str]) -> None:
    split = split_masked_classes(made, fold=None, shots=1, size=(65, 65), seed=0, check=SplitCheck())
    assert split.validation is not None
    things = {fold: 101 + fold for fold in range(4)}
    # Its own classes, a whole of several, COCO's folds 0 and 1, and the one kind of object that is no laptop.
    assert {14, 19, 41, things[0], things[1], 181} <= set(split.train.members)
    assert not {25, 31, things[2], things[3], 182} & set(split.train.members)
    assert (sorted(split.validation.members), sorted(split.test.members)) == ([things[2]], [25, things[3]])
    files = open_files(made)
    shown = {value for name in split.train.masks for value in np.unique(read_class_ids(files, name))}
    assert not {things[2], things[3]} & shown
    trained = split.train.read(split.train.members[14][0], 14)
    stored = read_class_ids(files, split.train.masks[split.train.members[14][0]])
    np.testing.assert_array_equal(trained.ignore, np.isin(stored, (25, 31)))


def test_an_object_in_the_middle_is_found() -> None:
    truth = np.zeros((120, 160), np.uint8)
    cv2.ellipse(truth, (80, 60), (46, 30), 20, 0, 360, 1, -1)
    noise = np.random.default_rng(0).integers(0, 25, (120, 160, 3), dtype=np.uint8)
    image = noise + np.where(truth[..., None] > 0, [40, 60, 200], [150, 140, 90]).astype(np.uint8)
    found = grabbed(image)
    assert found is not None
    assert (found * truth).sum() / np.maximum(found, truth).sum() > 0.95
    assert grabbed(np.full((120, 160, 3), 90, np.uint8)) is None


def test_the_last_object_lies_above_the_others() -> None:
    ground = MaskedPicture(np.zeros((64, 64, 3), np.uint8), np.full((64, 64), 9, np.uint8))
    kinds = [Cutout(np.full((20, 20, 3), 80 * value, np.uint8), np.ones((20, 20), bool), value) for value in (1, 2)]
    for seed in range(6):
        made = pasted(ground, kinds, np.random.default_rng(seed), 64)
        assert {int(value) for value in np.unique(made.labels)} <= {1, 2, 9}
        assert (made.labels == 2).sum() > 60
        inner = cv2.erode((made.labels == 2).astype(np.uint8), np.ones((5, 5))) > 0
        assert np.abs(made.image[inner].astype(int) - 160).max() <= 1
