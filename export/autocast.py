"""From a float32 graph to one that runs in float16 where that is safe, with explicit casts and strong types.

TensorRT 11 has no precision flags any more, so precision is in the graph. Which nodes stay float32 follows from what
they compute, from the weights' values, and from what flows through them on real images:

- sums over many values, softmax, normalisations, exponentials, roots; edgevis's own operators as a whole;
- what a comparison decides on: a rounding error there changes a decision and not a digit;
- what subtracts a mean, and what is only one value per channel: after a global pooling float32 costs nothing;
- what has values beyond float16's range, or so small that its smallest numbers are coarse.

Inputs and outputs of the graph stay float32. In a quantised graph the scales become float16 with what they scale.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field

import numpy as np
import onnx
from onnx import ModelProto, NodeProto, TensorProto, helper, numpy_helper, shape_inference

from runtime.common.arrays import Array
from runtime.common.vendors import import_onnxruntime
from runtime.errors import ExportError

# What float16 computes well: everything that is not named here or below stays float32.
# fmt: off
_HALF = frozenset((
    "Add", "AveragePool", "Conv", "ConvTranspose", "Div", "Elu", "Gemm", "HardSigmoid", "HardSwish", "MatMul", "Mul",
    "PRelu", "Resize", "Sigmoid", "Sub", "Sum", "Tanh",
))
# fmt: on
# These move or choose values and round nothing: they compute in the type that their inputs have.
# fmt: off
_FOLLOWING = frozenset((
    "Abs", "Clip", "Concat", "DepthToSpace", "Expand", "Flatten", "Gather", "GatherElements", "GatherND",
    "GlobalMaxPool", "Identity", "LeakyRelu", "Max", "MaxPool", "Min", "Neg", "Pad", "ReduceMax", "ReduceMin", "Relu",
    "Reshape", "Slice", "SpaceToDepth", "Split", "Squeeze", "Tile", "Transpose", "Unsqueeze", "Where",
))
# fmt: on
_COMPARING = frozenset(("ArgMax", "ArgMin", "Equal", "Greater", "GreaterOrEqual", "Less", "LessOrEqual", "TopK"))
# Between a comparison and the convolution, product or activation before it.
_BEFORE_COMPARING = frozenset(("Abs", "Div", "Expand", "Mul", "Reshape", "Resize", "Squeeze", "Sub", "Unsqueeze"))
# Inputs, by position, that are float32 in any case.
_ALWAYS_FLOAT: Mapping[str, tuple[int, ...]] = {"Resize": (1, 2)}

_MAX_HALF = 65504.0
# Other images have other peaks.
_MAX_PEAK = _MAX_HALF / 4
# Below 2 ** -14 float16 has fixed steps of 2 ** -24: with this peak they are as fine, beside it, as rounding is.
_MIN_PEAK = 2.0**-12
# Rounded to float16, a scale from here on is off by less than what int8 leaves out of the values that it scales.
_MIN_SCALE = 2.0**-17
# Rounding alone gives 2 ** -12 or so; more comes from weights that are too small for float16.
_MAX_WEIGHT_ERROR = 2.0**-10
_MAX_POOLED = 64
# One value for each of so many channels: what a global pooling leaves.
_MAX_SMALL = 4096
# QuantizeLinear takes float16 from this one on.
_OPSET_OF_HALF_SCALES = 19


def fp16_from_fp32(model: ModelProto, feeds: Iterable[Mapping[str, Array]]) -> ModelProto:
    """The graph in float16 where that is safe.

    Args:
        model: A float32 graph, or one with Q/DQ; it is not changed. Nodes with a definition in the model stay float32.
        feeds: Batches of real inputs; read once, one at a time.

    Raises:
        ExportError: There are no feeds, or a tensor's values are not finite.
        MissingDependencyError: ONNX Runtime is not installed.
    """
    graph = _Graph.of(model)
    peaks = _peaks(graph, feeds)
    return _rewritten(graph, _half_nodes(graph, peaks))


@dataclass(frozen=True, slots=True)
class _Graph:
    """A model with what is known of its tensors.

    Attributes:
        model: A copy whose constants are all initialisers.
        constants: The float32 initialisers.
        shapes: Of every float32 tensor that a node makes or the graph takes; None for an axis that is open.
        makers: Tensor name to the node that makes it.
    """

    model: ModelProto
    constants: Mapping[str, Array]
    shapes: Mapping[str, tuple[int | None, ...] | None]
    makers: Mapping[str, NodeProto] = field(default_factory=dict)

    @classmethod
    def of(cls, model: ModelProto) -> _Graph:
        copy = ModelProto()
        copy.CopyFrom(model)
        _constants_to_initializers(copy)
        inferred = shape_inference.infer_shapes(copy, data_prop=True).graph
        shapes: dict[str, tuple[int | None, ...] | None] = {}
        for value in (*inferred.input, *inferred.value_info, *inferred.output):
            tensor = value.type.tensor_type
            if tensor.elem_type == TensorProto.FLOAT:
                sizes = tuple(size.dim_value if size.HasField("dim_value") else None for size in tensor.shape.dim)
                shapes[value.name] = sizes if tensor.HasField("shape") else None
        constants = {
            tensor.name: numpy_helper.to_array(tensor)
            for tensor in copy.graph.initializer
            if tensor.data_type == TensorProto.FLOAT
        }
        for name in constants:
            shapes.pop(name, None)
        makers = {name: node for node in copy.graph.node for name in node.output}
        return cls(copy, constants, shapes, makers)

    def flowing(self, names: Iterable[str]) -> list[str]:
        """Those of the tensors that are float32 and not constant."""
        return [name for name in names if name in self.shapes]

    def small(self, name: str) -> bool:
        """Whether a tensor holds one value per channel and image, or less."""
        shape = self.shapes[name]
        if shape is None or None in shape[1:]:
            return False
        sizes = [size for size in shape[1:] if size is not None]
        return math.prod(sizes) <= _MAX_SMALL and math.prod(sizes) == max(sizes, default=1)


def _constants_to_initializers(model: ModelProto) -> None:
    kept = []
    for node in model.graph.node:
        value = helper.get_node_attr_value(node, node.attribute[0].name) if node.op_type == "Constant" else None
        if node.op_type != "Constant" or node.attribute[0].name == "sparse_value":
            kept.append(node)
        elif isinstance(value, TensorProto):
            tensor = model.graph.initializer.add()
            tensor.CopyFrom(value)
            tensor.name = node.output[0]
        else:
            dtype = np.float32 if node.attribute[0].name.startswith("value_float") else np.int64
            model.graph.initializer.append(numpy_helper.from_array(np.array(value, dtype), node.output[0]))
    nodes = [NodeProto.FromString(node.SerializeToString()) for node in kept]
    del model.graph.node[:]
    model.graph.node.extend(nodes)


def _peaks(graph: _Graph, feeds: Iterable[Mapping[str, Array]]) -> dict[str, float]:
    """The largest magnitude of every flowing tensor.

    The graph itself reduces each tensor to its peak, so that never more than one inference needs is in memory.
    """
    onnxruntime = import_onnxruntime()
    probe = ModelProto()
    probe.CopyFrom(graph.model)
    del probe.graph.output[:]
    made = [name for name in graph.shapes if name in graph.makers]
    for number, name in enumerate(made):
        probe.graph.node.append(helper.make_node("Abs", [name], [f"edgevis_magnitude_{number}"]))
        probe.graph.node.append(
            helper.make_node("ReduceMax", [f"edgevis_magnitude_{number}"], [f"edgevis_peak_{number}"], keepdims=0)
        )
        probe.graph.output.append(helper.make_tensor_value_info(f"edgevis_peak_{number}", TensorProto.FLOAT, ()))
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3
    session = onnxruntime.InferenceSession(probe.SerializeToString(), options, providers=["CPUExecutionProvider"])
    peaks = dict.fromkeys(graph.shapes, 0.0)
    count = 0
    for count, feed in enumerate(feeds, start=1):  # noqa: B007  # used after the loop
        found = dict(zip(made, map(float, session.run(None, dict(feed))), strict=True))
        found.update({name: float(np.abs(array).max()) for name, array in feed.items() if name in peaks})
        for name, peak in found.items():
            if not math.isfinite(peak):
                raise ExportError(f"float16: the tensor {name!r} holds values that are not finite")
            peaks[name] = max(peaks[name], peak)
    if not count:
        raise ExportError("float16: there is no image to measure ranges on")
    return peaks


def _half_nodes(graph: _Graph, peaks: Mapping[str, float]) -> set[str]:
    """The first outputs of those nodes that compute in float16."""
    deciding = _deciding(graph)
    half: set[str] = set()  # first outputs of nodes
    tensors: set[str] = set()  # what they make
    for node in graph.model.graph.node:
        flowing = graph.flowing(node.input)
        if node.op_type in ("QuantizeLinear", "DequantizeLinear"):
            chosen = _quantization_in_half(graph, node, tensors)
        elif node.domain or node.output[0] in deciding or not flowing or not graph.flowing(node.output):
            chosen = False
        elif node.op_type in _FOLLOWING:
            chosen = any(name in tensors for name in flowing)
        else:
            chosen = node.op_type in _HALF and _safe(graph, node)
        if chosen and all(_in_range(peaks[name]) for name in graph.flowing((*node.input, *node.output))):
            half.add(node.output[0])
            tensors.update(graph.flowing(node.output))
    return half - _read_as_float(graph, half)


def _read_as_float(graph: _Graph, half: set[str]) -> set[str]:
    """The outputs of those DequantizeLinear that nothing reads in float16."""
    read = {name for node in graph.model.graph.node if node.output[0] in half for name in node.input}
    return {name for name in half - read if graph.makers[name].op_type == "DequantizeLinear"}


def _deciding(graph: _Graph) -> set[str]:
    """The outputs of the nodes that comparisons depend on directly."""
    found: set[str] = set()
    waiting = [
        name for node in graph.model.graph.node if node.op_type in _COMPARING for name in graph.flowing(node.input)
    ]
    while waiting:
        name = waiting.pop()
        node = graph.makers.get(name)
        if node is not None and node.op_type in _BEFORE_COMPARING and name not in found:
            found.add(name)
            waiting += graph.flowing(node.input)
    return found


def _safe(graph: _Graph, node: NodeProto) -> bool:
    flowing = graph.flowing(node.input)
    if all(graph.small(name) for name in (*flowing, *graph.flowing(node.output))):
        return False
    if node.op_type == "Sub" and len(flowing) == 2 and any(map(graph.small, flowing)):
        return False  # the mean of a tensor: rounded, it would shift all values by the same
    if node.op_type == "AveragePool":
        kernel = next(list(item.ints) for item in node.attribute if item.name == "kernel_shape")
        if math.prod(kernel) > _MAX_POOLED:
            return False
    kept = _ALWAYS_FLOAT.get(node.op_type, ())
    return all(
        _weights_fit(graph.constants[name])
        for index, name in enumerate(node.input)
        if name in graph.constants and index not in kept
    )


def _weights_fit(weights: Array) -> bool:
    """Whether rounding to float16 loses nothing but digits."""
    if not weights.size or not weights.any():
        return True
    if not float(np.abs(weights).max()) <= _MAX_HALF:
        return False
    rounded = weights.astype(np.float16).astype(np.float64)
    return bool(np.linalg.norm(rounded - weights) <= _MAX_WEIGHT_ERROR * np.linalg.norm(weights.astype(np.float64)))


def _in_range(peak: float) -> bool:
    return peak == 0.0 or _MIN_PEAK <= peak <= _MAX_PEAK


def _quantization_in_half(graph: _Graph, node: NodeProto, tensors: set[str]) -> bool:
    """Q follows what it reads; DQ makes float16 where its scales allow that."""
    scale = graph.constants.get(node.input[1])
    if scale is None or not _MIN_SCALE <= float(scale.min()) <= float(scale.max()) <= _MAX_HALF:
        return False
    return node.op_type == "DequantizeLinear" or node.input[0] in tensors


def _rewritten(graph: _Graph, half: set[str]) -> ModelProto:
    """The model with float16 constants and with casts where a tensor is read in another type than it was made in."""
    model = ModelProto()
    model.CopyFrom(graph.model)
    rewriter = _Rewriter(graph, model, half)
    for node in graph.model.graph.node:
        rewriter.add(node)
    rewriter.finish()
    return model


class _Rewriter:
    """Copies the nodes one by one, in their order."""

    def __init__(self, graph: _Graph, model: ModelProto, half: set[str]) -> None:
        self._graph, self._model, self._half = graph, model, half
        self._made_half: set[str] = set()
        self._casts: dict[tuple[str, bool], str] = {}
        self._used: set[str] = set()
        self._names = itertools.count()
        self._outputs = {value.name for value in model.graph.output}
        del model.graph.node[:]
        del model.graph.value_info[:]

    def add(self, node: NodeProto) -> None:
        half = node.output[0] in self._half
        copy = NodeProto()
        copy.CopyFrom(node)
        kept = _ALWAYS_FLOAT.get(node.op_type, ())
        for index, name in enumerate(node.input):
            copy.input[index] = self._read(name, half=half and index not in kept)
        for index, name in enumerate(node.output):
            if half and name in self._graph.shapes:
                self._made_half.add(name)
                copy.output[index] = self._half_name(name)
        self._model.graph.node.append(copy)

    def finish(self) -> None:
        for name in self._outputs & self._made_half:
            self._cast(self._half_name(name), name, TensorProto.FLOAT)
        initializers = [item for item in self._model.graph.initializer if item.name in self._used]
        initializers = [TensorProto.FromString(item.SerializeToString()) for item in initializers]
        del self._model.graph.initializer[:]
        self._model.graph.initializer.extend(initializers)
        if any(node.op_type == "QuantizeLinear" for node in self._model.graph.node) and self._made_half:
            for opset in self._model.opset_import:
                if not opset.domain:
                    opset.version = max(opset.version, _OPSET_OF_HALF_SCALES)
        onnx.checker.check_model(self._model, full_check=True)

    def _read(self, name: str, *, half: bool) -> str:
        """The name under which a tensor is to be read in that type."""
        if name in self._graph.constants:
            return self._constant(name, half=half)
        if name not in self._graph.shapes:
            self._used.add(name)
            return name
        made_half = name in self._made_half
        source = self._half_name(name) if made_half else name
        if made_half == half:
            return source
        if (name, half) not in self._casts:
            # A graph's output keeps its name; the cast that makes it comes at the end.
            target = f"{name}_half" if half else f"{name}_float"
            self._casts[name, half] = target
            self._cast(source, target, TensorProto.FLOAT16 if half else TensorProto.FLOAT)
        return self._casts[name, half]

    def _constant(self, name: str, *, half: bool) -> str:
        if not half:
            self._used.add(name)
            return name
        copy = f"{name}_half"
        if copy not in self._used:
            self._used.add(copy)
            values = self._graph.constants[name].astype(np.float16)
            self._model.graph.initializer.append(numpy_helper.from_array(values, copy))
        return copy

    def _half_name(self, name: str) -> str:
        return f"{name}_half" if name in self._outputs else name

    def _cast(self, source: str, target: str, to: int) -> None:
        name = f"autocast_{next(self._names)}"
        self._model.graph.node.append(helper.make_node("Cast", [source], [target], name=name, to=to))
