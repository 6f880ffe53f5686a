"""Network cameras that break: servers of the test's own on loopback, in processes that are killed and stopped.

The counts are exact. Times are bounds with a wide margin: they tell a working timeout from none.
"""

from __future__ import annotations

import contextlib
import importlib.util
import itertools
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest

from runtime.errors import SourceError
from runtime.images.decode import Image
from runtime.streams import remote
from runtime.streams.frame import Frame
from runtime.streams.pyav import capture_options
from runtime.streams.reader import StreamReader

from camera_server import CameraServer, number_of, numbered
from python_processes import python_command, python_environment

HAS_PYAV = importlib.util.find_spec("av") is not None
breaks = pytest.mark.usefixtures("caplog")  # what is lost and comes back is logged as warnings
needs_pyav = pytest.mark.skipif(not HAS_PYAV, reason="PyAV, of the extra [video], is not installed")


@pytest.fixture(scope="module")
def camera() -> Iterator[CameraServer]:
    with CameraServer() as server:
        yield server


@pytest.fixture(scope="module")
def rtsp_camera() -> Iterator[CameraServer]:
    if not HAS_PYAV:
        pytest.skip("the RTSP camera encodes with PyAV, which is not installed")
    with CameraServer("rtsp") as server:
        yield server


def children() -> set[int]:
    """The running children of this process."""
    return {int(name) for name in Path(f"/proc/self/task/{os.getpid()}/children").read_text().split()} | {
        int(child) for task in Path("/proc/self/task").iterdir() for child in (task / "children").read_text().split()
    }


def jumps(numbers: list[int]) -> list[tuple[int, int]]:
    return [pair for pair in itertools.pairwise(numbers) if pair[1] != pair[0] + 1]


@breaks
@needs_pyav
def test_a_camera_that_ends_in_the_middle_of_a_picture_comes_back(camera: CameraServer) -> None:
    numbers = []
    with StreamReader(camera.address("cut=20&fps=200"), drop="none") as reader:
        for (frame,) in reader:
            numbers.append(number_of(frame.image))
            assert frame.index == len(numbers) - 1
            if len(numbers) == 50:
                break
        (stats,) = reader.stats
    assert (stats.frames, stats.corrupt, stats.reconnects, stats.dropped) == (50, 2, 2, 0)
    assert [after - before for before, after in jumps(numbers)] == [2, 2]  # of each connection the cut one is missing


@needs_pyav
def test_corrupt_pictures_are_skipped_and_counted(camera: CameraServer) -> None:
    with StreamReader(camera.address("corrupt=5&fps=200"), drop="none") as reader:
        numbers = [number_of(next(reader)[0].image) for _ in range(41)]
        (stats,) = reader.stats
    assert stats.corrupt == 10
    assert [after - before for before, after in jumps(numbers)] == [2] * 10
    assert stats.reconnects == 0


def test_a_camera_that_falls_silent_is_opened_again(camera: CameraServer, caplog: pytest.LogCaptureFixture) -> None:
    with StreamReader(camera.address("hang=5&fps=100", login="user:secret"), drop="none", timeout_s=1.0) as reader:
        for _ in range(4):
            next(reader)
        next(reader)
        started = time.monotonic()
        next(reader)
        elapsed = time.monotonic() - started
        (stats,) = reader.stats
    assert stats.reconnects == 1
    assert 1.0 <= elapsed < 8.0
    assert "gives frames again" in caplog.text
    assert "secret" not in caplog.text


def test_a_stream_may_change_its_size(camera: CameraServer) -> None:
    with StreamReader(camera.address("resize=3&fps=100"), drop="none") as reader:
        shapes = [next(reader)[0].image.shape for _ in range(6)]
    later = (96, 96, 3) if HAS_PYAV else (192, 192, 3)  # OpenCV scales to the first size
    assert shapes == [(192, 192, 3)] * 3 + [later] * 3


def test_a_slow_program_gets_recent_pictures(camera: CameraServer) -> None:
    ages = []
    with StreamReader(camera.address("fps=50")) as reader:
        for index, (frame,) in enumerate(reader):
            ages.append(time.monotonic() - frame.captured)
            time.sleep(0.1)  # five pictures come meanwhile
            if index == 15:
                break
        (stats,) = reader.stats
    assert stats.dropped > 30
    assert sorted(ages)[8] < 0.1  # the median: it does not fall behind


