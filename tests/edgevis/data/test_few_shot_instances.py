"""Instance masks with a table of categories as few-shot segmentation data."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest

from edgevis.data.few_shot_instances import InstanceClasses, read_instance_classes
from edgevis.data.few_shot_split import FewShotSplit, split_masked_classes
from edgevis.data.leakage import SplitCheck
from edgevis.data.segmentation_episodes import SegmentationEpisodes
from runtime.errors import InputError, SourceError

from shared_data import shared_data

# Ids with holes, not in their order; class ids are 1 cat, 2 dog, 3 cup, 4 bus, 5 van.
CATEGORIES = [{"id": n, "name": name} for n, name in ((8, "bus"), (2, "cat"), (3, "dog"), (5, "cup"), (90, "van"))]
CLASSES = {"cat": (1, 2), "dog": (2, 3), "cup": (3, 5), "bus": (4, 8), "van": (5, 90)}
FAR = 40_000  # an instance id beyond 8 bits


def _write(folder: Path, shown: dict[str, list[tuple[str, int]]], rows: list[str] | None = None) -> Path:
    """A picture for each stem with a column of each instance; an instance of two columns comes twice in a list."""
    images: dict[str, list[dict[str, Any]]] = {}
    for place, (stem, items) in enumerate(shown.items()):
        mask = np.zeros((8, 10), np.uint16)
        for column, (_, instance) in enumerate(items):
            mask[:, column] = instance
        for name, picture in (("images", np.full((8, 10, 3), 10 * place, np.uint8)), ("instances", mask)):
            (folder / name).mkdir(exist_ok=True, parents=True)
            cv2.imwrite(str(folder / name / f"{stem}.png"), picture)
        named = {instance: name for name, instance in items}
        images[stem] = [
            {"category_id": CLASSES[name.strip("*")][1], "instance": instance, "iscrowd": int(name.endswith("*"))}
            for instance, name in named.items()
        ]
    (folder / "annotations.json").write_text(json.dumps({"categories": CATEGORIES, "images": images}))
    if rows is not None:
        (folder / "index.csv").write_text("\n".join(("stem,commercial_ok", *rows)) + "\n")
    return folder


def _stems(found: InstanceClasses, name: str) -> list[str]:
    positions = found.examples.members[CLASSES[name][0]]
    return [Path(found.examples.images[position]).stem for position in positions]


def test_instances_of_one_category_are_one_mask(tmp_path: Path) -> None:
    found = read_instance_classes(
        _write(tmp_path, {"a": [("cat", 1), ("cat", FAR), ("dog", 2)], "b": [("dog*", 7), ("cat", 3)], "c": []})
    )
    assert found.names == ("cat", "dog", "cup", "bus", "van")
    assert (_stems(found, "cat"), _stems(found, "dog"), _stems(found, "bus")) == (["a", "b"], ["a"], [])
    assert [row["stem"] for row in found.rows] == ["a", "b", "c"]
    first, second = (found.examples.read(place, 1) for place in (0, 1))
    assert first.mask.any(0).nonzero()[0].tolist() == [0, 1]
    assert not first.ignore.any()
    assert second.mask.any(0).nonzero()[0].tolist() == [1]
    assert second.ignore.any(0).nonzero()[0].tolist() == [0]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"images": []}, "not an object whose images"),
        ({"categories": []}, "categories is not a list of 1 to"),
        ({"categories": [{"id": 2, "name": "cat"}, {"id": 2, "name": "dog"}]}, "an id of its own"),
        ({"images": {"a": [{"category_id": 77, "instance": 1}]}}, "of the category 77; allowed"),
        ({"images": {"a": [{"category_id": 2, "instance": -1}]}}, "the instance -1"),
        ({"images": {"a": [{"category_id": 2, "instance": True}]}}, "the instance True"),
        ({"images": {}}, "is not a list of annotations"),
    ],
)
def test_a_table_that_says_something_else(change: dict[str, Any], message: str, tmp_path: Path) -> None:
    path = _write(tmp_path, {"a": [("cat", 1)]}) / "annotations.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **change}))
    with pytest.raises(SourceError, match=message):
        read_instance_classes(tmp_path)


def test_an_image_without_its_mask(tmp_path: Path) -> None:
    (_write(tmp_path, {"a": [("cat", 1)]}) / "instances" / "a.png").rename(tmp_path / "instances" / "b.png")
    with pytest.raises(SourceError, match=r"no instances/a\.\*"):
        read_instance_classes(tmp_path)


def _divided(folder: Path, *, size: tuple[int, int] = (8, 10), **values: Any) -> FewShotSplit:
    return split_masked_classes(folder, shots=1, size=size, seed=0, check=SplitCheck(), **values)


def test_images_of_a_novel_category_only_evaluate(tmp_path: Path) -> None:
    shown = {f"s{place:02}": [(("cat", "dog", "cup")[place % 3], 1)] for place in range(12)}
    shown["s00"] += [("cup", 2)]  # of the fold, beside a cat
    licences = [f"{stem},{int(place >= 6)}" for place, stem in enumerate(shown)]
    _write(tmp_path, shown, licences)
    split = _divided(tmp_path, fold=2)
    assert (sorted(split.train.members), sorted(split.test.members)) == ([1, 2], [3])
    assert [Path(name).stem for name in split.test.images] == ["s00", "s02", "s05", "s08", "s11"]
    assert not set(split.train.images) & set(split.test.images)
    assert split.notes["novel categories"] == ["cup"]
    episode = SegmentationEpisodes(split.test, shot=1, episodes=1, seed=0)[0]
    assert episode.query.mask.any()
    free = _divided(tmp_path, fold=2, where="commercial_ok=1")
    assert [Path(name).stem for name in free.train.images] == ["s06", "s07", "s09", "s10"]
    assert free.test.images == split.test.images
    with pytest.raises(InputError, match="allowed: column=value"):
        _divided(tmp_path, fold=2, where="licence=4")
    assert len(_divided(tmp_path, fold=None).test.members) == 1


def test_where_is_for_a_sample_of_coco_alone(tmp_path: Path) -> None:
    (tmp_path / "masks").mkdir()
    (tmp_path / "masks" / "a.png").write_bytes(b"")
    with pytest.raises(InputError, match="is no sample of COCO"):
        _divided(tmp_path, fold=None, where="commercial_ok=1")


def test_the_sample_of_coco() -> None:
    data = shared_data("detect_coco", "coco_sample_dev.zip")
    split = _divided(data, size=(129, 129), fold=3, where="commercial_ok=1")
    assert (len(split.train), len(split.test), len(split.test.members)) == (29, 32, 11)
    assert "giraffe" in split.notes["novel categories"]  # type: ignore[operator]
