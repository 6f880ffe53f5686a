"""Which files besides itself an ONNX graph reads: its external data, found without the package ``onnx``."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

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


def external_locations(data: bytes) -> frozenset[str]:
    """The locations that any tensor of a serialised ``ModelProto`` names: paths relative to the graph's folder.

    Tensors count wherever they stand: in initialisers, sparse ones, attributes, subgraphs and functions. One that names
    a location counts even where it says that its data are its own.

    Raises:
        ValueError: The bytes are no protocol buffer; engines refuse them too.
    """
    if b"location" not in data:  # the key of every location, as plain bytes: nothing else needs to be looked at
        return frozenset()
    view = memoryview(data)
    found: set[str] = set()
    waiting: list[tuple[int, int, _Fields]] = [(0, len(data), _MODEL)]
    while waiting:  # a list and no recursion: the depth is the file's choice
        start, end, fields = waiting.pop()
        if fields is _ENTRY:
            entry = {number: bytes(view[left:right]) for number, left, right in _parts(view, start, end)}
            if entry.get(1) == b"location":
                found.add(entry.get(2, b"").decode("utf-8", "surrogateescape"))
            continue
        for number, left, right in _parts(view, start, end):
            inner = fields.get(number)
            if inner is not None:
                waiting.append((left, right, inner))
    return frozenset(found)


def _parts(view: memoryview, position: int, end: int) -> Iterator[tuple[int, int, int]]:
    """Field number, start and end of each length-delimited field of the message between two positions."""
    while position < end:
        tag, position = _varint(view, position, end)
        kind = tag & 7
        if kind == _VARINT:
            _, position = _varint(view, position, end)
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
