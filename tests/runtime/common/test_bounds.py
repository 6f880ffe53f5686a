"""Small files that claim to be large: refused by their header, before memory is taken for their pixels."""

from __future__ import annotations

import io
import struct
import tracemalloc
import zipfile
import zlib
from pathlib import Path

import cv2
import numpy as np
import PIL.Image
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from runtime.common import limits
from runtime.common.arrays import read_arrays, write_arrays
from runtime.enrolment.file import load_enrolment
from runtime.errors import EdgevisError, EnrolmentError, InputError, IntegrityError, SourceError
from runtime.images.decode import UNREAD_SUFFIXES, as_image, decode_image, read_image
from runtime.images.header import read_header
from runtime.images.masks import as_masks, decode_mask

from bundles import picture
from python_processes import run_python, succeeded

IMAGE = picture(1, 40, 56)


def chunk(kind: bytes, data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))


def png_claiming(width: int, height: int, depth: int = 8, kind: int = 0, rows: bytes = b"") -> bytes:
    header = struct.pack(">IIBBBBB", width, height, depth, kind, 0, 0, 0)
    parts = (chunk(b"IHDR", header), chunk(b"IDAT", zlib.compress(rows)), chunk(b"IEND", b""))
    return b"\x89PNG\r\n\x1a\n" + b"".join(parts)


def claiming(form: str, width: int, height: int) -> bytes:
    """A small file of a format whose header says another size."""
    pil = PIL.Image.fromarray(IMAGE[..., ::-1])
    buffer = io.BytesIO()
    small = 56, 40
    if form == "PNG":
        return png_claiming(width, height)
    if form == "PPM":
        return f"P6\n{width} {height}\n255\n".encode() + bytes(100)
    if form == "PAM":
        return f"P7\nWIDTH {width}\nHEIGHT {height}\nDEPTH 3\nMAXVAL 255\nTUPLTYPE RGB\nENDHDR\n".encode() + bytes(100)
    pil.save(buffer, form, **({"lossless": True} if form == "WEBP" else {}))
    data = bytearray(buffer.getvalue())
    if form == "JPEG":
        place = data.index(b"\xff\xc0") + 5
        data[place : place + 4] = struct.pack(">HH", height, width)
    elif form == "BMP":
        data[18:26] = struct.pack("<ii", width, -height)
    elif form == "GIF":
        data[6:10] = struct.pack("<HH", width, height)
    elif form == "TIFF":
        for tag, value in ((256, width), (257, height)):
            place = data.index(struct.pack("<HH", tag, 4))
            data[place + 8 : place + 12] = struct.pack("<I", value)
    elif form == "WEBP":
        bits = (width - 1) | (height - 1) << 14
        data[21:25] = struct.pack("<I", bits)
    elif form == "JPEG2000":
        place = data.index(b"\xff\x4f\xff\x51") + 8
        data[place : place + 8] = struct.pack(">II", width, height)
    elif form == "AVIF":
        place = data.index(b"ispe") + 8
        assert struct.unpack_from(">II", data, place) == small
        data[place : place + 8] = struct.pack(">II", width, height)
    return bytes(data)


FORMS = ["PNG", "JPEG", "BMP", "GIF", "TIFF", "WEBP", "JPEG2000", "AVIF", "PPM", "PAM"]


@pytest.mark.parametrize("form", FORMS)
def test_the_header_of_every_format_is_read(form: str) -> None:
    header = read_header(claiming(form, 56, 40), form)
    assert (header.width, header.height) == (56, 40)


@pytest.mark.parametrize("form", FORMS)
def test_too_many_pixels_are_refused_before_decoding(tmp_path: Path, form: str) -> None:
    width, height = 16383, 16384
    data = claiming(form, width, height)
    assert len(data) < 20_000
    path = tmp_path / "bomb"
    path.write_bytes(data)
    for read in (lambda: read_image(path), lambda: as_image(data), lambda: decode_mask(data, "mask")):
        with pytest.raises(
            SourceError, match=f"has {width} x {height} pixels; at most 200000000 .*MAX_PIXELS|lossy|is a"
        ):
            read()
    with pytest.raises(SourceError, match=f"has {width} x {height} pixels"):
        read_image(path)


def test_a_bomb_takes_no_memory() -> None:
    """In a process of its own: 400 megapixels would show in its peak."""
    code = """
import resource, struct, sys, zlib
from runtime.errors import SourceError
from runtime.images.decode import decode_image
def chunk(k, d): return struct.pack(">I", len(d)) + k + d + struct.pack(">I", zlib.crc32(k + d))
z = zlib.compressobj(9); row = bytes(20001)
body = b"".join(z.compress(row) for _ in range(20000)) + z.flush()
header = struct.pack(">IIBBBBB", 20000, 20000, 8, 0, 0, 0, 0)
data = b"\\x89PNG\\r\\n\\x1a\\n" + chunk(b"IHDR", header) + chunk(b"IDAT", body) + chunk(b"IEND", b"")
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
try:
    decode_image(data, "bomb")
except SourceError as error:
    print(error)
print((resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) // 1024)
"""
    message, grown = succeeded(run_python(code)).splitlines()
    assert "bomb has 20000 x 20000 pixels" in message
    assert int(grown) < 20


