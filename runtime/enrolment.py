"""``NAME.enrolment``: what a predictor has learned of its labels, in one file that outlives the process.

The file is an ``.npz`` of plain arrays: ``header`` and ``labels`` are JSON in UTF-8 bytes, ``counts`` (L,) int64 says
how many embeddings each label has, ``embeddings`` (M, D) float32 holds them in that order.
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from runtime import limits
from runtime.arrays import Array, read_arrays, write_arrays
from runtime.errors import EnrolmentError, EnrolmentMismatchError, SchemaError
from runtime.gallery.rows import RowsByLabel, rows_by_label
from runtime.jsondata import from_json, parse_json, shown, to_json

SCHEMA = 1
MAX_LABEL_LENGTH = 256


@dataclass(frozen=True, slots=True)
class Encoder:
    """Who made the embeddings of an enrolment.

    Attributes:
        identity: The encoder identity of the bundle.
        model: The model's name, for messages.
        engine: The engine's name, such as ``openvino-int8``.
        shares_enrolments: Whether the build measured that this engine's embeddings are exchangeable with FP32's.
    """

    identity: str
    model: str
    engine: str
    shares_enrolments: bool


@dataclass(frozen=True, slots=True)
class _Header:
    encoder: Encoder
    threshold: float | None
    schema: int = SCHEMA


@dataclass(frozen=True, slots=True)
class Enrolment:
    """The content of an enrolment file.

    Attributes:
        encoder: Who made the embeddings.
        rows: Label to (N, D) float32, in order of enrolment: unit rows of embeddings, or flattened support tensors.
        threshold: An open-set threshold set by hand; None where it is fitted.
    """

    encoder: Encoder
    rows: Mapping[str, Array]
    threshold: float | None


def save_enrolment(path: str | os.PathLike[str], enrolment: Enrolment) -> None:
    """Write the file; it appears whole or not at all.

    Raises:
        EnrolmentError: The file cannot be written.
    """
    header = json.dumps(to_json(_Header(enrolment.encoder, enrolment.threshold)))
    rows = rows_by_label(enrolment.rows) if enrolment.rows else None
    arrays = {
        "header": _bytes_of(header),
        "labels": _bytes_of(json.dumps(list(enrolment.rows))),
        "counts": rows.counts if rows else np.empty(0, np.int64),
        "embeddings": rows.matrix if rows else np.empty((0, 0), np.float32),
    }
    try:
        write_arrays(Path(path), arrays)
    except OSError as error:
        raise EnrolmentError(f"{path} cannot be written: {error}; what was there is unchanged") from error


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
    missing = [name for name in ("header", "labels", "counts", "embeddings") if name not in arrays]
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
    return Enrolment(header.encoder, RowsByLabel(labels, counts, embeddings), header.threshold)


def check_encoder(made_by: Encoder, running: Encoder, path: str | os.PathLike[str]) -> None:
    """Refuse embeddings that the running engine's must not be compared with.

    Raises:
        EnrolmentMismatchError: Another encoder made them, or an engine not measured to be exchangeable.
    """
    if made_by.identity != running.identity:
        raise EnrolmentMismatchError(
            f"{path} was made by another encoder ({made_by.model}, {made_by.identity[:12]}); this one is "
            f"{running.model}, {running.identity[:12]}: scores between them mean nothing. "
            "Enrol again from the images, or open the bundle that made it"
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


def _parse(arrays: Mapping[str, Array], name: str) -> Any:
    if arrays[name].dtype != np.uint8:
        raise SchemaError(f"{name} has dtype {arrays[name].dtype}; JSON in uint8 is needed")
    return parse_json(arrays[name].tobytes())


def _bytes_of(text: str) -> Array:
    return np.frombuffer(text.encode(), np.uint8)
