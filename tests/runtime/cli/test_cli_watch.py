"""`edgevis watch`, `tracks`, and `enroll` of a track, on drawn videos, with real engines, servers and files."""

from __future__ import annotations

import json
import re
import threading
import time
from collections.abc import Iterator
from contextlib import closing, suppress
from http.client import HTTPConnection, HTTPException
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import cv2
import numpy as np
import pytest

from edgevis.cli import main
from edgevis.cli._tracks import VideoTrack
from edgevis.cli.watch import _closing
from runtime.common.command import Terminated
from runtime.enrolment.file import load_enrolment
from runtime.errors import OutputError
from runtime.predictor import Predictor
from runtime.streams.video_output import VideoOutput
from runtime.tracking.views import GOOD

from bundles import Array, write_tiny_bundle
from detection_bundles import write_detector

SIDE = 40
FRAMES = 40


@pytest.fixture(scope="module")
def bundles(tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    folder = tmp_path_factory.mktemp("bundles")
    detector = write_detector(folder / "squares.edgevis")
    reid = write_tiny_bundle(folder / "reid.edgevis")
    return ["--detect", str(detector), "--identify", str(reid)]


def square(blue: int) -> Array:
    pattern = np.zeros((10, 10, 3))
    pattern[..., 0] = blue
    pattern[..., 2] = 255 * (np.random.default_rng(blue).random((10, 10)) > 0.25)
    return np.kron(pattern, np.ones((4, 4, 1))).astype(np.uint8)


@pytest.fixture(scope="module")
def video(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """4 s: a square without blue all the time, one with blue from 1 s to 3 s."""
    path = tmp_path_factory.mktemp("video") / "hall.avi"
    writer = cv2.VideoWriter(str(path), cv2.VideoWriter.fourcc(*"MJPG"), 10.0, (320, 320))
    for index in range(FRAMES):
        frame = np.zeros((320, 320, 3), np.uint8)
        frame[2 * SIDE : 3 * SIDE, 2 * SIDE : 3 * SIDE] = square(0)
        if 10 <= index < 30:
            frame[5 * SIDE : 6 * SIDE, 5 * SIDE : 6 * SIDE] = square(250)
        writer.write(frame)
    writer.release()
    return path


def events_of(text: str) -> list[tuple[str, str]]:
    return [(event["type"], event["identity"]) for event in map(json.loads, text.splitlines())]


def test_a_video_is_watched_into_events_and_a_video(
    bundles: list[str], video: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    saved, lines = tmp_path / "seen" / "out.mp4", tmp_path / "events.jsonl"
    assert main(["watch", str(video), *bundles, "--save", str(saved), "--events", str(lines)]) == 0
    out, err = capsys.readouterr()
    events = events_of(lines.read_text())
    assert [kind for kind, _ in events] == ["appeared", "appeared", "left", "left"]
    assert {identity for _, identity in events} == {"unknown-1", "unknown-2"}
    assert out.count("appeared") == 2
    assert f"{FRAMES} frames, 0 dropped" in err
    capture = cv2.VideoCapture(str(saved))
    assert capture.get(cv2.CAP_PROP_FPS) == pytest.approx(10)
    assert [capture.read()[0] for _ in range(FRAMES + 1)] == [True] * FRAMES + [False]
    capture.release()
    assert [path.name for path in saved.parent.iterdir()] == ["out.mp4"]  # nothing partial is left
    assert main(["watch", str(video), *bundles, "--save", str(saved)]) == 1
    assert "is there already" in capsys.readouterr().err


def test_frames_are_lines_of_json(bundles: list[str], video: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["watch", str(video), *bundles, "--json", "--frames", "20"]) == 0
    frames = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert [frame["frame"] for frame in frames] == list(range(20))
    assert [len(frame["objects"]) for frame in frames] == [1] * 11 + [2] * 9
    assert {item["detection_label"] for item in frames[-1]["objects"]} == {"red"}


def test_two_sources_are_saved_apart_and_share_names(
    bundles: list[str], video: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert (
        main(["watch", str(video), str(video), *bundles, "--save", str(tmp_path / "o.avi"), "--events", "jsonl"]) == 0
    )
    events = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert {event["source"] for event in events} == {0, 1}
    assert {event["identity"] for event in events} == {"unknown-1", "unknown-2"}
    assert sorted(path.name for path in tmp_path.iterdir()) == ["o-0.avi", "o-1.avi"]


def test_a_track_gets_a_name_and_is_then_identified(
    bundles: list[str], video: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    enrolment = tmp_path / "hall.enrolment"
    command = ["enroll", bundles[3], "ann", str(video), "--enrolment", str(enrolment), *bundles[:2]]
    assert main([*command, "--from-track", "2"]) == 0
    assert "of track 2 (unknown-2, 1.1-2.9 s) added to 'ann'" in capsys.readouterr().out
    assert len(load_enrolment(enrolment).rows["ann"]) <= 12
    assert main(["watch", str(video), *bundles, "--enrolment", str(enrolment), "--events", "jsonl"]) == 0
    events = events_of(capsys.readouterr().out)
    assert ("identified", "ann") in events
    assert ("appeared", "unknown-1") in events
    before = enrolment.read_bytes()
    assert main([*command, "--from-track", "9"]) == 1
    assert "shows no track 9; its tracks: track 1 (unknown-1, " in capsys.readouterr().err
    assert enrolment.read_bytes() == before


def test_the_threshold_is_measured_on_the_persons_of_a_video(
    bundles: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "empty-hour.avi"
    writer = cv2.VideoWriter(str(path), cv2.VideoWriter.fourcc(*"MJPG"), 10.0, (320, 320))
    for _ in range(60):
        frame = np.zeros((320, 320, 3), np.uint8)
        for place, blue in ((2, 0), (5, 250)):
            frame[place * SIDE : (place + 1) * SIDE, place * SIDE : (place + 1) * SIDE] = square(blue)
        writer.write(frame)
    writer.release()
    enrolment = tmp_path / "hall.enrolment"
    with Predictor(bundles[3]) as predictor:
        predictor.enroll("ann", square(120))
        predictor.save(enrolment)
    command = ["calibrate", bundles[3], "--enrolment", str(enrolment)]
    told = [*command, "--strangers", str(path), *bundles[:2], "--json"]
    assert main(told) == 0
    assert json.loads(capsys.readouterr().out)["open_set"]["strangers"] == 24  # of 60 whole frames, nothing
    assert main([*told, "--seconds", "5.6", "--except-track", "1"]) == 1  # one is left: too few
    assert "12 images of strangers" in capsys.readouterr().err
    assert main([*told, "--except-track", "7"]) == 1
    assert "no track 7 to leave out; the tracks of this source: 1, 2" in capsys.readouterr().err
    strangers = load_enrolment(enrolment).strangers
    assert strangers is not None
    assert len(strangers) == 24
    cv2.imwrite(str(tmp_path / "one.png"), square(0))
    for where in (["--strangers", str(tmp_path / "one.png")], ["--forget"]):
        assert main([*command, *where, "--seconds", "2"]) == 1
        assert "--seconds are for one video" in capsys.readouterr().err
    assert load_enrolment(enrolment).strangers is not None


def test_a_video_of_one_is_enrolled_and_one_of_two_is_listed(
    bundles: list[str], video: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    enrolment = tmp_path / "hall.enrolment"
    command = ["enroll", bundles[3], "ann", str(video), "--enrolment", str(enrolment), *bundles[:2]]
    assert main(command) == 1
    told = f"{video} shows more than one: track 1 (unknown-1, 0.0-3.9 s), track 2 (unknown-2, 1.1-2.9 s)"
    assert f"{told}; say which with --from-track NUMBER" in capsys.readouterr().err
    assert not enrolment.exists()
    assert main(["tracks", str(video), *bundles, "--json"]) == 0
    listed = json.loads(capsys.readouterr().out)["tracks"]
    assert [(track["track"], track["identity"], track["frames"]) for track in listed] == [
        (1, "unknown-1", FRAMES),
        (2, "unknown-2", 19),  # a track is believed with its second frame
    ]
    assert listed[1]["spans_s"] == [[1.1, 2.9]]
    assert main(["tracks", str(video), *bundles]) == 0
    assert "unknown-2" in capsys.readouterr().out
    assert main([*command, "--seconds", "0.9", "--json"]) == 0  # before the second one comes
    data = json.loads(capsys.readouterr().out)
    assert (data["track"]["track"], data["labels"]) == (1, ["ann"])
    assert data["added"] == len(load_enrolment(enrolment).rows["ann"]) > 0
    assert main(["tracks", str(video), *bundles, "--enrolment", str(enrolment)]) == 0
    assert re.search(r"1 +ann +40", capsys.readouterr().out)


def test_views_of_a_track_differ(bundles: list[str], tmp_path: Path) -> None:
    """Of many views of three looks one of each is enrolled, in their order."""
    looks = [square(blue) for blue in (0, 120, 250)]
    track = VideoTrack(1)
    for _ in range(2):
        for look in looks:
            for _ in range(5):
                track.add_view(GOOD, look)
    track.add_view(0.25, square(60))  # a poor view is used only for want of good ones
    with Predictor(bundles[3]) as predictor:
        crops = track.crops(predictor)
        assert sorted(crop.tobytes() for crop in crops) == sorted(look.tobytes() for look in looks)
        poor = VideoTrack(2)
        poor.add_view(0.25, looks[0])
        assert len(poor.crops(predictor)) == 1


def test_times_of_a_track_that_was_away() -> None:
    track = VideoTrack(3)
    for time_s in (1.0, 2.0, 3.0, 9.0, 9.5):
        track.add(time_s)
    assert str(track) == "track 3 (unknown, 1.0-3.0 s, 9.0-9.5 s)"


class Camera(BaseHTTPRequestHandler):
    """An endless stream of JPEG pictures in which one square stands."""

    def do_GET(self) -> None:
        frame = np.zeros((320, 320, 3), np.uint8)
        frame[2 * SIDE : 3 * SIDE, 2 * SIDE : 3 * SIDE] = square(0)
        picture = cv2.imencode(".jpg", frame)[1].tobytes()
        head = f"--b\r\nContent-Type: image/jpeg\r\nContent-Length: {len(picture)}\r\n\r\n".encode()
        self.send_response(200)
        self.send_header("Content-Type", "multipart/x-mixed-replace; boundary=b")
        self.end_headers()
        with suppress(OSError):  # the reader has gone
            while True:
                self.wfile.write(head + picture + b"\r\n")
                time.sleep(0.05)

    def log_message(self, format: str, *arguments: object) -> None:
        """Be quiet."""


def test_a_camera_is_enrolled_from_for_some_seconds(
    bundles: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    enrolment = tmp_path / "hall.enrolment"
    with ThreadingHTTPServer(("127.0.0.1", 0), Camera) as server:
        server.daemon_threads = True
        threading.Thread(target=server.serve_forever, daemon=True).start()
        address = f"http://user:secret@127.0.0.1:{server.server_address[1]}/live"
        command = ["enroll", bundles[3], "ann", address, "--enrolment", str(enrolment), *bundles[:2]]
        assert main([*command, "--seconds", "1.5"]) == 0
        server.shutdown()
    out, err = capsys.readouterr()
    assert "of track 1 (unknown-1, " in out
    assert "secret" not in out + err
    assert list(load_enrolment(enrolment).rows) == ["ann"]


@pytest.mark.parametrize(
    ("more", "message"),
    [
        (["--masks", "m.png"], "takes no masks"),
        (["--seconds", "0"], "--seconds is 0; allowed: a number > 0"),
        (["--seconds", "nan"], "--seconds is nan"),
        (["--from-track", "-7"], "--from-track is '-7'"),
        (["--detect", "nowhere.edgevis"], "nowhere.edgevis"),
    ],
)
def test_what_is_wrong_with_a_video_to_enrol_is_said(
    bundles: list[str], video: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], more: list[str], message: str
) -> None:
    command = ["enroll", bundles[3], "ann", str(video), "--enrolment", str(tmp_path / "e"), *bundles[:2]]
    assert main([*command, *(f"{more[0]}={more[1]}",)]) == 1
    assert message in capsys.readouterr().err


def test_images_are_not_searched_for_persons(
    bundles: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    cv2.imwrite(str(tmp_path / "a.png"), square(0))
    command = ["enroll", bundles[3], "ann", str(tmp_path / "a.png"), "--enrolment", str(tmp_path / "e")]
    assert main([*command, *bundles[:2]]) == 1
    assert "--detect and --seconds are for one video, camera or address" in capsys.readouterr().err


def test_metrics_can_be_read_while_it_watches(
    bundles: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    from runtime.monitoring import prometheus

    ports: list[int] = []
    started = prometheus.MetricsServer.__init__

    def noted(self: prometheus.MetricsServer, *arguments: object, **options: object) -> None:
        started(self, *arguments, **options)
        ports.append(self.port)

    monkeypatch.setattr(prometheus.MetricsServer, "__init__", noted)
    folder = tmp_path / "frames"
    folder.mkdir()
    picture = np.zeros((320, 320, 3), np.uint8)
    picture[2 * SIDE : 3 * SIDE, 2 * SIDE : 3 * SIDE] = square(0)
    for index in range(400):
        cv2.imwrite(str(folder / f"{index:03}.png"), picture)
    texts: list[str] = []

    def scrape() -> Iterator[str]:
        while not ports:
            time.sleep(0.005)
        while True:
            # Closed also where the server ends first, in the middle of an answer.
            with closing(HTTPConnection("127.0.0.1", ports[0], timeout=5)) as connection:
                connection.request("GET", "/metrics")
                yield connection.getresponse().read().decode()

    def collect() -> None:
        try:
            for text in scrape():
                texts.append(text)
        except (OSError, HTTPException):
            return

    thread = threading.Thread(target=collect)
    thread.start()
    assert main(["watch", str(folder), *bundles, "--metrics", "127.0.0.1:0"]) == 0
    thread.join(10)
    found = [re.search("^edgevis_frames_total (.*)$", text, re.MULTILINE) for text in texts]
    counts = [float(match[1]) for match in found if match is not None and float(match[1]) > 0]
    assert counts == sorted(counts)
    assert counts
    capsys.readouterr()


@pytest.mark.parametrize(
    ("more", "message"),
    [
        (["--frames", "0"], "--frames is 0"),
        (["--json", "--events", "jsonl"], "give one of them"),
        (["--events", "ftp://host"], "allowed: jsonl"),
        (["--save", "out.txt"], "cannot be a video"),
        (["--classes", "blue"], "allowed: some of red, green"),
        (["--detect-every", "0"], "detect_every is 0"),
        (["--threads", "0"], "threads is 0; allowed"),
        (["--precision", "bf16"], "has no engine for"),
        (["--identify", "none", "--enrolment", "x"], "--identify none only tracks"),
        (["--drop", "oldest", "--timeout", "0"], "timeout_s is 0"),
    ],
)
def test_wrong_arguments_are_one_line(
    bundles: list[str], video: Path, more: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["watch", str(video), *bundles, *more]) == 1
    err = capsys.readouterr().err
    assert message in err
    assert err.count("error:") == 1


def test_one_source_of_two_that_cannot_be_read(
    bundles: list[str], video: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    empty = tmp_path / "empty.avi"
    empty.touch()
    assert main(["watch", str(video), str(empty), *bundles, "--save", str(tmp_path / "o.avi")]) == 1
    out, err = capsys.readouterr()
    assert out.count("source 0  ") == 4
    assert [line for line in err.splitlines() if line.startswith("error")] == [
        f"error: {empty} is empty: it has no bytes, and is not a video"
    ]
    assert [path.name for path in tmp_path.iterdir() if path != empty] == ["o-0.avi"]


@pytest.mark.parametrize("port", ["x", "65536", "host:", "-1", "1:2:x"])
def test_ports_that_are_none(bundles: list[str], video: Path, port: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        main(["watch", str(video), *bundles, f"--metrics={port}"])
    assert "is no port; allowed: 0 to 65535" in capsys.readouterr().err


class Slow:
    """A receiver that notes how long it may take to close."""

    waited_s: float

    def send(self, event: object) -> None: ...

    def close(self, *, timeout_s: float = 5.0) -> None:
        self.waited_s = timeout_s


@pytest.mark.parametrize("ended", [KeyboardInterrupt(), Terminated(15), OutputError("full")])
def test_only_ctrl_c_does_not_wait_for_receivers(ended: BaseException) -> None:
    sink = Slow()
    with pytest.raises(type(ended)), _closing(sink):
        raise ended
    assert (sink.waited_s < 1.0) == (type(ended) is KeyboardInterrupt)


def test_a_window_is_refused_where_there_is_none(
    bundles: list[str], video: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("DISPLAY", "WAYLAND_DISPLAY", "QT_QPA_PLATFORM"):  # Qt would end this process
        monkeypatch.delenv(name, raising=False)
    assert main(["watch", str(video), *bundles, "--show"]) == 1
    assert "--show needs an OpenCV with windows" in capsys.readouterr().err


def test_a_saved_video_runs_as_its_source_did(tmp_path: Path) -> None:
    path = tmp_path / "gap.avi"
    with VideoOutput(path, 10.0) as video:
        for time_s in (0.0, 0.1, 0.5, 0.52, 100.0):
            video.write(np.zeros((32, 32, 3), np.uint8), time_s=time_s)
        assert not path.exists()
    capture = cv2.VideoCapture(str(path))
    # 0.0, 0.1, then 0.2 to 0.5 by the third, nothing of the fourth, and 5 s for the pause.
    assert int(capture.get(cv2.CAP_PROP_FRAME_COUNT)) == 1 + 1 + 4 + 50
    capture.release()
    with pytest.raises(OutputError, match="is there already"):
        VideoOutput(path)
