"""Network cameras for tests: processes that send numbered pictures, and that can be killed or stopped.

The query of an address says what goes wrong, counted in the pictures of one connection: ``frames`` ends it after so
many, ``cut`` sends a part of the next one and ends it, ``corrupt`` damages every so many-th, ``resize`` halves the size
after so many, ``hang`` sends nothing any more after so many, ``size`` is the side of the pictures, ``fps`` their rate,
``show`` the path of a picture that is sent in place of numbers. The numbers go on from one connection to the next.
"""

from __future__ import annotations

import argparse
import itertools
import os
import signal
import socketserver
import subprocess
import sys
import time
from abc import ABC, abstractmethod
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from urllib.parse import parse_qsl, urlsplit

import cv2
import numpy as np
import numpy.typing as npt

BITS = 24

Picture = npt.NDArray[np.uint8]


def numbered(number: int, side: int = 192) -> Picture:
    """A picture that shows a number as a row of white and black fields: it survives compression."""
    image = np.full((side, side, 3), 128, np.uint8)
    width = side // BITS
    for bit in range(BITS):
        image[side // 4 : side // 2, bit * width : (bit + 1) * width] = 255 if number >> bit & 1 else 0
    return image


def number_of(image: Picture) -> int:
    """The number that a picture of :func:`numbered` shows."""
    side = image.shape[0]
    width = side // BITS
    row = image[side // 4 + side // 16 : side // 2 - side // 16].mean(axis=(0, 2))
    return sum(1 << bit for bit in range(BITS) if row[bit * width : (bit + 1) * width].mean() > 127)


class Faults:
    """The pictures of one connection, and what goes wrong with them."""

    _numbers = itertools.count()

    def __init__(self, address: str) -> None:
        asked = dict(parse_qsl(urlsplit(address).query))
        path = asked.pop("show", None)
        self._shown = None if path is None else np.asarray(cv2.imread(path), np.uint8)
        self._asked = {key: float(value) for key, value in asked.items()}

    def pictures(self) -> Iterator[tuple[int, Picture]]:
        """Each picture with its position, at its time."""
        side, due = int(self._asked.get("size", 192)), time.monotonic()
        for sent in itertools.count():
            if sent == self._asked.get("hang"):
                time.sleep(3600)
            if sent == self._asked.get("frames"):
                return
            time.sleep(max(0.0, due - time.monotonic()))
            due += 1 / self._asked.get("fps", 50)
            small = sent >= self._asked.get("resize", float("inf"))
            picture = numbered(next(self._numbers), side // 2 if small else side)
            yield sent, picture if self._shown is None else self._shown

    def cut(self, sent: int) -> bool:
        return sent == self._asked.get("cut")

    def corrupt(self, sent: int) -> bool:
        return "corrupt" in self._asked and sent % int(self._asked["corrupt"]) == int(self._asked["corrupt"]) - 1


class CameraProcess(ABC):
    """A camera's server in a process of its own, which can be killed, stopped and started again."""

    def __init__(self) -> None:
        self.port = 0
        self._process: subprocess.Popen[str] | None = None

    @abstractmethod
    def start(self) -> None:
        """Start it, at the port that it had before."""

    @abstractmethod
    def address(self, query: str = "", login: str = "") -> str:
        """The address at which clients see pictures."""

    def _launch(self, *command: str, stderr: int | None = None) -> str:
        """Start this command; its first line, without the end."""
        self._process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=stderr, text=True)
        assert self._process.stdout is not None
        return self._process.stdout.readline().rstrip("\n")

    def kill(self) -> None:
        if self._process is not None:
            self._process.kill()
            self._process.communicate()
            self._process = None

    def freeze(self) -> None:
        self._signal(signal.SIGSTOP)

    def thaw(self) -> None:
        self._signal(signal.SIGCONT)

    def _signal(self, number: signal.Signals) -> None:
        assert self._process is not None
        os.kill(self._process.pid, number)


class CameraServer(CameraProcess):
    """A camera in Python, which does what the query asks; a context manager that ends it.

    Args:
        kind: ``http`` or ``rtsp``, which needs PyAV.
        login: ``user:password`` that it asks for.
    """

    def __init__(self, kind: str = "http", *, login: str = "") -> None:
        super().__init__()
        self._kind, self._login = kind, login
        self.start()

    def start(self) -> None:
        script = Path(__file__).with_name({"http": "mjpeg_camera.py", "rtsp": "rtsp_camera.py"}[self._kind])
        self.port = int(self._launch(sys.executable, str(script), "--port", str(self.port), "--login", self._login))

    def address(self, query: str = "", login: str = "") -> str:
        return f"{self._kind}://{login + '@' if login else ''}127.0.0.1:{self.port}/live?{query}"

    def __enter__(self) -> CameraServer:
        return self

    def __exit__(self, *_: object) -> None:
        self.kill()


def serve(server_class: type[socketserver.TCPServer], handler: Any) -> None:
    """Serve on loopback at ``--port``, or at a free one, which is printed; a handler's ``login`` is ``--login``."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--port", type=int, default=0)
    parser.add_argument("--login", default="")
    arguments = parser.parse_args()
    handler.login = arguments.login
    with server_class(("127.0.0.1", arguments.port), handler) as server:
        print(server.server_address[1], flush=True)
        server.serve_forever()
