"""Times of frames: as a recording states them, and of one that states none or the same for all."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from runtime.streams.frame_times import FrameTimes
from runtime.streams.reader import StreamReader

from camera_server import numbered


def write_raw_h264(path: Path, count: int, *, side: int = 96) -> Path:
    """Frames without a container, as ``ffmpeg -f h264`` writes them: none of them has a time."""
    av = pytest.importorskip("av")
    if "libx264" not in av.codecs_available:
        pytest.skip("this PyAV cannot write H.264")
    with av.open(str(path), "w", format="h264") as output:
        stream = output.add_stream("libx264", rate=25, options={"preset": "ultrafast"})
        stream.width, stream.height, stream.pix_fmt = side, side, "yuv420p"
        for index in range(count):
            frame = av.VideoFrame.from_ndarray(np.ascontiguousarray(numbered(index, side)), format="bgr24")
            output.mux(stream.encode(frame))
        output.mux(stream.encode())
    return path


def test_frames_without_a_container_follow_the_rate(tmp_path: Path) -> None:
    path = write_raw_h264(tmp_path / "raw.264", 12)
    with StreamReader(path) as reader:
        times = [frame.time_s for frames in reader for frame in frames]
    assert times == pytest.approx([index / 25 for index in range(12)])


def test_frames_without_a_container_follow_the_rate_with_pyav(tmp_path: Path) -> None:
    av = pytest.importorskip("av")
    from runtime.streams.pyav import PyAVCapture

    capture = PyAVCapture(av.open(str(write_raw_h264(tmp_path / "raw.264", 12))), "raw", live=False)
    try:
        readings = [capture.read() for _ in range(12)]
    finally:
        capture.close()
    assert [reading and reading.time_s for reading in readings] == pytest.approx([index / 25 for index in range(12)])


@pytest.mark.parametrize("same", [None, 0.0])
def test_times_that_do_not_rise_are_counted(same: float | None) -> None:
    times = FrameTimes(10.0)
    assert [times.next(same) for _ in range(3)] == pytest.approx([0.0, 0.1, 0.2])
    assert times.next(same, skipped=2) == pytest.approx(0.5), "frames that could not be decoded took their time"


def test_stated_times_stay_and_what_stands_still_goes_on_from_there() -> None:
    times = FrameTimes(10.0)
    stated = [0.0, 0.04, 5.0, 5.0, 3.0, 9.0]
    assert [times.next(value) for value in stated] == pytest.approx([0.0, 0.04, 5.0, 5.1, 5.2, 9.0])


def test_a_recording_that_states_no_rate_has_25_frames_a_second() -> None:
    times = FrameTimes(None)
    assert [times.next(None) for _ in range(2)] == [0.0, 0.04]
