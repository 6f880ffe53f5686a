"""The plan cache on disk: a plan is built once per machine, shared by all processes, and rebuilt when its key changes.

::

    $EDGEVIS_CACHE/tensorrt/
      KEY.plan      the plan as TensorRT wrote it; trtexec opens it
      KEY.json      its SHA-256, what the key was made from, when it was built
      NAME.timing   kernel times of one device and TensorRT version, which make the next build faster
      KEY.kernels   what TensorRT-RTX compiled of a plan for this GPU, see :mod:`runtime.backends._tensorrt.kernels`
      build.lock, build.owner    held while a plan is built, see :mod:`runtime.backends._tensorrt.build_lock`

A plan is read without a lock, because its name only appears once it is complete. Only one process builds at a time: two
would disturb the kernel times that each measures, and a Jetson has memory for one. Those that wait find the plan made.
The cache may be lost, damaged, full or read-only: then plans are built again, and a warning says why.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import logging
import os
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import datetime, timezone
from pathlib import Path
from typing import Generic, TypeVar

from runtime.backends._tensorrt.build_lock import build_lock
from runtime.backends._tensorrt.compiler import BuiltPlan
from runtime.backends._tensorrt.least_used import beyond
from runtime.backends._tensorrt.progress import Phases, reported
from runtime.common.cache_folder import cache_folder
from runtime.common.files import atomic_write
from runtime.common.json_data import from_json, json_digest, parse_json, to_json
from runtime.errors import DeviceMemoryError, EngineError, SchemaError

MAX_BYTES = 16 << 30
"""What all plans together may take; the ones that were not used for longest are deleted first."""

_MAX_RECORD_BYTES = 1 << 16
_ABANDONED_SECONDS = 24 * 3600.0

_log = logging.getLogger("edgevis.tensorrt")

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class PlanKey:
    """The key of a cached plan: everything that the plan depends on.

    Attributes:
        onnx_sha256: SHA-256 of the graph's file.
        spec: The build specification's JSON text: profiles and flags.
        flavour: ``"tensorrt"`` or ``"tensorrt_rtx"``.
        version: TensorRT's version.
        sm: The GPU's compute capability, ``"SM87"``.
        device: The GPU's name; two of one compute capability differ in cores and clocks.
        driver: The driver's version.
    """

    onnx_sha256: str
    spec: str
    flavour: str
    version: str
    sm: str
    device: str
    driver: str

    @property
    def digest(self) -> str:
        """SHA-256 of all fields: the name of the plan's files."""
        return json_digest(self)

    @property
    def machine_digest(self) -> str:
        """The digest of the fields that kernel timings depend on."""
        parts = [self.flavour, self.version, self.sm, self.device]
        return json_digest(parts)[:16]


@dataclass(frozen=True, slots=True)
class PlanRecord:
    """The JSON file beside a plan."""

    sha256: str
    key: PlanKey
    created: str
    build_seconds: float


@dataclass(frozen=True, slots=True)
class PlanResult(Generic[T]):
    """An opened plan, and where it came from.

    Attributes:
        opened: The opened plan.
        built: Whether it was built just now.
        seconds: The build time.
        reason: Why a plan that was in the cache could not be used; empty when there was none, or it could.
        size_bytes: The plan's size.
    """

    opened: T
    built: bool
    seconds: float
    reason: str
    size_bytes: int