def test_a_lost_camera_is_an_error_without_reconnection(camera: CameraServer) -> None:
    with StreamReader(camera.address("frames=3&fps=100"), drop="none", reconnect=False) as reader:
        for _ in range(3):
            next(reader)
        with pytest.raises(SourceError, match="was lost"):
            next(reader)


def test_several_cameras_share_a_list(camera: CameraServer) -> None:
    addresses = [camera.address("fps=50"), camera.address("fps=25")]
    seen: dict[int, int] = {0: 0, 1: 0}
    with StreamReader(addresses, batch=2) as reader:
        while min(seen.values()) < 5:
            for frame in next(reader):
                seen[frame.source] += 1
        assert [entry.frames for entry in reader.stats] == list(seen.values())


def test_a_camera_that_is_switched_on_later(camera: CameraServer, caplog: pytest.LogCaptureFixture) -> None:
    """One of two addresses answers nothing at first: the other's frames come, and its own once it does."""
    with CameraServer() as late:
        late.kill()
        seen = {0: 0, 1: 0}
        with StreamReader([late.address("fps=50"), camera.address("fps=50")]) as reader:
            while seen[1] < 20:
                (frame,) = next(reader)
                seen[frame.source] += 1
            assert seen[0] == 0
            late.start()
            end = time.monotonic() + 20
            while seen[0] < 3:
                assert time.monotonic() < end
                (frame,) = next(reader)
                seen[frame.source] += 1
            assert [entry.connected for entry in reader.stats] == [True, True]
            assert reader.stats[0].reconnects == 0
    assert "trying again in" in caplog.text
    assert "gives frames now" in caplog.text


