"""Reads an ONNX file without ``onnx``: its external data, and weights that are not finite."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

import numpy as np

# ONNX's messages, down to the tensors: field number to the message in it. onnx/onnx.proto, IR version 13.
_Fields = Mapping[int, "_Fields"]
_ENTRY: _Fields = {}
_TENSOR: _Fields = {13: _ENTRY}
_SPARSE: _Fields = {1: _TENSOR, 2: _TENSOR}
_GRAPH: dict[int, _Fields] = {5: _TENSOR, 15: _SPARSE}
_ATTRIBUTE: _Fields = {5: _TENSOR, 6: _GRAPH, 10: _TENSOR, 11: _GRAPH, 22: _SPARSE, 23: _SPARSE}
_NODE: _Fields = {5: _ATTRIBUTE}
_GRAPH[1] = _NODE
_FUNCTION: _Fields = {7: _NODE, 11: _ATTRIBUTE}
_TRAINING: _Fields = {1: _GRAPH, 2: _GRAPH}
_MODEL: _Fields = {7: _GRAPH, 20: _TRAINING, 25: _FUNCTION}

_VARINT, _FIXED64, _BYTES, _FIXED32 = 0, 1, 2, 5

# Of TensorProto: the field of its type, of its name and of its data, as bytes or by type; the types of floats, with the
# bits of the exponent where NumPy has no such type or is slow at it.
_TYPE, _NAME, _RAW = 2, 8, 9
_OWN_FIELD = {1: 4, 11: 10}
_FLOATS = {1: ("<f4", 0), 10: ("<u2", 0x7C00), 11: ("<f8", 0), 16: ("<u2", 0x7F80)}


def external_locations(data: bytes) -> frozenset[str]:
    """The external-data locations in a serialised ``ModelProto``: paths relative to the graph's folder.

    Tensors count wherever they stand: in initialisers, sparse ones, attributes, subgraphs and functions. One that names
    a location counts even where it says that its data are its own.

    Raises:
        ValueError: The bytes are no protocol buffer; engines refuse them too.
    """
    if b"location" not in data:  # the key of every location, as plain bytes: nothing else needs to be looked at
        return frozenset()
    view = memoryview(data)
    locations: set[str] = set()
    waiting: list[tuple[int, int, _Fields]] = [(0, len(data), _MODEL)]
    while waiting:  # a list and no recursion: the depth is the file's choice
        start, end, fields = waiting.pop()
        if fields is _ENTRY:
            entry = {number: bytes(view[left:right]) for number, left, right in _parts(view, start, end)}
            if entry.get(1) == b"location":
                locations.add(entry.get(2, b"").decode("utf-8", "surrogateescape"))
            continue
        for number, left, right in _parts(view, start, end):
            inner = fields.get(number)
            if inner is not None:
                waiting.append((left, right, inner))
    return frozenset(locations)


def non_finite_weight(data: bytes, external: Mapping[str, bytes]) -> str | None:
    """The name of the first initialiser of a ``ModelProto``'s graph that holds NaN or infinity; None where none does.

    An infinity that stands alone is a constant, such as what a mask fills in, and is no weight.

    Args:
        data: The model, serialised.
        external: External data by location.

    Raises:
        ValueError: The bytes are no protocol buffer, or a tensor's do not fit its type.
    """
    view = memoryview(data)
    for number, left, right in _parts(view, 0, len(data)):
        if number == 7:
            for inner, start, end in _parts(view, left, right):
                if inner == 5 and (name := _non_finite(view, start, end, external)) is not None:
                    return name
    return None


def _non_finite(view: memoryview, start: int, end: int, external: Mapping[str, bytes]) -> str | None:
    """The name of the tensor if it holds NaN or infinity; else None."""
    fields = {number: (left, right) for number, left, right in _fields(view, start, end)}
    dtype, exponent = _FLOATS.get(fields.get(_TYPE, (0, 0))[0], ("", 0))
    location = fields.get(_RAW) or fields.get(_OWN_FIELD.get(fields.get(_TYPE, (0, 0))[0], _RAW))
    if not dtype:
        return None
    content = view[location[0] : location[1]] if location else _outside(view, start, end, external)
    numbers = np.frombuffer(content, dtype)
    exponents = numbers & exponent if exponent else None
    bad = ~np.isfinite(numbers) if exponents is None else exponents == exponent
    if not bad.any() or (numbers.size == 1 and not _is_nan(numbers[0], exponent)):
        return None
    left, right = fields.get(_NAME, (0, 0))
    return bytes(view[left:right]).decode("utf-8", "replace")


def _is_nan(number: np.generic, exponent: int) -> bool:
    mantissa = (0x7FFF ^ exponent) if exponent else 0
    return bool(int(number) & mantissa) if exponent else bool(np.isnan(number))


def _outside(view: memoryview, start: int, end: int, external: Mapping[str, bytes]) -> memoryview:
    """The external data of a tensor; empty if it has none."""
    said: dict[bytes, str] = {}
    for number, left, right in _parts(view, start, end):
        if number == 13:
            entry = {inner: bytes(view[first:last]) for inner, first, last in _parts(view, left, right)}
            said[entry.get(1, b"")] = entry.get(2, b"").decode("utf-8", "surrogateescape")
    content = memoryview(external.get(said.get(b"location", ""), b""))
    first = int(said.get(b"offset") or 0)
    return content[first : first + int(said[b"length"])] if b"length" in said else content[first:]


def _parts(view: memoryview, position: int, end: int) -> Iterator[tuple[int, int, int]]:
    """Field number, start and end of each length-delimited field of the message between two positions."""
    return ((number, left, right) for number, left, right in _fields(view, position, end) if right >= 0)


def _fields(view: memoryview, position: int, end: int) -> Iterator[tuple[int, int, int]]:
    """Like :func:`_parts`, plus each varint as its field number, its value and -1."""
    while position < end:
        tag, position = _varint(view, position, end)
        kind = tag & 7
        if kind == _VARINT:
            value, position = _varint(view, position, end)
            yield tag >> 3, value, -1
        elif kind == _BYTES:
            length, position = _varint(view, position, end)
            if length > end - position:
                raise ValueError("a field is longer than its message")
            yield tag >> 3, position, position + length
            position += length
        elif kind in (_FIXED64, _FIXED32):
            position += 8 if kind == _FIXED64 else 4
        else:  # groups, which ONNX does not have
            raise ValueError(f"a field has the wire type {kind}")
    if position != end:
        raise ValueError("a field is longer than its message")


def _varint(view: memoryview, position: int, end: int) -> tuple[int, int]:
    value = 0
    for shift in range(0, 70, 7):
        if position >= end:
            raise ValueError("it ends within a number")
        byte = view[position]
        position += 1
        value |= (byte & 0x7F) << shift
        if byte < 0x80:
            return value, position
    raise ValueError("a number has more than ten bytes")
