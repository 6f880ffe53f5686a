"""Cut an ONNX graph, as ONNX Runtime and TensorRT take it."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from functools import cached_property
from pathlib import Path

import onnx
from onnx import AttributeProto, ModelProto, NodeProto, TensorProto, ValueInfoProto, helper, inliner

from export.debug.graphs import GraphLayer, given_name
from runtime.bundle.engine_files import ONNX, EngineFiles
from runtime.common.arrays import Array
from runtime.errors import ExportError

# What these make are no numbers that rounding moves a little.
_INTEGERS = frozenset({"QuantizeLinear", "Shape", "Size", "ArgMax", "ArgMin", "NonZero"})


class OnnxGraph:
    """An ONNX model with its functions inlined.

    Raises:
        ExportError: A node holds a graph of its own (If, Loop).
    """

    def __init__(self, model: ModelProto) -> None:
        self._model = inliner.inline_local_functions(model) if model.functions else model
        self._constants = frozenset(tensor.name for tensor in self._model.graph.initializer)
        for node in self._model.graph.node:
            if any(item.type in (AttributeProto.GRAPH, AttributeProto.GRAPHS) for item in node.attribute):
                raise ExportError(f"the graph's node {node.name!r} ({node.op_type}) holds a graph of its own")

    @classmethod
    def load(cls, path: Path) -> OnnxGraph:
        """The graph of a file, with its external data."""
        return cls(onnx.load(path))

    @cached_property
    def inputs(self) -> tuple[str, ...]:
        return tuple(value.name for value in self._model.graph.input if value.name not in self._constants)

    @cached_property
    def outputs(self) -> tuple[str, ...]:
        return tuple(value.name for value in self._model.graph.output)

    @cached_property
    def layers(self) -> tuple[GraphLayer, ...]:
        constants = set(self._constants)
        layers = []
        for node in self._model.graph.node:
            read = [name for name in node.input if name]
            activations = tuple(name for name in read if name not in constants)
            if not activations:  # its value is the same for all inputs, as that of a constant
                constants.update(node.output)
                continue
            weights = tuple(name for name in read if name in constants)
            layers.append(GraphLayer(node.op_type, activations, tuple(name for name in node.output if name), weights))
        return tuple(layers)

    @cached_property
    def float_tensors(self) -> frozenset[str]:
        return frozenset(name for layer in self.layers if layer.kind not in _INTEGERS for name in layer.outputs)

    def cut(self, feeds: Mapping[str, Array], outputs: Sequence[str]) -> OnnxGraph:
        graph = self._model.graph
        makers = {name: node for node in graph.node for name in node.output if name}
        names = {tensor: given_name(tensor, outputs) for tensor in feeds}
        needed: set[str] = set()  # tensors whose makers are kept
        read: set[str] = set()
        waiting = [name for name in outputs if name not in self._constants]
        while waiting:
            name = waiting.pop()
            if name in needed:
                continue
            if name not in makers:
                raise ExportError(f"the graph has no tensor {name!r} that could be computed from {', '.join(feeds)}")
            needed.add(name)
            for source in makers[name].input:
                if source in feeds:
                    read.add(source)
                elif source and source not in self._constants:
                    waiting.append(source)
        nodes = [_renamed(node, names) for node in graph.node if needed.intersection(node.output)]
        used = {name for node in nodes for name in node.input}
        declared = {value.name: value for value in graph.input}
        part = helper.make_graph(
            nodes,
            graph.name,
            [_input(names[name], declared.get(name), array) for name, array in feeds.items() if name in read],
            list(self._declared_outputs(outputs)),
            [tensor for tensor in graph.initializer if tensor.name in used],
        )
        model = helper.make_model(part, opset_imports=self._model.opset_import, ir_version=self._model.ir_version)
        return OnnxGraph(model)

    def files(self, name: str) -> EngineFiles:
        return EngineFiles(f"{name}{ONNX}", self._model.SerializeToString())

    def _declared_outputs(self, names: Sequence[str]) -> Iterator[ValueInfoProto]:
        declared = {value.name: value for value in self._model.graph.output}
        for name in names:
            yield declared.get(name) or ValueInfoProto(name=name)  # of another one the engine infers the type


def _renamed(node: NodeProto, names: Mapping[str, str]) -> NodeProto:
    copy = NodeProto()
    copy.CopyFrom(node)
    copy.input[:] = [names.get(name, name) for name in node.input]
    return copy


def _input(name: str, declared: ValueInfoProto | None, array: Array) -> ValueInfoProto:
    if declared is not None and declared.name == name:
        return declared
    kind: TensorProto.DataType = helper.np_dtype_to_tensor_dtype(array.dtype)
    return helper.make_tensor_value_info(name, kind, list(array.shape))
