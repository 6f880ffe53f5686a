"""The layouts of few-shot segmentation's benchmarks, and episodes over them."""

from __future__ import annotations

import json
from collections import Counter
from dataclasses import replace
from pathlib import Path

import cv2
import numpy as np
import pytest

from edgevis.data import (
    ClassMasks,
    SegmentationEpisodes,
    Visible,
    class_masks,
    coco_fold,
    examples_by_class,
    pascal_fold,
    read_coco20i,
    read_fss1000,
    read_masked_images,
    read_pascal5i,
)
from runtime.errors import InputError, SourceError

from shared_data import shared_data

SIZE = (4, 6)


def _picture(value: int = 0, size: tuple[int, int] = SIZE) -> bytes:
    return bytes(cv2.imencode(".png", np.full((*size, 3), value, np.uint8))[1])


def _mask(*values: int) -> bytes:
    """A mask with one column of each value; the rest is 0."""
    mask = np.zeros(SIZE, np.uint8)
    for column, value in enumerate(values):
        mask[:, column] = value
    return bytes(cv2.imencode(".png", mask)[1])


def _write(folder: Path, content: dict[str, bytes | str]) -> Path:
    for name, data in content.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(data.encode() if isinstance(data, str) else data)
    return folder


def _shown(data: ClassMasks) -> dict[int, list[str]]:
    """The stems of the images that show each class."""
    return {
        class_id: [Path(data.images[position]).stem for position in members]
        for class_id, members in data.members.items()
    }


def test_folds_are_the_benchmarks() -> None:
    assert [pascal_fold(fold) for fold in (0, 3)] == [(0, 1, 2, 3, 4), (15, 16, 17, 18, 19)]
    assert coco_fold(1)[:3] == (1, 5, 9)
    assert sorted(class_id for fold in range(4) for class_id in coco_fold(fold)) == list(range(80))
    for wrong in (4, -1):
        with pytest.raises(InputError, match=f"fold is {wrong}; allowed: 0 to 3"):
            pascal_fold(wrong)
        with pytest.raises(InputError, match=f"fold is {wrong}; allowed: 0 to 3"):
            coco_fold(wrong)


@pytest.fixture
def voc(tmp_path: Path) -> Path:
    """Two images of classes 1 (new in fold 0) and 20 (new in fold 3) by mask value, with an ignored border."""
    content: dict[str, bytes | str] = {
        "ImageSets/Segmentation/train.txt": "2007_a\n2007_b\n",
        "ImageSets/Segmentation/val.txt": "2007_b\n",
        "lists/trn/fold0.txt": "2007_a__01\n",
        "lists/trn/fold1.txt": "",
        "lists/trn/fold2.txt": "",
        "lists/trn/fold3.txt": "2007_a__20\n2007_b__20\n",
        "lists/val/fold0.txt": "2007_b__1\n",
    }
    for stem, mask in (("2007_a", _mask(1, 20, 255)), ("2007_b", _mask(20, 255))):
        content |= {f"JPEGImages/{stem}.jpg": _picture(), f"SegmentationClassAug/{stem}.png": mask}
    return _write(tmp_path / "VOC2012", content)


def test_pascal_by_reading_masks(voc: Path) -> None:
    train = read_pascal5i(voc, fold=0, split="train")
    assert sorted(train.members) == list(range(5, 20))
    assert _shown(train) == {**{class_id: [] for class_id in range(5, 19)}, 19: ["2007_a", "2007_b"]}
    val = read_pascal5i(voc.parent, fold=3, split="val", inside="VOC2012")
    assert _shown(val) == {15: [], 16: [], 17: [], 18: [], 19: ["2007_b"]}
    found = train.read(0, 19)
    np.testing.assert_array_equal(np.flatnonzero(found.mask[0]), [1])
    np.testing.assert_array_equal(np.flatnonzero(found.ignore[0]), [2])
    assert found.mask.dtype == found.ignore.dtype == bool
    with pytest.raises(InputError, match="there is no class 3"):
        train.read(0, 3)


