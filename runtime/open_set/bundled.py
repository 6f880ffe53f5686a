"""The open-set statistics and the score space of a bundle."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from runtime.bundle.bundle import Bundle
from runtime.common.arrays import Array, read_arrays
from runtime.common.json_data import from_json
from runtime.errors import IntegrityError
from runtime.open_set.space import FILE, MAX_BYTES, ScoreSpace, space_from
from runtime.open_set.statistics import OpenSetStatistics


def open_set_arrays(bundle: Bundle) -> dict[str, Array] | None:
    """The arrays of the bundle's score space; None where there is none.

    Raises:
        IntegrityError: The file is missing, altered or damaged.
    """
    if FILE not in bundle.manifest.files:
        return None
    return read_arrays(bundle.file(FILE), error=IntegrityError, max_bytes=MAX_BYTES)


def space_of(bundle: Bundle, dimension: int) -> ScoreSpace | None:
    """The bundle's score space for embeddings of ``dimension`` numbers; None where raw cosines are scored."""
    arrays = open_set_arrays(bundle)
    return None if arrays is None else space_from(arrays, dimension, FILE)


def statistics_of(postprocess: Mapping[str, Any]) -> OpenSetStatistics | None:
    """The statistics of the model's weights; None where there are none. SchemaError when they are malformed."""
    data = postprocess.get("open_set")
    return None if data is None else from_json(OpenSetStatistics, data, "postprocess.open_set")
