"""Insert QuantizeLinear and DequantizeLinear into a float graph: the same pairs for every engine.

ONNX Runtime 1.31's ``quantize_static`` makes the same graph for ``placement="outputs"``. It is not used because a
search needs dozens of graphs of one model, and it takes 2 s for each of OSNet x0.25's, over files, with a calibration
run that cannot be left out; this takes 0.1 s.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import Literal

import numpy as np
import onnx_ir as ir

from runtime.common.arrays import Array

Placement = Literal["inputs", "outputs"]

INT8_MAX = 127


def with_qdq(
    model: ir.Model,
    amax: Mapping[str, float],
    layers: Collection[str],
    *,
    placement: Placement = "outputs",
    bias_correction: Mapping[str, Array] | None = None,
    float_results: Collection[str] = frozenset(),
) -> ir.Model:
    """A copy of the graph with symmetric int8 around some of its nodes.

    Args:
        model: A float graph without model-local functions, every node named; it is not changed.
        amax: The magnitude that 127 stands for, for each activation that may be rounded.
        layers: Names of Conv, Gemm and MatMul nodes. Activations get one scale per tensor, constant weights one per
            output channel; biases stay float (TensorRT's parser fails on INT32 behind DequantizeLinear).
        placement: ``inputs`` rounds what a layer reads. ``outputs`` also rounds what a convolution returns, which lets
            ONNX Runtime and OpenVINO fuse more and costs accuracy.
        bias_correction: Maps a layer's name to what is added to each channel of its result, (channels,) float32.
        float_results: Names of nodes whose result is not rounded with ``outputs`` either.
    """
    copy = model.clone()
    writer = _Writer(copy.graph, amax)
    for node in tuple(copy.graph):
        if node.name is None or node.name not in layers:
            continue
        writer.round_inputs(node)
        if bias_correction and node.name in bias_correction:
            writer.add_to_bias(node, bias_correction[node.name])
        if placement == "outputs" and node.op_type == "Conv" and node.name not in float_results:
            writer.round_output(node)
    remove_unused_initializers(copy.graph)
    return copy


def remove_unused_initializers(graph: ir.Graph) -> None:
    """Remove the initialisers that no node reads and that are no outputs."""
    for name, value in tuple(graph.initializers.items()):
        if not value.uses() and not value.is_graph_output():
            del graph.initializers[name]


def initializer(graph: ir.Graph, name: str, array: Array) -> ir.Value:
    """A new initialiser of the graph."""
    tensor = ir.Tensor(array, name=name)
    value = ir.Value(name=name, shape=ir.Shape(array.shape), type=ir.TensorType(tensor.dtype), const_value=tensor)
    graph.register_initializer(value)
    return value


class _Writer:
    """Inserts pairs of Q/DQ, one pair for each activation however many nodes read it."""

    def __init__(self, graph: ir.Graph, amax: Mapping[str, float]) -> None:
        self._graph = graph
        self._amax = amax
        self._activations: dict[ir.Value, ir.Value] = {}
        self._weights: dict[tuple[ir.Value, int], ir.Value] = {}

    def round_inputs(self, node: ir.Node) -> None:
        """Quantise the first two inputs of a layer."""
        for index, value in enumerate(node.inputs[:2]):
            if value is None:
                continue
            if value.is_initializer():
                node.replace_input_with(index, self._weight(value, node))
            elif value.name in self._amax:
                node.replace_input_with(index, self._activation(value, before=node))

    def round_output(self, node: ir.Node) -> None:
        """Quantise a layer's result for all nodes that read it."""
        value = node.outputs[0]
        if value.name not in self._amax or value.is_graph_output():
            return
        readers = value.uses()
        rounded = self._activation(value, after=node)
        for reader, index in readers:
            reader.replace_input_with(index, rounded)

    def add_to_bias(self, node: ir.Node, correction: Array) -> None:
        """Add values to the channels of a node's result; a node without a bias gets one."""
        bias = node.inputs[2] if len(node.inputs) > 2 else None
        if bias is not None:
            if not bias.is_initializer():
                return
            correction = _array(bias) + correction
        node.resize_inputs(3)
        corrected = initializer(self._graph, f"{node.name}_bias", np.asarray(correction, np.float32))
        node.replace_input_with(2, corrected)

    def _activation(self, value: ir.Value, *, before: ir.Node | None = None, after: ir.Node | None = None) -> ir.Value:
        """The quantised activation; a missing pair is inserted before or after the node."""
        if value not in self._activations:
            name = value.name or ""
            scale = initializer(self._graph, f"{name}_scale", np.array(self._amax[name] / INT8_MAX, np.float32))
            zero = initializer(self._graph, f"{name}_zero_point", np.array(0, np.int8))
            quantize = ir.node("QuantizeLinear", [value, scale, zero], name=f"{name}_QuantizeLinear")
            quantize.outputs[0].name = f"{name}_quantized"
            dequantize = ir.node(
                "DequantizeLinear", [quantize.outputs[0], scale, zero], name=f"{name}_DequantizeLinear"
            )
            dequantize.outputs[0].name = f"{name}_rounded"
            if before is not None:
                self._graph.insert_before(before, [quantize, dequantize])
            elif after is not None:
                self._graph.insert_after(after, [quantize, dequantize])
            self._activations[value] = dequantize.outputs[0]
        return self._activations[value]

    def _weight(self, value: ir.Value, node: ir.Node) -> ir.Value:
        """The quantised weight, with one scale per output channel."""
        weights = _array(value)
        axis = _channel_axis(node, weights.ndim)
        if (value, axis) not in self._weights:
            others = tuple(i for i in range(weights.ndim) if i != axis)
            peaks = np.abs(weights).max(axis=others, keepdims=True)
            # A channel of zeros, or of values so small that their scale would not be a normal number.
            scales = np.maximum(peaks.astype(np.float32) / INT8_MAX, np.finfo(np.float32).tiny)
            integers = np.clip(np.round(weights / scales), -INT8_MAX, INT8_MAX).astype(np.int8)
            prefix = value.name if (value, 1 - axis) not in self._weights else f"{value.name}_{axis}"
            parts = [
                initializer(self._graph, f"{prefix}_quantized", integers),
                initializer(self._graph, f"{prefix}_scale", scales.ravel()),
                initializer(self._graph, f"{prefix}_zero_point", np.zeros(scales.size, np.int8)),
            ]
            dequantize = ir.node("DequantizeLinear", parts, {"axis": axis}, name=f"{prefix}_DequantizeLinear")
            dequantize.outputs[0].name = f"{prefix}_rounded"
            self._graph.insert_before(node, dequantize)
            self._weights[value, axis] = dequantize.outputs[0]
        return self._weights[value, axis]


def _array(value: ir.Value) -> Array:
    """The values of an initialiser."""
    tensor = value.const_value
    if tensor is None:
        raise ValueError(f"{value.name!r} is no initialiser")
    array: Array = tensor.numpy()
    return array


def _channel_axis(node: ir.Node, dimensions: int) -> int:
    """The axis of a weight that corresponds to the result's channels."""
    if node.op_type == "Conv":
        return 0
    transposed = node.attributes.get_int("transB", 0)
    return 0 if transposed else dimensions - 1
