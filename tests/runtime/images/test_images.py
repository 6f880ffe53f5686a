"""What counts as an image, and frames from wherever they come."""

from __future__ import annotations

import io
import os
import struct
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import numpy.typing as npt
import PIL.Image
import pytest

from runtime.errors import InputError, SourceError
from runtime.images.decode import as_image, as_images, decode_image, read_image
from runtime.streams.reader import frames

from bundles import picture
from python_processes import run_python, succeeded

IMAGE = picture(1, 24, 20)


def write(path: Path, image: npt.NDArray[Any]) -> Path:
    assert cv2.imwrite(str(path), image)
    return path


def test_an_array_is_returned_as_it_is() -> None:
    assert as_image(IMAGE) is IMAGE
    view = IMAGE[2:9, 3:7]
    assert as_image(view) is view


@pytest.mark.parametrize("kind", [str, Path])
def test_a_path(tmp_path: Path, kind: type) -> None:
    path = write(tmp_path / "some picture ü.png", IMAGE)
    np.testing.assert_array_equal(as_image(kind(path)), IMAGE)


@pytest.mark.parametrize("mode", ["RGB", "RGBA", "L", "P", "1", "CMYK", "LA", "YCbCr", "HSV"])
def test_a_pil_image_of_any_mode(mode: str) -> None:
    pil = PIL.Image.fromarray(IMAGE[..., ::-1]).convert(mode)
    found = as_image(pil)
    assert found.shape == IMAGE.shape
    assert found.dtype == np.uint8
    assert found.flags.c_contiguous
    np.testing.assert_array_equal(found[..., ::-1], np.asarray(pil.convert("RGB")))


def test_pil_red_is_red() -> None:
    found = as_image(PIL.Image.new("RGB", (3, 2), (255, 0, 0)))
    assert found.shape == (2, 3, 3)
    assert found[0, 0].tolist() == [0, 0, 255]


def test_an_empty_pil_crop() -> None:
    with pytest.raises(InputError, match="image is 0 x 4: it has no pixels; check the crop's corners"):
        as_image(PIL.Image.new("RGB", (8, 8)).crop((5, 2, 5, 6)))


def test_a_pil_image_whose_file_is_truncated() -> None:
    buffer = io.BytesIO()
    PIL.Image.fromarray(picture(2, 200, 200)).save(buffer, "PNG")
    pil = PIL.Image.open(io.BytesIO(buffer.getvalue()[:-200]))
    with pytest.raises(SourceError, match="image cannot be decoded by PIL"):
        as_image(pil)


BAD: list[tuple[Any, str]] = [
    (None, r"image is None: the camera or file gave no frame; check what read\(\) or imread\(\) returned"),
    (IMAGE[..., 0], r"\(24, 20\) and dtype uint8; allowed: \(H, W, 3\) uint8 BGR; a grey image .*COLOR_GRAY2BGR"),
    (IMAGE[..., :1], r"\(24, 20, 1\) .*COLOR_GRAY2BGR"),
    (np.dstack([IMAGE, IMAGE[..., :1]]), r"\(24, 20, 4\) .*; drop an alpha channel by .*COLOR_BGRA2BGR"),
    (
        IMAGE / 255,
        r"dtype float64; .*a float image in 0\.\.1 becomes one by \(image \* 255\)\.round\(\)\.astype",
    ),
    (IMAGE.astype(np.float32), "dtype float32"),
    (IMAGE.astype(np.uint16), "dtype uint16"),
    (IMAGE > 3, "dtype bool"),
    (IMAGE.astype(object), "dtype object"),
    (np.zeros((24, 20, 17), np.uint8), r"has shape \(24, 20, 17\) and dtype uint8; allowed: \(H, W, 3\) uint8 BGR$"),
    (np.zeros((24, 20, 2), np.uint8), r"\(24, 20, 2\)"),
    (IMAGE.transpose(2, 0, 1), r"\(3, 24, 20\) .*; channels are first: image\.transpose\(1, 2, 0\)"),
    (IMAGE.astype(np.float32), r"a float image in 0\.\.255 becomes one by image\.round\(\)\.astype\('uint8'\), with"),
    (IMAGE.astype(np.float32) * 300, "its values are .*: scale them to 0..255"),
    (IMAGE.astype(np.uint16) * 257, r"full-range 16 bits become one by \(image / 257\)"),
    (IMAGE.astype(np.uint16) * 16, r"if they have 12 bits, \(image / 4095 \* 255\)"),
    (IMAGE.astype(np.int64), r"whole numbers in 0\.\.255 become one by image\.astype\('uint8'\)"),
    (np.where(IMAGE > 9, np.nan, IMAGE), "it holds NaN or infinity"),
    (IMAGE.transpose(2, 0, 1) / 255, r"a float image in 0\.\.1 .*; channels are first"),
    (IMAGE.tolist(), "image is a list"),
    (IMAGE[3:3], r"\(0, 20, 3\) .*: it has no pixels; check the crop's corners"),
    (IMAGE[:, 5:2], r"\(24, 0, 3\) .*: it has no pixels"),
    (np.zeros((), np.uint8), r"has shape \(\)"),
    (np.zeros(3, np.float32), r"has shape \(3,\)"),
    (np.zeros((1, 1, 24, 20, 3), np.uint8), r"has shape \(1, 1, 24, 20, 3\)"),
    (3, r"image is a int; allowed: an \(H, W, 3\) uint8 BGR array, a path, the bytes of an image file, or a PIL"),
    ({"image": IMAGE}, "image is a dict"),
    (iter([IMAGE]), "image is a list_iterator"),
    (object(), "image is a object"),
]


