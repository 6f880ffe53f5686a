"""What a quantised graph must look like so that ONNX Runtime, OpenVINO and TensorRT compute the same from it."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
from onnx import GraphProto, ModelProto, NodeProto, TensorProto, helper, numpy_helper

from runtime.common.arrays import Array
from runtime.errors import ExportError

# These hold uint8 or a zero point of their own, and TensorRT has none of them.
_FORBIDDEN = ("DynamicQuantizeLinear", "QLinearConv", "QLinearMatMul", "ConvInteger", "MatMulInteger")


def lint_quantized(model: ModelProto) -> None:
    """Refuse what only some engines take: uint8, a zero point that is not zero, an INT32 bias behind Q/DQ.

    TensorRT's parser fails on a DequantizeLinear of INT32, and reads uint8 with zero point 0 as int8 without
    rescaling: cosine 0.9999 becomes 0.975 and no error is raised.

    Raises:
        ExportError: A node is not as it must be; the message names the node and what to change.
    """
    constants: dict[str, Array] = {}
    types: dict[str, int] = {}
    nodes = list(_nodes(model.graph, constants))
    for function in model.functions:
        nodes += function.node
    for node in nodes:
        for name, value in ((output, _constant(node)) for output in node.output):
            if value is not None:
                constants[name] = value
        if node.op_type == "QuantizeLinear":
            types[node.output[0]] = _quantized_type(node, constants)
    for node in nodes:
        if node.op_type in _FORBIDDEN:
            raise _broken(
                node, "its operator is not among those that TensorRT reads", "use QuantizeLinear and DequantizeLinear"
            )
        if node.op_type in ("QuantizeLinear", "DequantizeLinear"):
            _check_scale(node, constants)
            _check_zero_point(node, constants)
            _check_type(node, constants, types)


def _nodes(graph: GraphProto, constants: dict[str, Array]) -> Iterator[NodeProto]:
    """All nodes of a graph and the graphs inside it; their initialisers go into ``constants``."""
    for tensor in graph.initializer:
        constants[tensor.name] = numpy_helper.to_array(tensor)
    for node in graph.node:
        yield node
        for attribute in node.attribute:
            for inner in (*([attribute.g] if attribute.HasField("g") else []), *attribute.graphs):
                yield from _nodes(inner, constants)


def _constant(node: NodeProto) -> Array | None:
    if node.op_type != "Constant":
        return None
    value = helper.get_node_attr_value(node, node.attribute[0].name)
    return numpy_helper.to_array(value) if isinstance(value, TensorProto) else np.asarray(value)


def _quantized_type(node: NodeProto, constants: dict[str, Array]) -> int:
    """The element type that a QuantizeLinear makes."""
    if len(node.input) > 2 and node.input[2] in constants:
        return helper.np_dtype_to_tensor_dtype(constants[node.input[2]].dtype)
    declared = next((attribute.i for attribute in node.attribute if attribute.name == "output_dtype"), 0)
    return int(declared) or TensorProto.UINT8  # ONNX's default


def _check_scale(node: NodeProto, constants: dict[str, Array]) -> None:
    scale = constants.get(node.input[1])
    if scale is None:
        raise _broken(node, f"its scale {node.input[1]!r} is not a constant", "store it as an initialiser")
    if scale.dtype not in (np.float32, np.float16) or not (np.isfinite(scale).all() and (scale > 0).all()):
        raise _broken(
            node, f"its scale is {scale.dtype}, smallest {scale.min()}", "scales are float32 or float16, finite, > 0"
        )


def _check_zero_point(node: NodeProto, constants: dict[str, Array]) -> None:
    if len(node.input) < 3 or not node.input[2]:
        return
    zero_point = constants.get(node.input[2])
    if zero_point is None:
        raise _broken(node, f"its zero point {node.input[2]!r} is not a constant", "store it as an initialiser")
    if zero_point.any():
        raise _broken(
            node, f"its zero point is {zero_point.ravel()[:4].tolist()}", "quantise symmetrically: zero point 0"
        )


def _check_type(node: NodeProto, constants: dict[str, Array], types: dict[str, int]) -> None:
    if node.op_type == "QuantizeLinear":
        made = types[node.output[0]]
    elif node.input[0] in constants:
        made = helper.np_dtype_to_tensor_dtype(constants[node.input[0]].dtype)
    else:
        made = types.get(node.input[0], TensorProto.UNDEFINED)
    if made != TensorProto.INT8:
        name = TensorProto.DataType.Name(made)
        cure = "keep biases in float" if made == TensorProto.INT32 else "quantise to int8"
        raise _broken(node, f"it works on {name}", cure)


def _broken(node: NodeProto, problem: str, cure: str) -> ExportError:
    name = node.name or f"the one that makes {node.output[0]!r}"
    return ExportError(f"quantised graph: node {name!r} ({node.op_type}): {problem}; {cure}")
