"""A network camera that sends numbered JPEG pictures over HTTP, in a process of its own that can be killed or stopped.

``/PATH?KEY=VALUE&…`` says what goes wrong: ``frames`` ends the stream after so many pictures, ``cut`` sends half of the
next one and ends it, ``corrupt`` sends every so many-th picture with a hole, ``resize`` halves the size after so many,
``hang`` sends nothing any more after so many, ``size`` is the side of the pictures, ``fps`` their rate. The numbers go
on from one connection to the next.
"""

from __future__ import annotations

import argparse
import base64
import contextlib
import http.server
import itertools
import os
import signal
import socketserver
import subprocess
import sys
import time
from urllib.parse import parse_qsl, urlsplit

import cv2
import numpy as np

BITS = 24
_COUNTER = itertools.count()


def numbered(number: int, side: int = 192) -> np.ndarray:
    """A picture that shows a number as a row of white and black fields: it survives compression."""
    image = np.full((side, side, 3), 128, np.uint8)
    width = side // BITS
    for bit in range(BITS):
        image[side // 4 : side // 2, bit * width : (bit + 1) * width] = 255 if number >> bit & 1 else 0
    return image


def number_of(image: np.ndarray) -> int:
    """The number that a picture of :func:`numbered` shows."""
    side = image.shape[0]
    width = side // BITS
    row = image[side // 4 + side // 16 : side // 2 - side // 16].mean(axis=(0, 2))
    return sum(1 << bit for bit in range(BITS) if row[bit * width : (bit + 1) * width].mean() > 127)


class _Camera(http.server.BaseHTTPRequestHandler):
    login = ""

    def log_message(self, format: str, *args: object) -> None:
        return

    def do_GET(self) -> None:
        expected = "Basic " + base64.b64encode(self.login.encode()).decode()
        if self.login and self.headers.get("Authorization") != expected:
            self.send_response(401)
            self.send_header("WWW-Authenticate", 'Basic realm="camera"')
            self.send_header("Content-Length", "0")
            self.end_headers()
            return
        self.send_response(200)
        self.send_header("Content-Type", "multipart/x-mixed-replace; boundary=x")
        self.end_headers()
        with contextlib.suppress(OSError):
            self._send_pictures({key: float(value) for key, value in parse_qsl(urlsplit(self.path).query)})

    def _send_pictures(self, faults: dict[str, float]) -> None:
        side, due = int(faults.get("size", 192)), time.monotonic()
        for sent in itertools.count():
            if sent == faults.get("hang"):
                time.sleep(3600)
            if sent == faults.get("frames"):
                return
            small = "resize" in faults and sent >= faults["resize"]
            image = numbered(next(_COUNTER), side // 2 if small else side)
            data = cv2.imencode(".jpg", image)[1].tobytes()
            if "corrupt" in faults and sent % int(faults["corrupt"]) == int(faults["corrupt"]) - 1:
                data = data[: len(data) // 2] + b"\xff\xd9"
            head = b"--x\r\nContent-Type: image/jpeg\r\nContent-Length: %d\r\n\r\n" % len(data)
            if sent == faults.get("cut"):
                self.wfile.write(head + data[: len(data) // 2])
                return
            self.wfile.write(head + data + b"\r\n")
            self.wfile.flush()
            due += 1 / faults.get("fps", 50)
            time.sleep(max(0.0, due - time.monotonic()))


class _Server(socketserver.ThreadingMixIn, http.server.HTTPServer):
    daemon_threads = True
    allow_reuse_address = True


class MjpegServer:
    """The server's process; a context manager that ends it."""

    def __init__(self, *, port: int = 0, login: str = "") -> None:
        self.port, self._login = port, login
        self._process: subprocess.Popen[str] | None = None
        self.start()

    def start(self) -> None:
        """Start it, at the port that it had before."""
        command = [sys.executable, __file__, "--port", str(self.port), "--login", self._login]
        self._process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
        assert self._process.stdout is not None
        self.port = int(self._process.stdout.readline())

    def address(self, query: str = "", login: str = "") -> str:
        return f"http://{login + '@' if login else ''}127.0.0.1:{self.port}/live.mjpg?{query}"

    def kill(self) -> None:
        if self._process is not None:
            self._process.kill()
            self._process.wait()
            if self._process.stdout is not None:
                self._process.stdout.close()
            self._process = None

    def freeze(self) -> None:
        assert self._process is not None
        os.kill(self._process.pid, signal.SIGSTOP)

    def thaw(self) -> None:
        assert self._process is not None
        os.kill(self._process.pid, signal.SIGCONT)

    def __enter__(self) -> MjpegServer:
        return self

    def __exit__(self, *_: object) -> None:
        self.kill()


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--port", type=int, default=0)
    parser.add_argument("--login", default="")
    arguments = parser.parse_args()
    _Camera.login = arguments.login
    server = _Server(("127.0.0.1", arguments.port), _Camera)
    print(server.server_port, flush=True)
    server.serve_forever()


if __name__ == "__main__":
    main()
