"""Put QuantizeLinear and DequantizeLinear into a float graph: the same pairs for every engine.

ONNX Runtime 1.31's ``quantize_static`` makes the same graph for ``placement="outputs"``. It is not used because a
search needs dozens of graphs of one model, and it takes 2 s for each of OSNet x0.25's, over files, with a calibration
run that it cannot be talked out of; this takes 0.03 s.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import Literal

import numpy as np
from onnx import ModelProto, NodeProto, TensorProto, helper, numpy_helper

from runtime.common.arrays import Array

Placement = Literal["inputs", "outputs"]

INT8_MAX = 127


def with_qdq(
    model: ModelProto,
    amax: Mapping[str, float],
    layers: Collection[str],
    *,
    placement: Placement = "outputs",
    bias_correction: Mapping[str, Array] | None = None,
) -> ModelProto:
    """The graph with symmetric int8 around some of its nodes; the rest is as it was.

    Args:
        model: A float graph without model-local functions, every node named; it is not changed.
        amax: The magnitude that 127 stands for, for each activation that may be rounded.
        layers: Names of Conv, Gemm and MatMul nodes. Activations get one scale per tensor, constant weights one per
            output channel; biases stay float (TensorRT's parser fails on INT32 behind DequantizeLinear).
        placement: ``inputs`` rounds what a layer reads. ``outputs`` also rounds what a convolution makes, which lets
            ONNX Runtime and OpenVINO fuse more and costs accuracy.
        bias_correction: For a layer's name what to add to each channel of its result, (channels,).
    """
    made = ModelProto()
    made.CopyFrom(model)
    writer = _Writer(made, amax)
    for node in made.graph.node:
        chosen = node.name in layers
        if chosen:
            writer.round_inputs(node)
            if bias_correction and node.name in bias_correction:
                writer.add_to_bias(node, bias_correction[node.name])
        writer.nodes.append(node)
        if chosen and placement == "outputs" and node.op_type == "Conv":
            writer.round_output(node)
    return writer.finish()


class _Writer:
    def __init__(self, model: ModelProto, amax: Mapping[str, float]) -> None:
        self.nodes: list[NodeProto] = []
        self._model = model
        self._amax = amax
        self._constants = {tensor.name: tensor for tensor in model.graph.initializer}
        self._outputs = {value.name for value in model.graph.output}
        self._activations: dict[str, str] = {}
        self._weights: dict[tuple[str, int], str] = {}
        self._rounded_for_all: set[str] = set()

    def round_inputs(self, node: NodeProto) -> None:
        for index, name in enumerate(node.input[:2]):
            if name in self._constants:
                node.input[index] = self._weight(name, _channel_axis(node, len(self._constants[name].dims)))
            elif name in self._amax:
                node.input[index] = self._activation(name)

    def round_output(self, node: NodeProto) -> None:
        name = node.output[0]
        if name in self._amax and name not in self._outputs:
            self._activation(name)
            self._rounded_for_all.add(name)

    def add_to_bias(self, node: NodeProto, shift: Array) -> None:
        """Shift a result's channels; a node that has no bias gets one."""
        if len(node.input) > 2 and node.input[2] in self._constants:
            shift = numpy_helper.to_array(self._constants[node.input[2]]) + shift
            del node.input[2:]
        node.input.append(self._store(f"{node.name}_bias", np.asarray(shift, np.float32)))

    def finish(self) -> ModelProto:
        graph = self._model.graph
        for node in self.nodes:
            if node.op_type != "QuantizeLinear":
                for index, name in enumerate(node.input):
                    if name in self._rounded_for_all:
                        node.input[index] = self._activations[name]
        copies = [NodeProto.FromString(node.SerializeToString()) for node in self.nodes]
        del graph.node[:]
        graph.node.extend(copies)
        used = {name for node in copies for name in _names_read(node)} | self._outputs
        kept = [tensor for tensor in self._constants.values() if tensor.name in used]
        kept = [TensorProto.FromString(tensor.SerializeToString()) for tensor in kept]
        del graph.initializer[:]
        graph.initializer.extend(kept)
        del graph.value_info[:]
        return self._model

    def _activation(self, name: str) -> str:
        if name not in self._activations:
            scale = self._store(f"{name}_scale", np.array(self._amax[name] / INT8_MAX, np.float32))
            zero = self._store(f"{name}_zero_point", np.array(0, np.int8))
            integers, result = f"{name}_quantized", f"{name}_rounded"
            self.nodes.append(
                helper.make_node("QuantizeLinear", [name, scale, zero], [integers], name=f"{name}_QuantizeLinear")
            )
            self.nodes.append(
                helper.make_node("DequantizeLinear", [integers, scale, zero], [result], name=f"{name}_DequantizeLinear")
            )
            self._activations[name] = result
        return self._activations[name]

    def _weight(self, name: str, axis: int) -> str:
        if (name, axis) not in self._weights:
            values = numpy_helper.to_array(self._constants[name])
            others = tuple(i for i in range(values.ndim) if i != axis)
            peaks = np.abs(values).max(axis=others, keepdims=True)
            # A channel of zeros, or of values so small that their scale would not be a normal number.
            scales = np.maximum(peaks.astype(np.float32) / INT8_MAX, np.finfo(np.float32).tiny)
            integers = np.clip(np.round(values / scales), -INT8_MAX, INT8_MAX).astype(np.int8)
            prefix = name if (name, 1 - axis) not in self._weights else f"{name}_{axis}"
            parts = [
                self._store(f"{prefix}_quantized", integers),
                self._store(f"{prefix}_scale", scales.ravel()),
                self._store(f"{prefix}_zero_point", np.zeros(scales.size, np.int8)),
            ]
            result = f"{prefix}_rounded"
            self.nodes.append(
                helper.make_node("DequantizeLinear", parts, [result], name=f"{prefix}_DequantizeLinear", axis=axis)
            )
            self._weights[name, axis] = result
        return self._weights[name, axis]

    def _store(self, name: str, value: Array) -> str:
        self._constants[name] = numpy_helper.from_array(value, name)
        return name


def _channel_axis(node: NodeProto, dimensions: int) -> int:
    """The axis of a weight along which the result's channels are."""
    if node.op_type == "Conv":
        return 0
    transposed = any(attribute.name == "transB" and attribute.i for attribute in node.attribute)
    return 0 if transposed else dimensions - 1


def _names_read(node: NodeProto) -> list[str]:
    """What a node reads, the graphs inside it too."""
    names = list(node.input)
    for attribute in node.attribute:
        for inner in (*([attribute.g] if attribute.HasField("g") else []), *attribute.graphs):
            names += [name for part in inner.node for name in _names_read(part)]
            names += [value.name for value in inner.output]
    return names
