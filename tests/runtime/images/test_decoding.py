"""One picture, one set of pixels: by path, bytes, PIL and array, in every format, depth and orientation."""

from __future__ import annotations

import io
import struct
import zlib
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import numpy.typing as npt
import PIL.Image
import PIL.ImageOps
import pytest

from runtime.errors import InputError, SourceError
from runtime.images.decode import as_image, decode_image, decode_picture, orientation_of
from runtime.images.exif import upright

from bundles import picture

IMAGE = picture(1, 40, 56)
RGB = np.ascontiguousarray(IMAGE[..., ::-1])
GREY = np.asarray(PIL.Image.fromarray(RGB).convert("L"))
ORIENTATION = 0x0112
# Of JPEG, whose decoders differ in rounding: OpenCV's CMYK and PIL's.
ROUNDING = 2


def saved(image: PIL.Image.Image, form: str, **options: Any) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, form, **options)
    return buffer.getvalue()


def through_pil(data: bytes) -> npt.NDArray[np.uint8]:
    return as_image(PIL.Image.open(io.BytesIO(data)))


def can(suffix: str) -> bool:
    return bool(cv2.haveImageWriter(suffix))


def exif_of(orientation: int) -> PIL.Image.Exif:
    exif = PIL.Image.Exif()
    exif[ORIENTATION] = orientation
    return exif


FORMATS = [
    ("JPEG", {"quality": 100}),
    ("PNG", {}),
    ("WEBP", {"lossless": True}),
    ("TIFF", {}),
    pytest.param("AVIF", {"quality": 100}, marks=pytest.mark.skipif(not can(".avif"), reason="OpenCV without AVIF")),
]


@pytest.mark.parametrize(("form", "options"), FORMATS)
@pytest.mark.parametrize("orientation", range(1, 9))
def test_every_orientation(tmp_path: Path, form: str, options: dict[str, Any], orientation: int) -> None:
    data = saved(PIL.Image.fromarray(RGB), form, exif=exif_of(orientation), **options)
    expected = PIL.ImageOps.exif_transpose(PIL.Image.open(io.BytesIO(data))).convert("RGB")
    path = tmp_path / "a.image"
    path.write_bytes(data)
    found = {"path": as_image(path), "bytes": as_image(data), "PIL": through_pil(data), "turned": as_image(expected)}
    for name, image in found.items():
        assert image.shape == (*expected.size[::-1], 3), name
        assert np.abs(image.astype(int) - np.asarray(expected)[..., ::-1]).max() <= ROUNDING, name
    pixels, stored = decode_picture(data, "a")
    assert (stored, pixels.shape) == (orientation, found["path"].shape)
    assert orientation_of(path) == orientation_of(data) == orientation


@pytest.mark.parametrize("mode", ["L", "1", "P", "RGBA", "I;16"])
@pytest.mark.parametrize("form", ["PNG", "TIFF"])
def test_orientation_whatever_the_pixels_are(mode: str, form: str) -> None:
    pil = (
        PIL.Image.fromarray(GREY.astype(np.uint16) * 257) if mode == "I;16" else PIL.Image.fromarray(RGB).convert(mode)
    )
    flat = decode_image(saved(pil, form), "flat")
    for orientation in range(2, 9):
        data = saved(pil, form, exif=exif_of(orientation))
        np.testing.assert_array_equal(decode_image(data, "turned"), upright(flat, orientation))
        np.testing.assert_array_equal(through_pil(data), upright(flat, orientation))


def test_upright_is_what_exif_means() -> None:
    for orientation in range(1, 9):
        pil = PIL.Image.fromarray(RGB)
        pil.getexif()[ORIENTATION] = orientation
        np.testing.assert_array_equal(upright(RGB, orientation), np.asarray(PIL.ImageOps.exif_transpose(pil)))


def test_a_pil_image_whose_exif_was_changed() -> None:
    data = saved(PIL.Image.fromarray(RGB), "PNG", exif=exif_of(6))
    pil = PIL.Image.open(io.BytesIO(data))
    pil.getexif()[ORIENTATION] = 3
    np.testing.assert_array_equal(as_image(pil), upright(IMAGE, 3))
    pil = PIL.Image.open(io.BytesIO(data))
    del pil.getexif()[ORIENTATION]
    np.testing.assert_array_equal(as_image(pil), IMAGE)


def chunk(kind: bytes, data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))


