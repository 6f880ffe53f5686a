"""A cache of measured ranges: one file per graph, named by a digest of everything that the ranges depend on.

The key is a digest over the weights, the graph, the images, the preprocessing and the configuration; if one of them
changes, so does the file's name, and the build measures anew. Besides its arrays a file holds the parts of its key as
text, so that a build can report which of them changed, and a digest over all arrays, so that a damaged file is never
used. The format is ``.npz`` without pickle: nothing in it is executable.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from onnx import ModelProto

from calibration.quantize.config import QuantizationConfig
from calibration.quantize.graph import Ranges
from runtime.bundle.spec import Preprocess
from runtime.common.arrays import Array, read_arrays, write_arrays
from runtime.common.cache_folder import cache_folder
from runtime.common.json_data import json_digest, parse_json, to_json
from runtime.errors import SchemaError, UnavailableError

_SCHEMA = 2
_SUFFIX = ".ranges.npz"
MAX_ENTRIES = 64
"""The number of files in a cache; the least recently used ones are deleted first."""
MAX_ENTRY_BYTES = 64 << 20
"""The largest file, in bytes, that is read or written."""


def default_folder() -> Path | None:
    """``calibration/`` in :func:`runtime.common.cache_folder.cache_folder`; None for a user without a home folder."""
    try:
        return cache_folder() / "calibration"
    except UnavailableError:
        return None


@dataclass(frozen=True, slots=True)
class CacheKey:
    """The key of one graph's ranges: everything that they depend on.

    Attributes:
        model: The model's and the graph's name: entries of the same are compared to report what changed.
        weights, graph, data, preprocessing, algorithm: The SHA-256 digest of each.
    """

    model: str
    weights: str
    graph: str
    data: str
    preprocessing: str
    algorithm: str

    @property
    def digest(self) -> str:
        """The SHA-256 digest of all fields."""
        return json_digest(self)


@dataclass(frozen=True, slots=True)
class CalibrationInputs:
    """The inputs that all ranges of a model depend on, besides the graphs and the configuration.

    Attributes:
        model: The model's name.
        weights_sha256: The digest of its weights.
        samples_sha256: The digest of the calibration images.
        preprocess: How an image becomes the model's input.
    """

    model: str
    weights_sha256: str
    samples_sha256: str
    preprocess: Preprocess

    def digest(self, config: QuantizationConfig) -> str:
        """The SHA-256 digest of all that the INT8 scales of the model depend on."""
        return json_digest([self.samples_sha256, self.preprocess, self.weights_sha256, config])

    def key(self, graph: str, onnx_model: ModelProto, config: QuantizationConfig) -> CacheKey:
        """The key of one graph's ranges. They do not depend on where Q/DQ are placed."""
        return CacheKey(
            model=f"{self.model}/{graph}",
            weights=self.weights_sha256,
            graph=hashlib.sha256(onnx_model.SerializeToString(deterministic=True)).hexdigest(),
            data=self.samples_sha256,
            preprocessing=json_digest(self.preprocess),
            algorithm=json_digest(replace(config, placement="outputs")),
        )


@dataclass(frozen=True, slots=True)
class RangesCache:
    """The cache folder, as one model reads and writes it.

    Attributes:
        folder: The folder; it need not exist.
        inputs: What the ranges depend on.
    """

    folder: Path
    inputs: CalibrationInputs

    def load(self, graph: str, onnx_model: ModelProto, config: QuantizationConfig) -> tuple[Ranges | None, str]:
        """See :func:`load`."""
        return load(self.folder, self.inputs.key(graph, onnx_model, config))

    def store(self, graph: str, onnx_model: ModelProto, config: QuantizationConfig, ranges: Ranges) -> None:
        """See :func:`store`."""
        store(self.folder, self.inputs.key(graph, onnx_model, config), ranges)


def load(folder: Path, key: CacheKey) -> tuple[Ranges | None, str]:
    """Read the ranges and their origin, or None and the reason why no entry can be used."""
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


def store(folder: Path, key: CacheKey, ranges: Ranges) -> None:
    """Write an entry atomically, and delete the oldest ones beyond :data:`MAX_ENTRIES`.

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


def _path(folder: Path, key: CacheKey) -> Path:
    return folder / f"{key.digest}{_SUFFIX}"


def _words(key: CacheKey) -> dict[str, object]:
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


def _changed(folder: Path, key: CacheKey) -> str:
    """The reason for a cache miss: the fields that differ from the last used entry of the same model and graph."""
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
    """The files of the cache, most recently used first."""
    dated = []
    for path in folder.glob(f"*{_SUFFIX}"):
        with contextlib.suppress(OSError):  # another build may have removed it
            dated.append((path.stat().st_mtime, path))
    return [path for _, path in sorted(dated, reverse=True)]


def _bound(folder: Path) -> None:
    for path in _entries(folder)[MAX_ENTRIES:]:
        path.unlink(missing_ok=True)