@pytest.mark.parametrize("others", ["nothing", "a camera that answers nothing either", "a file that ends"])
def test_a_camera_that_never_answers_is_an_error_where_nothing_else_gives_frames(
    others: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    with CameraServer() as dead:
        address = dead.address()
    sources: list[Any] = [address]
    if others == "a file that ends":
        sources.append(write_video(tmp_path / "short.avi", [numbered(number) for number in range(3)]))
    elif others != "nothing":
        sources.append(address.replace("live", "other"))
    begun = time.monotonic()
    frames: list[Frame] = []
    with StreamReader(sources, timeout_s=2.0) as reader, pytest.raises(SourceError, match=r"127\.0\.0\.1"):
        frames.extend(frame for (frame,) in reader)
    assert time.monotonic() - begun < 15
    assert len(frames) == (3 if others == "a file that ends" else 0)


@breaks
def test_a_camera_whose_server_is_killed_frozen_and_started_again() -> None:
    with CameraServer() as server, StreamReader(server.address("fps=50"), timeout_s=1.0) as reader:
        next(reader)
        server.kill()
        time.sleep(0.2)
        server.start()
        wait_for(reader, reconnects=1)
        server.freeze()
        wait_for(reader, connected=False)
        server.thaw()
        wait_for(reader, reconnects=2)
        assert reader.stats[0].connected


def wait_for(reader: StreamReader, *, reconnects: int | None = None, connected: bool | None = None) -> None:
    """Read in a thread of its own, because a frozen camera gives nothing, until the counts are there."""
    done = threading.Event()

    def count() -> None:
        while not done.is_set():
            (stats,) = reader.stats
            if (reconnects is None or stats.reconnects >= reconnects) and connected in (None, stats.connected):
                done.set()
            time.sleep(0.02)

    watcher = threading.Thread(target=count)
    watcher.start()
    assert done.wait(20)
    watcher.join()


@pytest.mark.parametrize("pyav", [pytest.param(True, marks=needs_pyav), False])
def test_a_wrong_password_is_named_and_not_shown(pyav: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(remote, "has_pyav", lambda: pyav)
    with CameraServer(login="user:right") as server:
        with StreamReader(server.address("fps=100", login="user:right")) as reader:
            next(reader)
            assert "right" not in str(reader.stats)
        with StreamReader(server.address(login="user:wr0ng")) as reader, pytest.raises(SourceError) as caught:
            next(reader)
    assert "cannot be opened" in str(caught.value)
    assert ("(401)" if pyav else "the user name and the password") in str(caught.value)
    assert "wr0ng" not in str(caught.value)
    assert "wr0ng" not in str(caught.value.__cause__)


@pytest.mark.parametrize("pyav", [pytest.param(True, marks=needs_pyav), False])
def test_closing_ends_everything_while_an_open_hangs(pyav: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(remote, "has_pyav", lambda: pyav)
    before = children()
    with socket.socket() as silent:
        silent.bind(("127.0.0.1", 0))
        silent.listen()
        reader = StreamReader(f"http://127.0.0.1:{silent.getsockname()[1]}/x", timeout_s=60)
        elapsed: list[float] = []

        def close() -> None:
            started = time.monotonic()
            reader.close()
            elapsed.append(time.monotonic() - started)

        timer = threading.Timer(1.0, close)
        timer.start()
        with pytest.raises((StopIteration, SourceError)):
            next(reader)
        timer.join()
    assert elapsed[0] < 1.0
    assert children() == before
    assert not [thread for thread in threading.enumerate() if thread.name.startswith("edgevis-stream")]


def test_a_silent_server_is_given_up_in_time() -> None:
    with socket.socket() as silent:
        silent.bind(("127.0.0.1", 0))
        silent.listen()
        started = time.monotonic()
        with (
            StreamReader(f"http://127.0.0.1:{silent.getsockname()[1]}/x", timeout_s=1.0) as reader,
            pytest.raises(SourceError, match=r"cannot be opened: it did not answer within 1 s"),
        ):
            next(reader)
        assert time.monotonic() - started < 5


@breaks
def test_a_decoder_that_dies_is_replaced(camera: CameraServer) -> None:
    before = children()
    with StreamReader(camera.address("fps=50")) as reader:
        next(reader)
        (worker,) = children() - before
        os.kill(worker, signal.SIGSEGV)
        while not reader.stats[0].reconnects:
            next(reader)
        assert children() - before != {worker}
    assert children() == before


_INTERRUPTED = """
import sys
from runtime.streams.reader import StreamReader
try:
    for frames in StreamReader(sys.argv[1], timeout_s=60):
        print("frame", flush=True)
except KeyboardInterrupt:
    print("interrupted", flush=True)
"""


def test_ctrl_c_ends_the_process_while_a_camera_is_silent(camera: CameraServer) -> None:
    process = subprocess.Popen(
        python_command(_INTERRUPTED, camera.address("hang=2&fps=100")),
        env=python_environment(),
        stdout=subprocess.PIPE,
        text=True,
        start_new_session=True,  # Ctrl-C of a terminal goes to the whole group
    )
    assert process.stdout is not None
    assert process.stdout.readline() == "frame\n"
    time.sleep(0.2)
    started = time.monotonic()
    os.killpg(process.pid, signal.SIGINT)
    output, _ = process.communicate(timeout=20)
    assert time.monotonic() - started < 3  # with the end of the interpreter
    assert output.endswith("interrupted\n")
    assert process.returncode == 0
    with pytest.raises(ProcessLookupError):
        os.killpg(process.pid, 0)


@pytest.mark.parametrize("kind", ["cut=20", "frames=20"])
@breaks
def test_a_camera_over_rtsp_comes_back(rtsp_camera: CameraServer, kind: str) -> None:
    numbers: list[int] = []
    with StreamReader(rtsp_camera.address(f"{kind}&fps=100"), drop="none") as reader:
        while len(numbers) < 30:
            numbers += [number_of(frame.image) for frame in next(reader)]
        (stats,) = reader.stats
    assert stats.reconnects == len(jumps(numbers)) or (stats.reconnects, jumps(numbers)) == (1, [])
    assert stats.frames == 30
    assert numbers == sorted(set(numbers))


def test_an_rtsp_camera_that_changes_its_size(rtsp_camera: CameraServer) -> None:
    with StreamReader(rtsp_camera.address("resize=5&fps=50"), drop="none") as reader:
        shapes: list[Any] = [next(reader)[0].image.shape for _ in range(10)]
    assert shapes == [(192, 192, 3)] * 5 + [(96, 96, 3)] * 5


def test_a_wrong_password_over_rtsp() -> None:
    pytest.importorskip("av")
    with (
        CameraServer("rtsp", login="user:right") as server,
        StreamReader(server.address(login="user:wr0ng")) as reader,
        pytest.raises(SourceError, match=r"cannot be opened: .*password is wrong") as caught,
    ):
        next(reader)
    assert "wr0ng" not in str(caught.value)


def test_options_of_ffmpeg() -> None:
    assert capture_options("rtsp_transport;udp| buffer_size ; 1000 ") == {
        "rtsp_transport": "udp",
        "buffer_size": "1000",
    }
    assert capture_options("") == {}
    with pytest.raises(SourceError, match="OPENCV_FFMPEG_CAPTURE_OPTIONS is malformed; allowed: pairs"):
        capture_options("udp")


def test_a_program_that_embeds_python_is_not_started_as_python(
    camera: CameraServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys, "executable", "/usr/sbin/program")
    with StreamReader(camera.address("fps=50")) as reader:
        next(reader)


@breaks
def test_opencv_reads_what_pyav_reads(camera: CameraServer, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(remote, "has_pyav", lambda: False)
    with StreamReader(camera.address("frames=5&fps=100"), drop="none", timeout_s=2.0) as reader:
        numbers = [number_of(next(reader)[0].image) for _ in range(12)]
        assert reader.stats[0].reconnects == 2
    assert jumps(numbers) == []


def write_video(path: Path, pictures: Sequence[Image]) -> Path:
    codec = "mp4v" if path.suffix == ".mp4" else "MJPG"
    writer = cv2.VideoWriter(str(path), cv2.VideoWriter.fourcc(*codec), 10.0, (192, 192))
    for picture in pictures:
        writer.write(picture)
    writer.release()
    return path


@contextlib.contextmanager
def served_recording(folder: Path, pictures: Sequence[Image], name: str = "v.avi") -> Iterator[str]:
    """The address of a recording on a web server, which sends no ranges of bytes."""
    write_video(folder / name, pictures)
    command = [sys.executable, "-u", "-m", "http.server", "0", "--bind", "127.0.0.1", "--directory", str(folder)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True) as server:
        assert server.stdout is not None
        try:
            yield f"http://127.0.0.1:{server.stdout.readline().split(' port ')[1].split()[0]}/{name}"
        finally:
            server.kill()


def test_a_recording_at_an_address_ends(tmp_path: Path) -> None:
    """What has a length is no camera: its end is no loss."""
    with (
        served_recording(tmp_path, [numbered(index) for index in range(5)]) as address,
        StreamReader(address) as reader,
    ):
        numbers = [number_of(frame.image) for frames in reader for frame in frames]
    assert numbers == list(range(5))


def test_frames_of_too_many_pixels_are_corrupt(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A small JPEG may claim gigabytes: no memory is taken for them."""
    pytest.importorskip("av")
    monkeypatch.setenv("EDGEVIS_MAX_PIXELS", str(192 * 192 - 1))
    with (
        served_recording(tmp_path, [numbered(index) for index in range(5)]) as address,
        StreamReader(address) as reader,
        pytest.raises(SourceError, match="none of its 5 frames could be decoded"),
    ):
        next(reader)
    assert reader.stats[0].corrupt == 5


@pytest.mark.parametrize("pyav", [True, False])
def test_a_recording_that_gives_no_frame_is_an_error(
    pyav: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its index is at the end, beyond what FFmpeg keeps in memory."""
    if pyav:
        pytest.importorskip("av")
    monkeypatch.setattr(remote, "has_pyav", lambda: pyav)
    noise = np.random.default_rng(0).integers(0, 255, (120, 192, 192, 3), np.uint8)
    with (
        served_recording(tmp_path, [*noise], "v.mp4") as address,
        pytest.raises(SourceError, match="can only be read from a server that sends ranges"),
    ):
        list(StreamReader(address))


def test_what_was_decoded_is_read_after_the_decoder_has_reached_the_end(tmp_path: Path) -> None:
    with served_recording(tmp_path, [numbered(0), numbered(1)]) as address:
        capture = remote.RemoteCapture(address, "v", timeout_s=10, open_timeout_s=10, stopping=threading.Event())
        try:
            capture.open()
            time.sleep(1.0)  # the decoder has time to send both frames and the end
            readings = [capture.read() for _ in range(3)]
        finally:
            capture.close()
    assert [None if reading is None else number_of(reading.image) for reading in readings] == [0, 1, None]
