"""The lock of a plan cache: one process builds at a time, on one machine or on several that share the folder.

::

    build.lock    locked with flock() where the file system has it: it ends with its holder's life
    build.owner   who holds it, made with O_EXCL, which network drives keep too, and touched every few seconds

A holder on the same machine is known by its process, which is alive or not. One on another machine is alive as long as
it touches its file: times are compared by this machine's clock alone.
"""

from __future__ import annotations

import contextlib
import fcntl
import json
import logging
import os
import secrets
import socket
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from runtime.backends._tensorrt.progress import repeated
from runtime.common.json_data import from_json, parse_json, to_json
from runtime.errors import SchemaError, UnavailableError

TIMEOUT_VARIABLE = "EDGEVIS_BUILD_TIMEOUT"
"""The environment variable with the seconds that a process waits for another one's build."""

TIMEOUT_SECONDS = 3600.0

_BEAT_SECONDS = 5.0
_ABANDONED_SECONDS = 60.0
"""How long a holder on another machine need not have touched its file to be taken for dead."""

_TELL_SECONDS = 10.0
_POLL_SECONDS = 0.1

_log = logging.getLogger("edgevis.tensorrt.build")


@dataclass(frozen=True, slots=True)
class LockOwner:
    """The content of ``build.owner``.

    Attributes:
        host, pid: The machine's name and the process.
        space: Where the number means this process: the machine's boot and the container's process numbers.
        started: When the process started, in the system's ticks, as numbers come again.
        what: What it builds.
        token: Different each time.
    """

    host: str
    pid: int
    space: str
    started: str
    what: str
    token: str


@contextmanager
def build_lock(folder: Path, *, what: str, timeout_s: float | None = None) -> Iterator[None]:
    """Hold the folder's lock; a folder that cannot be written to has none, and the block runs without.

    Args:
        folder: The folder of the plans, which exists.
        what: What is built, for those that wait.
        timeout_s: None for :data:`TIMEOUT_VARIABLE`, else :data:`TIMEOUT_SECONDS`.

    Raises:
        UnavailableError: Another process has held it for all that time; the message names it.
    """
    waiting = _Waiting(folder, _timeout() if timeout_s is None else timeout_s)
    try:
        descriptor = os.open(folder / "build.lock", os.O_CREAT | os.O_RDWR | os.O_CLOEXEC, 0o666)
    except OSError:  # read-only: nothing can be kept, so there is nothing to agree on
        yield
        return
    try:
        while not _flock(descriptor):
            waiting.wait()
        with _owned(folder / "build.owner", what, waiting):
            yield
    finally:
        os.close(descriptor)  # and with it the lock


@contextmanager
def _owned(path: Path, what: str, waiting: _Waiting) -> Iterator[None]:
    pid = os.getpid()
    owner = LockOwner(socket.gethostname(), pid, _space(), _started(pid), what, secrets.token_hex(8))
    while True:
        try:
            made = _write(path, owner)
        except OSError:  # a folder in which one may lock and not make files: flock() alone has to do
            yield
            return
        if made:
            break
        if waiting.is_abandoned():
            _remove(path, waiting.token)
        else:
            waiting.wait()

    def beat() -> None:
        with contextlib.suppress(OSError):
            os.utime(path)

    try:
        with repeated(beat, every_s=_BEAT_SECONDS, thread="edgevis-build-lock"):
            yield
    finally:
        _remove(path, owner.token)


class _Waiting:
    """A wait for the holder of the lock: tells who it is, ends at the timeout, and sees whether it is dead."""

    def __init__(self, folder: Path, timeout_s: float) -> None:
        self._path = folder / "build.owner"
        self._timeout_s = timeout_s
        self._began = self._told = time.monotonic()
        self._seen: tuple[str, float, float] = ("", 0.0, 0.0)  # token, the file's time, when that was seen first

    @property
    def token(self) -> str:
        """That of the holder that was looked at last."""
        return self._seen[0]

    def wait(self) -> None:
        now = time.monotonic()
        if now - self._began >= self._timeout_s:
            raise UnavailableError(
                f"{self._holder()} holds {self._path.parent}, and {self._timeout_s:.0f} s have passed: end that "
                f"process, delete {self._path} if there is none, or set {TIMEOUT_VARIABLE} to more seconds"
            )
        if now - self._told >= _TELL_SECONDS:
            self._told = now
            _log.warning("waiting for %s in %s since %.0f s", self._holder(), self._path.parent, now - self._began)
        time.sleep(_POLL_SECONDS)

    def is_abandoned(self) -> bool:
        """Whether the file is there and its maker is not."""
        owner = _read(self._path)
        try:
            touched = self._path.stat().st_mtime
        except OSError:
            return False  # it has just been removed
        seen = ("" if owner is None else owner.token, touched)
        if self._seen[:2] != seen:
            self._seen = (*seen, time.monotonic())
        if owner is not None and owner.space == _space():
            return _started(owner.pid) != owner.started
        return time.monotonic() - self._seen[2] >= _ABANDONED_SECONDS

    def _holder(self) -> str:
        owner = _read(self._path)
        if owner is None:
            return "another process"
        return f"process {owner.pid} on {owner.host}, which builds {owner.what},"


def _timeout() -> float:
    text = os.environ.get(TIMEOUT_VARIABLE) or str(TIMEOUT_SECONDS)
    try:
        return float(text)
    except ValueError:
        raise UnavailableError(f"{TIMEOUT_VARIABLE} is {text!r}; allowed: a number of seconds") from None


def _flock(descriptor: int) -> bool:
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    except OSError as error:  # as on some network drives
        _log.info("the file system has no flock(): %s", error)
    return True


def _write(path: Path, owner: LockOwner) -> bool:
    """Make the file; False where it is there already, OSError where none can be made."""
    try:
        descriptor = os.open(path, os.O_CREAT | os.O_EXCL | os.O_WRONLY | os.O_CLOEXEC, 0o666)
    except FileExistsError:
        return False
    with os.fdopen(descriptor, "w") as file:
        json.dump(to_json(owner), file)
    return True


def _read(path: Path) -> LockOwner | None:
    try:
        return from_json(LockOwner, parse_json(path.read_bytes()[:4096]), path.name)
    except (OSError, SchemaError):  # it has just been made or removed, or is none of ours
        return None


def _remove(path: Path, token: str) -> None:
    """Remove the file if it is still that of ``token``; it is renamed first, which only one process can do."""
    aside = path.with_name(f".{path.name}.{secrets.token_hex(8)}")
    try:
        os.rename(path, aside)
    except OSError:
        return
    owner = _read(aside)
    if (owner.token if owner is not None else "") != token:
        with contextlib.suppress(OSError):
            os.link(aside, path)  # another one's, made meanwhile
    aside.unlink(missing_ok=True)


def _started(pid: int) -> str:
    """When a process started; empty where there is none."""
    try:
        status = Path(f"/proc/{pid}/stat").read_text()
    except OSError:
        return ""
    return status.rpartition(")")[2].split()[19]


def _space() -> str:
    parts = []
    with contextlib.suppress(OSError):
        parts.append(Path("/proc/sys/kernel/random/boot_id").read_text().strip())
    with contextlib.suppress(OSError):
        parts.append(os.readlink("/proc/self/ns/pid"))
    return " ".join(parts)
