"""Atomic file writes, locks that end with their process, and scratch folders that are cleaned up.

A write that is killed leaves a hidden file ``.NAME.HEX``, and a scratch folder ``.NAME.XXXX``. Whoever makes one holds
a lock on it (``flock``), which ends with the process however it dies: what can be locked has no writer any more, and
the next write beside it deletes it.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import logging
import os
import re
import secrets
import shutil
import stat
import struct
import tempfile
import threading
import time
import zipfile
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO

_log = logging.getLogger("edgevis.files")

_PRIVATE, _SHARED, _OWNER = 0o600, 0o666, 0o700
_POLL_SECONDS = 0.02
_NO_LOCKS = frozenset({errno.EBADF, errno.EINVAL, errno.ENOLCK, errno.ENOSYS, errno.ENOTSUP, errno.EOPNOTSUPP})
"""What a file system without ``flock`` on folders answers, such as NFS."""

ZIP_ERRORS = (OSError, EOFError, RuntimeError, ValueError, struct.error, zipfile.BadZipFile, zlib.error)
"""What zipfile raises of a damaged or a foreign zip, besides BadZipFile: RuntimeError for a password, its subclass
NotImplementedError for a method or a version that it does not know, ValueError for names that are no text."""

_held = threading.local()
_locks: set[int] = set()
"""Descriptors whose locks last longer than one write."""


@contextmanager
def atomic_write(path: Path, *, private: bool = False, durable: bool = True) -> Iterator[IO[bytes]]:
    """Open a binary file for writing that is renamed to ``path`` only when complete and on disk.

    A crash, a full disk or an exception leaves whatever was at ``path`` as it was. A link stays, and the file that it
    leads to is written. What killed writes of this file have left behind is deleted.

    Args:
        path: The file; its folder must exist.
        private: A new file is for its owner only, mode 0600. One that is there keeps its mode, its access list, and its
            owner and group as far as this process may set them. Otherwise the process's umask says who may read it.
        durable: Survive a power cut. Without, the file is written faster and nothing is swept: for files that are many
            and can be made again.

    Raises:
        OSError: It cannot be written, or what is there is no regular file.
    """
    target = written_file(path)
    former = _status(target) if private else None
    if durable:
        _sweep_files(target)
    partial = target.with_name(_hidden(target) + secrets.token_hex(8))
    try:  # a signal at whatever place leaves no file
        with os.fdopen(_create(partial, _PRIVATE if private else _SHARED), "wb") as file:
            if former is not None:
                _keep_access(file.fileno(), target, former)
            yield file
            file.flush()
            if durable:
                os.fsync(file.fileno())
            os.replace(partial, target)  # before the lock ends with the file: a sweeper must not find it unlocked
    except BaseException:
        partial.unlink(missing_ok=True)
        raise
    if durable:
        folder = os.open(target.parent, os.O_RDONLY)
        try:
            os.fsync(folder)  # the new name itself must survive a power cut
        finally:
            os.close(folder)


def written_file(path: str | os.PathLike[str]) -> Path:
    """The file that a write to ``path`` changes: a link's target, whether or not it exists.

    Raises:
        OSError: There is something else than a regular file, such as a folder, a device, or links in a circle.
    """
    target = Path(os.path.realpath(path))
    status = _status(target)
    if status is None or stat.S_ISREG(status.st_mode):
        return target
    code = errno.ELOOP if stat.S_ISLNK(status.st_mode) else errno.EISDIR if target.is_dir() else errno.EINVAL
    shown = "it is not a regular file" if code == errno.EINVAL else os.strerror(code)
    raise OSError(code, shown, str(path))


def open_regular(path: str | os.PathLike[str]) -> IO[bytes]:
    """Open a regular file for reading.

    Raises:
        OSError: It cannot be opened, or is no regular file: a pipe would wait for its writer for ever.
    """
    descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    try:
        mode = os.fstat(descriptor).st_mode
        if stat.S_ISDIR(mode):
            raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR), str(path))
        if not stat.S_ISREG(mode):
            raise OSError(errno.EINVAL, "it is not a regular file", str(path))
        return os.fdopen(descriptor, "rb")
    except BaseException:
        os.close(descriptor)
        raise


@contextmanager
def write_lock(path: str | os.PathLike[str], *, timeout_s: float) -> Iterator[None]:
    """Keep other processes and threads that use this lock from changing a file, as between reading and writing it.

    The lock is on the folder that the file lies in, behind any links: no file is made for it, it counts for all names
    of the file, and it ends with its holder's life. The thread that holds it may take it again.

    Raises:
        TimeoutError: Another one held it for ``timeout_s`` seconds.
        OSError: There is no such folder, or it may not be read.

    Warns:
        RuntimeWarning: The file system has no locks; the block runs without.
    """
    folder = os.path.dirname(os.path.realpath(path))
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    _keep_lock(descriptor)
    try:
        status = os.fstat(descriptor)
        key = (os.getpid(), status.st_dev, status.st_ino)  # the process's: a child that was forked holds nothing
        held: set[tuple[int, int, int]] = _held.__dict__.setdefault("keys", set())
        if key in held:
            yield
            return
        if not _lock_until(descriptor, time.monotonic() + timeout_s):
            raise TimeoutError(
                errno.ETIMEDOUT, f"another process has kept its folder locked for {timeout_s:g} s", str(path)
            )
        held.add(key)
        try:
            yield
        finally:
            held.discard(key)
    finally:
        _end_lock(descriptor)


@contextmanager
def scratch_folder(prefix: str, *, parent: Path | None = None) -> Iterator[Path]:
    """An empty folder that is deleted at the end, together with those that killed processes left beside it.

    Args:
        prefix: How its name begins; the same for all that may be swept together.
        parent: Where it lies; None for the system's folder for temporary files.
    """
    place = Path(tempfile.gettempdir()) if parent is None else parent
    for left in abandoned_folders(prefix, place):
        shutil.rmtree(left, ignore_errors=True)
    folder, descriptor = place, -1
    try:
        while descriptor < 0:
            # Named before it is made: a signal that ends the block at whatever place leaves no folder.
            folder = place / f"{prefix}{secrets.token_hex(4)}"
            try:
                os.mkdir(folder, _OWNER)
            except FileExistsError:
                continue
            descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
            _keep_lock(descriptor)
            _mark_alive(descriptor)
            if not folder.exists():  # swept before it was locked
                _end_lock(descriptor)
                descriptor = -1
        yield folder
    finally:
        if folder != place:
            shutil.rmtree(folder, ignore_errors=True)
        _end_lock(descriptor)


def abandoned_folders(prefix: str, parent: Path) -> Iterator[Path]:
    """Yield the scratch folders of this user whose processes have ended; each is locked until the next is requested."""
    pattern = re.compile(re.escape(prefix) + r"[a-z0-9_]{8}")
    with contextlib.suppress(OSError):
        paths = [entry.path for entry in os.scandir(parent) if pattern.fullmatch(entry.name)]
        for path in paths:
            if os.lstat(path).st_uid == os.geteuid():
                yield from _unlocked(Path(path), os.O_DIRECTORY)


def _sweep_files(target: Path) -> None:
    """Delete the unfinished files that killed writes of a file left beside it."""
    pattern = re.compile(re.escape(_hidden(target)) + "[0-9a-f]{16}")
    with contextlib.suppress(OSError):
        paths = [entry.path for entry in os.scandir(target.parent) if pattern.fullmatch(entry.name)]
        for path in paths:
            for left in _unlocked(Path(path)):
                left.unlink(missing_ok=True)


def _hidden(target: Path) -> str:
    """The prefix of an unfinished ``target``'s name, short enough for the limit of 255 bytes."""
    return f".{os.fsdecode(os.fsencode(target.name)[:200])}."


