"""Convert a float32 graph to one that runs in float16 where that is safe, with explicit casts and strong types.

TensorRT 11 has no precision flags any more, so precision is in the graph. Which nodes stay float32 follows from what
they compute, from the weights' values, and from what flows through them on real images:

- sums over many values, softmax, normalisations, exponentials, roots; edgevis's own operators as a whole;
- what a comparison decides on: a rounding error there changes a decision and not a digit;
- what subtracts a mean, and what is only one value per channel: after a global pooling float32 costs nothing;
- what makes the outputs that a graph declares as float32, from the last convolution or matrix product on;
- what has values beyond float16's range, or so small that its smallest numbers are coarse.

Inputs and outputs of the graph stay float32. In a quantised graph the scales become float16 with what they scale; what
is read in both types is dequantised twice, each time with scales of the type that is read.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Collection, Iterable, Mapping

import numpy as np
import onnx
import onnx_ir as ir
import onnx_ir.passes.common as ir_passes
from onnx import ModelProto

from calibration.quantize.qdq import initializer, remove_unused_initializers
from calibration.quantize.rules import after_last_products
from calibration.quantize.sessions import open_session, proto_from_ir
from runtime.common.arrays import Array
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

_DEQUANTIZE = "DequantizeLinear"

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


def fp16_from_fp32(
    model: ModelProto, feeds: Iterable[Mapping[str, Array]], *, float32_outputs: Collection[str] = frozenset()
) -> ModelProto:
    """The graph in float16 where that is safe.

    Args:
        model: A float32 graph, or one with Q/DQ; it is not changed. Nodes with a definition in the model stay float32.
        feeds: Batches of real inputs; read once, one at a time.
        float32_outputs: See :attr:`runtime.bundle.spec.Graph.float32_outputs`.

    Raises:
        ExportError: There are no feeds, or a tensor's values are not finite.
        MissingDependencyError: ONNX Runtime is not installed.
    """
    cast = ir.from_proto(model)
    ir_passes.LiftConstantsToInitializersPass(lift_all_constants=True, size_limit=0)(cast)
    ir_passes.ShapeInferencePass(check_type=False, strict_mode=False, data_prop=True)(cast)
    fp16_nodes = _fp16_nodes(cast.graph, _peaks(cast, feeds)) - after_last_products(cast.graph, float32_outputs)
    _Rewriter(cast.graph, fp16_nodes).run()
    proto = proto_from_ir(cast)
    onnx.checker.check_model(proto, full_check=True)
    return proto


def _flowing(values: Iterable[ir.Value | None]) -> list[ir.Value]:
    """The tensors that are float32 and not constant."""
    return [value for value in values if value is not None and _flows(value)]


def _flows(value: ir.Value) -> bool:
    return value.dtype == ir.DataType.FLOAT and not value.is_initializer()


def _constant(value: ir.Value | None) -> Array | None:
    """The values of a float32 initialiser; None for every other tensor."""
    if value is None or value.dtype != ir.DataType.FLOAT or not value.is_initializer() or value.const_value is None:
        return None
    array: Array = value.const_value.numpy()
    return array


def _is_small(value: ir.Value) -> bool:
    """Whether a tensor holds at most one value per channel and image."""
    if value.shape is None:
        return False
    sizes = [size for size in value.shape[1:] if isinstance(size, int)]
    if len(sizes) < len(value.shape) - 1:
        return False
    return math.prod(sizes) <= _MAX_SMALL and math.prod(sizes) == max(sizes, default=1)


def _peaks(model: ir.Model, feeds: Iterable[Mapping[str, Array]]) -> dict[str, float]:
    """The largest magnitude of every flowing tensor, by name.

    The graph itself reduces each tensor to its peak, so that never more than one inference needs is in memory.
    """
    probe = model.clone()
    peaks = dict.fromkeys((value.name or "" for value in _flowing(probe.graph.inputs)), 0.0)
    probe.graph.outputs.clear()
    measured: list[str] = []
    for node in tuple(probe.graph):
        for value in _flowing(node.outputs):
            magnitude = ir.node("Abs", [value])
            peak = ir.node("ReduceMax", magnitude.outputs, {"keepdims": 0})
            magnitude.outputs[0].name = f"edgevis_magnitude_{len(measured)}"
            peak.outputs[0].name = f"edgevis_peak_{len(measured)}"
            peak.outputs[0].type, peak.outputs[0].shape = ir.TensorType(ir.DataType.FLOAT), ir.Shape([])
            probe.graph.extend([magnitude, peak])
            probe.graph.outputs.append(peak.outputs[0])
            measured.append(value.name or "")
    peaks |= dict.fromkeys(measured, 0.0)
    session = open_session(probe)
    count = 0
    for count, feed in enumerate(feeds, start=1):  # noqa: B007  # used after the loop
        values = dict(zip(measured, map(float, session.run(None, dict(feed))), strict=True))
        values.update({name: float(np.abs(array).max()) for name, array in feed.items() if name in peaks})
        for name, peak_value in values.items():
            if not math.isfinite(peak_value):
                raise ExportError(f"float16: the tensor {name!r} holds values that are not finite")
            peaks[name] = max(peaks[name], peak_value)
    if not count:
        raise ExportError("float16: there is no image to measure ranges on")
    return peaks


def _fp16_nodes(graph: ir.Graph, peaks: Mapping[str, float]) -> set[ir.Node]:
    """The nodes that compute in float16."""
    deciding = _deciding(graph)
    chosen: set[ir.Node] = set()
    for node in graph:
        if _wants_fp16(node, deciding, chosen):
            tensors = _flowing((*node.inputs, *node.outputs))
            if all(_in_range(peaks[value.name or ""]) for value in tensors):
                chosen.add(node)
    return {
        node
        for node in chosen
        if node.op_type != _DEQUANTIZE or any(reader in chosen for reader in node.outputs[0].consumers())
    }


def _wants_fp16(node: ir.Node, deciding: Collection[ir.Node], chosen: Collection[ir.Node]) -> bool:
    """Whether a node may compute in float16, ranges aside; ``chosen`` are the earlier float16 nodes."""
    flowing = _flowing(node.inputs)
    if node.op_type == "QuantizeLinear":  # follows what it reads
        return _scale_fits(node) and node.inputs[0] is not None and node.inputs[0].producer() in chosen
    if node.op_type == _DEQUANTIZE:
        return _scale_fits(node)
    if node.domain or node in deciding or not flowing or not _flowing(node.outputs):
        return False
    if node.op_type in _FOLLOWING:
        return any(value.producer() in chosen for value in flowing)
    return node.op_type in _HALF and _is_safe(node)


def _deciding(graph: ir.Graph) -> set[ir.Node]:
    """The nodes that comparisons depend on directly."""
    deciding: set[ir.Node] = set()
    waiting = [value for node in graph if node.op_type in _COMPARING for value in _flowing(node.inputs)]
    while waiting:
        node = waiting.pop().producer()
        if node is not None and node.op_type in _BEFORE_COMPARING and node not in deciding:
            deciding.add(node)
            waiting += _flowing(node.inputs)
    return deciding


def _is_safe(node: ir.Node) -> bool:
    flowing = _flowing(node.inputs)
    if all(map(_is_small, (*flowing, *_flowing(node.outputs)))):
        return False
    if node.op_type == "Sub" and len(flowing) == 2 and any(map(_is_small, flowing)):
        return False  # the mean of a tensor: rounded, it would shift all values by the same
    if node.op_type == "AveragePool" and math.prod(node.attributes["kernel_shape"].as_ints()) > _MAX_POOLED:
        return False
    float32_inputs = _ALWAYS_FLOAT.get(node.op_type, ())
    constants = [_constant(value) for index, value in enumerate(node.inputs) if index not in float32_inputs]
    return all(_weights_fit(constant) for constant in constants if constant is not None)


def _weights_fit(weights: Array) -> bool:
    """Whether the weights stay within float16's range, so that rounding only loses digits."""
    if not weights.size or not weights.any():
        return True
    if not float(np.abs(weights).max()) <= _MAX_HALF:
        return False
    rounded = weights.astype(np.float16).astype(np.float64)
    return bool(np.linalg.norm(rounded - weights) <= _MAX_WEIGHT_ERROR * np.linalg.norm(weights.astype(np.float64)))