class PlanCache:
    """The cache of this machine's plans.

    Args:
        folder: The folder of the plans; None for ``tensorrt/`` in :func:`runtime.common.cache_folder.cache_folder`.
        max_bytes: The largest total size of the plans.
    """

    def __init__(self, folder: Path | None = None, *, max_bytes: int = MAX_BYTES) -> None:
        self.folder = cache_folder() / "tensorrt" if folder is None else folder
        self.max_bytes = max_bytes

    def get(
        self,
        key: PlanKey,
        *,
        build: Callable[[bytes], BuiltPlan],
        open_plan: Callable[[bytes], T],
        name: str = "a graph",
        phases: Phases | None = None,
    ) -> PlanResult[T]:
        """Open the cached plan of a key; build it if there is none, or if it cannot be opened.

        Args:
            key: The key of the plan.
            build: Makes it, from the kernel times of earlier builds, or ``b""``.
            open_plan: Opens it; EngineError where it comes to nothing, as TensorRT says of a plan that it cannot use.
            name: The graph's name, for messages.
            phases: What ``build`` is doing, for messages.

        Raises:
            EngineError: The plan that was built just now cannot be opened either.
            DeviceMemoryError: There is not enough memory to open it; a cached plan stays.
            UnavailableError: Another process has been building in this folder for too long.
            CompileError, UnavailableError, MissingDependencyError: From ``build``.
        """
        opened, size, _ = self._try(key, open_plan)
        if opened is not None:
            return PlanResult(opened, False, 0.0, "", size)
        what = f"{name} for {key.device}"
        with self._lock(what):
            opened, size, reason = self._try(key, open_plan)  # another process may have built it meanwhile
            if opened is not None:
                return PlanResult(opened, False, 0.0, "", size)
            if reason:
                _log.warning("the cached plan %s is built again: %s", self._plan(key).name, reason)
            _log.info("building the plan of %s; this takes minutes", what)
            started = time.monotonic()
            with reported(what, before_seconds=self._measured_before(key), phases=phases or Phases()):
                compiled = build(self._timing_cache(key))
            seconds = time.monotonic() - started
            _log.info("built in %.0f s, %d bytes", seconds, len(compiled.plan))
            self._keep(key, compiled, seconds)
            opened = open_plan(compiled.plan)
        return PlanResult(opened, True, seconds, reason, len(compiled.plan))

    def prune(self, max_bytes: int | None = None, *, keep: PlanKey | None = None) -> int:
        """Delete the least recently used plans until the rest fits; returns the number of bytes left.

        Args:
            max_bytes: None for the cache's own limit.
            keep: A plan that stays in any case.
        """
        limit = self.max_bytes if max_bytes is None else max_bytes
        for partial in self.folder.glob(".*"):  # what a crash left of atomic_write
            if _age_seconds(partial) > _ABANDONED_SECONDS:
                partial.unlink(missing_ok=True)
        dropped, total_bytes = beyond(
            self.folder.glob("*.plan"), limit, keep=None if keep is None else self._plan(keep)
        )
        for plan in dropped:
            plan.with_suffix(".json").unlink(missing_ok=True)
            plan.unlink(missing_ok=True)
        return total_bytes

    def _plan(self, key: PlanKey) -> Path:
        return self.folder / f"{key.digest}.plan"

    def _try(self, key: PlanKey, open_plan: Callable[[bytes], T]) -> tuple[T | None, int, str]:
        """The opened cached plan, its size, and the reason if a cached plan cannot be opened."""
        path = self._plan(key)
        try:
            data = path.read_bytes()
        except (FileNotFoundError, NotADirectoryError):
            return None, 0, ""
        except OSError as error:
            return None, 0, f"it cannot be read: {error}"
        try:
            record = self._record(path)
        except (OSError, SchemaError) as error:
            return None, 0, f"its record cannot be read: {error}"
        if record.key != key:
            return None, 0, "its record is of another plan"
        if hashlib.sha256(data).hexdigest() != record.sha256:
            return None, 0, "it is damaged: its SHA-256 is not the one that was recorded"
        try:
            opened = open_plan(data)
        except DeviceMemoryError:  # says nothing about the plan, and a build needs more memory still
            raise
        except EngineError as error:
            return None, 0, str(error)
        with contextlib.suppress(OSError):  # a cache that is read-only is not pruned either
            os.utime(path)  # when it was last used
        return opened, len(data), ""

    def _record(self, plan: Path) -> PlanRecord:
        path = plan.with_suffix(".json")
        if path.stat().st_size > _MAX_RECORD_BYTES:
            raise SchemaError(f"{path.name} is too large")
        return from_json(PlanRecord, parse_json(path.read_bytes()), path.name)

    def _keep(self, key: PlanKey, compiled: BuiltPlan, seconds: float) -> None:
        """Write a plan to the cache; if that fails, the plan is used uncached."""
        path = self._plan(key)
        created = datetime.now(timezone.utc).isoformat(timespec="seconds")
        record = PlanRecord(hashlib.sha256(compiled.plan).hexdigest(), key, created, round(seconds, 1))
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            # The record first: until the plan is there, it is a record of nothing.
            _write(path.with_suffix(".json"), json.dumps(to_json(record), indent=2).encode())
            _write(path, compiled.plan)
            if compiled.timing_cache:
                _write(self._timing_path(key), compiled.timing_cache)
            self.prune(keep=key)
        except OSError as error:
            _log.warning(
                "%s cannot keep what was built, so that the next start builds it again: %s; make room, or name another "
                "folder in EDGEVIS_CACHE",
                self.folder,
                error,
            )

    def _timing_path(self, key: PlanKey) -> Path:
        return self.folder / f"{key.machine_digest}.timing"

    def _timing_cache(self, key: PlanKey) -> bytes:
        try:
            return self._timing_path(key).read_bytes()
        except OSError:
            return b""

    def _measured_before(self, key: PlanKey) -> float | None:
        """How long this graph took to build before, on this GPU or else on any; None where it is not known."""
        records = []
        for plan in self.folder.glob("*.plan"):
            with contextlib.suppress(OSError, SchemaError):
                records.append(self._record(plan))
        of_graph = [record for record in records if record.key.onnx_sha256 == key.onnx_sha256]
        of_device = [record for record in of_graph if record.key.device == key.device]
        return next((record.build_seconds for record in (*of_device, *of_graph)), None)

    @contextmanager
    def _lock(self, what: str) -> Iterator[None]:
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
        except OSError:  # read-only: nothing can be kept, so there is nothing to agree on
            yield
            return
        with build_lock(self.folder, what=what):
            yield


def _write(path: Path, data: bytes) -> None:
    with atomic_write(path) as file:
        file.write(data)


def _age_seconds(path: Path) -> float:
    try:
        return time.time() - path.stat().st_mtime
    except OSError:  # another process deleted it
        return 0.0