@pytest.mark.parametrize(("value", "message"), BAD, ids=range(len(BAD)))
def test_what_is_not_an_image(value: Any, message: str) -> None:
    with pytest.raises(InputError, match=message) as caught:
        as_image(value)
    assert isinstance(caught.value, ValueError)
    with pytest.raises(InputError, match="image 1 of 3 "):
        as_images([IMAGE, value, IMAGE])


def test_one_or_several() -> None:
    one, single = as_images(IMAGE)
    assert single
    assert one[0] is IMAGE
    for several in ([IMAGE, IMAGE], (IMAGE, IMAGE), np.stack([IMAGE, IMAGE])):
        images, single = as_images(several)
        assert not single
        assert len(images) == 2
        np.testing.assert_array_equal(images[1], IMAGE)
    assert as_images([IMAGE])[1] is False


@pytest.mark.parametrize("empty", [[], (), np.empty((0, 24, 20, 3), np.uint8)])
def test_no_image_at_all(empty: Any) -> None:
    assert as_images(empty) == ([], False)


def test_mixed_kinds_in_a_list(tmp_path: Path) -> None:
    path = write(tmp_path / "a.png", IMAGE)
    pil = PIL.Image.fromarray(IMAGE[..., ::-1])
    images, _ = as_images([IMAGE, path, str(path), pil])
    for image in images:
        np.testing.assert_array_equal(image, IMAGE)


@pytest.mark.parametrize(
    "stored",
    [IMAGE, IMAGE[..., 0], IMAGE.astype(np.uint16) * 257],
    ids=["BGR", "grey", "16 bits"],
)
def test_every_kind_of_file_becomes_bgr(tmp_path: Path, stored: npt.NDArray[Any]) -> None:
    found = read_image(write(tmp_path / "a.png", stored))
    expected = np.dstack([IMAGE[..., 0]] * 3) if stored.ndim == 2 else IMAGE
    np.testing.assert_array_equal(found, expected)
    assert found.dtype == np.uint8


def test_photographs_are_turned_upright(tmp_path: Path) -> None:
    exif = PIL.Image.Exif()
    exif[0x0112] = 6  # turned by a quarter
    PIL.Image.fromarray(IMAGE[..., ::-1]).save(tmp_path / "a.png", exif=exif)
    np.testing.assert_array_equal(read_image(tmp_path / "a.png"), np.rot90(IMAGE, -1))


