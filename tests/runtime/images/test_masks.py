"""Masks as annotation tools write them: the right share by path and by PIL, or a refusal that names the cause."""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import numpy.typing as npt
import PIL.Image
import pytest

from runtime.errors import EdgevisError, InputError, SourceError
from runtime.images.exif import upright
from runtime.images.masks import as_masks, decode_mask

from bundles import picture
from logs import WATCH, logged_warnings

IMAGE = picture(3, 60, 80)
RGB = np.ascontiguousarray(IMAGE[..., ::-1])
MASK = np.zeros((60, 80), np.uint8)
cv2.ellipse(MASK, (30, 25), (20, 12), 0, 0, 360, 1, -1)
OBJECT = MASK.astype(bool)
SOFT = cv2.GaussianBlur(MASK * 255, (5, 5), 0)
BORDER = MASK.copy()
cv2.ellipse(BORDER, (30, 25), (20, 12), 0, 0, 360, 255, 2)
VOC = [0, 0, 0, 128, 0, 0] + [0] * (3 * 253) + [224, 224, 192]


def pil(pixels: npt.NDArray[Any], mode: str | None = None, palette: list[int] | None = None) -> PIL.Image.Image:
    image = PIL.Image.fromarray(pixels) if mode is None else PIL.Image.fromarray(pixels).convert(mode)
    if palette is not None:
        image.putpalette(palette)
    return image


def rgba(rgb: npt.NDArray[Any], alpha: npt.NDArray[Any]) -> PIL.Image.Image:
    return PIL.Image.fromarray(np.dstack([rgb, alpha]))


WHITE = np.full_like(RGB, 255)
GREY_PHOTO = np.asarray(PIL.Image.fromarray(RGB).convert("L"))

RIGHT: dict[str, tuple[PIL.Image.Image, npt.NDArray[np.bool_]]] = {
    "grey": (pil(MASK * 255), OBJECT),
    "one bit": (pil(OBJECT), OBJECT),
    "16 bits": (pil(MASK.astype(np.uint16) * 1000), OBJECT),
    "palette": (pil(MASK, palette=VOC), OBJECT),
    "palette with VOC's border": (pil(BORDER, palette=VOC), BORDER == 1),
    "palette, only 255": (pil(MASK * 255, palette=VOC), OBJECT),
    "black and white in RGB": (pil(np.dstack([MASK * 255] * 3)), OBJECT),
    "cut-out": (rgba(RGB, MASK * 255), OBJECT),
    "cut-out with soft edges": (rgba(RGB, SOFT), SOFT > 127),
    "white with alpha": (rgba(WHITE, MASK * 255), OBJECT),
    "black with alpha": (rgba(WHITE * 0, MASK * 255), OBJECT),
    "white with soft alpha": (rgba(WHITE, SOFT), SOFT > 127),
    "white on black with alpha": (rgba(np.dstack([MASK * 255] * 3), MASK * 255), OBJECT),
    "white on black with soft alpha": (rgba(np.dstack([(SOFT > 0) * np.uint8(255)] * 3), SOFT), SOFT > 127),
    "LA": (pil(np.dstack([MASK * 255, MASK * 255])), OBJECT),
    "soft LA": (pil(np.dstack([SOFT, SOFT])), SOFT > 127),
    "grey cut-out": (pil(np.dstack([GREY_PHOTO, MASK * 255])), OBJECT),
    "an id, and opaque": (rgba(np.dstack([MASK * 7] * 3), MASK * 0 + 255), OBJECT),
    "an id under its own alpha": (rgba(np.dstack([MASK * 7] * 3), MASK * 255), OBJECT),
}


@pytest.mark.parametrize("name", RIGHT)
def test_the_right_share_by_path_by_pil_and_by_array(tmp_path: Path, name: str) -> None:
    image, expected = RIGHT[name]
    path = tmp_path / "mask.png"
    image.save(path)
    for value in (path, str(path), path.read_bytes(), PIL.Image.open(path), image):
        (found,) = as_masks(value, [IMAGE])
        np.testing.assert_array_equal(found, expected)
    if image.mode != "P":  # whose palette an array does not tell
        np.testing.assert_array_equal(as_masks(np.asarray(image), [IMAGE])[0], expected)


