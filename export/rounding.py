"""A graph that rounds to float16 or bfloat16 around its products, as a bound on the error of a right engine."""

from __future__ import annotations

from typing import Literal

from onnx import ModelProto, NodeProto, TensorProto, helper, inliner

_TYPES = {"fp16": TensorProto.FLOAT16, "bf16": TensorProto.BFLOAT16}
_PRODUCTS = frozenset(("Conv", "ConvTranspose", "Gemm", "MatMul"))


def rounded_graph(model: ModelProto, precision: Literal["fp16", "bf16"]) -> ModelProto:
    """The graph with the inputs, weights and outputs of its convolutions and matrix products rounded.

    It computes in float32 and is made of casts alone, so that it shares nothing with the compilers and with
    :mod:`export.autocast`.

    Args:
        model: A float32 graph, or one with Q/DQ; it is not changed.
        precision: What is rounded to.
    """
    rounded = inliner.inline_local_functions(model)
    nodes: list[NodeProto] = []
    for index, node in enumerate(rounded.graph.node):
        if node.op_type not in _PRODUCTS:
            nodes.append(NodeProto.FromString(node.SerializeToString()))
            continue
        copy = NodeProto.FromString(node.SerializeToString())
        for position, name in enumerate(copy.input):
            if name:
                copy.input[position] = f"{name}_rounded_{index}_{position}"
                nodes += _cast(name, copy.input[position], precision)
        result = copy.output[0]
        copy.output[0] = f"{result}_unrounded"
        nodes.append(copy)
        nodes += _cast(copy.output[0], result, precision)
    del rounded.graph.node[:]
    rounded.graph.node.extend(nodes)
    return rounded


def _cast(source: str, result: str, precision: Literal["fp16", "bf16"]) -> list[NodeProto]:
    """Cast to the type and back to float32."""
    between = f"{result}_{precision}"
    return [
        helper.make_node("Cast", [source], [between], to=_TYPES[precision]),
        helper.make_node("Cast", [between], [result], to=TensorProto.FLOAT),
    ]