def _bomb() -> bytes:
    """A PNG of 70 bytes that declares 10 gigapixels."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    header = struct.pack(">IIBBBBB", 100_000, 100_000, 8, 2, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(b"")) + chunk(b"IEND", b"")


@pytest.mark.parametrize("content", [b"", b"no picture", b"\x89PNG\r\n\x1a\n", _bomb()])
def test_files_that_are_no_pictures(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "a.png").write_bytes(content)
    with pytest.raises(
        SourceError, match=r"a\.png (is (not an image that OpenCV can decode|empty|damaged)|has 100000 x 100000 pixels)"
    ) as caught:
        read_image(tmp_path / "a.png")
    assert isinstance(caught.value, OSError)


def test_truncated_pictures_never_raise_another_error(tmp_path: Path) -> None:
    _, whole = cv2.imencode(".jpg", picture(1, 64, 64))
    for size in range(0, len(whole), 97):
        try:
            assert decode_image(whole[:size].tobytes(), "cut").shape == (64, 64, 3)  # a JPEG may be shown in part
        except SourceError:
            continue


def test_paths_that_cannot_be_read(tmp_path: Path) -> None:
    for path, message in [
        (tmp_path / "missing.png", "there is no image file"),
        (tmp_path, "is a folder; give its images"),
        ("/dev/null", "is not a regular file"),
        (tmp_path / ("x" * 300), "cannot be read: .*File name too long"),
        ("", "is a folder"),
        ("nul\0", "there is no image file"),
    ]:
        with pytest.raises(SourceError, match=message):
            as_image(path)


def test_a_file_too_large_to_be_a_picture(tmp_path: Path) -> None:
    path = tmp_path / "huge.png"
    path.touch()
    with path.open("r+b") as file:
        file.truncate((256 << 20) + 1)
    with pytest.raises(SourceError, match=r"has 268435457 bytes; image files of at most 268435456 are read"):
        read_image(path)


def test_pil_is_not_needed_and_not_imported() -> None:
    code = """
import sys
sys.modules["PIL"] = None  # as if it were not installed
import numpy as np
from runtime.errors import InputError
from runtime.images.decode import as_image
as_image(np.zeros((2, 2, 3), np.uint8))
try:
    as_image(object())
except InputError as error:
    print(error)
"""
    assert succeeded(run_python(code)).startswith("image is a object; allowed: ")


def test_one_error_names_all_bad_images_of_a_list(tmp_path: Path) -> None:
    good = write(tmp_path / "good.png", IMAGE)
    (tmp_path / "empty.jpg").write_bytes(b"")
    bad = [tmp_path / "empty.jpg", tmp_path / "absent.jpg"]
    with pytest.raises(SourceError, match=r"^2 of 5 images cannot be used: .*empty\.jpg.*; .*absent\.jpg"):
        as_images([good, bad[0], good, bad[1], good])
    with pytest.raises(InputError, match=r"^2 of 3 images cannot be used: image 0 of 3 is None.*; image 2 of 3 "):
        as_images([None, good, np.zeros((4, 4))])
    with pytest.raises(SourceError, match=r"absent\.jpg$"):
        as_images([good, bad[1]])


# Frames


def write_video(path: Path, count: int) -> Path:
    codec = cv2.VideoWriter.fourcc(*"MJPG")
    writer = cv2.VideoWriter(str(path), codec, 10.0, (64, 48))
    assert writer.isOpened()
    for index in range(count):
        writer.write(np.full((48, 64, 3), 40 * index, np.uint8))
    writer.release()
    return path


@pytest.mark.parametrize("kind", [str, Path])
def test_a_video_file(tmp_path: Path, kind: type) -> None:
    found = list(frames(kind(write_video(tmp_path / "a.avi", 5))))
    assert len(found) == 5
    for index, frame in enumerate(found):
        assert frame.shape == (48, 64, 3)
        assert abs(float(frame.mean()) - 40 * index) < 3  # JPEG


_VIDEO_BY_AN_ODD_NAME = """
import os, sys
from runtime.errors import InputError
from runtime.streams.reader import frames
print(sum(1 for _ in frames(os.fsdecode(bytes.fromhex(sys.argv[1])))))
try:
    frames("rtsp://camera/\\udce9")
except InputError as error:
    print(error)
