"""The kernels that TensorRT-RTX compiles for this GPU, kept on disk beside the plans, so that each process need not.

TensorRT-RTX compiles a plan's kernels when they are first run. Its runtime cache holds them; NVIDIA's library checks
its content against the GPU, the driver and its own version, and ignores one of others.
"""

from __future__ import annotations

import contextlib
import hashlib
import logging
import os
import threading
from pathlib import Path
from typing import Any

from runtime.backends._tensorrt.least_used import beyond
from runtime.common.cache_folder import cache_folder
from runtime.common.files import atomic_write
from runtime.errors import EngineError, UnavailableError

VARIABLE = "EDGEVIS_RTX_KERNELS"
"""The environment variable that says when kernels are compiled for the shapes of a call: ``eager`` or ``lazy``.

``eager``: before its first run. ``lazy``: in the background, so that the first frames come soon, from kernels for any
shape, and later ones fast. TensorRT-RTX then captures its CUDA graphs itself.
"""

MAX_BYTES = 1 << 30
"""What all files together may take; the ones that were not used for longest are deleted first."""

_SUFFIX = ".kernels"

_log = logging.getLogger("edgevis.tensorrt")


class KernelCache:
    """The compiled kernels of one plan. Threads share it.

    Args:
        plan: The plan's bytes.
        machine: What the kernels depend on: versions and GPU.
        folder: None for the folder of the plans.
    """

    def __init__(self, plan: bytes, machine: str, folder: Path | None = None) -> None:
        digest = hashlib.sha256(machine.encode() + b"\0" + plan).hexdigest()
        try:
            self.path: Path | None = (cache_folder() / "tensorrt" if folder is None else folder) / f"{digest}{_SUFFIX}"
        except UnavailableError:  # a user without a home folder
            self.path = None
        self._lock = threading.Lock()
        self._kept = b""
        self._cache: Any = None

    def attach(self, config: Any) -> None:
        """Set the runtime cache of an ``IRuntimeConfig``; the plan's contexts share one."""
        with self._lock:
            if self._cache is None:
                self._cache = config.create_runtime_cache()
                self._kept = self._read()
                if self._kept and not self._cache.deserialize(self._kept):
                    self._kept = b""  # of another driver or release
            config.set_runtime_cache(self._cache)

    def keep(self) -> None:
        """Write the kernels to the disk if some have been compiled since; if that fails, the log says so."""
        with self._lock:
            if self._cache is None or self.path is None:
                return
            serialized = self._cache.serialize()
            data = b"" if serialized is None else bytes(serialized)
            if not data or data == self._kept or len(data) > MAX_BYTES:
                return
            try:
                self.path.parent.mkdir(parents=True, exist_ok=True)
                with atomic_write(self.path) as file:
                    file.write(data)
                for path in beyond(self.path.parent.glob(f"*{_SUFFIX}"), MAX_BYTES, keep=self.path)[0]:
                    path.unlink(missing_ok=True)
            except OSError as error:
                _log.warning("the compiled kernels cannot be kept in %s: %s", self.path.parent, error)
            self._kept = data

    def _read(self) -> bytes:
        if self.path is None:
            return b""
        try:
            if self.path.stat().st_size > MAX_BYTES:
                return b""
            data = self.path.read_bytes()
        except OSError:
            return b""
        with contextlib.suppress(OSError):
            os.utime(self.path)  # when it was last used
        return data


def compiles_eagerly() -> bool:
    """Whether kernels are compiled before a first run; EngineError where :data:`VARIABLE` says neither."""
    chosen = os.environ.get(VARIABLE) or "eager"
    if chosen not in ("eager", "lazy"):
        raise EngineError(f"{VARIABLE} is {chosen!r}; allowed: eager, lazy")
    return chosen == "eager"
