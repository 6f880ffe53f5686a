"""Arrays at rest and in rows: ``.npz`` files read without pickle and within bounds, unit rows."""

from __future__ import annotations

import math
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from runtime.common.files import atomic_write, open_regular
from runtime.errors import EdgevisError

Array = npt.NDArray[Any]

MAX_ARRAYS_BYTES = 4 << 30
_MAX_COMPRESSED_BYTES = 16 << 20
# Above what write_arrays compresses, its files unpack to their own size. More is allowed for those of other writers.
_MAX_RATIO = 20
_ALWAYS_BYTES = 64 << 20


def write_arrays(path: Path, arrays: Mapping[str, Array], *, private: bool = False) -> None:
    """Write ``arrays`` to ``path``; the file appears whole or not at all, see
    :func:`runtime.common.files.atomic_write`.

    Compressed where that is quick: features hardly shrink, and hundreds of megabytes of them would take half a minute.
    """
    for name, array in arrays.items():
        if array.dtype.hasobject:
            raise ValueError(f"array {name!r} holds objects, which could only be pickled")
    with atomic_write(path, private=private) as file:
        small = sum(array.nbytes for array in arrays.values()) <= _MAX_COMPRESSED_BYTES
        # No allow_pickle=: NumPy 1 would store it as one more array.
        (np.savez_compressed if small else np.savez)(file, **arrays)  # type: ignore[arg-type]


def read_arrays(
    path: Path, *, error: type[EdgevisError], max_bytes: int = MAX_ARRAYS_BYTES, variable: str | None = None
) -> dict[str, Array]:
    """Read the arrays of ``path`` one after another; memory holds each once, plus a buffer.

    Args:
        path: An ``.npz`` file.
        error: The class of the error when the file cannot be used.
        max_bytes: Refuse a file that would unpack to more; of one above 64 MiB also to more than 20 times its size.
        variable: The environment variable that raises ``max_bytes``, for the message.

    Raises:
        error: The file is missing, truncated, not an ``.npz``, too large, or holds objects instead of numbers.
    """
    try:
        opened = open_regular(path)
    except FileNotFoundError as cause:
        raise error(f"there is no file {path}") from cause
    except OSError as cause:  # a folder, a pipe, or a file that this user may not read
        raise error(f"{path} cannot be read: {cause.strerror}") from cause
    try:
        with opened, zipfile.ZipFile(opened) as archive:
            unpacked = sum(item.file_size for item in archive.infolist())
            if unpacked > max_bytes:
                cure = f": raise {variable}" if variable else ""
                raise error(f"{path} would unpack to {unpacked} bytes; at most {max_bytes} are read{cure}")
            size = path.stat().st_size
            if unpacked > max(_ALWAYS_BYTES, _MAX_RATIO * size):
                raise error(
                    f"{path} has {size} bytes and would unpack to {unpacked}, more than {_MAX_RATIO} times as many: "
                    "it is damaged, or made to fill memory"
                )
            for member in archive.infolist():
                _check_member(archive, member)
            opened.seek(0)
            file = np.load(opened, allow_pickle=False)
            return {name: file[name] for name in file.files}
    except EdgevisError:
        raise
    except Exception as cause:  # zipfile, zlib and NumPy's parser raise a dozen classes on a damaged file
        raise error(f"{path} is damaged or not an .npz file of plain arrays: {cause}") from cause


def _check_member(archive: zipfile.ZipFile, member: zipfile.ZipInfo) -> None:
    """Check an array's header against its data: NumPy allocates what the header declares before it reads the data."""
    with archive.open(member) as file:
        version = np.lib.format.read_magic(file)
        read_header = {
            (1, 0): np.lib.format.read_array_header_1_0,
            (2, 0): np.lib.format.read_array_header_2_0,
        }
        if version not in read_header:
            raise ValueError(f"{member.filename} has the .npy version {version}")
        shape, _, dtype = read_header[version](file)
        size = math.prod(shape) * dtype.itemsize
        if dtype.hasobject or size != member.file_size - file.tell():
            raise ValueError(f"{member.filename} has {member.file_size - file.tell()} bytes for {shape} {dtype}")


def unit_rows(rows: Array) -> npt.NDArray[np.float32]:
    """(N, D) embeddings with rows of length one, as float32; zeros stay zeros, a row with infinity has NaN."""
    wide: npt.NDArray[np.float64] = np.asarray(rows, np.float64)
    norms = np.sqrt(np.einsum("nd,nd->n", wide, wide))
    with np.errstate(invalid="ignore"):  # infinity over infinity
        return np.asarray(wide / np.maximum(norms, 1e-12)[:, None], np.float32)
