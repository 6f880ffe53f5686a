"""The option ``--preprocess``: the preprocessing for a user's ONNX file, as text or as a JSON file."""

from __future__ import annotations

from dataclasses import fields
from pathlib import Path
from typing import Any

from runtime.bundle.spec import Preprocess
from runtime.common.json_data import parse_json
from runtime.errors import InputError, SchemaError

_MAX_BYTES = 1 << 16
_WHOLE = frozenset(("height", "width", "pad_value"))
_PER_CHANNEL = frozenset(("mean", "std"))


def parsed_preprocess(text: str) -> dict[str, Any]:
    """The fields of :class:`runtime.bundle.spec.Preprocess` that ``text`` sets, as JSON data.

    Args:
        text: ``color=BGR,mean=0.485:0.456:0.406,scale=1/255``, or the path of a ``.json`` file with the same fields, as
            ``manifest.json`` has them under ``deployment.preprocess``.

    Raises:
        InputError: It is written otherwise, names an unknown field or one twice.
    """
    if text.endswith(".json"):
        return _from_file(Path(text))
    values: dict[str, Any] = {}
    for part in filter(None, (part.strip() for part in text.split(","))):
        name, equals, value = part.partition("=")
        if not (equals and value):
            raise InputError(f"--preprocess: {part!r} is not NAME=VALUE; several go with commas: color=RGB,scale=1/255")
        _check_field(name)
        if name in values:
            raise InputError(f"--preprocess gives {name!r} two values")
        values[name] = _value(name, value)
    return values


def _from_file(path: Path) -> dict[str, Any]:
    try:
        if path.stat().st_size > _MAX_BYTES:
            raise InputError(f"--preprocess: {path} has more than {_MAX_BYTES} bytes")
        data = parse_json(path.read_bytes())
    except (OSError, ValueError, SchemaError) as error:
        raise InputError(f"--preprocess: {path} cannot be read as JSON: {error}") from error
    if not isinstance(data, dict):
        raise InputError(f"--preprocess: {path} is no object; allowed: an object with the fields {_known()}")

    for name in data:
        _check_field(name)
    return data


def _check_field(name: str) -> None:
    if name not in {field.name for field in fields(Preprocess)}:
        raise InputError(f"--preprocess has no {name!r}; it has {_known()}")


def _known() -> str:
    return ", ".join(field.name for field in fields(Preprocess))


def _value(name: str, text: str) -> Any:
    if name in _WHOLE:
        if not (text.isascii() and text.isdecimal()):
            raise InputError(f"--preprocess: {name} is {text!r}; allowed: a whole number")
        return int(text)
    if name in _PER_CHANNEL:
        return [_number(name, part) for part in text.split(":")]
    return _number(name, text) if name == "scale" else text


def _number(name: str, text: str) -> float:
    """A number, or a fraction such as 1/255."""
    over, slash, under = text.partition("/")
    try:
        return float(over) / float(under) if slash else float(over)
    except (ValueError, ZeroDivisionError):
        allowed = "numbers with colons, one for each channel" if name in _PER_CHANNEL else "a number such as 1/255"
        raise InputError(f"--preprocess: {name} has {text!r}; allowed: {allowed}") from None