def _unlocked(path: Path, flags: int = 0) -> Iterator[Path]:
    """Yield ``path``, locked meanwhile, if no other process holds its lock; otherwise yield nothing."""
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC | flags)
    except OSError:  # finished meanwhile, or another user's
        return
    try:
        if _try_lock(descriptor):
            yield path
    finally:
        os.close(descriptor)


def _create(partial: Path, mode: int) -> int:
    """Create a file, open and locked."""
    while True:
        # Not tempfile's: its files are private to this user, and the process's umask can only be read by changing it.
        descriptor = os.open(partial, os.O_CREAT | os.O_EXCL | os.O_WRONLY | os.O_CLOEXEC, mode)
        _mark_alive(descriptor)
        if os.fstat(descriptor).st_nlink:
            return descriptor
        os.close(descriptor)  # another writer swept it before it was locked


def _keep_access(descriptor: int, target: Path, former: os.stat_result) -> None:
    """Give a new file the owner, the mode and the access list of the one that it replaces."""
    mode = stat.S_IMODE(former.st_mode)
    current = os.fstat(descriptor)
    if current.st_uid != former.st_uid:
        with contextlib.suppress(PermissionError):  # only root gives files away
            os.fchown(descriptor, former.st_uid, -1)
    if current.st_gid != former.st_gid:
        try:
            os.fchown(descriptor, -1, former.st_gid)
        except PermissionError:
            mode &= ~0o070  # what its group might do is not for another group
    os.fchmod(descriptor, mode)
    with contextlib.suppress(OSError):  # a file system without them
        for name in os.listxattr(target):
            if name == "system.posix_acl_access" or name.startswith("user."):
                os.setxattr(descriptor, name, os.getxattr(target, name))


def _status(path: Path) -> os.stat_result | None:
    try:
        return os.lstat(path)
    except FileNotFoundError:
        return None


def _keep_lock(descriptor: int) -> None:
    """Register a descriptor whose lock must not pass to forked children."""
    _locks.add(descriptor)


def _end_lock(descriptor: int) -> None:
    """Close a descriptor of :func:`_keep_lock`, which ends the lock; in a forked child it is closed already."""
    if descriptor in _locks:
        _locks.discard(descriptor)
        os.close(descriptor)


def _close_inherited() -> None:
    """Close inherited lock descriptors in a forked child: otherwise a lock would outlive its holder."""
    while _locks:
        with contextlib.suppress(OSError):
            os.close(_locks.pop())


os.register_at_fork(after_in_child=_close_inherited)


def _mark_alive(descriptor: int) -> None:
    """Lock a file or folder that was just created. If a sweeper holds it, wait; the sweeper deletes it first."""
    with contextlib.suppress(OSError):  # without locks nothing is swept
        fcntl.flock(descriptor, fcntl.LOCK_EX)


def _try_lock(descriptor: int) -> bool:
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        return False
    return True


def _lock_until(descriptor: int, end: float) -> bool:
    """Whether the lock was acquired in time; True, with a warning, where the file system has no locks."""
    while True:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            if time.monotonic() >= end:
                return False
            time.sleep(_POLL_SECONDS)
        except OSError as error:
            if error.errno not in _NO_LOCKS:
                raise
            _log.warning("this file system has no locks (%s): let only one process write there", error)
            return True
        else:
            return True
