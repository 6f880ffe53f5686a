"""Video files: whole, damaged, cut, turned, of codecs that are not there."""

from __future__ import annotations

import logging
import os
import struct
from pathlib import Path

import cv2
import numpy as np
import pytest

from runtime.errors import SourceError
from runtime.streams.reader import StreamReader
from runtime.streams.stats import SourceStats

from camera_server import number_of, numbered


def write_video(path: Path, count: int, *, codec: str = "mp4v", side: int = 192) -> Path:
    writer = cv2.VideoWriter(str(path), cv2.VideoWriter.fourcc(*codec), 10.0, (side, side))
    assert writer.isOpened()
    noise = np.random.default_rng(0).integers(0, 60, (side, side, 3), np.uint8)
    for index in range(count):
        writer.write(cv2.add(numbered(index, side), noise))
    writer.release()
    return path


def read(path: Path) -> tuple[list[int], SourceStats, str]:
    """The numbers of the frames, the counts, and the error that ended the file."""
    numbers: list[int] = []
    error = ""
    reader = StreamReader(path)
    try:
        numbers.extend(number_of(frame.image) for frames in reader for frame in frames)
    except SourceError as raised:
        error = str(raised)
    return numbers, reader.stats[0], error


def test_a_whole_video(tmp_path: Path) -> None:
    path = write_video(tmp_path / "v.mp4", 25)
    with StreamReader(path, batch=10) as reader:
        lists = list(reader)
    assert [len(frames) for frames in lists] == [10, 10, 5]
    frames = [frame for frames in lists for frame in frames]
    assert [number_of(frame.image) for frame in frames] == [frame.index for frame in frames] == list(range(25))
    assert [frame.time_s for frame in frames] == pytest.approx([index / 10 for index in range(25)], abs=0.01)
    (stats,) = reader.stats
    assert (stats.source, stats.frames, stats.dropped, stats.corrupt, stats.reconnects) == (str(path), 25, 0, 0, 0)
    assert stats.fps > 0
    assert 0 <= stats.latency_p50_ms <= stats.latency_p99_ms


