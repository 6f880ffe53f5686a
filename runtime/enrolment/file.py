"""``NAME.enrolment``: the enrolled rows and the open-set settings of a predictor, in one file.

The file is an ``.npz`` of plain arrays: ``header`` and ``labels`` are JSON in UTF-8 bytes, ``counts`` (L,) int64 says
how many embeddings each label has, ``embeddings`` (M, D) float32 holds them in that order. ``strangers`` (S, D) float32
is there where the open-set threshold was calibrated.
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Collection, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from runtime.common import limits
from runtime.common.arrays import Array, read_arrays, write_arrays
from runtime.common.files import open_regular, write_lock, written_file
from runtime.common.json_data import from_json, parse_json, shown, to_json
from runtime.errors import EnrolmentError, EnrolmentMismatchError, SchemaError
from runtime.gallery.rows import RowsByLabel, rows_by_label
from runtime.open_set.strangers import MAX_RATE, MIN_RATE, MIN_STRANGERS

SCHEMA = 1
MAX_LABEL_LENGTH = 256
LOCK_TIMEOUT_S = 60.0

_PARTS = ("header", "labels", "counts", "embeddings")
_FIRST = frozenset(f"{name}.npy".encode() for name in _PARTS)
_NAME_LENGTH, _NAME = (
    slice(26, 28),
    30,
)  # in a zip's first bytes: the length of its first member's name, and where it is


@dataclass(frozen=True, slots=True)
class EnrolmentEncoder:
    """The encoder that made the embeddings of an enrolment.

    Attributes:
        identity: The encoder identity of the bundle.
        model: The model's name, for messages.
        engine: The engine's name, such as ``openvino-int8``.
        shares_enrolments: Whether the build measured that this engine's embeddings are exchangeable with FP32's.
        space: The digest of the space that rows lie in (:mod:`runtime.open_set.space`); empty for raw embeddings.
    """

    identity: str
    model: str
    engine: str
    shares_enrolments: bool
    space: str = ""


@dataclass(frozen=True, slots=True)
class _Header:
    encoder: EnrolmentEncoder
    threshold: float | None
    false_accept_rate: float | None = None
    schema: int = SCHEMA


@dataclass(frozen=True, slots=True)
class Enrolment:
    """The content of an enrolment file.

    Attributes:
        encoder: The encoder that made the embeddings.
        rows: Label to (N, D) float32, in order of enrolment: unit rows of embeddings, or flattened support tensors.
        threshold: An open-set threshold set by hand; None where it is fitted.
        strangers: (S, D) float32 unit rows of the strangers that the threshold was measured on; None without.
        false_accept_rate: The FPIR that was asked for; None for the model's own.
    """

    encoder: EnrolmentEncoder
    rows: Mapping[str, Array]
    threshold: float | None
    strangers: Array | None = None
    false_accept_rate: float | None = None


def save_enrolment(path: str | os.PathLike[str], enrolment: Enrolment, *, timeout_s: float = LOCK_TIMEOUT_S) -> None:
    """Write the file; it appears whole or not at all.

    A new file is for its owner only (mode 0600), for it holds biometric data; one that is there keeps its mode and
    owner. If the path is a link, its target is written. While others hold :func:`enrolment_lock`, it waits.

    Raises:
        EnrolmentError: The file cannot be written, or what is there is not an enrolment, such as a photograph.
    """
    header = json.dumps(to_json(_Header(enrolment.encoder, enrolment.threshold, enrolment.false_accept_rate)))
    rows = rows_by_label(enrolment.rows) if enrolment.rows else None
    arrays = {
        "header": _bytes_of(header),
        "labels": _bytes_of(json.dumps(list(enrolment.rows))),
        "counts": rows.counts if rows else np.empty(0, np.int64),
        "embeddings": rows.matrix if rows else np.empty((0, 0), np.float32),
    }
    if enrolment.strangers is not None:
        arrays["strangers"] = enrolment.strangers
    with enrolment_lock(path, timeout_s=timeout_s):
        try:
            _check_replaceable(path)
            write_arrays(Path(path), arrays, private=True)
        except OSError as error:
            raise _not_written(path, error) from error


@contextmanager
def enrolment_lock(path: str | os.PathLike[str], *, timeout_s: float = LOCK_TIMEOUT_S) -> Iterator[None]:
    """Lock an enrolment file against saves by other processes, as between :func:`load_enrolment` and a save.

    No file is made for it, and it ends with its holder's process. The thread that holds it may save and lock again.

    Raises:
        EnrolmentError: Another process held it for ``timeout_s`` seconds, or the file's folder cannot be opened.
    """
    with ExitStack() as stack:
        try:
            stack.enter_context(write_lock(path, timeout_s=timeout_s))
        except TimeoutError as error:
            raise EnrolmentError(
                f"{path} is being changed by another process, which has kept it locked for {timeout_s:g} s; "
                "end that one, or try again; the file is unchanged"
            ) from error
        except OSError as error:
            raise _not_written(path, error) from error
        yield


def check_enrolment_path(path: str | os.PathLike[str]) -> None:
    """Check, before work is spent on it, that an enrolment can be written to a path; nothing is changed.

    Raises:
        EnrolmentError: Its folder is not there or may not be written to, or what is there is not an enrolment.
    """
    try:
        _check_replaceable(path)
        folder = written_file(path).parent
        if not folder.is_dir():
            raise EnrolmentError(f"{path} cannot be written: there is no folder {folder}; make it first")
        if not os.access(folder, os.W_OK | os.X_OK):
            raise EnrolmentError(f"{path} cannot be written: you may not write to the folder {folder}")
    except OSError as error:
        raise _not_written(path, error) from error


def enrolment_exists(path: str | os.PathLike[str]) -> bool:
    """Whether a file that is not empty exists; EnrolmentError when the path is something else, such as a folder."""
    try:
        return written_file(path).stat().st_size > 0
    except FileNotFoundError:
        return False
    except OSError as error:
        raise EnrolmentError(f"{path} cannot be an enrolment: {error}") from error


def update_enrolment(
    path: str | os.PathLike[str],
    here: Enrolment,
    *,
    known: Mapping[str, int],
    forgotten: Collection[str],
    keep_settings: bool = True,
    adapt: Callable[[Enrolment], Enrolment] = lambda stored: stored,
    timeout_s: float = LOCK_TIMEOUT_S,
) -> Enrolment:
    """Merge the labels that were enrolled and forgotten here into a file; changes by others meanwhile are kept.

    Args:
        path: The file; it is made if there is none.
        here: The enrolment in memory.
        known: The number of rows of each label that memory and the file have in common: later rows are new.
        forgotten: Labels whose rows in the file are to go; all rows that ``here`` has of them are new.
        keep_settings: Leave the file its threshold, strangers and rate, where there is a file; otherwise it gets those
            of ``here``.
        adapt: Brings what the file holds into the space of ``here``.
        timeout_s: Seconds to wait for another process that changes the file.

    Returns:
        What the file holds now.

    Raises:
        EnrolmentError: The file is damaged, cannot be written, or is locked for too long; it is unchanged.
        EnrolmentMismatchError: Another encoder made it; it is unchanged.
    """
    with enrolment_lock(path, timeout_s=timeout_s):
        if not enrolment_exists(path):
            save_enrolment(path, here)
            return here
        stored = load_enrolment(path)
        check_encoder(stored.encoder, here.encoder, path)
        stored = adapt(stored)
        rows = {label: value for label, value in stored.rows.items() if label not in forgotten}
        for label, value in here.rows.items():
            fresh = value if label in forgotten else value[known.get(label, 0) :]
            if len(fresh):
                rows[label] = np.concatenate([rows[label], fresh]) if label in rows else fresh
        changed = replace(stored if keep_settings else here, rows=rows)
        save_enrolment(path, changed)
        return changed


def load_enrolment(path: str | os.PathLike[str]) -> Enrolment:
    """Read the file.

    Raises:
        EnrolmentError: It is missing, damaged, of another schema, or its parts do not fit together.
    """
    arrays = read_arrays(
        Path(path),
        error=EnrolmentError,
        max_bytes=limits.max_enrolment_bytes(),
        variable="EDGEVIS_MAX_ENROLMENT_BYTES",
    )
    missing = [name for name in _PARTS if name not in arrays]
    if missing:
        raise EnrolmentError(f"{path} is not an enrolment: it has no array {missing[0]!r}")
    try:
        data = _parse(arrays, "header")
        schema = data.get("schema") if isinstance(data, dict) else None
        if schema != SCHEMA:
            raise EnrolmentError(f"{path} has enrolment schema {shown(schema)}; this version of edgevis reads {SCHEMA}")
        header = from_json(_Header, data, "enrolment")
        labels = _parse(arrays, "labels")
    except SchemaError as error:
        raise EnrolmentError(f"{path} is damaged: {error}") from error
    counts, embeddings = arrays["counts"], arrays["embeddings"]
    sound = (
        isinstance(labels, list)
        and all(is_label(label) for label in labels)
        and len(set(labels)) == len(labels)
        and counts.shape == (len(labels),)
        and counts.dtype == np.int64
        and embeddings.dtype == np.float32
        and embeddings.ndim == 2
        and bool(((counts >= 1) & (counts <= len(embeddings))).all())  # so that their sum cannot overflow
        and int(counts.sum()) == len(embeddings)
        and bool(np.isfinite(embeddings).all())
    )
    if not sound:
        raise EnrolmentError(f"{path} is damaged: its labels, counts and embeddings do not fit together")
    if header.threshold is not None and not -1.0 <= header.threshold <= 1.0:
        raise EnrolmentError(f"{path} is damaged: its threshold is {header.threshold}; a cosine is -1..1")
    strangers = arrays.get("strangers")
    if strangers is not None and not (
        strangers.dtype == np.float32
        and strangers.ndim == 2
        and len(strangers) >= MIN_STRANGERS
        and np.allclose(np.einsum("nd,nd->n", strangers, strangers), 1.0, atol=1e-3)  # false for NaN, too
        and (not labels or strangers.shape[1] == embeddings.shape[1])
    ):
        raise EnrolmentError(f"{path} is damaged: its strangers have shape {strangers.shape}, or are no unit rows")
    if header.false_accept_rate is not None and not MIN_RATE <= header.false_accept_rate <= MAX_RATE:
        raise EnrolmentError(
            f"{path} is damaged: its false-accept rate is {header.false_accept_rate}; allowed: {MIN_RATE} to {MAX_RATE}"
        )
    return Enrolment(
        header.encoder,
        RowsByLabel(labels, counts, embeddings),
        header.threshold,
        strangers,
        header.false_accept_rate,
    )


def check_encoder(made_by: EnrolmentEncoder, running: EnrolmentEncoder, path: str | os.PathLike[str]) -> None:
    """Raise if a file's embeddings cannot be compared with those of the running engine.

    Raises:
        EnrolmentMismatchError: Another encoder made them, or an engine not measured to be exchangeable.
    """
    if made_by.identity != running.identity:
        raise EnrolmentMismatchError(
            f"{path} was made by another encoder ({made_by.model}, {made_by.identity[:12]}); this one is "
            f"{running.model}, {running.identity[:12]}: scores between them mean nothing. "
            "Enrol again from the images, or open the bundle that made it"
        )
    if made_by.space not in ("", running.space):
        raise EnrolmentMismatchError(
            f"{path} was made with other open-set statistics of {made_by.model} ({made_by.space[:12]}); this bundle "
            f"has {running.space[:12] or 'none'}: its rows lie elsewhere. Enrol again from the images, or open the "
            "bundle that made it"
        )
    exchangeable = made_by.shares_enrolments and running.shares_enrolments
    if made_by.engine != running.engine and not exchangeable:
        raise EnrolmentMismatchError(
            f"{path} was made by the engine {made_by.engine}; this one is {running.engine}, and the build did not "
            "measure their embeddings to be exchangeable. Enrol again from the images, or open the bundle with that "
            "engine's backend= and precision="
        )


def is_label(value: object) -> bool:
    """Whether ``value`` can name what is enrolled: printable text of 1 to 256 characters."""
    return isinstance(value, str) and 0 < len(value) <= MAX_LABEL_LENGTH and value.isprintable() and not value.isspace()


def _check_replaceable(path: str | os.PathLike[str]) -> None:
    """Raise if a file's first bytes are not an enrolment's, so that it is not overwritten; it may be empty."""
    try:
        with open_regular(written_file(path)) as file:
            head = file.read(64)
    except (FileNotFoundError, PermissionError):  # whether it may be written, writing it says
        return
    length = int.from_bytes(head[_NAME_LENGTH], "little")
    if head and (head[:4] != b"PK\3\4" or head[_NAME : _NAME + length] not in _FIRST):
        raise EnrolmentError(f"{path} is a file, but not an enrolment; it is left as it is: name another file")


def _not_written(path: str | os.PathLike[str], error: OSError) -> EnrolmentError:
    return EnrolmentError(f"{path} cannot be written: {error}; what was there is unchanged")


def _parse(arrays: Mapping[str, Array], name: str) -> Any:
    if arrays[name].dtype != np.uint8:
        raise SchemaError(f"{name} has dtype {arrays[name].dtype}; JSON in uint8 is needed")
    return parse_json(arrays[name].tobytes())


def _bytes_of(text: str) -> Array:
    return np.frombuffer(text.encode(), np.uint8)
