"""Breaks network cameras 200 times and reports what their readers notice: ``python -m benchmarks.streams``.

The cameras are processes on loopback: a server of JPEG pictures over HTTP, and GStreamer's RTSP server where it is
installed (else the RTSP camera of the tests). Each is killed and started again, frozen (SIGSTOP) and thawed, throttled
to a part of its rate, and cut in the middle of a picture. Every picture shows its number, so that one that is lost or
repeated is noticed.

A row counts as exact if the reader counted as many reconnections as there were faults that end a connection, and as
many frames as were handed out, if each connection's pictures came one after another, and, of JPEG pictures, if as many
were corrupt as were cut.
"""

from __future__ import annotations

import argparse
import contextlib
import itertools
import logging
import os
import random
import sys
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from benchmarks.report import report
from benchmarks.stream_servers import CameraProcess, CameraServer, GstServer, Proxy, gst_python, number_of
from runtime.errors import SourceError
from runtime.streams.feed import Drop
from runtime.streams.network import has_pyav
from runtime.streams.reader import StreamReader

TIMEOUT_S = {"http": 1.5, "rtsp": 3.0}
"""After which a camera counts as lost; GStreamer's takes more than a second until its first picture."""


@dataclass(frozen=True)
class Faults:
    """One kind of fault of one camera, so many times.

    Attributes:
        exact: Whether all counts are right.
        noticed_s: The longest time from a freeze until the camera counted as lost; NaN for other faults.
        back_s: Median and longest time from when the camera was there again until it gave a frame.
        latency_p99_ms: From the decoding of a frame until it had been used.
        growth_mb: Resident memory of reader and decoder at the end, less that after the first tenth of the faults.
    """

    camera: str
    fault: str
    count: int
    frames: int
    corrupt: int
    reconnects: int
    exact: bool
    noticed_s: float
    back_s: tuple[float, float]
    latency_p99_ms: float
    growth_mb: float


@dataclass(frozen=True)
class SlowModel:
    """A camera of 30 frames a second before a model that takes 0.3 s for each.

    Attributes:
        age_s: Of the picture that is taken last, beside the first one.
    """

    drop: str
    seconds: float
    frames: int
    dropped: int
    age_s: float


@dataclass
class WatchedStream:
    """Reads a stream in a thread, and notes the numbers of its pictures."""

    address: str
    numbers: list[int] = field(default_factory=list)
    times: list[float] = field(default_factory=list)

    def __enter__(self) -> WatchedStream:
        self._left = False
        self.reader = self._opened()
        self._thread = threading.Thread(target=self._read)
        self._thread.start()
        self.until(lambda: len(self.numbers) >= 5)
        return self

    def _read(self) -> None:
        while not self.numbers and not self._left:  # on a busy machine the first opening may take longer
            with contextlib.suppress(SourceError):
                self._read_on()
            if not self.numbers:
                self.reader = self._opened()

    def _read_on(self) -> None:
        for frames in self.reader:
            for frame in frames:
                self.numbers.append(number_of(frame.image))
                self.times.append(time.monotonic())

    def _opened(self) -> StreamReader:
        return StreamReader(self.address, drop="none", timeout_s=TIMEOUT_S[self.address[:4]])

    def until(self, condition: Callable[[], bool], limit_s: float = 60.0) -> float:
        """Wait for a condition; returns the seconds."""
        started = time.monotonic()
        while not condition():
            if time.monotonic() - started > limit_s or not self._thread.is_alive():
                raise SystemExit(f"{self.address}: nothing happened for {limit_s:g} s: {self.reader.stats[0]}")
            time.sleep(0.005)
        return time.monotonic() - started

    def until_back(self, reconnects: int) -> float:
        waited = self.until(lambda: self.reader.stats[0].reconnects >= reconnects)
        frames = len(self.numbers)
        self.until(lambda: len(self.numbers) >= frames + 3)
        return waited

    def __exit__(self, *_: object) -> None:
        self._left = True
        self.reader.close()
        self._thread.join()

    @property
    def jumps(self) -> int:
        """How often a picture did not follow its predecessor; the pictures repeat after 1,500 or never."""
        pairs = itertools.pairwise(self.numbers)
        return sum(after != before + 1 and (before, after) != (1499, 0) for before, after in pairs)