@pytest.mark.parametrize("suffix", [".bmp", ".tif", ".webp", ".pgm"])
def test_formats_that_keep_numbers(tmp_path: Path, suffix: str) -> None:
    path = tmp_path / f"mask{suffix}"
    pil(MASK * 255).save(path, **({"lossless": True} if suffix == ".webp" else {}))
    for value in (path, PIL.Image.open(path)):
        np.testing.assert_array_equal(as_masks(value, [IMAGE])[0], OBJECT)


def test_alpha_in_other_formats(tmp_path: Path) -> None:
    for suffix, options in ((".tif", {}), (".webp", {"lossless": True, "exact": True})):
        for image in (rgba(RGB, MASK * 255), rgba(WHITE, MASK * 255)):
            path = tmp_path / f"mask{suffix}"
            image.save(path, **options)
            for value in (path, PIL.Image.open(path)):
                np.testing.assert_array_equal(as_masks(value, [IMAGE])[0], OBJECT)


def test_a_palette_whose_background_is_transparent(tmp_path: Path) -> None:
    path = tmp_path / "mask.png"
    pil(MASK, palette=VOC).save(path, transparency=0)
    for value in (path, PIL.Image.open(path)):
        np.testing.assert_array_equal(as_masks(value, [IMAGE])[0], OBJECT)
    pil(MASK, palette=VOC).save(path, transparency=1)
    for value in (path, PIL.Image.open(path)):
        with pytest.raises(EdgevisError, match="alpha channel that marks other pixels than its values"):
            as_masks(value, [IMAGE])


INSTANCES = MASK.copy()
INSTANCES[:9, :9] = 2
WRONG: dict[str, tuple[PIL.Image.Image, str]] = {
    "smoothed": (pil(SOFT), r"smoothed, was a JPEG.*threshold it, as by mask > 127"),
    "instances": (pil(INSTANCES), "has the values 0, 1, 2; say which is the object, as by mask == 1"),
    "border in grey": (pil(BORDER), r"as by mask == 1 \(255 is taken for a void border only"),
    "instances and a border": (pil(np.maximum(INSTANCES, BORDER), palette=VOC), "0, 1, 2, 255"),
    "colours": (pil(np.dstack([MASK * 0, MASK * 0, MASK * 128])), "holds colours"),
    "nothing": (pil(MASK * 0), "marks nothing"),
    "transparent everywhere": (rgba(WHITE, MASK * 0), "is transparent everywhere"),
    "colours against alpha": (
        rgba(np.dstack([MASK * 255] * 3), (1 - MASK) * 255),
        "marks other pixels than its values",
    ),
    "another size": (pil(MASK[::2, ::2]), r"is \(30, 40\), its image \(60, 80\)"),
}


@pytest.mark.parametrize("name", WRONG)
def test_a_refusal_that_names_the_cause(tmp_path: Path, name: str) -> None:
    image, message = WRONG[name]
    path = tmp_path / "mask.png"
    image.save(path)
    with PIL.Image.open(path) as opened:
        for value in (path, opened):
            with pytest.raises((InputError, SourceError), match=message):
                as_masks(value, [IMAGE])


def test_what_does_not_keep_numbers_is_refused(tmp_path: Path) -> None:
    for form, message in (("JPEG", "a JPEG, which does not keep"), ("WEBP", "a WebP, which does"), ("GIF", "palette")):
        buffer = io.BytesIO()
        pil(MASK * 255).save(buffer, form)
        with pytest.raises(SourceError, match=message):
            decode_mask(buffer.getvalue(), "mask")
    path = tmp_path / "mask.jpg"
    pil(MASK * 255).save(path)
    with PIL.Image.open(path) as opened, pytest.raises(InputError, match="is a JPEG, which does not keep"):
        as_masks(opened, [IMAGE])
    colours = io.BytesIO()
    pil(MASK, palette=VOC).save(colours, "BMP")
    with pytest.raises(SourceError, match="a BMP with a palette, whose indices OpenCV does not give: save a PNG"):
        decode_mask(colours.getvalue(), "mask")


