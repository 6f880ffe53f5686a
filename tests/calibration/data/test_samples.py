"""Calibration samples: where they come from, that they do not change, and what is said when there are none."""

from __future__ import annotations

import importlib.util
import re
import zipfile
from collections import Counter
from pathlib import Path

import cv2
import numpy as np
import pytest

from calibration.data.samples import (
    MAX_SIDE,
    MIN_COUNT,
    PHOTOGRAPHS_SOURCE,
    sample_set,
    samples_from,
    samples_from_photographs,
    split,
)
from runtime.common.extras import install_command
from runtime.errors import InputError, MissingDependencyError, SourceError

from tiny_models import pictures, write_pictures


def pack(folder: Path, path: Path) -> Path:
    with zipfile.ZipFile(path, "w") as archive:
        for item in sorted(folder.rglob("*")):
            archive.write(item, item.relative_to(folder))
    return path


def test_photographs_are_the_same_every_time() -> None:
    first = samples_from_photographs(height=64, width=32, count=20)
    again = samples_from_photographs(height=64, width=32, count=20)
    assert first.digest == again.digest
    assert samples_from_photographs(height=64, width=32, count=20, seed=1).digest != first.digest
    assert len(first) == 20
    assert len(set(first.labels)) == 10
    assert first.source == PHOTOGRAPHS_SOURCE


@pytest.mark.parametrize(("height", "width"), [(256, 128), (128, 256), (224, 224)])
def test_crops_have_the_proportions_of_the_input(height: int, width: int) -> None:
    for image in samples_from_photographs(height=height, width=width, count=20).images:
        assert image.dtype == np.uint8
        assert image.shape[2] == 3
        # Whole pixels: the smallest crops are some 50 pixels wide.
        assert image.shape[0] / image.shape[1] == pytest.approx(height / width, rel=0.05)


def test_crops_show_something() -> None:
    deviations = [image.std() for image in samples_from_photographs(height=256, width=128, count=100).images]
    assert np.percentile(deviations, 10) > 20


def test_photographs_that_are_not_installed(monkeypatch: pytest.MonkeyPatch) -> None:
    find = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None if name == "skimage" else find(name))
    with pytest.raises(MissingDependencyError, match=f"skimage .*{re.escape(install_command('export'))}"):
        samples_from_photographs(height=64, width=32, count=20)


def test_folder_and_zip_give_the_same(tmp_path: Path) -> None:
    folder = write_pictures(tmp_path / "people", pictures(24))
    from_folder = samples_from(folder)
    from_zip = samples_from(pack(folder, tmp_path / "people.zip"))
    assert from_folder.labels == from_zip.labels
    assert from_folder.digest == from_zip.digest
    assert from_folder.source == "people"
    assert from_zip.source == "people.zip"
    assert Counter(from_folder.labels) == {f"label {i}": 6 for i in range(4)}
    for image in from_folder.images:
        assert any(image.shape == other.shape and (image == other).all() for other in pictures(24).images)


def test_label_images_are_not_calibrated_on(tmp_path: Path) -> None:
    folder = write_pictures(tmp_path / "data", pictures(24))
    (folder / "images").mkdir()
    for path in list(folder.glob("*/*.png")):
        path.rename(folder / "images" / f"{path.parent.name} {path.name}")
    expected = samples_from(folder)
    assert len(expected) == 24
    (folder / "masks").mkdir()
    cv2.imwrite(str(folder / "masks" / "1.png"), np.zeros((8, 8), np.uint8))
    assert samples_from(folder).digest == expected.digest
    assert samples_from(pack(folder, tmp_path / "data.zip")).digest == expected.digest


def test_what_is_no_image_is_passed_over(tmp_path: Path) -> None:
    folder = write_pictures(tmp_path / "data", pictures(24))
    expected = samples_from(folder).digest
    (folder / "labels.csv").write_text("path,label\n")
    (folder / "truth.mat").write_bytes(b"MATLAB 5.0")
    (folder / ".thumbnail.png").write_bytes(b"not a picture")
    (folder / "__MACOSX").mkdir()
    (folder / "__MACOSX" / "x.png").write_bytes(b"not a picture")
    assert samples_from(folder).digest == expected
    assert samples_from(pack(folder, tmp_path / "data.zip")).digest == expected