def _in_range(peak: float) -> bool:
    return peak == 0.0 or _MIN_PEAK <= peak <= _MAX_PEAK


def _scale_fits(node: ir.Node) -> bool:
    """Whether the scales of a QuantizeLinear or DequantizeLinear may be float16."""
    scale = _constant(node.inputs[1])
    return scale is not None and _MIN_SCALE <= float(scale.min()) <= float(scale.max()) <= _MAX_HALF


class _Rewriter:
    """Converts constants to float16, and inserts casts where a tensor is read in another type than its own."""

    def __init__(self, graph: ir.Graph, fp16_nodes: Collection[ir.Node]) -> None:
        self._graph = graph
        self._fp16_nodes = fp16_nodes
        self._fp16_values = {value for node in graph if node in fp16_nodes for value in _flowing(node.outputs)}
        self._constants: dict[ir.Value, ir.Value] = {}
        # Before these nodes read float16 scales.
        self._dequantized = {node.outputs[0]: tuple(node.inputs) for node in fp16_nodes if node.op_type == _DEQUANTIZE}
        self._casts: dict[tuple[ir.Value, bool], ir.Value] = {}
        self._numbers = itertools.count()

    def run(self) -> None:
        """Rewrite the graph."""
        for node in tuple(self._graph):
            float32_inputs = _ALWAYS_FLOAT.get(node.op_type, ())
            for index, value in enumerate(node.inputs):
                if value is not None:
                    fp16 = node in self._fp16_nodes and index not in float32_inputs
                    node.replace_input_with(index, self._read(value, node, fp16=fp16))
        for index, value in enumerate(self._graph.outputs):
            if value in self._fp16_values:
                self._graph.outputs[index] = self._float32_output(value)
        remove_unused_initializers(self._graph)
        if self._fp16_values and any(node.op_type == "QuantizeLinear" for node in self._graph):
            opsets = self._graph.opset_imports
            opsets[""] = max(opsets[""], _OPSET_OF_HALF_SCALES)

    def _read(self, value: ir.Value, node: ir.Node, *, fp16: bool) -> ir.Value:
        """The tensor in the type in which the node reads it."""
        constant = _constant(value)
        if constant is not None:
            return self._fp16_constant(value, constant) if fp16 else value
        if not _flows(value) or (value in self._fp16_values) == fp16:
            return value
        if (value, fp16) not in self._casts:
            name = f"{value.name}_half" if fp16 else f"{value.name}_float"
            if value in self._dequantized:
                cast = self._dequantize(value, name)
            else:
                cast = self._cast(value, name, ir.DataType.FLOAT16 if fp16 else ir.DataType.FLOAT)
            self._graph.insert_before(node, cast)
            self._casts[value, fp16] = cast.outputs[0]
        return self._casts[value, fp16]

    def _fp16_constant(self, value: ir.Value, constant: Array) -> ir.Value:
        if value not in self._constants:
            self._constants[value] = initializer(self._graph, f"{value.name}_half", constant.astype(np.float16))
        return self._constants[value]

    def _float32_output(self, value: ir.Value) -> ir.Value:
        """A graph output's cast back to float32, under the output's name."""
        name = value.name or ""
        value.name = f"{name}_half"
        cast = self._cast(value, name, ir.DataType.FLOAT)
        cast.outputs[0].type, cast.outputs[0].shape = ir.TensorType(ir.DataType.FLOAT), value.shape
        self._graph.append(cast)
        return cast.outputs[0]

    def _dequantize(self, value: ir.Value, name: str) -> ir.Node:
        """A float16 DequantizeLinear's integers with the float32 scales.

        TensorRT takes such a node and a cast for one with float16 scales and a float32 result, which 10.16 cannot build
        on Orin (github.com/NVIDIA/TensorRT/issues/4832).
        """
        producer = value.producer()
        attributes = {} if producer is None else dict(producer.attributes)
        node = ir.node(_DEQUANTIZE, self._dequantized[value], attributes, name=f"autocast_{next(self._numbers)}")
        node.outputs[0].name = name
        node.outputs[0].type, node.outputs[0].shape = ir.TensorType(ir.DataType.FLOAT), value.shape
        return node

    def _cast(self, value: ir.Value, name: str, dtype: ir.DataType) -> ir.Node:
        cast = ir.node("Cast", [value], {"to": dtype}, name=f"autocast_{next(self._numbers)}")
        cast.outputs[0].name = name
        return cast