def test_a_mask_that_marks_everything_is_warned_of() -> None:
    with logged_warnings(match="mask marks every pixel: all of it is 255"):
        assert as_masks(MASK * 0 + 255, [IMAGE])[0].all()


def test_arrays_with_a_channel_axis() -> None:
    forms = {
        "(H, W, 1)": MASK[..., None],
        "(H, W, 3)": np.dstack([MASK] * 3),
        "(H, W, 2)": np.dstack([MASK * 255] * 2),
        "(H, W, 4)": np.dstack([RGB, MASK * 255]),
        "bool (H, W, 1)": OBJECT[..., None],
        "not contiguous": np.asfortranarray(MASK),
    }
    for name, array in forms.items():
        np.testing.assert_array_equal(as_masks(array, [IMAGE])[0], OBJECT, err_msg=name)
        np.testing.assert_array_equal(as_masks([array, MASK], [IMAGE] * 2)[0], OBJECT, err_msg=name)
    for stack in (np.stack([MASK, 1 - MASK]), np.stack([MASK, 1 - MASK])[..., None]):
        found = as_masks(stack, [IMAGE] * 2)
        np.testing.assert_array_equal(found[1], ~OBJECT)
    for wrong in (np.stack([MASK] * 5, axis=-1), MASK / 2, MASK.astype(np.uint16)[..., None].repeat(4, axis=-1)):
        with pytest.raises(InputError):
            as_masks(wrong, [IMAGE])


# Orientation: IMAGE is what EXIF makes of the photograph


def stored(pixels: npt.NDArray[Any], orientation: int) -> npt.NDArray[Any]:
    """Upright pixels as a camera that was held so has stored them."""
    back = {6: 8, 8: 6}.get(orientation, orientation)
    return upright(np.ascontiguousarray(pixels), back)


@pytest.mark.parametrize("orientation", range(2, 9))
def test_a_mask_beside_a_turned_photograph(orientation: int) -> None:
    as_stored, as_shown = stored(MASK, orientation), MASK
    np.testing.assert_array_equal(upright(as_stored, orientation), MASK)
    if orientation >= 5:  # the size tells
        for mask in (as_stored, as_shown):
            np.testing.assert_array_equal(as_masks(mask, [IMAGE], [orientation])[0], OBJECT)
        return
    for mask in (as_stored, as_shown):
        with pytest.raises(
            InputError, match=f"EXIF orientation {orientation}, and their size does not say.*exif_trans"
        ):
            as_masks(mask, [IMAGE], [orientation])


@pytest.mark.parametrize("orientation", range(2, 9))
def test_square_photographs_do_not_tell(orientation: int) -> None:
    square = MASK[:50, :50]
    with pytest.raises(InputError, match="their size does not say"):
        as_masks(stored(square, orientation), [IMAGE[:50, :50]], [orientation])
    symmetric = np.zeros((50, 50), np.uint8)
    symmetric[20:30, 20:30] = 1
    np.testing.assert_array_equal(as_masks(symmetric, [IMAGE[:50, :50]], [orientation])[0], symmetric == 1)


@pytest.mark.parametrize("orientation", range(2, 9))
def test_a_masks_own_orientation_counts(tmp_path: Path, orientation: int) -> None:
    exif = PIL.Image.Exif()
    exif[0x0112] = orientation
    path = tmp_path / "mask.png"
    pil(stored(MASK * 255, orientation)).save(path, exif=exif)
    for value in (path, PIL.Image.open(path)):
        for photograph in (1, orientation, 3):
            np.testing.assert_array_equal(as_masks(value, [IMAGE], [photograph])[0], OBJECT)


def test_no_warnings_for_sound_masks(tmp_path: Path) -> None:
    assert as_masks(OBJECT, [IMAGE])[0].sum() == MASK.sum()
    assert WATCH.messages == []
