"""The digest of a manifest, and the identity of its encoder.

Both detect accidents: a value that an editor, a script or a bad copy changed. Neither is a signature, because anyone
who edits a manifest can compute them again. To be sure that a bundle is the one that was built, keep its digest
elsewhere and pass it to :class:`runtime.predictor.Predictor` or ``edgevis verify --digest``.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from typing import Any

from runtime.bundle.spec import Deployment
from runtime.common.json_data import json_digest, to_json

DIGEST = "digest"
"""The manifest's field that holds the digest of all other fields."""

# Fields that were added after enrolments were bound to identities, with their defaults: these do not count, so that a
# model that is built again keeps its enrolments.
_LATER_PREPROCESS: Mapping[str, Any] = {"align": "center"}
_LATER_GRAPH: Mapping[str, Any] = {"float32_outputs": [], "set_of": ""}

NOT_COVERED = (
    "an earlier edgevis built it, without a digest: that a value of its manifest was changed, such as of "
    "preprocessing, would not be noticed; build it again: python -m export.build"
)
"""The warning about a bundle without a digest."""


def manifest_digest(data: Mapping[str, Any]) -> str:
    """SHA-256, in hexadecimal digits, over the canonical JSON of every field of a manifest but :data:`DIGEST`.

    Canonical is: keys sorted, no spaces, every character beyond ASCII escaped, numbers as Python writes them. So the
    layout of the file does not matter, and every value does.
    """
    rest = {key: value for key, value in data.items() if key != DIGEST}
    text = json.dumps(rest, sort_keys=True, separators=(",", ":"), allow_nan=False)
    return hashlib.sha256(text.encode()).hexdigest()


def encoder_identity(model: str, deployment: Deployment | Mapping[str, Any], weights_sha256: str) -> str:
    """Identifies an encoder: the same for every precision, backend, exporter version and machine.

    Args:
        model: The model's name.
        deployment: The model's declaration, or its JSON data; preprocessing and graphs count.
        weights_sha256: The digest of the model's parameters.
    """
    data = to_json(deployment)
    parts = {
        "model": model,
        "weights": weights_sha256,
        "preprocess": _without_defaults(data["preprocess"], _LATER_PREPROCESS),
        "graphs": _graphs_without_defaults(data["graphs"]),
    }
    return json_digest(parts)


def _graphs_without_defaults(data: Any) -> Any:
    return [_without_defaults(graph, _LATER_GRAPH) for graph in data] if isinstance(data, (list, tuple)) else data


def _without_defaults(data: Any, later: Mapping[str, Any]) -> Any:
    """JSON data of an object without those later fields that have their default value."""
    if not isinstance(data, Mapping):
        return data
    return {key: value for key, value in data.items() if key not in later or value != later[key]}