def test_pascal_by_the_benchmarks_lists(voc: Path) -> None:
    train = read_pascal5i(voc, fold=2, split="train", lists=voc / "lists")
    assert _shown(train)[0] == ["2007_a"]
    assert _shown(train)[19] == ["2007_a", "2007_b"]
    assert train.images == ("JPEGImages/2007_a.jpg", "JPEGImages/2007_b.jpg"), "an image with two classes comes once"
    assert _shown(read_pascal5i(voc, fold=0, split="val", lists=voc / "lists"))[0] == ["2007_b"]


def test_wrong_pascal(voc: Path) -> None:
    with pytest.raises(InputError, match="split is 'test'; allowed: train, val"):
        read_pascal5i(voc, fold=0, split="test")  # type: ignore[arg-type]
    with pytest.raises(SourceError, match=r"no file val/fold1\.txt"):
        read_pascal5i(voc, fold=1, split="val", lists=voc / "lists")
    for line, message in (
        ("2007_a", "has '2007_a'; needed|the line '2007_a'"),
        ("2007_a__7", "2007_a__7"),
        ("2007_z__1", r"no file JPEGImages/2007_z\.jpg"),
    ):
        _write(voc, {"lists/val/fold0.txt": line})
        with pytest.raises(SourceError, match=message):
            read_pascal5i(voc, fold=0, split="val", lists=voc / "lists")
    (voc / "SegmentationClassAug" / "2007_b.png").unlink()
    with pytest.raises(SourceError, match=r"no file SegmentationClassAug/2007_b\.png, the mask of 2007_b\.jpg"):
        read_pascal5i(voc, fold=0, split="val")


@pytest.fixture
def coco(tmp_path: Path) -> Path:
    content: dict[str, bytes | str] = {}
    for name, mask in (("train2014/a", _mask(1, 2)), ("train2014/b", _mask(2)), ("val2014/c", _mask(1, 80))):
        content |= {f"{name}.jpg": _picture(), f"annotations/{name}.png": mask}
    return _write(tmp_path / "COCO2014", content)


def test_coco(coco: Path) -> None:
    train = _shown(read_coco20i(coco, fold=0, split="train"))
    assert len(train) == 60
    assert (train[1], train[2]) == (["a", "b"], [])
    val = read_coco20i(coco, fold=0, split="val")
    assert _shown(val)[0] == ["c"]
    found = val.read(0, 0)
    np.testing.assert_array_equal(np.flatnonzero(found.mask[0]), [0])
    assert not found.ignore.any()
    # With lists, masks are not read: class 1 is taken on trust, and classes of the fold are left out.
    _write(coco.parent, {"lists.json": json.dumps({"0": ["train2014/a.jpg"], "1": ["train2014/b.jpg"]})})
    listed = read_coco20i(coco, fold=0, split="train", lists=coco.parent / "lists.json")
    assert (_shown(listed)[1], listed.images) == (["b"], ("train2014/b.jpg",))


@pytest.mark.parametrize(
    ("lists", "message"),
    [
        ("[]", "not an object from class id"),
        ('{"0": "train2014/a.jpg"}', "not an object from class id"),
        ('{"x": []}', "a whole number is needed"),
        ('{"1": ["train2014/z.jpg"]}', r"no file train2014/z\.jpg"),
        ('{"1": ["../../etc/passwd"]}', r"no file \.\./\.\./etc/passwd"),
    ],
)
def test_wrong_coco_lists(coco: Path, lists: str, message: str) -> None:
    _write(coco.parent, {"lists.json": lists})
    with pytest.raises(SourceError, match=message):
        read_coco20i(coco, fold=0, split="train", lists=coco.parent / "lists.json")


@pytest.fixture
def fss(tmp_path: Path) -> Path:
    content: dict[str, bytes | str] = {}
    for name in ("abacus", "zucchini"):
        for number in (1, 2, 3):
            # The masks are colour pictures of grey values.
            content |= {f"{name}/{number}.jpg": _picture(number), f"{name}/{number}.png": _picture(126 + number)}
    return _write(tmp_path / "FSS-1000", content)


