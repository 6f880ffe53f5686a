"""Faults of compilers, planted into ONNX graphs: one scale, one bias, one layer."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass

import numpy as np
from onnx import ModelProto, NodeProto, inliner, numpy_helper

from runtime.common.arrays import Array

_LAYERS = ("Conv", "ConvTranspose", "Gemm", "MatMul")


@dataclass(frozen=True, slots=True)
class Fault:
    """One fault: its kind, its place and its graph.

    Attributes:
        kind: What was done, such as ``"weights shuffled"``.
        place: The tensor it was done to.
        graph: The graph's name.
    """

    kind: str
    place: str
    graph: str


def faults_of(name: str, model: ModelProto) -> dict[str, list[Fault]]:
    """All faults that can be planted into a graph, by kind.

    Args:
        name: The graph's name.
        model: Float, or with Q/DQ; functions inlined.
    """
    faults: dict[str, list[Fault]] = {}

    def add(kind: str, place: str) -> None:
        faults.setdefault(kind, []).append(Fault(kind, place, name))

    constants = _constants(model)
    makers = {result: node for node in model.graph.node for result in node.output}
    for node in model.graph.node:
        if node.op_type == "QuantizeLinear" and node.input[0] not in constants and node.input[1] in constants:
            add("scale x4", node.input[1])
            add("scale x1/4", node.input[1])
        if node.op_type not in _LAYERS:
            continue
        weight, scale = _weight_of(node, makers, constants)
        if weight:
            add("weights x2", scale or weight)
            if not scale:
                add("scale x4", weight)
                add("scale x1/4", weight)
            add("weights shuffled", weight)
            add("weights zeroed", weight)
        bias = _source(node.input[2], makers) if len(node.input) > 2 else ""
        if bias in constants:
            add("bias negated", bias)
    return faults


def planted(model: ModelProto, fault: Fault, *, seed: int = 0) -> ModelProto:
    """A copy of the graph with the fault in it."""
    random = np.random.default_rng(seed)
    changes: Mapping[str, Callable[[Array], Array]] = {
        "scale x4": lambda values: values * 4,
        "scale x1/4": lambda values: values / 4,
        "weights x2": lambda values: values * 2,
        "weights shuffled": lambda values: random.permutation(values.ravel()).reshape(values.shape),
        "weights zeroed": np.zeros_like,
        "bias negated": lambda values: -values,
    }
    faulty = ModelProto()
    faulty.CopyFrom(model)
    tensor = next(item for item in faulty.graph.initializer if item.name == fault.place)
    values = numpy_helper.to_array(tensor)
    tensor.CopyFrom(numpy_helper.from_array(changes[fault.kind](values).astype(values.dtype), fault.place))
    return faulty


def inlined(model: ModelProto) -> ModelProto:
    """The graph without model-local functions, so that their layers can be reached."""
    return inliner.inline_local_functions(model)


def _constants(model: ModelProto) -> Mapping[str, int]:
    return {tensor.name: len(tensor.dims) for tensor in model.graph.initializer}


def _weight_of(node: NodeProto, makers: Mapping[str, NodeProto], constants: Mapping[str, int]) -> tuple[str, str]:
    """The weight's initialiser, and that of its scales where it is int8; empty where the node has none."""
    for name in node.input[:2]:
        maker = makers.get(name)
        if name in constants and constants[name] >= 2:
            return name, ""
        if maker is not None and maker.op_type == "DequantizeLinear" and maker.input[0] in constants:
            return maker.input[0], maker.input[1]
    return "", ""


def _source(name: str, makers: Mapping[str, NodeProto]) -> str:
    """The name of the initialiser behind casts and dequantisation."""
    while (maker := makers.get(name)) is not None and maker.op_type in ("Cast", "DequantizeLinear", "Identity"):
        name = maker.input[0]
    return name


def spread(kinds: Mapping[str, list[Fault]], count: int) -> Iterator[Fault]:
    """Yield at most ``count`` faults, alternating kinds, with each kind's places spread evenly."""
    share = -(-count // max(len(kinds), 1))
    chosen = [
        [places[index] for index in sorted({int(step) for step in np.linspace(0, len(places) - 1, share)})]
        for places in kinds.values()
    ]
    yielded = 0
    for round_ in range(share):
        for places in chosen:
            if round_ < len(places) and yielded < count:
                yielded += 1
                yield places[round_]
