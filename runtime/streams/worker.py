"""The process that decodes one camera or address for :class:`runtime.streams.remote.RemoteCapture`.

A read that hangs in native code, as on a camera that went silent, can be ended only by ending its process, and a
decoder that crashes takes nothing else with it. Pixels go through shared memory; messages are JSON over a socket pair
that keeps their boundaries.

To the worker: first the order, ``{"target", "timeout_s", "pyav"}``, then one byte for each slot of the memory that is
free again. From the worker: ``{"started"}``; ``{"live"}`` once it is open; ``{"memory"}`` with the descriptor of new
memory, and the bytes of a slot; ``{"frame": [slot, height, width], "time_s", "captured", "corrupt"}``; ``{"corrupt"}``;
at last ``{"end"}`` or ``{"error"}``. After it the worker waits until the parent closes the socket: a socket that is
closed with a byte unread gives the other side an error before what was sent to it.
"""

from __future__ import annotations

import importlib
import json
import mmap
import os
import queue
import select
import signal
import socket
import sys
import tempfile
import threading
from typing import Any

import numpy as np

from runtime.common.addresses import hide
from runtime.errors import EdgevisError
from runtime.images.decode import Image
from runtime.streams.capture import Reading
from runtime.streams.network import open_network

SLOTS = 3
"""Frames that the shared memory holds: one that is written, one that waits, one that is read."""

MAX_MESSAGE_BYTES = 1 << 16

_PARENT_CHECK_S = 1.0


def main() -> None:
    """Decode until the source ends or the parent goes away; the descriptor of the socket is ``sys.argv[1]``."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C goes to the whole group; the parent ends this process
    channel = socket.socket(fileno=int(sys.argv[1]))
    parent = os.getppid()
    order = json.loads(channel.recv(MAX_MESSAGE_BYTES))
    if order["pyav"] and isinstance(order["target"], str):
        importlib.import_module("av")
    _send(channel, {"started": True})  # from now on the time is the camera's
    free: queue.SimpleQueue[int] = queue.SimpleQueue()
    receiving = threading.Thread(target=_receive, args=(channel, free, parent), daemon=True)
    receiving.start()
    try:
        _decode(channel, order, free)
    except EdgevisError as error:
        _send(channel, {"error": hide(str(error), str(order["target"]))})
    except MemoryError:
        _send(channel, {"error": "a frame does not fit into memory"})
    receiving.join()


def _decode(channel: socket.socket, order: dict[str, Any], free: queue.SimpleQueue[int]) -> None:
    capture = open_network(order["target"], timeout_s=order["timeout_s"], pyav=order["pyav"])
    _send(channel, {"live": capture.live})
    memory = _SharedFrames(channel, free)
    while (reading := capture.read()) is not None:
        if reading.image is None:
            _send(channel, {"corrupt": reading.corrupt})
        else:
            memory.send(reading, reading.image)
    _send(channel, {"end": True})


class _SharedFrames:
    """The slots for frames; they are made anew when a frame is larger than they are."""

    def __init__(self, channel: socket.socket, free: queue.SimpleQueue[int]) -> None:
        self._channel, self._free = channel, free
        self._memory = mmap.mmap(-1, 1)  # of no use: the first frame replaces it
        self._slot_bytes = 0

    def send(self, reading: Reading, image: Image) -> None:
        if image.nbytes > self._slot_bytes:
            self._grow(image.nbytes)
        slot = self._free.get()
        shared = np.frombuffer(self._memory, np.uint8, image.nbytes, slot * self._slot_bytes)
        shared.reshape(image.shape)[:] = image
        height, width = image.shape[:2]
        _send(
            self._channel,
            {
                "frame": [slot, height, width],
                "time_s": reading.time_s,
                "captured": reading.captured,
                "corrupt": reading.corrupt,
            },
        )

    def _grow(self, size: int) -> None:
        for _ in range(SLOTS if self._slot_bytes else 0):  # all frames of the old memory must have been copied
            self._free.get()
        with _memory_file() as file:
            os.ftruncate(file.fileno(), size * SLOTS)
            self._memory, self._slot_bytes = mmap.mmap(file.fileno(), size * SLOTS), size
            socket.send_fds(self._channel, [_message({"memory": size})], [file.fileno()])
        for slot in range(SLOTS):
            self._free.put(slot)


def _memory_file() -> Any:
    """An unnamed file in memory."""
    if hasattr(os, "memfd_create"):
        return os.fdopen(os.memfd_create("edgevis-frames"), "w+b")
    return tempfile.TemporaryFile()


def _receive(channel: socket.socket, free: queue.SimpleQueue[int], parent: int) -> None:
    """Collect the free slots; end the process when the parent has ended, even if a decoder hangs."""
    while True:
        if not select.select([channel], [], [], _PARENT_CHECK_S)[0]:
            if os.getppid() != parent:  # a process that the parent forked may keep the socket open
                os._exit(0)
            continue
        try:
            slots = channel.recv(64)
        except OSError:
            slots = b""
        if not slots:
            os._exit(0)
        for slot in slots:
            free.put(slot)


def _message(data: dict[str, Any]) -> bytes:
    return json.dumps(data).encode()


def _send(channel: socket.socket, data: dict[str, Any]) -> None:
    try:
        channel.sendall(_message(data))
    except OSError:
        os._exit(0)  # nobody listens any more


if __name__ == "__main__":
    main()
