"""One NVIDIA GPU behind a small protocol: its memory, streams and captured graphs.

Each file here is one Python package for CUDA: ``cuda_bindings.py``, which is used unless the environment variable
``EDGEVIS_CUDA`` says ``pycuda``. Both use the device's primary context, so that TensorRT, ONNX Runtime and PyTorch in
the same process share it, and the GPU is the first one that ``CUDA_VISIBLE_DEVICES`` leaves visible.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable
from contextlib import AbstractContextManager
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Literal, Protocol, cast

import numpy as np
import numpy.typing as npt

from runtime.common.discovery import load_from
from runtime.errors import EngineError, UnknownBackendError

VARIABLE = "EDGEVIS_CUDA"
DEFAULT = "cuda-bindings"

MemoryKind = Literal["device", "pinned", "mapped"]
"""``device``: the GPU's own. ``pinned``: the host's, page-locked, so that copies run beside the caller. ``mapped``: the
host's, page-locked and read by the GPU where it lies: on an integrated GPU, whose memory is the host's, nothing is
copied then.
"""


@dataclass(frozen=True, slots=True)
class DeviceInfo:
    """The GPU and driver that a plan and its parity are valid for.

    Attributes:
        name: Such as ``"Orin"`` or ``"NVIDIA H100 PCIe"``.
        compute_capability: Major and minor, (8, 7) for Orin.
        driver: The driver, and the CUDA version that it brings.
        integrated: Whether GPU and processor share their memory, as on a Jetson.
        memory_bytes: All of the GPU's memory, free or not.
    """

    name: str
    compute_capability: tuple[int, int]
    driver: str
    integrated: bool
    memory_bytes: int = 0

    @property
    def sm(self) -> str:
        """The compute capability as NVIDIA's tools write it, ``"SM87"``."""
        return "SM{}{}".format(*self.compute_capability)


class Memory:
    """A block of memory; :meth:`close` frees it, which must not happen while the GPU uses it.

    Attributes:
        address: The address on the GPU; 0 for ``pinned`` memory.
        host: (size,) uint8, where the processor finds them; None for ``device`` memory. Not valid after :meth:`close`.
    """

    def __init__(
        self, size_bytes: int, *, address: int = 0, host: npt.NDArray[np.uint8] | None = None, free: Callable[[], None]
    ) -> None:
        self.size_bytes = size_bytes
        self.address = address
        self.host = host
        self._free: Callable[[], None] | None = free

    def close(self) -> None:
        free, self._free, self.host = self._free, None, None
        if free is not None:
            free()


class CapturedGraph(Protocol):
    """A CUDA graph: work captured from a stream, launched again as a whole."""

    def launch(self) -> None:
        """Launch the graph on the stream that it was captured from."""
        ...

    def close(self) -> None: ...


class Stream(Protocol):
    """A queue of work for the GPU; one thread uses it at a time."""

    @property
    def handle(self) -> int:
        """The ``cudaStream_t``, as TensorRT takes it."""
        ...

    def copy(self, target: Memory, source: Memory) -> None:
        """Queue a copy of all of ``source``; at most one of the two is ``pinned``."""
        ...

    def capture(self, work: Callable[[], None]) -> CapturedGraph:
        """Records the operations that ``work`` queues as a CUDA graph; none of them runs yet.

        Raises:
            EngineError: Something in it cannot be captured; the stream can be used as before, and nothing is left.
        """
        ...

    def synchronize(self) -> None:
        """Wait until all queued work is done."""
        ...

    def close(self) -> None: ...


class Device(Protocol):
    """The GPU. Threads may share it."""

    @property
    def info(self) -> DeviceInfo: ...

    def current(self) -> AbstractContextManager[None]:
        """A context that makes this the calling thread's device; all other calls, and TensorRT's, belong inside.

        After it the thread's device, or its CUDA context, is what it was before.
        """
        ...

    def allocate(self, size_bytes: int, kind: MemoryKind) -> Memory:
        """Allocate memory, at least one byte; DeviceMemoryError when there is not enough."""
        ...

    def stream(self) -> Stream:
        """A new stream."""
        ...


class _Package(Protocol):
    def open_device(self) -> Device: ...


def open_device() -> Device:
    """Open the GPU through the package that ``EDGEVIS_CUDA`` names.

    Raises:
        UnknownBackendError: The variable names another package.
        MissingDependencyError: The package is not installed.
        UnavailableError: There is no driver or no GPU.
    """
    return _opened(os.environ.get(VARIABLE) or DEFAULT)


@cache
def _opened(package: str) -> Device:
    module = load_from(
        __name__, package.replace("-", "_"), what="CUDA package", error=UnknownBackendError, hint=f" ({VARIABLE})"
    )
    return cast(_Package, module).open_device()


def run_all(steps: Iterable[Callable[[], None]]) -> None:
    """Run every step, whatever the others do, and raise the first EngineError at the end."""
    first: EngineError | None = None
    for step in steps:
        try:
            step()
        except EngineError as error:
            first = first or error
    if first is not None:
        raise first


def kernel_driver() -> str:
    """The version of the loaded NVIDIA kernel driver; empty if the system does not report it."""
    try:
        text = Path("/proc/driver/nvidia/version").read_text(encoding="utf-8", errors="replace")
    except OSError:
        return ""
    words = text.partition("\n")[0].split()
    return next((word for word in words if word[:1].isdigit() and "." in word), "")
