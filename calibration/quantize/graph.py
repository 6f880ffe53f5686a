"""One int8 graph for ONNX Runtime, OpenVINO and TensorRT: a float ONNX graph with Q/DQ."""

from __future__ import annotations

import itertools
from collections.abc import Collection, Iterable, Iterator, Mapping
from dataclasses import dataclass

import onnx_ir as ir
from onnx import ModelProto

from calibration.quantize.bias_correction import measure_bias_correction
from calibration.quantize.config import QuantizationConfig
from calibration.quantize.lint import lint_quantized
from calibration.quantize.qdq import with_qdq
from calibration.quantize.ranges import measure_histograms
from calibration.quantize.rules import Prepared, prepare
from calibration.quantize.sessions import proto_from_ir
from runtime.common.arrays import Array
from runtime.errors import ExportError

# Few images suffice for the means of channels; they are held in memory.
_MEAN_FEEDS = 16
_MEAN_BYTES = 128 << 20
# What cuts values off and leaves the others as they are.
_CUTTING = ("Relu", "Clip")


@dataclass(frozen=True, slots=True, eq=False)
class Ranges:
    """The ranges of one graph, as calibration measured them.

    Attributes:
        amax: The magnitude that 127 stands for, for each activation around a layer.
        bias_correction: Maps a layer to what rounding takes from the mean of each channel, (channels,) float32, see
            :mod:`calibration.quantize.bias_correction`.
    """

    amax: Mapping[str, float]
    bias_correction: Mapping[str, Array]


def measure_ranges(prepared: Prepared, feeds: Iterable[Mapping[str, Array]], config: QuantizationConfig) -> Ranges:
    """Measure the ranges on real inputs, in the float graph.

    Args:
        prepared: The graph.
        feeds: Batches of real inputs; read once, one at a time. The first few stay in memory for the bias correction.
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
    first_feeds: list[Mapping[str, Array]] = []
    all_feeds = _keep_first(itertools.chain([first], remaining), first_feeds)
    histograms = measure_histograms(prepared.model, prepared.activations, all_feeds)
    amax = {name: histogram.amax(config.method, config.percentile) for name, histogram in histograms.items()}
    return Ranges(amax, measure_bias_correction(prepared.model, amax, names, first_feeds))


def int8_graph(
    prepared: Prepared, ranges: Ranges, config: QuantizationConfig, *, nodes_to_exclude: Collection[str] = frozenset()
) -> ModelProto:
    """The graph with Q/DQ around all layers but ``nodes_to_exclude``; it has passed :func:`lint_quantized`.

    Raises:
        ExportError: The graph breaks a rule of the linter; the message names the node.
    """
    amax = dict(ranges.amax)
    if config.placement == "outputs":
        amax.update(_amax_after_cutting(prepared.model.graph, amax))
    layers = {layer.name for layer in prepared.layers} - set(nodes_to_exclude)
    model = with_qdq(
        prepared.model,
        amax,
        layers,
        placement=config.placement,
        bias_correction=ranges.bias_correction,
        float_results={layer.name for layer in prepared.layers if "last" in layer.kinds},
    )
    lint_quantized(model)
    return proto_from_ir(model)


def quantize(
    model: ModelProto, feeds: Iterable[Mapping[str, Array]], *, config: QuantizationConfig | None = None
) -> ModelProto:
    """Prepare, calibrate and quantise a graph: Q/DQ around all operators of the configuration.

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


def _amax_after_cutting(graph: ir.Graph, amax: Mapping[str, float]) -> dict[str, float]:
    """The amax of tensors that only a ReLU or Clip reads: that of its result.

    What it cuts off needs no integers. With both on one grid, the second rounding changes nothing.
    """
    shared = {}
    for name, value in ir.convenience.create_value_mapping(graph).items():
        readers = value.consumers()
        if name in amax and len(value.uses()) == 1 and readers[0].op_type in _CUTTING and not value.is_graph_output():
            result = readers[0].outputs[0].name or ""
            if result in amax:
                shared[name] = amax[result]
    return shared


def _keep_first(
    feeds: Iterable[Mapping[str, Array]], first_feeds: list[Mapping[str, Array]]
) -> Iterator[Mapping[str, Array]]:
    """Yield the feeds and append the first ones, as many as memory allows, to ``first_feeds``."""
    size = 0
    for feed in feeds:
        size += sum(array.nbytes for array in feed.values())
        if not first_feeds or (len(first_feeds) < _MEAN_FEEDS and size <= _MEAN_BYTES):
            first_feeds.append(feed)
        yield feed