def test_fss(fss: Path) -> None:
    data = read_fss1000(fss)
    assert data.members == {0: (0, 1, 2), 1: (3, 4, 5)}
    assert [data.read(position, 0).mask.all() for position in (0, 1, 2)] == [False, True, True]
    one = read_fss1000(fss.parent, classes=["zucchini"], inside="FSS-1000")
    assert (one.members, one.images[0]) == ({0: (0, 1, 2)}, "zucchini/1.jpg")


def test_wrong_fss(fss: Path) -> None:
    with pytest.raises(SourceError, match="no folder bus with images"):
        read_fss1000(fss, classes=["bus"])
    with pytest.raises(SourceError, match="no class folders"):
        read_fss1000(fss.parent)
    (fss / "abacus" / "2.png").write_bytes(_picture(255, (9, 9)))
    with pytest.raises(SourceError, match=r"2\.jpg and its mask .*abacus/2\.png is \(9, 9\), its image \(4, 6\)"):
        read_fss1000(fss).read(1, 0)
    (fss / "abacus" / "2.png").unlink()
    with pytest.raises(SourceError, match=r"no file abacus/2\.png, the mask of abacus/2\.jpg"):
        read_fss1000(fss)


@pytest.mark.parametrize("shot", [1, 2])
def test_episodes_ask_for_another_image_of_the_class(fss: Path, shot: int) -> None:
    data = read_fss1000(fss)
    episodes = SegmentationEpisodes(data, shot=shot, episodes=60, seed=1)
    classes, queries = Counter[int](), Counter[int]()
    for number in range(60):
        class_id, query, supports = episodes.draw(number)
        assert len({query, *supports}) == shot + 1
        assert {query, *supports} <= set(data.members[class_id])
        classes[class_id] += 1
        queries[query] += 1
    assert min(classes.values()) > 20
    assert len(queries) == 6
    episode = episodes[7]
    class_id, query, supports = episodes.draw(7)
    assert episode.class_id == class_id
    np.testing.assert_array_equal(episode.query.image, data.read(query, class_id).image)
    assert [example.image[0, 0, 0] for example in episode.supports] == [place % 3 + 1 for place in supports]


def test_classes_with_many_images_are_drawn_more_often(fss: Path) -> None:
    data = replace(read_fss1000(fss), members={0: (0, 1), 1: (2, 3, 4, 5) * 8})

    def share(power: float) -> float:
        episodes = SegmentationEpisodes(data, shot=1, episodes=400, class_power=power)
        return sum(episodes.draw(number)[0] for number in range(400)) / 400

    assert [share(power) for power in (0.0, 0.5, 1.0)] == pytest.approx([1 / 2, 4 / 5, 16 / 17], abs=0.06)


def test_queries_in_turn_come_again_from_the_first(fss: Path) -> None:
    episodes = SegmentationEpisodes(read_fss1000(fss), shot=1, episodes=8, queries="in turn")
    assert [episodes.draw(number)[:2] for number in range(8)] == [
        (0, 0),
        (1, 3),
        (0, 1),
        (1, 4),
        (0, 2),
        (1, 5),
        (0, 0),
        (1, 3),
    ]
    assert len(list(episodes)) == len(episodes) == 8


def test_segmentation_draws_are_the_same_everywhere(fss: Path) -> None:
    def drawn(epoch: int) -> list[tuple[int, int, tuple[int, ...]]]:
        episodes = SegmentationEpisodes(read_fss1000(fss), shot=1, episodes=4, seed=5, epoch=epoch)
        return [episodes.draw(number) for number in range(4)]

    assert drawn(0) == [(0, 0, (1,)), (1, 4, (3,)), (0, 0, (1,)), (1, 4, (5,))]
    assert drawn(0) != drawn(1)


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"shot": 3}, "class 0 has 3 images; a query and 3 supports are needed"),
        ({"shot": 0}, "shot is 0"),
        ({"episodes": 0}, "episodes is 0"),
        ({"queries": "random"}, "queries is 'random'"),
        ({"seed": -1}, "seed is -1"),
    ],
)
def test_wrong_episodes(fss: Path, changed: dict[str, object], message: str) -> None:
    with pytest.raises(InputError, match=message):
        SegmentationEpisodes(read_fss1000(fss), **{"shot": 1} | changed)  # type: ignore[arg-type]