def test_the_bounds_can_be_set(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    path = tmp_path / "a.png"
    assert cv2.imwrite(str(path), IMAGE)
    monkeypatch.setenv("EDGEVIS_MAX_PIXELS", "2239")
    pil = PIL.Image.fromarray(IMAGE)
    for value, error in ((path, SourceError), (pil, InputError), (IMAGE, InputError)):
        with pytest.raises(error, match="has 56 x 40 pixels; at most 2239 are read"):
            as_image(value)
    for mask, error in ((PIL.Image.fromarray(IMAGE[..., 0]), InputError), (path, SourceError)):
        with pytest.raises(error, match="has 56 x 40 pixels; at most 2239 are read"):
            as_masks(mask, [IMAGE])
    monkeypatch.setenv("EDGEVIS_MAX_PIXELS", "2240")
    np.testing.assert_array_equal(as_image(path), IMAGE)
    monkeypatch.setenv("EDGEVIS_MAX_FILE_BYTES", "99")
    for value in (path, path.read_bytes()):
        with pytest.raises(SourceError, match=r"bytes; .*at most 99 are read: raise EDGEVIS_MAX_FILE_BYTES"):
            as_image(value)
    for wrong in ("", "0", "-3", "1e9", "many", "9" * 30):
        monkeypatch.setenv("EDGEVIS_MAX_PIXELS", wrong)
        with pytest.raises(InputError, match=r"EDGEVIS_MAX_PIXELS is .*; allowed: a whole number above 0"):
            limits.max_pixels()


def test_an_array_that_is_larger_than_memory() -> None:
    with pytest.raises(InputError, match="has 100000 x 100000 pixels"):
        as_image(np.broadcast_to(np.uint8(9), (100_000, 100_000, 3)))


@pytest.mark.parametrize(("channels", "dtype", "most"), [(1, "u1", 8), (3, "u1", 8), (4, "u1", 12), (4, "u2", 16)])
def test_decoding_takes_no_more_than_is_said(channels: int, dtype: str, most: int) -> None:
    """At most 16 bytes a pixel, and a buffer for strips."""
    pixels = np.zeros((1600, 2000, channels), np.dtype(dtype))
    pixels[::2] = np.iinfo(pixels.dtype).max // 2 + 9
    data = cv2.imencode(".png", pixels)[1].tobytes()
    tracemalloc.start()
    image = decode_image(data, "a")
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert image.shape == (1600, 2000, 3)
    assert peak < most * 1600 * 2000 + (40 << 20)


def test_damaged_files_say_so() -> None:
    for form in FORMS:
        data = claiming(form, 56, 40)
        if form in ("PNG", "PPM", "PAM"):
            continue  # those have no pixels here
        if f".{form.lower()}" in UNREAD_SUFFIXES:
            with pytest.raises(SourceError, match=rf"is a {form}, which OpenCV .* does not read here: convert it"):
                decode_image(data, form)
            continue
        for share in (0.02, 0.2, 0.6, 0.9):
            with pytest.raises(SourceError, match=r"cut short|is not an image|is empty"):
                decode_image(data[: int(len(data) * share)], form)
        decode_image(data, form)


@settings(max_examples=400, deadline=None)
@given(
    form=st.sampled_from(FORMS),
    place=st.integers(0, 400),
    value=st.binary(min_size=1, max_size=8),
    cut=st.integers(0, 900),
)
def test_altered_headers_never_raise_another_error(form: str, place: int, value: bytes, cut: int) -> None:
    data = bytearray(claiming(form, 56, 40))
    data[place : place + len(value)] = value
    try:
        header = read_header(bytes(data[: len(data) - cut]), form)
    except SourceError:
        return
    assert header.width > 0
    assert 1 <= header.orientation <= 8


@settings(max_examples=200, deadline=None)
@given(start=st.sampled_from([claiming(form, 56, 40)[:24] for form in FORMS]), rest=st.binary(max_size=200))
def test_noise_behind_a_signature_never_raises_another_error(start: bytes, rest: bytes) -> None:
    for read in (decode_image, decode_mask):
        try:
            read(start + rest, "noise")
        except SourceError:
            continue


# Arrays at rest


def packed(path: Path, name: str, shape: tuple[int, int]) -> Path:
    """An .npz with one array of zeros, which deflate packs a thousand times smaller."""
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive, archive.open(f"{name}.npy", "w") as file:
        header = {"descr": "<f4", "fortran_order": False, "shape": shape}
        np.lib.format.write_array_header_1_0(file, header)
        row = bytes(4 * shape[1])
        for _ in range(shape[0]):
            file.write(row)
    return path


def test_a_file_that_unpacks_to_far_more_than_its_size(tmp_path: Path) -> None:
    path = packed(tmp_path / "bomb.npz", "embeddings", (1 << 15, 1 << 10))
    assert path.stat().st_size < 200_000
    for read in (lambda: read_arrays(path, error=IntegrityError), lambda: load_enrolment(path)):
        with pytest.raises(EdgevisError, match=r"would unpack to 134217.*, more than 20 times as many"):
            read()
    assert read_arrays(packed(tmp_path / "zeros.npz", "a", (1 << 10, 1 << 10)), error=IntegrityError)["a"].shape


def test_each_use_has_a_bound_of_its_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, tiny_bundle: Path) -> None:
    from runtime.bundle.bundle import Bundle

    path = tmp_path / "a.enrolment"
    write_arrays(path, {"embeddings": np.ones((1000, 8), np.float32)})
    monkeypatch.setenv("EDGEVIS_MAX_ENROLMENT_BYTES", "1000")
    with pytest.raises(EnrolmentError, match="at most 1000 are read: raise EDGEVIS_MAX_ENROLMENT_BYTES"):
        load_enrolment(path)
    monkeypatch.setenv("EDGEVIS_MAX_GOLDEN_BYTES", "1000")
    with pytest.raises(IntegrityError, match="at most 1000 are read: raise EDGEVIS_MAX_GOLDEN_BYTES"):
        Bundle(tiny_bundle).golden()
