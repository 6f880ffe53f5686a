"""Videos that are written: on full disks, under odd names, into folders that are not there."""

from __future__ import annotations

import os
import resource
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import cv2
import numpy as np
import pytest

from runtime.errors import OutputError, SourceError
from runtime.streams.reader import StreamReader
from runtime.streams.video_output import CODECS, VideoOutput


def write(path: Path, frames: int) -> None:
    rng = np.random.default_rng(0)  # noise cannot be compressed
    with VideoOutput(path, 10.0) as video:
        for _ in range(frames):
            video.write(rng.integers(0, 255, (120, 160, 3), np.uint8))


def playable(path: Path) -> int:
    capture, count = cv2.VideoCapture(str(path)), 0
    while capture.read()[0]:
        count += 1
    capture.release()
    return count


@contextmanager
def file_limit(size_bytes: int) -> Iterator[None]:
    """No file of this process may be larger, as on a disk with a quota."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size_bytes, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


@pytest.mark.parametrize("suffix", CODECS)
def test_a_video_that_a_quota_cuts_is_an_error(suffix: str, tmp_path: Path) -> None:
    path = tmp_path / f"v{suffix}"
    with file_limit(300_000), pytest.raises(OutputError, match="could not be written as a whole"):
        write(path, 150)
    assert [file.name for file in tmp_path.iterdir()] == ([path.name] if playable(path) else [])


def test_a_full_disk_ends_a_video_while_it_can_be_finished(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path, free = tmp_path / "v.mp4", iter(range(3 << 20, 0, -(1 << 17)))
    usage = shutil.disk_usage(tmp_path)
    monkeypatch.setattr(shutil, "disk_usage", lambda _: usage._replace(free=next(free)))
    with pytest.raises(OutputError, match=r"the disk of .*v\.mp4 is full"):
        write(path, 100)
    assert 10 < playable(path) < 20
    assert [file.name for file in tmp_path.iterdir()] == ["v.mp4"]


def test_what_cannot_be_written_is_known_before_the_first_frame(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    for path, message in (
        (tmp_path / "file" / "v.mp4", "cannot be written"),
        (tmp_path / os.fsdecode(b"\xff.mp4"), "is not UTF-8"),
    ):
        with pytest.raises(OutputError, match=message):
            VideoOutput(path)
    assert [file.name for file in tmp_path.iterdir()] == ["file"]


def test_a_name_like_an_address_is_a_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    write(Path("rtsp:door.mp4"), 3)  # FFmpeg would look for the host "door.mp4"
    with StreamReader("rtsp:door.mp4") as reader:
        assert len(list(reader)) == 3


def test_a_folder_that_is_gone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = tmp_path / "gone"
    folder.mkdir()
    monkeypatch.chdir(folder)
    folder.rmdir()
    with pytest.raises(OutputError, match=r"v\.mp4 cannot be written"):
        VideoOutput(Path("v.mp4"))
    with pytest.raises(SourceError, match=r"there is no file v\.mp4"):
        StreamReader("v.mp4")
    video = VideoOutput(folder / "v.mp4")
    shutil.rmtree(folder)
    with pytest.raises(OutputError, match=r"v\.mp4 cannot be written: .*No such file"):
        video.write(np.zeros((32, 32, 3), np.uint8))
