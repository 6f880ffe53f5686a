"""Read and verify a bundle: the folder ``NAME.edgevis/``; :mod:`runtime.bundle.staging` writes one.

A bundle may come from anywhere, so nothing in it is trusted: no path may leave the folder, sizes are bounded,
every file is hashed before it is used, and nothing is ever unpickled.
"""

from __future__ import annotations

import hashlib
import os
import re
from pathlib import Path, PurePosixPath

from runtime import ready
from runtime.bundle.engine_files import EngineFiles, read_engine
from runtime.bundle.manifest import ANSWERS, MAX_MANIFEST_BYTES, EngineRecord, FileRecord, Manifest
from runtime.bundle.spec import Precision
from runtime.common import limits
from runtime.common.arrays import Array, read_arrays
from runtime.common.levels import expand
from runtime.errors import BundleNotFoundError, InputError, IntegrityError, SchemaError, UnknownBackendError

SUFFIX = ".edgevis"
MANIFEST = "manifest.json"
GOLDEN = "golden.npz"
MAX_FILE_BYTES = 8 << 30

_ARCHIVES = frozenset({".zip", ".tar", ".tgz", ".gz", ".xz", ".zst"})
_SHOWN = 5


class Bundle:
    """A bundle on disk whose manifest has been read; a file is checked when it is requested.

    Args:
        path: The folder ``NAME.edgevis``, or the name of a ready bundle, see :func:`runtime.ready.bundle_path`.
        digest: The manifest's digest as it was noted down where the bundle was built, 64 hexadecimal digits; every
            file follows from it. None takes whatever bundle is there.

    Raises:
        BundleNotFoundError: There is no bundle there.
        SchemaError: The manifest is malformed or of another schema version.
        IntegrityError: The manifest is not what was written, is another one than ``digest``, or names a path outside
            of the folder.
        InputError: ``digest`` is none.
    """

    def __init__(self, path: str | os.PathLike[str], *, digest: str | None = None) -> None:
        self.path = ready.bundle_path(path)
        manifest = self.path / MANIFEST
        try:
            self.manifest = Manifest.loads(self._read_manifest(manifest))
        except (SchemaError, IntegrityError) as error:
            raise type(error)(f"{self.path}: {error}") from error
        except OSError as error:
            raise BundleNotFoundError(f"{manifest} cannot be read: {error}") from error
        if digest is not None:
            self._check_pinned(digest)
        self._check_names()

    @classmethod
    def of_manifest(cls, folder: Path, manifest: Manifest) -> Bundle:
        """The files in ``folder`` that a manifest describes which is not its ``manifest.json``.

        Raises:
            SchemaError, IntegrityError: As the class does.
        """
        bundle = cls.__new__(cls)
        bundle.path, bundle.manifest = folder, manifest
        bundle._check_names()
        return bundle

    @property
    def size_bytes(self) -> int:
        """The size of all files of the bundle, the manifest included."""
        listed = sum(record.size_bytes for record in self.manifest.files.values())
        return listed + (self.path / MANIFEST).stat().st_size

    def engines_of(self, precision: Precision | None) -> tuple[EngineRecord, ...]:
        """The engines of a precision; all engines for None.

        Raises:
            UnknownBackendError: There is none of that precision; the message lists those that there are.
        """
        engines = self.manifest.engines
        fitting = tuple(engine for engine in engines if precision in (None, engine.precision))
        if precision is not None and not fitting:
            names = ", ".join(engine.name for engine in engines)
            raise UnknownBackendError(f"{self.path} has no engine for precision={precision!r}; it has {names}")
        return fitting

    def file(self, name: str) -> Path:
        """The path of a listed file, after its size and SHA-256 have been checked.

        Raises:
            IntegrityError: The file is not listed, missing, a link out of the bundle, too large, or altered.
        """
        path, record = self._listed(name)
        try:
            self._check_digest(name, record, sha256(path))
        except OSError as error:
            raise IntegrityError(f"{self.path}: the file {name!r} cannot be read: {error}") from error
        return path

    def read(self, name: str) -> bytes:
        """The content of a listed file, checked as by :meth:`file`; the returned bytes are those that were hashed."""
        path, record = self._listed(name)
        try:
            with path.open("rb") as file:
                data = file.read(record.size_bytes + 1)
        except OSError as error:
            raise IntegrityError(f"{self.path}: the file {name!r} cannot be read: {error}") from error
        self._check_digest(name, record, hashlib.sha256(data).hexdigest())
        return data

    def engine_files(self, name: str) -> EngineFiles:
        """Read and check an engine's files: its main file, its companions and its external data.

        Companions are the files beside it that differ from it in what follows the stem only, as OpenVINO's ``.bin``
        does from its ``.xml``. One that is not listed is refused, as are external data of an ONNX graph that are not.
        """
        self._listed(name)
        return read_engine(self.path / name, lambda path: self.read(path.relative_to(self.path).as_posix()))

    def engine_file(self, name: str) -> Path:
        """The path of an engine's main file, after all files that :meth:`engine_files` reads have been checked."""
        self.engine_files(name)
        return self.path / name

    def verify_files(self) -> int:
        """Check every listed file as :meth:`file` does; returns the number of files."""
        for name in self.manifest.files:
            self.file(name)
        return len(self.manifest.files)

    def golden(self) -> dict[str, Array]:
        """The arrays of ``golden.npz``: real inputs ``GRAPH/INPUT`` and the reference outputs ``GRAPH/OUTPUT``."""
        return expand(
            self._arrays(GOLDEN),
            error=IntegrityError,
            max_bytes=limits.max_golden_bytes(),
            where=str(self.path / GOLDEN),
        )

    def answers(self) -> dict[str, Array]:
        """The arrays of ``answers.npz``, see :mod:`runtime.verification.answers`; empty for a bundle that has none."""
        if ANSWERS not in self.manifest.files:
            return {}
        return self._arrays(ANSWERS)

    def _arrays(self, name: str) -> dict[str, Array]:
        return read_arrays(
            self.file(name),
            error=IntegrityError,
            max_bytes=limits.max_golden_bytes(),
            variable="EDGEVIS_MAX_GOLDEN_BYTES",
        )

    def _check_names(self) -> None:
        for name in self.manifest.files:
            _check_path(name)
        for engine in self.manifest.engines:
            for name in engine.files.values():
                if name not in self.manifest.files:
                    raise SchemaError(
                        f"{self.path / MANIFEST}: engine {engine.name!r} names {name!r}, which is not under 'files'"
                    )

    def _check_pinned(self, digest: str) -> None:
        if not isinstance(digest, str) or not re.fullmatch("[0-9a-f]{64}", digest.lower()):
            raise InputError(f"digest is {digest!r}; allowed: a manifest's digest, 64 hexadecimal digits")
        if self.manifest.digest != digest.lower():
            actual = self.manifest.digest or "none: an earlier edgevis built it; build it again"
            raise IntegrityError(f"{self.path} is not the bundle that was asked for: digest {digest}; it has {actual}")

    def _listed(self, name: str) -> tuple[Path, FileRecord]:
        """The path and record of a listed file that exists inside the bundle and has the right size."""
        record = self.manifest.files.get(name)
        if record is None:
            raise IntegrityError(f"{self.path}: the manifest lists no file {name!r}")
        path = self.path / _check_path(name)
        try:
            self._check_file(path, name, record)
        except OSError as error:
            raise IntegrityError(f"{self.path}: the file {name!r} cannot be read: {error}") from error
        return path, record

    def _read_manifest(self, manifest: Path) -> bytes:
        if not self.path.exists():
            raise BundleNotFoundError(
                f"there is no bundle at {self.path}; build one with: python -m export.build --model NAME --target cpu, "
                f"or name one of the ready ones: {', '.join(ready.names()) or 'there are none here'}"
            )
        if not manifest.is_file():
            raise BundleNotFoundError(f"{self.path} is not a bundle: it is no folder with a {MANIFEST}{self._meant()}")
        size = manifest.stat().st_size
        if size > MAX_MANIFEST_BYTES:
            raise SchemaError(f"{MANIFEST} has {size} bytes; at most {MAX_MANIFEST_BYTES} are read")
        return manifest.read_bytes()

    def _meant(self) -> str:
        """The advice about a path beside a bundle's."""
        if self.path.name == MANIFEST:
            return "; name the folder that it lies in"
        if self.path.suffix.lower() in _ARCHIVES:
            return "; unpack it, and name the folder that comes out"
        inside = sorted(path.parent.name for path in self.path.glob(f"*/{MANIFEST}"))
        return f"; it holds {', '.join(inside[:_SHOWN])}{' …' if len(inside) > _SHOWN else ''}" if inside else ""

    def _check_file(self, path: Path, name: str, record: FileRecord) -> None:
        if not path.is_file():
            raise IntegrityError(f"{self.path}: the file {name!r} is missing; copy the bundle again")
        if not path.resolve().is_relative_to(self.path.resolve()):
            raise IntegrityError(f"{self.path}: {name!r} is a link to {path.resolve()}, outside of the bundle")
        size = path.stat().st_size
        if size != record.size_bytes or size > MAX_FILE_BYTES:
            raise IntegrityError(
                f"{self.path}: {name!r} has {size} bytes; the manifest says {record.size_bytes} "
                f"(at most {MAX_FILE_BYTES} are read): copy the bundle again"
            )

    def _check_digest(self, name: str, record: FileRecord, digest: str) -> None:
        if digest != record.sha256:
            raise IntegrityError(
                f"{self.path}: {name!r} has been altered: its SHA-256 is {digest}, the manifest says {record.sha256}; "
                "copy the bundle again"
            )


def sha256(path: Path) -> str:
    """SHA-256 of a file, in hexadecimal digits."""
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while block := file.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()


def _check_path(name: str) -> PurePosixPath:
    path = PurePosixPath(name)
    # "" and "." have no parts; "C:x" is absolute on Windows.
    outside = not path.parts or path.is_absolute() or ".." in path.parts or ":" in path.parts[0]
    if outside or "\\" in name or "\0" in name:
        raise IntegrityError(f"manifest.json names the file {name!r}, which is not a path inside the bundle")
    return path
