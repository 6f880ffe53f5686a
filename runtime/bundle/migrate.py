"""Read manifests of schema 1, which edgevis wrote before 0.2.0, under the field names of today.

The data is renamed in memory; the file on disk stays as it is. The digest of such a manifest covers the names that were
written, so :meth:`runtime.bundle.manifest.Manifest.loads` checks it against the original data, not the migrated data.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from runtime.common.json_data import shown
from runtime.errors import SchemaError

SCHEMA_1 = 1

_ENGINE = {"proof": "parity", "graph_proof": "graph_parity"}
_CANDIDATE = {"kept": "in_bundle"}
_CALIBRATION = {"recipe": "algorithm", "by_rule": "excluded_by_rule"}
_SEARCH = {"kept_float": "float_layers"}


def schema_2_from_1(data: Mapping[str, Any]) -> dict[str, Any]:
    """The JSON data of a schema-1 manifest with the field names of schema 2; ``data`` stays unchanged.

    Values that are not objects or lists of objects where those are expected are returned as they are: reading them
    as a :class:`runtime.bundle.manifest.Manifest` refuses them.

    Raises:
        SchemaError: The manifest has class names of its own (``labels``), or an object has fields of both schemas.
    """
    migrated = {key: value for key, value in data.items() if key not in ("schema", "labels")}
    if data.get("labels"):
        raise SchemaError(
            "manifest.json has schema 1 and class names under 'labels', which schema 2 keeps in the task's settings: "
            f"build the bundle again with: python -m export.build --model {shown(data.get('model'))} "
            f"--target {shown(data.get('target'))}"
        )
    migrated["schema"] = 2
    if "engines" in data:
        migrated["engines"] = _renamed_each(data["engines"], _ENGINE)
    if "candidates" in data:
        migrated["candidates"] = _renamed_each(data["candidates"], _CANDIDATE)
    calibration = data.get("calibration")
    if isinstance(calibration, Mapping):
        calibration = _renamed(calibration, _CALIBRATION)
        if "searches" in calibration:
            calibration["searches"] = _renamed_each(calibration["searches"], _SEARCH)
        migrated["calibration"] = calibration
    return migrated


def _renamed_each(items: object, names: Mapping[str, str]) -> object:
    if not isinstance(items, list):
        return items
    return [_renamed(item, names) if isinstance(item, Mapping) else item for item in items]


def _renamed(item: Mapping[str, Any], names: Mapping[str, str]) -> dict[str, Any]:
    for new in names.values():
        if new in item:
            raise SchemaError(f"manifest.json has schema 1 and the field {new!r} of schema 2")
    return {names.get(key, key): value for key, value in item.items()}
