"""From a float ONNX graph to one with Q/DQ: a single INT8 graph for ONNX Runtime, OpenVINO and TensorRT."""

from __future__ import annotations

import itertools
from collections.abc import Collection, Iterable, Iterator, Mapping
from dataclasses import dataclass

import onnx
from onnx import ModelProto

from calibration.quantize.bias_correction import measure_bias_correction
from calibration.quantize.config import QuantizationConfig
from calibration.quantize.lint import lint_quantized
from calibration.quantize.qdq import with_qdq
from calibration.quantize.ranges import measure_histograms
from calibration.quantize.rules import Prepared, prepare
from runtime.common.arrays import Array
from runtime.errors import ExportError

# The means of channels settle with few images; they are kept in memory.
_MEAN_FEEDS = 16
_MEAN_BYTES = 128 << 20
# What cuts values off and leaves the others as they are.
_CUTTING = ("Relu", "Clip")


@dataclass(frozen=True, slots=True, eq=False)
class Ranges:
    """What calibration measured of one graph.

    Attributes:
        amax: The magnitude that 127 stands for, for each activation around a layer.
        bias_correction: What rounding takes from the mean of each channel of a layer, see
            :mod:`calibration.quantize.bias_correction`.
    """

    amax: Mapping[str, float]
    bias_correction: Mapping[str, Array]


def measure_ranges(prepared: Prepared, feeds: Iterable[Mapping[str, Array]], config: QuantizationConfig) -> Ranges:
    """Run real inputs through the float graph.

    Args:
        prepared: The graph.
        feeds: Batches of real inputs; read once, one at a time. The first few are kept for the means of the channels.
        config: How ranges follow from values.

    Raises:
        ExportError: There are no feeds, or a tensor's values are not finite.
        MissingDependencyError: ONNX Runtime is not installed.
    """
    names = {layer.name for layer in prepared.layers}
    if not names:
        return Ranges({}, {})
    remaining: Iterator[Mapping[str, Array]] = iter(feeds)
    first = next(remaining, None)
    if first is None:
        raise ExportError("calibration: there is no image to measure ranges on")
    kept: list[Mapping[str, Array]] = []
    histograms = measure_histograms(
        prepared.model, _activations(prepared.model, names), _keeping(itertools.chain([first], remaining), kept)
    )
    amax = {name: histogram.amax(config.method, config.percentile) for name, histogram in histograms.items()}
    return Ranges(amax, measure_bias_correction(prepared.model, amax, names, kept))


def int8_graph(
    prepared: Prepared, ranges: Ranges, config: QuantizationConfig, *, nodes_to_exclude: Collection[str] = frozenset()
) -> ModelProto:
    """The graph with Q/DQ around all layers but ``nodes_to_exclude``; it has passed :func:`lint_quantized`.

    Raises:
        ExportError: It has not; the message names the node.
    """
    amax = dict(ranges.amax)
    if config.placement == "outputs":
        amax.update(_amax_after_cutting(prepared.model, amax))
    layers = {layer.name for layer in prepared.layers} - set(nodes_to_exclude)
    made = with_qdq(prepared.model, amax, layers, placement=config.placement, bias_correction=ranges.bias_correction)
    lint_quantized(made)
    return made


def quantize(
    model: ModelProto, feeds: Iterable[Mapping[str, Array]], *, config: QuantizationConfig | None = None
) -> ModelProto:
    """Prepare, measure and convert at once: the graph with Q/DQ around all that :class:`QuantizationConfig` names.

    Args:
        model: A float graph; it is not changed. Model-local functions are inlined.
        feeds: As for :func:`measure_ranges`.
        config: None for the default one.

    Raises:
        ExportError: There are no feeds, or a tensor's values are not finite.
        MissingDependencyError: ONNX Runtime is not installed.
    """
    config = config or QuantizationConfig()
    prepared = prepare(model, config.operators)
    return int8_graph(prepared, measure_ranges(prepared, feeds, config), config)


def _activations(model: ModelProto, layers: Collection[str]) -> list[str]:
    """The float inputs and outputs of the layers, each once, in order."""
    constants = {tensor.name for tensor in model.graph.initializer}
    constants |= {name for node in model.graph.node if node.op_type == "Constant" for name in node.output}
    values = (*model.graph.input, *model.graph.output, *model.graph.value_info)
    floats = {value.name for value in values if value.type.tensor_type.elem_type == onnx.TensorProto.FLOAT}
    used = (name for node in model.graph.node if node.name in layers for name in (*node.input, *node.output))
    return [name for name in dict.fromkeys(used) if name in floats and name not in constants]


def _amax_after_cutting(model: ModelProto, amax: Mapping[str, float]) -> dict[str, float]:
    """The amax of tensors that only a ReLU or Clip reads: that of its result.

    What it cuts off needs no integers. With both on one grid, the second rounding changes nothing.
    """
    readers: dict[str, list[onnx.NodeProto]] = {}
    for node in model.graph.node:
        for name in node.input:
            readers.setdefault(name, []).append(node)
    kept = {value.name for value in model.graph.output}
    shared = {}
    for name in amax:
        nodes = readers.get(name, [])
        if len(nodes) == 1 and nodes[0].op_type in _CUTTING and name not in kept and nodes[0].output[0] in amax:
            shared[name] = amax[nodes[0].output[0]]
    return shared


def _keeping(feeds: Iterable[Mapping[str, Array]], kept: list[Mapping[str, Array]]) -> Iterator[Mapping[str, Array]]:
    """The same feeds; the first ones, as many as memory allows, end up in ``kept``."""
    size = 0
    for feed in feeds:
        size += sum(array.nbytes for array in feed.values())
        if not kept or (len(kept) < _MEAN_FEEDS and size <= _MEAN_BYTES):
            kept.append(feed)
        yield feed
