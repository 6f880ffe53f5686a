"""Training reads pictures and masks as prediction does: orientation, alpha, depth, folders."""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from calibration.data.samples import samples_from
from edgevis.data import read_fss1000, read_instances, read_masked_images
from edgevis.data.files import open_files
from edgevis.data.masks import read_class_ids
from runtime.errors import SourceError
from runtime.images.decode import as_image
from runtime.images.exif import upright
from runtime.images.folders import images_of

from bundles import picture
from logs import logged_warnings

pil = pytest.importorskip("PIL.Image")

RGB = np.ascontiguousarray(picture(5, 40, 60)[..., ::-1])
MASK = np.zeros((40, 60), np.uint8)
MASK[5:20, 10:45] = 1


def png(pixels: np.ndarray, orientation: int = 1) -> bytes:
    exif = pil.Exif()
    exif[0x0112] = orientation
    buffer = io.BytesIO()
    pil.fromarray(pixels).save(buffer, "PNG", **({"exif": exif} if orientation != 1 else {}))
    return buffer.getvalue()


def stored(pixels: np.ndarray, orientation: int) -> np.ndarray:
    return np.asarray(upright(pixels, {6: 8, 8: 6}.get(orientation, orientation)))


def write(folder: Path, **content: bytes) -> Path:
    for name, data in content.items():
        place = folder / name.replace("__", "/")
        place = place.with_name(place.name.replace("_png", ".png").replace("_jpg", ".jpg"))
        place.parent.mkdir(parents=True, exist_ok=True)
        place.write_bytes(data)
    return folder


@pytest.mark.parametrize("form", ["cut-out", "white", "LA", "soft"])
def test_a_mask_in_the_alpha_channel(tmp_path: Path, form: str) -> None:
    mask: dict[str, Any] = {
        "cut-out": np.dstack([RGB, MASK * 255]),
        "white": np.dstack([RGB * 0 + 255, MASK * 255]),
        "LA": np.dstack([MASK * 255] * 2),
        "soft": np.dstack([RGB, MASK * np.uint8(200)]),
    }
    data = png(mask[form])
    classes = read_fss1000(write(tmp_path / "fss", cat__1_jpg=png(RGB), cat__1_png=data))
    np.testing.assert_array_equal(classes.read(0, 0).mask, MASK == 1)
    folder = write(tmp_path / "pairs", images__a_png=png(RGB), masks__a_png=data)
    np.testing.assert_array_equal(read_masked_images(folder)[0][1], MASK)
    np.testing.assert_array_equal(read_class_ids(open_files(folder), "masks/a.png"), MASK)
    write(folder, instances__a_png=data)
    (folder / "boxes_xyxy.json").write_text('{"a": [[10, 5, 45, 20]]}')
    np.testing.assert_array_equal(read_instances(folder)[0][1], MASK)


@pytest.mark.parametrize("orientation", range(2, 9))
def test_masks_are_turned_as_their_photographs_are(tmp_path: Path, orientation: int) -> None:
    photograph = png(stored(RGB, orientation), orientation)
    own = write(tmp_path / "own", images__a_png=photograph, masks__a_png=png(stored(MASK, orientation), orientation))
    image, mask = read_masked_images(own)[0]
    np.testing.assert_array_equal(image[..., ::-1], RGB)
    np.testing.assert_array_equal(mask, MASK)
    for name, numbers in (("as stored", stored(MASK, orientation)), ("as shown", MASK)):
        pairs = read_masked_images(write(tmp_path / name, images__a_png=photograph, masks__a_png=png(numbers)))
        classes = read_fss1000(write(tmp_path / f"fss {name}", cat__1_jpg=photograph, cat__1_png=png(numbers * 255)))
        if orientation >= 5:
            np.testing.assert_array_equal(pairs[0][1], MASK)
            np.testing.assert_array_equal(classes.read(0, 0).mask, MASK == 1)
        else:
            for read in (lambda pairs=pairs: pairs[0], lambda classes=classes: classes.read(0, 0)):
                with pytest.raises(SourceError, match=rf"EXIF orientation {orientation}, and their size does not say"):
                    read()


def test_every_reader_gives_the_same_pixels(tmp_path: Path) -> None:
    """The calibration reader, the data set's and prediction's."""
    alpha = np.tile(np.linspace(0, 255, 60).astype(np.uint8), (40, 1))
    kinds = {
        "turned": png(stored(RGB, 6), 6),
        "alpha": png(np.dstack([RGB, alpha])),
        "16 bits": png(np.asarray(pil.fromarray(RGB).convert("L")).astype(np.uint16) * 257),
    }
    for name, data in kinds.items():
        folder = tmp_path / name
        folder.mkdir()
        for index in range(16):
            (folder / f"{index:02}.png").write_bytes(data)
        expected = as_image(folder / "00.png")
        np.testing.assert_array_equal(open_files(folder).image("03.png"), expected)
        np.testing.assert_array_equal(samples_from(folder).images[5], expected)


def test_pictures_that_are_left_out_are_named(tmp_path: Path) -> None:
    write(tmp_path, a__1_jpg=png(RGB))
    (tmp_path / "a" / "2.heic").write_bytes(b"")
    (tmp_path / "a" / "3.jpg").symlink_to(tmp_path / "gone.jpg")
    with logged_warnings(match=r"left out of .*a/2\.heic \(OpenCV.*a/3\.jpg \(a link that"):
        files = open_files(tmp_path)
    assert images_of(files.names) == ["a/1.jpg"]


def test_label_images_are_no_pictures_to_learn_from() -> None:
    names = ["images/a.jpg", "masks/a.png", "index.csv"]
    assert images_of(names) == ["images/a.jpg"]
    assert images_of(names, label_images=True) == ["images/a.jpg", "masks/a.png"]
    assert images_of(["masks/a.png"]) == ["masks/a.png"]