def measured(name: str, fault: str, camera: CameraProcess, count: int) -> Faults:
    """Break the camera so many times."""
    proxy = Proxy(camera.port)
    own = isinstance(camera, CameraServer)
    address = camera.address("fps=50" + ("&cut=30" if fault == "cut" and own else ""))
    if fault == "throttled" or (fault == "cut" and not own):
        address = address.replace(f":{camera.port}/", f":{proxy.port}/")
    draw = random.Random(0)  # noqa: S311 - where a stream is cut
    noticed, back, sizes = [], [], []
    if fault == "cut":
        proxy.cut_after = 12_000
    with WatchedStream(address) as watch:
        for number in range(1, count + 1):
            if fault == "cut":
                back.append(_cut(watch, number))
                proxy.cut_after = draw.randrange(9_000, 15_000)
            elif fault == "killed":
                camera.kill()
                watch.until(lambda: not watch.reader.stats[0].connected)
                camera.start()
                back.append(watch.until_back(number))
            elif fault == "frozen":
                camera.freeze()
                noticed.append(watch.until(lambda: not watch.reader.stats[0].connected))
                camera.thaw()
                back.append(watch.until_back(number))
            else:
                back.append(_throttle(watch, proxy))
            sizes.append(_resident_mb())
        (stats,) = watch.reader.stats
        handed_out = len(watch.numbers)
    proxy.close()
    expected = 0 if fault == "throttled" else count
    exact = stats.reconnects == watch.jumps == expected and stats.dropped == 0 and 0 <= stats.frames - handed_out <= 1
    if fault == "cut" and name.startswith("HTTP"):
        exact = exact and stats.corrupt == (count if has_pyav() else 0)
    warm = max(1, count // 10)
    return Faults(
        name,
        fault,
        count,
        stats.frames,
        stats.corrupt,
        stats.reconnects,
        exact,
        max(noticed, default=float("nan")),
        (float(np.median(back)), max(back)),
        stats.latency_p99_ms,
        float(np.median(sizes[-warm:]) - np.median(sizes[warm : 2 * warm] or sizes[-warm:])),
    )


def _cut(watch: WatchedStream, number: int) -> float:
    """Wait for the next cut; returns the seconds from the loss to the first frame afterwards."""
    watch.until(lambda: not watch.reader.stats[0].connected or watch.reader.stats[0].reconnects >= number)
    return watch.until_back(number)


def _throttle(watch: WatchedStream, proxy: Proxy) -> float:
    """Pass on a third of the camera's rate for a second; returns the seconds until ten more frames have come."""
    before = proxy.passed
    time.sleep(0.5)
    proxy.bytes_per_s = (proxy.passed - before) * 2 / 3
    time.sleep(1.0)
    proxy.bytes_per_s = None
    started = len(watch.numbers)
    return watch.until(lambda: len(watch.numbers) >= started + 10)


def slow_model(drop: Drop, seconds: float = 20.0) -> SlowModel:
    """Read a camera more slowly than it sends."""
    with CameraServer() as camera, StreamReader(camera.address("fps=30&size=480"), drop=drop) as reader:
        started = first = age_s = 0.0
        for frames in reader:
            now, number = time.monotonic(), number_of(frames[0].image)
            if not started:
                started, first = now, number
            age_s = now - started - (number - first) / 30
            if now - started > seconds:
                break
            time.sleep(0.3)
        (stats,) = reader.stats
    return SlowModel(drop, seconds, stats.frames, stats.dropped, age_s)


def _resident_mb() -> float:
    """Resident memory of this process and its children, without the cameras, in MB."""
    pages = 0
    for task in Path("/proc/self/task").iterdir():
        for child in (task / "children").read_text().split():
            command = Path(f"/proc/{child}/cmdline").read_bytes()
            if b"runtime.streams.worker" in command:
                pages += int(Path(f"/proc/{child}/statm").read_text().split()[1])
    pages += int(Path("/proc/self/statm").read_text().split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE") / 1e6


def measure(total: int) -> list[Faults]:
    """All kinds of faults of all cameras."""
    python = gst_python()
    rows = []
    cameras: list[tuple[str, Callable[[], CameraProcess]]] = [("HTTP MJPEG", CameraServer)]
    if python is not None:
        cameras.append(("RTSP, GStreamer", lambda: GstServer(python)))
    elif has_pyav():
        cameras.append(("RTSP, of the tests", lambda: CameraServer("rtsp")))
    each = max(1, total // (4 * len(cameras)))
    for name, start in cameras:
        camera = start()
        try:
            for fault in ("killed", "frozen", "throttled", "cut"):
                rows.append(measured(name, fault, camera, each))
                print(f"{name}: {each} x {fault}", file=sys.stderr, flush=True)
        finally:
            camera.kill()
    return rows


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--faults", type=int, default=200, help="how many in all (default: 200)")
    parser.add_argument("--json", action="store_true")
    arguments = parser.parse_args(argv)
    logging.getLogger("edgevis.streams").setLevel(logging.ERROR)  # each loss and return is a warning
    headers = (
        "camera",
        "fault",
        "times",
        "frames",
        "corrupt",
        "reconnects",
        "exact",
        "noticed",
        "back",
        "p99",
        "memory",
    )
    failed = report(
        lambda: [slow_model("none"), slow_model("oldest")],
        headers=("drop", "after", "frames", "dropped", "age of the last"),
        cells=lambda row: (
            row.drop,
            f"{row.seconds:g} s",
            str(row.frames),
            str(row.dropped),
            f"{row.age_s:.2f} s",
        ),
        as_json=arguments.json,
        title=lambda row: "HTTP MJPEG of 30 frames a second, 0.3 s for each frame",
    )
    return failed or report(
        lambda: measure(arguments.faults),
        headers=headers,
        cells=lambda row: (
            row.camera,
            row.fault,
            str(row.count),
            str(row.frames),
            str(row.corrupt),
            str(row.reconnects),
            "yes" if row.exact else "NO",
            f"{row.noticed_s:.2f} s" if row.noticed_s == row.noticed_s else "–",
            f"{row.back_s[0]:.2f} s, at most {row.back_s[1]:.2f} s",
            f"{row.latency_p99_ms:.1f} ms",
            f"{row.growth_mb:+.1f} MB",
        ),
        as_json=arguments.json,
        title=lambda row: f"Decoder of addresses: {'PyAV' if has_pyav() else 'OpenCV'}; timeout_s: {TIMEOUT_S}",
    )


if __name__ == "__main__":
    raise SystemExit(main())