"""


def test_a_video_whose_name_is_not_utf8(tmp_path: Path) -> None:
    """OpenCV ends the process on such a name."""
    path = os.path.join(os.fsencode(tmp_path), b"cl\xefp.avi")
    os.rename(write_video(tmp_path / "a.avi", 5), path)
    count, refused = succeeded(run_python(_VIDEO_BY_AN_ODD_NAME, path.hex())).splitlines()
    assert count == "5"
    assert "is not UTF-8" in refused


def test_a_folder_of_images_in_order_of_their_names(tmp_path: Path) -> None:
    for index in (2, 0, 1):
        write(tmp_path / f"{index}.png", np.full((4, 4, 3), index, np.uint8))
    (tmp_path / "notes.txt").write_text("no image")
    (tmp_path / "3.PNG").write_bytes((tmp_path / "0.png").read_bytes())
    assert [int(frame[0, 0, 0]) for frame in frames(tmp_path)] == [0, 1, 2, 0]


def test_an_image_file(tmp_path: Path) -> None:
    (frame,) = frames(write(tmp_path / "a.png", IMAGE))
    np.testing.assert_array_equal(frame, IMAGE)


def test_any_iterable_is_read_as_it_comes(tmp_path: Path) -> None:
    path = write(tmp_path / "a.png", IMAGE)
    taken: list[int] = []

    def endless() -> Iterator[Any]:
        while True:
            taken.append(len(taken))
            yield IMAGE if len(taken) % 2 else path

    source = frames(endless())
    for _ in range(3):
        np.testing.assert_array_equal(next(source), IMAGE)
    assert taken == [0, 1, 2]
    assert len(list(frames([IMAGE] * 4))) == 4
    assert len(list(frames(np.stack([IMAGE] * 3)))) == 3
    assert list(frames([])) == []


def test_a_frame_of_an_iterable_that_is_no_image() -> None:
    source = frames([IMAGE, None])
    next(source)
    with pytest.raises(InputError, match="frame 1 is None: the camera or file gave no frame"):
        next(source)


@pytest.mark.parametrize(
    ("source", "message"),
    [
        (True, "source is True; allowed: a camera index"),
        (None, "source is a NoneType; allowed: a camera index, a path, an address or an iterable"),
        (1.5, "source is a float"),
        (IMAGE, r"source is one image; give it to predict\(\), or put it into a list"),
    ],
)
def test_what_frames_cannot_come_from(source: Any, message: str) -> None:
    with pytest.raises(InputError, match=message):
        frames(source)


def test_sources_that_cannot_be_opened(tmp_path: Path) -> None:
    empty, broken = tmp_path / "empty", tmp_path / "broken.mp4"
    empty.mkdir()
    broken.write_bytes(b"no video at all")
    for source, message in [
        (tmp_path / "missing.mp4", "there is no file"),
        ("missing.mp4", "there is no file"),
        (tmp_path / ("x" * 300), "cannot be read: .*File name too long"),
        (empty, r"holds no images \(.*\.bmp, "),
        (broken, r"broken\.mp4 cannot be opened"),
    ]:
        with pytest.raises(SourceError, match=message):
            list(frames(source))


def test_an_address(tmp_path: Path) -> None:
    path = write_video(tmp_path / "a.avi", 3)
    assert len(list(frames(f"file://{path}"))) == 3
    with pytest.raises(SourceError, match=r"rtsp://127\.0\.0\.1:9/door cannot be opened"):
        next(frames("rtsp://127.0.0.1:9/door"))  # nobody listens there


def test_a_camera_that_is_not_there() -> None:
    with pytest.raises(SourceError, match="camera 97 cannot be opened: check that it exists, is not in use"):
        frames(97)


def test_a_video_without_frames(tmp_path: Path) -> None:
    with pytest.raises(SourceError, match=r"cannot be opened|gave no frame"):
        list(frames(write_video(tmp_path / "none.avi", 0)))


def test_a_folder_with_a_broken_image_stops_there(tmp_path: Path) -> None:
    write(tmp_path / "a.png", IMAGE)
    (tmp_path / "b.png").write_bytes(b"broken")
    source = frames(tmp_path)
    next(source)
    with pytest.raises(SourceError, match=r"b\.png is not an image"):
        next(source)


def test_a_stream_that_is_left_early_can_be_closed(tmp_path: Path) -> None:
    source = frames(write_video(tmp_path / "a.avi", 3))
    next(source)
    source.close()  # type: ignore[attr-defined]
    with pytest.raises(StopIteration):
        next(source)
