"""A graph that rounds to float16 or bfloat16 around its products, as a bound on the error of a right engine."""

from __future__ import annotations

from typing import Literal

import onnx_ir as ir
from onnx import ModelProto, inliner

from calibration.quantize.sessions import proto_from_ir

_TYPES = {"fp16": ir.DataType.FLOAT16, "bf16": ir.DataType.BFLOAT16}
_PRODUCTS = frozenset(("Conv", "ConvTranspose", "Gemm", "MatMul"))


def rounded_graph(model: ModelProto, precision: Literal["fp16", "bf16"]) -> ModelProto:
    """The graph with the inputs, weights and outputs of its convolutions and matrix products rounded.

    It computes in float32 and is made of casts alone, so that it shares nothing with the compilers and with
    :mod:`export.autocast`.

    Args:
        model: A float32 graph, or one with Q/DQ; it is not changed.
        precision: What is rounded to.
    """
    rounded = ir.from_proto(inliner.inline_local_functions(model))
    for number, node in enumerate(tuple(rounded.graph)):
        if node.op_type not in _PRODUCTS:
            continue
        for index, value in enumerate(node.inputs):
            if value is not None:
                casts = _rounding(value, precision, f"{value.name}_rounded_{number}_{index}")
                rounded.graph.insert_before(node, casts)
                node.replace_input_with(index, casts[-1].outputs[0])
        _round_output(rounded.graph, node, precision)
    return proto_from_ir(rounded)


def _round_output(graph: ir.Graph, node: ir.Node, precision: Literal["fp16", "bf16"]) -> None:
    """Round a node's result for all that read it; the rounded one takes the name, which may be an output's."""
    product = node.outputs[0]
    name, readers = product.name or "", product.uses()
    product.name = f"{name}_unrounded"
    casts = _rounding(product, precision, name)
    graph.insert_after(node, casts)
    rounded = casts[-1].outputs[0]
    for reader, index in readers:
        reader.replace_input_with(index, rounded)
    for index, output in enumerate(graph.outputs):
        if output is product:
            rounded.type, rounded.shape = product.type, product.shape
            graph.outputs[index] = rounded


def _rounding(value: ir.Value, precision: Literal["fp16", "bf16"], name: str) -> list[ir.Node]:
    """Two casts, to the type and back to float32; the last one's result has the name."""
    there = ir.node("Cast", [value], {"to": _TYPES[precision]})
    there.outputs[0].name = f"{name}_{precision}"
    back = ir.node("Cast", there.outputs, {"to": ir.DataType.FLOAT})
    back.outputs[0].name = name
    return [there, back]