def test_a_video_that_is_damaged_in_the_middle(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    data = bytearray(write_video(tmp_path / "v.mp4", 100).read_bytes())
    start = len(data) // 3
    data[start : start + len(data) // 6] = np.random.default_rng(1).bytes(len(data) // 6)
    (tmp_path / "damaged.mp4").write_bytes(data)
    with caplog.at_level(logging.WARNING, "edgevis.streams"):
        numbers, stats, error = read(tmp_path / "damaged.mp4")
    assert error == ""
    assert stats.corrupt > 5
    assert stats.frames == len(numbers) == 100 - stats.corrupt
    assert numbers[-1] == 99  # it goes on behind the damage
    assert f"{stats.frames} of 100 frames could be decoded" in caplog.text


def test_a_video_that_is_cut_says_so(tmp_path: Path) -> None:
    data = write_video(tmp_path / "v.avi", 40, codec="MJPG").read_bytes()
    (tmp_path / "cut.avi").write_bytes(data[: len(data) // 2])
    numbers, stats, error = read(tmp_path / "cut.avi")
    assert 10 < len(numbers) < 30
    assert numbers == list(range(len(numbers)))
    assert stats.corrupt == 40 - len(numbers)
    assert f"cut.avi ends early, {len(numbers)} of 40 frames could be decoded: it is cut" in error


def test_a_hole_in_a_video_is_counted(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    data = bytearray(write_video(tmp_path / "v.avi", 40, codec="MJPG").read_bytes())
    data[len(data) // 2 : len(data) * 3 // 4] = bytes(len(data) * 3 // 4 - len(data) // 2)
    (tmp_path / "hole.avi").write_bytes(data)
    with caplog.at_level(logging.WARNING, "edgevis.streams"):
        numbers, stats, error = read(tmp_path / "hole.avi")
    assert error == ""
    assert stats.corrupt == 40 - len(numbers) > 5
    assert "is damaged" in caplog.text


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "is empty: it has no bytes, and is not a video"),
        (b"not a film", "cannot be opened; check that it is a whole video"),
        (None, "cannot be opened: it is cut"),
    ],
)
def test_files_that_are_no_video(tmp_path: Path, content: bytes | None, message: str) -> None:
    path = tmp_path / "v.mp4"
    if content is None:  # its index, at the end, is lost
        content = write_video(path, 20).read_bytes()[:-3000]
    path.write_bytes(content)
    numbers, stats, error = read(path)
    assert (numbers, stats.frames) == ([], 0)
    assert message in error


def test_a_codec_that_is_not_there(tmp_path: Path) -> None:
    data = write_video(tmp_path / "v.avi", 5, codec="MJPG").read_bytes()
    (tmp_path / "odd.avi").write_bytes(data.replace(b"MJPG", b"ZZZZ"))
    numbers, _, error = read(tmp_path / "odd.avi")
    assert numbers == []
    assert "cannot decode its codec 'ZZZZ'" in error or "cannot be opened" in error


def test_frames_of_one_pixel(tmp_path: Path) -> None:
    path = tmp_path / "tiny.avi"
    writer = cv2.VideoWriter(str(path), cv2.VideoWriter.fourcc(*"MJPG"), 10.0, (1, 1))
    assert writer.isOpened()
    for value in (10, 200):
        writer.write(np.full((1, 1, 3), value, np.uint8))
    writer.release()
    with StreamReader(path) as reader:
        images = [frame.image for frames in reader for frame in frames]
    assert [image.shape for image in images] == [(1, 1, 3)] * 2
    assert images[0].mean() < images[1].mean()


@pytest.mark.parametrize("degrees", [90, 180, 270])
def test_a_turned_video_is_turned_back(tmp_path: Path, degrees: int) -> None:
    path = tmp_path / "turned.mp4"
    upright = np.zeros((96, 192, 3), np.uint8)
    upright[:20, :40] = 255
    stored = np.rot90(upright, degrees // 90)
    height, width = stored.shape[:2]
    writer = cv2.VideoWriter(str(path), cv2.VideoWriter.fourcc(*"mp4v"), 10.0, (width, height))
    for _ in range(3):
        writer.write(np.ascontiguousarray(stored))
    writer.release()
    path.write_bytes(_with_rotation(path.read_bytes(), degrees, width, height))
    with StreamReader(path) as reader:
        image = next(reader)[0].image
    assert image.shape == upright.shape
    assert image[:16, :32].mean() > 230
    assert image[:, 60:].mean() < 10


def _with_rotation(data: bytes, degrees: int, width: int, height: int) -> bytes:
    """An MP4 file whose track header says how to turn it back (ISO/IEC 14496-12, 8.3.2)."""
    one, start = 1 << 16, data.index(b"tkhd") + 4
    at = start + 4 + (36 if data[start] == 0 else 48)
    matrix = {
        90: (0, one, 0, -one, 0, 0, height * one, 0, 1 << 30),
        180: (-one, 0, 0, 0, -one, 0, width * one, height * one, 1 << 30),
        270: (0, -one, 0, one, 0, 0, 0, width * one, 1 << 30),
    }[degrees]
    return data[:at] + struct.pack(">9i", *matrix) + data[at + 36 :]


def test_a_file_that_is_left_early_leaves_no_thread(tmp_path: Path) -> None:
    path = write_video(tmp_path / "v.mp4", 30)
    before = set(os.listdir("/proc/self/fd"))
    for _ in range(3):
        reader = StreamReader(path)
        next(reader)
        reader.close()
        assert list(reader) == []
    assert set(os.listdir("/proc/self/fd")) == before


def test_frames_of_too_many_pixels_are_refused_before_they_are_decoded(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = write_video(tmp_path / "v.mp4", 2)
    monkeypatch.setenv("EDGEVIS_MAX_PIXELS", str(192 * 192 - 1))
    numbers, _, error = read(path)
    assert numbers == []
    assert "v.mp4: a frame has 192 x 192 pixels; at most 36863 are read" in error
