"""Measured ranges, kept between builds: a file for each graph, found by what the ranges depend on.

The key is a digest over the weights, the graph, the images, the preprocessing and the algorithm; when one of them
differs, so does the file's name, and the build measures anew. Beside its arrays a file holds the parts of its key in
words, so that a build can say which of them changed, and a digest over all arrays, so that a damaged file is never
used. Nothing in it is executable: ``.npz`` without pickle.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from calibration.quantize.graph import Ranges
from runtime.common.arrays import Array, read_arrays, write_arrays
from runtime.common.cache_folder import cache_folder
from runtime.common.json_data import parse_json, to_json
from runtime.errors import SchemaError, UnavailableError

_SCHEMA = 2
_SUFFIX = ".ranges.npz"
MAX_ENTRIES = 64
"""Files that a cache keeps; the ones that were not used for the longest time go first."""
MAX_ENTRY_BYTES = 64 << 20
"""Larger files are neither read nor written."""


def default_folder() -> Path | None:
    """``calibration/`` in :func:`runtime.common.cache_folder.cache_folder`; None for a user without a home folder."""
    try:
        return cache_folder() / "calibration"
    except UnavailableError:
        return None


@dataclass(frozen=True, slots=True)
class Key:
    """What the ranges of one graph depend on.

    Attributes:
        model: The model's and the graph's name: entries of the same are compared to say what changed.
        weights, graph, data, preprocessing, algorithm: A digest of each.
    """

    model: str
    weights: str
    graph: str
    data: str
    preprocessing: str
    algorithm: str

    @property
    def digest(self) -> str:
        return hashlib.sha256(json.dumps(to_json(self), sort_keys=True).encode()).hexdigest()


def load(folder: Path, key: Key) -> tuple[Ranges | None, str]:
    """The ranges, and a few words about them: when there are none that may be used, why."""
    path = _path(folder, key)
    try:
        if not path.exists():
            return None, _changed(folder, key)
        arrays = _read(path)
        stored = parse_json(arrays.pop("key").tobytes())
        digest = arrays.pop("sha256").tobytes().hex()
        if stored != _words(key):
            return None, "the entry in the cache is of something else"
        if digest != _digest(arrays):
            return None, "the entry in the cache is damaged"
        ranges = _ranges(arrays)
    except (OSError, ValueError, KeyError, SchemaError) as error:
        return None, f"the entry in the cache cannot be read: {error}"
    with contextlib.suppress(OSError):
        os.utime(path)
    return ranges, "from the cache"


def store(folder: Path, key: Key, ranges: Ranges) -> None:
    """Write an entry, whole or not at all, and drop the oldest ones beyond :data:`MAX_ENTRIES`.

    Raises:
        OSError: The folder cannot be written to.
    """
    arrays: dict[str, Array] = {f"amax/{name}": np.array(value) for name, value in ranges.amax.items()}
    arrays |= {f"bias_correction/{name}": array for name, array in ranges.bias_correction.items()}
    if sum(array.nbytes for array in arrays.values()) > MAX_ENTRY_BYTES // 2:
        return
    digest = np.frombuffer(bytes.fromhex(_digest(arrays)), np.uint8)
    words = np.frombuffer(json.dumps(_words(key)).encode(), np.uint8)
    folder.mkdir(parents=True, exist_ok=True)
    write_arrays(_path(folder, key), {**arrays, "key": words, "sha256": digest})
    _bound(folder)


def _path(folder: Path, key: Key) -> Path:
    return folder / f"{key.digest}{_SUFFIX}"


def _words(key: Key) -> dict[str, object]:
    return {"schema": _SCHEMA, **to_json(key)}


def _read(path: Path) -> dict[str, Array]:
    if path.stat().st_size > MAX_ENTRY_BYTES:
        raise SchemaError(f"it has more than {MAX_ENTRY_BYTES} bytes")
    return read_arrays(path, error=SchemaError, max_bytes=MAX_ENTRY_BYTES)


def _ranges(arrays: Mapping[str, Array]) -> Ranges:
    amax = {name.partition("/")[2]: float(value) for name, value in arrays.items() if name.startswith("amax/")}
    bias_correction = {
        name.partition("/")[2]: value for name, value in arrays.items() if name.startswith("bias_correction/")
    }
    if not all(np.isfinite(value) and value > 0 for value in amax.values()):
        raise ValueError("a range is not a positive number")
    return Ranges(amax, bias_correction)


def _digest(arrays: Mapping[str, Array]) -> str:
    digest = hashlib.sha256()
    for name, array in sorted(arrays.items()):
        digest.update(f"{name}\0{array.dtype}\0{array.shape}\0".encode())
        digest.update(np.ascontiguousarray(array).tobytes())
    return digest.hexdigest()


def _changed(folder: Path, key: Key) -> str:
    """Why there is no entry: what differs from the latest one of the same model and graph."""
    words = _words(key)
    for path in _entries(folder):
        try:
            stored = parse_json(_read(path)["key"].tobytes())
        except (OSError, KeyError, SchemaError):
            continue
        if isinstance(stored, Mapping) and stored.get("model") == key.model:
            parts = [name for name, value in words.items() if stored.get(name) != value]
            return f"changed since the last time: {', '.join(parts)}"
    return "never measured before"


def _entries(folder: Path) -> list[Path]:
    """The files of the cache, the latest used first."""
    dated = []
    for path in folder.glob(f"*{_SUFFIX}"):
        with contextlib.suppress(OSError):  # another build may have removed it
            dated.append((path.stat().st_mtime, path))
    return [path for _, path in sorted(dated, reverse=True)]


def _bound(folder: Path) -> None:
    for path in _entries(folder)[MAX_ENTRIES:]:
        path.unlink(missing_ok=True)