def test_of_many_images_all_labels_are_met(tmp_path: Path) -> None:
    folder = write_pictures(tmp_path / "data", pictures(80))
    found = samples_from(folder, count=20)
    assert Counter(found.labels) == {f"label {i}": 5 for i in range(4)}


def test_large_images_are_shrunk(tmp_path: Path) -> None:
    folder = write_pictures(tmp_path / "data", pictures(20))
    cv2.imwrite(str(folder / "large.png"), np.zeros((3000, 600, 3), np.uint8))
    shapes = [image.shape for image in samples_from(folder).images]
    assert (MAX_SIDE, 205, 3) in shapes
    assert max(max(shape) for shape in shapes) == MAX_SIDE


def test_split_has_no_image_in_common(tmp_path: Path) -> None:
    samples = pictures(50)
    doubled = sample_set(samples.images + samples.images[:10], samples.labels + samples.labels[:10], "doubled")
    first, second = split(doubled)
    assert (len(first), len(second)) == (25, 25)
    seen = {(image.shape, image.tobytes()) for image in first.images}
    assert not seen & {(image.shape, image.tobytes()) for image in second.images}
    assert split(doubled) == (first, second) or split(doubled)[0].digest == first.digest


def test_split_does_not_depend_on_the_order() -> None:
    samples = pictures(40)
    turned = sample_set(samples.images[::-1], samples.labels[::-1], samples.source)
    assert [part.digest for part in split(samples)] == [part.digest for part in split(turned)]


def test_too_few_images(tmp_path: Path) -> None:
    folder = write_pictures(tmp_path / "few", pictures(MIN_COUNT - 1))
    with pytest.raises(InputError, match=rf"few holds {MIN_COUNT - 1} images .* at least {MIN_COUNT}"):
        samples_from(folder)
    same = sample_set(pictures(1).images * 40, ["x"] * 40, "one picture")
    with pytest.raises(InputError, match="one picture holds 1 different images"):
        split(same)
    (tmp_path / "empty").mkdir()
    with pytest.raises(SourceError, match="empty holds no images"):
        samples_from(tmp_path / "empty")


def test_unreadable_images_are_named(tmp_path: Path) -> None:
    folder = write_pictures(tmp_path / "data", pictures(20))
    (folder / "label 1" / "broken.png").write_bytes(b"\x89PNG broken")
    with pytest.raises(SourceError, match=r"broken\.png"):
        samples_from(folder)
    with pytest.raises(SourceError, match=r"label 1/broken\.png in .*data\.zip"):
        samples_from(pack(folder, tmp_path / "data.zip"))


def test_wrong_paths(tmp_path: Path) -> None:
    with pytest.raises(SourceError, match=r"nowhere does not exist; allowed: a folder of images, or a \.zip"):
        samples_from(tmp_path / "nowhere")
    (tmp_path / "list.txt").write_text("a.png\n")
    with pytest.raises(SourceError, match=r"list\.txt is neither a folder nor a zip"):
        samples_from(tmp_path / "list.txt")


def test_damaged_zip(tmp_path: Path) -> None:
    path = pack(write_pictures(tmp_path / "data", pictures(20)), tmp_path / "data.zip")
    data = bytearray(path.read_bytes())
    data[200:240] = bytes(40)
    path.write_bytes(data)
    with pytest.raises(SourceError, match=r"data\.zip"):
        samples_from(path)


def test_entry_that_claims_an_absurd_size(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = pack(write_pictures(tmp_path / "data", pictures(20)), tmp_path / "data.zip")
    monkeypatch.setenv("EDGEVIS_MAX_FILE_BYTES", "20")
    with pytest.raises(SourceError, match="bytes; image files of at most 20 are read"):
        samples_from(path)