def png(pixels: npt.NDArray[Any], depth: int, kind: int, *extra: tuple[bytes, bytes]) -> bytes:
    """A PNG with chunks of our choice before its pixels."""
    rows = pixels.astype(">u2") if depth == 16 else pixels
    raw = b"".join(b"\0" + row.tobytes() for row in rows)
    header = struct.pack(">IIBBBBB", pixels.shape[1] * 8 // min(depth, 8), len(pixels), depth, kind, 0, 0, 0)
    parts = [(b"IHDR", header), *extra, (b"IDAT", zlib.compress(raw)), (b"IEND", b"")]
    return b"\x89PNG\r\n\x1a\n" + b"".join(chunk(*part) for part in parts)


XMP = b'<x:xmpmeta><rdf:Description xmlns:tiff="http://ns.adobe.com/tiff/1.0/" tiff:Orientation="6"/></x:xmpmeta>'


def test_orientation_in_xmp_and_in_old_pngs() -> None:
    raw = f"\nexif\n{len(exif_of(6).tobytes()):8}\n{exif_of(6).tobytes().hex()}".encode()
    jpeg = saved(PIL.Image.fromarray(RGB), "JPEG", quality=100)
    segment = b"http://ns.adobe.com/xap/1.0/\0" + XMP
    files = {
        "png": png(GREY, 8, 0, (b"iTXt", b"XML:com.adobe.xmp\0\0\0\0\0" + XMP)),
        "jpeg": jpeg[:2] + b"\xff\xe1" + struct.pack(">H", 2 + len(segment)) + segment + jpeg[2:],
        "webp": saved(PIL.Image.fromarray(RGB), "WEBP", lossless=True, xmp=XMP),
        "ImageMagick": png(GREY, 8, 0, (b"zTXt", b"Raw profile type exif\0\0" + zlib.compress(raw))),
    }
    for name, data in files.items():
        assert decode_image(data, name).shape == (56, 40, 3), name
        np.testing.assert_allclose(decode_image(data, name), through_pil(data), atol=ROUNDING, err_msg=name)


# Depth


def test_full_range_16_bits(tmp_path: Path) -> None:
    wide = GREY.astype(np.uint16) * 257
    expected = np.dstack([GREY] * 3)
    for suffix in (".png", ".tif", ".pgm"):
        data = cv2.imencode(suffix, wide)[1].tobytes()
        np.testing.assert_array_equal(decode_image(data, suffix), expected)
        np.testing.assert_array_equal(through_pil(data), expected)
    colour = cv2.imencode(".png", IMAGE.astype(np.uint16) * 257)[1].tobytes()
    np.testing.assert_array_equal(decode_image(colour, "colour"), IMAGE)
    np.testing.assert_array_equal(through_pil(colour), IMAGE)
    between = np.array([[0, 128, 129, 65535 - 128, 65535, 20000]], np.uint16)
    found = decode_image(cv2.imencode(".png", between)[1].tobytes(), "between")[0, :, 0]
    assert found.tolist() == np.round(between[0] / 257).astype(int).tolist()


@pytest.mark.parametrize("bits", [10, 12, 14])
def test_fewer_bits_in_16_are_refused_by_every_entrance(tmp_path: Path, bits: int) -> None:
    for stored in (GREY, IMAGE):
        wide = stored.astype(np.uint16) << (bits - 8)
        data = cv2.imencode(".png", wide)[1].tobytes()
        message = rf"it may hold {bits} bits in 16.* \(image >> {bits - 8}\)"
        with pytest.raises(SourceError, match=message):
            decode_image(data, "a.png")
        with pytest.raises(InputError, match="it may hold"):
            through_pil(data)
        with pytest.raises(InputError, match=r"dtype uint16; .*if they have"):
            as_image(wide)
    black = cv2.imencode(".png", np.zeros((4, 4), np.uint16))[1].tobytes()
    assert not decode_image(black, "black").any()


def test_a_stated_greatest_value_is_the_range() -> None:
    for peak in (100, 1023, 4095):
        values = (GREY.astype(int) * peak // 255).astype(np.uint8 if peak < 256 else ">u2")
        data = f"P5\n# made here\n56 40\n{peak}\n".encode() + values.tobytes()
        expected = np.dstack([GREY] * 3).astype(int)
        assert np.abs(decode_image(data, "pgm") - expected).max() <= (3 if peak == 100 else 1)


def test_numbers_without_a_range_are_refused() -> None:
    for dtype in (np.float32, np.float64, np.int32):
        floating = np.issubdtype(dtype, np.floating)
        data = cv2.imencode(".tiff", (GREY / 255 if floating else GREY).astype(dtype))[1].tobytes()
        said = "floating point numbers .* whose range .*255" if floating else "signed numbers .* whose range .* scaled"
        with pytest.raises(SourceError, match=f"a TIFF with {said}"):
            decode_image(data, "a.tiff")
    for values, mode in ((GREY / np.float32(255), "F"), (GREY.astype(np.int32), "I")):
        with pytest.raises(InputError, match=f"PIL image of mode {mode}, whose range or colours are not known"):
            as_image(PIL.Image.fromarray(values))
    for suffix in (".hdr", ".pfm"):
        with pytest.raises(SourceError, match="floating point numbers without a known range"):
            decode_image(cv2.imencode(suffix, (IMAGE / 255).astype(np.float32))[1].tobytes(), suffix)


# Transparency

ALPHA = np.tile(np.linspace(0, 255, 56).round().astype(np.uint8), (40, 1))


def on_white(rgb: npt.NDArray[Any], alpha: npt.NDArray[Any]) -> npt.NDArray[Any]:
    part = alpha[..., None] / 255.0
    return (rgb * part + 255 * (1 - part))[..., ::-1]


@pytest.mark.parametrize(("form", "options"), [("PNG", {}), ("WEBP", {"lossless": True, "exact": True}), ("TIFF", {})])
def test_transparency_is_composited_onto_white(form: str, options: dict[str, Any]) -> None:
    for alpha in (ALPHA, (ALPHA > 100).astype(np.uint8) * 255):
        data = saved(PIL.Image.fromarray(np.dstack([RGB, alpha])), form, **options)
        assert np.abs(decode_image(data, "path") - on_white(RGB, alpha)).max() <= 1
        assert np.abs(through_pil(data) - on_white(RGB, alpha)).max() <= 1


@pytest.mark.parametrize("form", ["PNG", "WEBP", "TIFF", "GIF"])
def test_colours_under_transparent_pixels_never_show(form: str) -> None:
    alpha = np.where(np.arange(56) < 20, 0, 255).astype(np.uint8) * np.ones((40, 1), np.uint8)
    options = {"lossless": True, "exact": True} if form == "WEBP" else {}
    if form == "GIF" and not can(".gif"):
        pytest.skip("OpenCV without GIF")
    for hidden in ((255, 0, 255), (0, 0, 0)):
        rgb = RGB.copy()
        rgb[alpha == 0] = hidden
        data = saved(PIL.Image.fromarray(np.dstack([rgb, alpha])), form, **options)
        for image in (decode_image(data, "path"), through_pil(data)):
            assert (image[alpha == 0] == 255).all()


def test_grey_with_alpha_and_16_bits_with_alpha() -> None:
    la = saved(PIL.Image.fromarray(np.dstack([GREY, ALPHA])), "PNG")
    expected = on_white(np.dstack([GREY] * 3), ALPHA)
    assert np.abs(decode_image(la, "LA") - expected).max() <= 1
    assert np.abs(through_pil(la) - expected).max() <= 1
    wide = np.dstack([IMAGE, ALPHA]).astype(np.uint16) * 257
    for suffix in (".png", ".tiff"):
        data = cv2.imencode(suffix, wide)[1].tobytes()
        assert np.abs(decode_image(data, suffix) - on_white(RGB, ALPHA)).max() <= 1
        assert np.abs(through_pil(data).astype(int) - decode_image(data, suffix)).max() <= 1


def test_one_value_declared_transparent() -> None:
    value = int(GREY[20, 30])
    expected = np.dstack([np.where(value == GREY, 255, GREY)] * 3)
    grey = saved(PIL.Image.fromarray(GREY), "PNG", transparency=value)
    wide = png(GREY.astype(np.uint16) * 257, 16, 0, (b"tRNS", struct.pack(">H", value * 257)))
    for data in (grey, wide):
        np.testing.assert_array_equal(decode_image(data, "grey"), expected)
        np.testing.assert_array_equal(through_pil(data), expected)
    colour = tuple(int(part) for part in RGB[20, 30])
    data = saved(PIL.Image.fromarray(RGB), "PNG", transparency=colour)
    assert (decode_image(data, "colour")[20, 30] == 255).all()
    np.testing.assert_array_equal(decode_image(data, "colour"), through_pil(data))


def test_few_bits_declared_transparent() -> None:
    """Of 4 bits the declared value is one of 16, and OpenCV gives 17 times that."""
    nibbles = GREY >> 4
    value = int(nibbles[20, 30])
    data = png((nibbles[:, 0::2] << 4 | nibbles[:, 1::2]).astype(np.uint8), 4, 0, (b"tRNS", struct.pack(">H", value)))
    np.testing.assert_array_equal(decode_image(data, "grey")[..., 0], np.where(nibbles == value, 255, nibbles * 17))


def test_palettes_cmyk_and_bilevel() -> None:
    pil = PIL.Image.fromarray(RGB)
    palette = pil.quantize(64)
    files = {
        "palette": saved(palette, "PNG"),
        "palette BMP": saved(palette, "BMP"),
        "palette, transparent": saved(palette, "PNG", transparency=bytes([0, 100])),
        "bilevel": saved(pil.convert("1"), "PNG"),
        "bilevel TIFF": saved(pil.convert("1"), "TIFF"),
        "CMYK TIFF": saved(pil.convert("CMYK"), "TIFF"),
        "CMYK JPEG": saved(pil.convert("CMYK"), "JPEG", quality=100),
        "grey JPEG": saved(pil.convert("L"), "JPEG", quality=100),
        "YCbCr TIFF": saved(pil.convert("YCbCr"), "TIFF"),
    }
    for name, data in files.items():
        assert np.abs(decode_image(data, name).astype(int) - through_pil(data)).max() <= ROUNDING, name
    assert (decode_image(files["palette, transparent"], "a") == 255).all(axis=2).any()


def test_tiffs_that_opencv_would_read_wrongly() -> None:
    """It drops the alpha of grey, and knows nothing of 16 bits in which 0 is white."""
    la = saved(PIL.Image.fromarray(np.dstack([GREY, ALPHA])), "TIFF")
    with pytest.raises(SourceError, match="an alpha or extra channel beside grey or CMYK; save it as PNG"):
        decode_image(la, "a.tif")
    inverted = bytearray(saved(PIL.Image.fromarray(GREY.astype(np.uint16) * 257), "TIFF"))
    place = inverted.index(struct.pack("<HHI", 262, 3, 1))
    inverted[place + 8 : place + 10] = b"\0\0"
    with pytest.raises(SourceError, match="16 bits that is neither grey nor RGB"):
        decode_image(bytes(inverted), "a.tif")
    with pytest.raises(InputError, match="in which 0 is white"):
        through_pil(bytes(inverted))


@pytest.mark.parametrize("form", ["GIF", "PNG", "WEBP", "TIFF"])
def test_of_several_pictures_the_first_is_read(form: str) -> None:
    if form == "GIF" and not can(".gif"):
        pytest.skip("OpenCV without GIF")
    if form == "WEBP" and not can(".gif"):
        pytest.skip("OpenCV reads animations since 4.11, as it does GIF")
    first, second = PIL.Image.fromarray(RGB).convert("L"), PIL.Image.fromarray(255 - RGB).convert("L")
    options = {"lossless": True} if form == "WEBP" else {}
    data = saved(first, form, save_all=True, append_images=[second], **options)
    np.testing.assert_allclose(decode_image(data, form), np.dstack([GREY] * 3), atol=3)
    np.testing.assert_allclose(through_pil(data), np.dstack([GREY] * 3), atol=3)


# Arrays of other libraries


class Foreign:
    """As a tensor on the CPU is: it becomes an array when NumPy asks."""

    def __init__(self, array: npt.NDArray[Any]) -> None:
        self.array = array

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> npt.NDArray[Any]:
        return self.array


class OnTheDevice:
    def __array__(self, dtype: Any = None, copy: bool | None = None) -> npt.NDArray[Any]:
        raise TypeError("can't convert cuda:0 device type tensor to numpy")


def test_what_becomes_an_array_is_one() -> None:
    for value in (Foreign(IMAGE), memoryview(IMAGE), IMAGE.view(np.ma.MaskedArray)):
        np.testing.assert_array_equal(as_image(value), IMAGE)
    with pytest.raises(InputError, match=r"OnTheDevice does not become a NumPy array: can't convert cuda.*\.cpu\(\)"):
        as_image(OnTheDevice())
    with pytest.raises(InputError, match=r"a float image in 0\.\.1 .*; channels are first"):
        as_image(Foreign(IMAGE.transpose(2, 0, 1) / np.float32(255)))


def test_encoded_bytes_in_any_form() -> None:
    encoded = cv2.imencode(".png", IMAGE)[1]
    for value in (encoded, encoded.tobytes(), bytearray(encoded.tobytes()), memoryview(encoded.tobytes())):
        np.testing.assert_array_equal(as_image(value), IMAGE)
    with pytest.raises(SourceError, match="bytes are taken for the content of an image file, not for a path"):
        as_image(b"/home/ana/door.jpg")
