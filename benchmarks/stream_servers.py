"""The cameras of the stream benchmark: two small servers, GStreamer's where it is installed, and a proxy that slows."""

from __future__ import annotations

import contextlib
import os
import socket
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path

import cv2

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT / "tests" / "support"))

from camera_server import CameraProcess, CameraServer, number_of, numbered  # noqa: E402 - helpers of the tests

__all__ = ["CameraProcess", "CameraServer", "GstServer", "Proxy", "gst_python", "number_of"]


def gst_python() -> str | None:
    """A Python that has GStreamer's RTSP server; None if none is found."""
    check = "import gi; gi.require_version('GstRtspServer', '1.0'); from gi.repository import GstRtspServer"
    for python in (os.environ.get("EDGEVIS_GST_PYTHON"), "/usr/bin/python3", sys.executable):
        if python and Path(python).exists():
            done = subprocess.run([python, "-c", check], capture_output=True, check=False)  # noqa: S603
            if done.returncode == 0:
                return python
    return None


class GstServer(CameraProcess):
    """GStreamer's RTSP server with 1,500 numbered pictures; each client sees them from the first on, repeated."""

    def __init__(self, python: str) -> None:
        super().__init__()
        self._python = python
        self._folder = tempfile.TemporaryDirectory()
        for number in range(1500):
            cv2.imwrite(f"{self._folder.name}/{number:05d}.jpg", numbered(number, 384))
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            self.port = int(free.getsockname()[1])
        self.start()

    def start(self) -> None:
        script = Path(__file__).with_name("gst_rtsp_server.py")
        if (
            self._launch(self._python, str(script), str(self.port), self._folder.name, stderr=subprocess.DEVNULL)
            != "ready"
        ):
            raise SystemExit("GStreamer's RTSP server does not start")

    def address(self, query: str = "", login: str = "") -> str:
        return f"rtsp://127.0.0.1:{self.port}/live"

    def close(self) -> None:
        self.kill()
        self._folder.cleanup()


class Proxy:
    """Passes TCP connections on; slows what the server sends, or cuts it after so many bytes."""

    def __init__(self, port: int) -> None:
        self._target = port
        self.bytes_per_s: float | None = None
        self.cut_after: int | None = None
        self.passed = 0
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.port = int(self._listener.getsockname()[1])
        threading.Thread(target=self._accept, daemon=True).start()

    def _accept(self) -> None:
        with contextlib.suppress(OSError):
            while True:
                client, _ = self._listener.accept()
                client.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 8192)
                server = socket.create_connection(("127.0.0.1", self._target))
                threading.Thread(target=self._pass, args=(client, server, False), daemon=True).start()
                threading.Thread(target=self._pass, args=(server, client, True), daemon=True).start()

    def _pass(self, source: socket.socket, target: socket.socket, limited: bool) -> None:
        passed = 0
        with contextlib.suppress(OSError):
            while data := source.recv(2048):
                if limited and self.cut_after is not None and passed + len(data) > self.cut_after:
                    target.sendall(data[: self.cut_after - passed])
                    break
                target.sendall(data)
                passed += len(data)
                if limited:
                    self.passed += len(data)
                if limited and self.bytes_per_s is not None:
                    time.sleep(len(data) / self.bytes_per_s)
        for end in (source, target):
            with contextlib.suppress(OSError):
                end.shutdown(socket.SHUT_RDWR)

    def close(self) -> None:
        self._listener.close()