@pytest.mark.parametrize("first", [(1000, 1000), (10, 10), (40, 60)])
def test_an_object_is_as_large_as_its_share_of_its_own_image(first: tuple[int, int], tmp_path: Path) -> None:
    """Whatever the size of the first image, or of any other."""
    sizes = [first, (40, 60), (100, 20), (300, 500)]
    for number, (height, width) in enumerate(sizes):
        mask = np.zeros((height, width), np.uint8)
        mask[: height // 2, : width // 10] = 1  # 5 %
        mask[-1, max(0, width - height * width // 200) :] = 2  # half a percent, as far as one row has it
        _write(tmp_path, {f"images/{number}.png": _picture(size=(height, width))})
        _write(tmp_path, {f"masks/{number}.png": bytes(cv2.imencode(".png", mask)[1])})
    data = read_masked_images(tmp_path)
    visible = Visible(min_share=0.01)
    assert examples_by_class(data, visible) == {1: 4}
    assert _shown(class_masks(data, class_ids=[1], visible=visible)) == {1: ["0", "1", "2", "3"]}
    assert examples_by_class(data, Visible(min_share=0.001))[2] >= 3
    with pytest.raises(InputError, match=r"shows 0\.01 of its pixels or more of class 2"):
        class_masks(data, class_ids=[1, 2], visible=visible)


def test_lines_that_vanish_at_the_networks_size_are_no_example(tmp_path: Path) -> None:
    mask = np.zeros((650, 650), np.uint8)
    mask[1::10] = 1  # a tenth of the pixels
    mask[300:330, 300:330] = 2
    _write(tmp_path, {"images/a.png": _picture(size=(650, 650)), "masks/a.png": bytes(cv2.imencode(".png", mask)[1])})
    data = read_masked_images(tmp_path)
    assert examples_by_class(data, Visible()) == {1: 1, 2: 1}
    assert examples_by_class(data, Visible(size=(65, 65))) == {2: 1}
    assert examples_by_class(data, Visible(size=(65, 65), min_share=0.01)) == {}
    with pytest.raises(InputError, match="shows 1 pixels, left at 65 x 65, or more of class 1"):
        class_masks(data, class_ids=[1], visible=Visible(size=(65, 65)))


def test_how_much_is_visible_is_checked() -> None:
    for wrong, message in (
        ({"min_pixels": 0}, "min_pixels is 0"),
        ({"min_share": 1.5}, "min_share is 1.5; allowed: 0 to 1"),
    ):
        with pytest.raises(InputError, match=message):
            Visible(**wrong)  # type: ignore[arg-type]


def test_real_clothes() -> None:
    data = read_masked_images(shared_data("fss_ccp", "ccp_dev.zip"), split="val")
    found = class_masks(data, class_ids=[41, 19], visible=Visible(min_pixels=200))
    assert list(found.members) == [19, 41]
    assert all(len(members) > 100 for members in found.members.values()), "skin and hair are on most photos"
    position = found.members[41][0]
    example = found.read(position, 41)
    stem = found.images[position]
    image, mask = data[data.images.index(stem)]
    np.testing.assert_array_equal(example.mask, mask == 41)
    np.testing.assert_array_equal(example.ignore, mask == 255)
    np.testing.assert_array_equal(example.image, image)
    assert example.mask.sum() >= 200
    with pytest.raises(InputError, match=r"no image of .* shows 1000000 pixels or more of class 41"):
        class_masks(data, class_ids=[41], visible=Visible(min_pixels=10**6))
    for wrong in ([], [0], [255]):
        with pytest.raises(InputError, match="one or more of 1 to 254"):
            class_masks(data, class_ids=wrong)
