"""A camera or an address that a process of its own decodes; see :mod:`runtime.streams.worker`."""

from __future__ import annotations

import json
import mmap
import os
import select
import signal
import socket
import subprocess
import sys
import threading
import time
from typing import IO, Any, cast

import numpy as np

from runtime.common.addresses import hide
from runtime.common.limits import too_many_pixels
from runtime.errors import SourceError
from runtime.images.decode import Image
from runtime.streams.capture import Reading
from runtime.streams.network import has_pyav
from runtime.streams.worker import MAX_MESSAGE_BYTES, SLOTS

_TICK_S = 0.1
"""How often a thread that waits for a frame looks whether it is to end."""

_START_S = 10.0
"""How long Python may take to start on a busy machine, before the camera's time begins."""

_TOLD_BYTES = 4096

_COMMAND = "from runtime.streams.worker import main; main()"


def _interpreter() -> str:
    """The path of Python; of a program that embeds it, ``sys.executable`` is the program."""
    if "python" in os.path.basename(sys.executable or ""):
        return sys.executable
    return os.path.join(sys.exec_prefix, "bin", "python3")


class RemoteCapture:
    """A camera or an address, decoded by a child process that can be ended at any moment.

    Args:
        target: A camera's index or an address.
        name: The name for messages.
        timeout_s: Seconds without a frame after which it counts as lost.
        open_timeout_s: Seconds until the first frame after which it counts as one that cannot be opened.
        stopping: Ends a read when it is set.

    Raises:
        SourceError: The process cannot be started.
    """

    def __init__(
        self, target: int | str, name: str, *, timeout_s: float, open_timeout_s: float, stopping: threading.Event
    ) -> None:
        self._target, self._name, self._stopping = target, name, stopping
        self._timeout_s, self._limit_s = timeout_s, open_timeout_s
        self._memory: mmap.mmap | None = None
        self._slot_bytes = 0
        self._told = b""
        self._channel, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        try:
            self._process = subprocess.Popen(  # noqa: S603 - this interpreter
                [_interpreter(), "-c", _COMMAND, str(theirs.fileno())],
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                stderr=subprocess.PIPE,
                pass_fds=[theirs.fileno()],
                env={**os.environ, "PYTHONPATH": os.pathsep.join(path or os.getcwd() for path in sys.path)},
            )
        except OSError as error:
            self._channel.close()
            raise SourceError(f"{name} cannot be opened: no process can be started for it: {error}") from error
        finally:
            theirs.close()
        self._errors = cast(IO[bytes], self._process.stderr)
        os.set_blocking(self._errors.fileno(), False)
        self._send(json.dumps({"target": target, "timeout_s": open_timeout_s, "pyav": has_pyav()}).encode())
        self._waiting_since = time.monotonic() + _START_S
        self._opened = False
        self.live = True

    def open(self) -> None:
        """Wait until the source is open.

        Raises:
            SourceError: It cannot be opened within the time, or ``stopping`` was set.
        """
        message = self._receive()
        if message is None:
            raise SourceError(f"{self._name} was closed while it was opened")
        self.live, self._opened = bool(message["live"]), True

    def read(self) -> Reading | None:
        message = self._receive()
        if message is None or "end" in message:
            return None
        if "frame" not in message:
            return Reading(None, None, time.monotonic(), int(message["corrupt"]))
        slot, height, width = message["frame"]
        image = self._copied(slot, height, width)
        self._waiting_since, self._limit_s = time.monotonic(), self._timeout_s
        return Reading(image, message["time_s"], float(message["captured"]), int(message["corrupt"]))

    def _copied(self, slot: int, height: int, width: int) -> Image:
        size = height * width * 3
        if problem := too_many_pixels(width, height):
            raise SourceError(f"{self._name}: a frame {problem}")
        if self._memory is None or not 0 <= slot < SLOTS or size > self._slot_bytes:
            raise SourceError(f"{self._name}: the process that decodes it sent a frame outside of its memory")
        shared = np.frombuffer(self._memory, np.uint8, size, slot * self._slot_bytes)
        image = shared.reshape(height, width, 3).copy()
        self._send(bytes([slot]))
        return image

    def _receive(self) -> dict[str, Any] | None:
        """The next message; None when ``stopping`` is set.

        Raises:
            SourceError: The source failed, its process ended, or no frame came in time.
        """
        while not self._stopping.is_set():
            watched: list[socket.socket | IO[bytes]] = [self._channel, self._errors]
            ready = select.select(watched, [], [], _TICK_S)[0]
            if self._errors in ready and not self._read_errors() and self._channel not in ready:
                time.sleep(_TICK_S / 10)  # standard error is closed: the last message is on its way
            if self._channel in ready:
                message = self._message()
                if "started" in message:
                    self._waiting_since = time.monotonic()
                elif "memory" not in message:
                    return message
            elif time.monotonic() - self._waiting_since > self._limit_s:
                problem = "gave no frame for" if self._opened else "cannot be opened: it did not answer within"
                raise SourceError(f"{self._name} {problem} {self._limit_s:g} s")
        return None

    def _message(self) -> dict[str, Any]:
        try:
            data, descriptors, _, _ = socket.recv_fds(self._channel, MAX_MESSAGE_BYTES, 1)
        except OSError:
            data, descriptors = b"", []
        if not data:
            raise SourceError(f"{self._name}: {self._death()}")
        message: dict[str, Any] = json.loads(data)
        if "memory" in message:
            self._slot_bytes = int(message["memory"])
            self._memory = mmap.mmap(descriptors[0], self._slot_bytes * SLOTS)
            os.close(descriptors[0])
        if "error" in message:
            self._read_errors()
            raise SourceError(f"{message['error']}{self._last_words()}")
        return message

    def _read_errors(self) -> bytes:
        """Take what the process wrote to standard error, and keep the end of it."""
        try:
            data = self._errors.read(1 << 16) or b""
        except (OSError, ValueError):
            return b""
        self._told = (self._told + data)[-_TOLD_BYTES:]
        return data

    def _last_words(self) -> str:
        lines = [line.strip() for line in self._told.decode(errors="replace").splitlines()]
        lines = [line for line in lines if line and "WARN:" not in line]  # OpenCV's own, which say what it tries
        return f" ({hide(lines[-1], str(self._target))[:200]})" if lines else ""

    def _death(self) -> str:
        try:
            status = self._process.wait(0.5)
        except subprocess.TimeoutExpired:
            return "the process that decodes it does not answer"
        self._read_errors()
        if status < 0:
            return f"the process that decodes it was ended by {signal.Signals(-status).name}{self._last_words()}"
        return f"the process that decodes it ended{self._last_words()}"

    def _send(self, data: bytes) -> None:
        try:
            self._channel.sendall(data)
        except OSError as error:
            raise SourceError(f"{self._name}: {self._death()}") from error

    def close(self) -> None:
        """End the process, wherever it is."""
        self._process.kill()
        self.release()
        try:
            self._process.wait(0.5)
        except subprocess.TimeoutExpired:  # a driver holds it; Python reaps it later
            return

    def release(self) -> None:
        """Close the descriptors but leave the process: of a forked child, whose parent goes on using it."""
        self._channel.close()
        self._errors.close()
        self._memory = None
