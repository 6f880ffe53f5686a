"""Convert frozen dataclasses to plain JSON data and back, checking every value against its annotation.

The one reader of JSON in the runtime: what it reads comes from outside, so unknown fields, missing fields and
values of another type are refused with the path to the value.
"""

from __future__ import annotations

import dataclasses
import functools
import hashlib
import json
import math
import reprlib
import sys
import types
from collections.abc import Mapping
from typing import Any, Literal, TypeVar, Union, cast, get_args, get_origin, get_type_hints

from runtime.errors import SchemaError

T = TypeVar("T")

_SHORT = reprlib.Repr()
_SHORT.maxstring = _SHORT.maxother = 60


def parse_json(text: str | bytes) -> Any:
    """Parses JSON text; NaN and infinities, which JSON does not have, are refused.

    Raises:
        SchemaError: It is not JSON.
    """
    try:
        return json.loads(text, parse_constant=_finite, parse_float=_finite)
    except (ValueError, RecursionError) as error:
        raise SchemaError(f"not JSON: {error}") from error


def shown(data: object) -> str:
    """JSON data as shortened text for a message."""
    # Not repr(): of data nested as deep as json.loads allows, it would exceed the interpreter's recursion limit.
    return _SHORT.repr(data)


def to_json(value: Any) -> Any:
    """Plain JSON data: a dataclass becomes an object, a tuple an array."""
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return {field.name: to_json(getattr(value, field.name)) for field in dataclasses.fields(value)}
    if isinstance(value, Mapping):
        return {key: to_json(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [to_json(item) for item in value]
    return value


def without_nan(data: Any) -> Any:
    """Plain data in which NaN and infinity, which JSON does not have, are None."""
    if isinstance(data, float):
        return data if math.isfinite(data) else None
    if isinstance(data, Mapping):
        return {key: without_nan(value) for key, value in data.items()}
    return [without_nan(value) for value in data] if isinstance(data, (list, tuple)) else data


def json_digest(value: Any) -> str:
    """SHA-256, in hexadecimal digits, of a value's JSON text with sorted keys."""
    return hashlib.sha256(json.dumps(to_json(value), sort_keys=True).encode()).hexdigest()


def from_json(cls: type[T], data: object, where: str = "") -> T:
    """The dataclass ``cls`` made from JSON data.

    Args:
        cls: A dataclass whose fields are str, bool, int, float, Literal, ``X | None``, ``tuple[X, ...]``,
            ``tuple[X, Y]``, ``Mapping[str, X]``, Any, or such dataclasses.
        data: The result of ``json.loads``.
        where: The path of ``data`` in the whole, for messages.

    Raises:
        SchemaError: A field is missing, unknown, or has a value of another type.
    """
    where = where or cls.__name__
    if not isinstance(data, Mapping):
        raise _mismatch(where, "an object", data)
    fields = {field.name: field for field in dataclasses.fields(cast(Any, cls))}
    unknown = sorted(set(data) - set(fields), key=str)
    if unknown:
        raise SchemaError(f"{where}: unknown field {unknown[0]!r}; allowed: {', '.join(sorted(fields))}")
    hints = _hints(cast(Any, cls))
    values: dict[str, Any] = {}
    for name, field in fields.items():
        if name in data:
            values[name] = _value(hints[name], data[name], f"{where}.{name}")
        elif field.default is dataclasses.MISSING and field.default_factory is dataclasses.MISSING:
            raise SchemaError(f"{where}: field {name!r} is missing")
    return cls(**values)


@functools.cache
def _hints(cls: type[Any]) -> dict[str, Any]:
    return get_type_hints(cls)


def _value(hint: Any, data: object, where: str) -> Any:
    origin, arguments = get_origin(hint), get_args(hint)
    if hint is Any:
        return data
    if dataclasses.is_dataclass(hint):
        return from_json(cast(type, hint), data, where)
    if origin is Literal:
        if data not in arguments:
            raise _mismatch(where, f"one of {', '.join(map(str, arguments))}", data)
        return data
    if origin in (Union, types.UnionType):
        return _union(arguments, data, where)
    if origin is tuple:
        if not isinstance(data, (list, tuple)):
            raise _mismatch(where, "an array", data)
        kinds = (arguments[0],) * len(data) if arguments[-1] is Ellipsis else arguments
        if len(kinds) != len(data):
            raise _mismatch(where, f"an array of {len(kinds)}", data)
        return tuple(
            _value(kind, item, f"{where}[{i}]") for i, (kind, item) in enumerate(zip(kinds, data, strict=True))
        )
    if isinstance(origin, type) and issubclass(origin, Mapping):
        if not isinstance(data, Mapping):
            raise _mismatch(where, "an object", data)
        return {key: _value(arguments[1], item, f"{where}[{key!r}]") for key, item in data.items()}
    return _scalar(hint, data, where)


def _union(kinds: tuple[Any, ...], data: object, where: str) -> Any:
    if data is None and type(None) in kinds:
        return None
    kinds = tuple(kind for kind in kinds if kind is not type(None))
    if len(kinds) == 1:
        return _value(kinds[0], data, where)
    for kind in kinds:  # several scalars, such as int | str: no two of them accept the same value
        try:
            return _value(kind, data, where)
        except SchemaError:
            continue
    raise _mismatch(where, " or ".join(kind.__name__ for kind in kinds), data)


def _scalar(hint: type, data: object, where: str) -> Any:
    number = isinstance(data, (int, float)) and not isinstance(data, bool)
    # Compared, not converted: float() of an int beyond all floats raises OverflowError.
    if hint is float and number and abs(cast(float, data)) <= sys.float_info.max:
        return float(cast(float, data))
    if hint is int and number and isinstance(data, int):
        return data
    if hint in (str, bool) and isinstance(data, hint):
        return data
    raise _mismatch(where, hint.__name__, data)


def _mismatch(where: str, allowed: str, data: object) -> SchemaError:
    return SchemaError(f"{where}: {allowed} is needed, got {shown(data)}")


def _finite(number: str) -> float:
    value = float(number)
    if not math.isfinite(value):
        raise ValueError(f"{number} is not a finite number")
    return value
