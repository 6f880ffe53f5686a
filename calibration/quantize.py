"""From a float ONNX graph to one with Q/DQ: a single INT8 graph for ONNX Runtime, OpenVINO and TensorRT."""

from __future__ import annotations

import hashlib
import itertools
import json
from collections.abc import Collection, Iterable, Iterator, Mapping
from dataclasses import dataclass

import onnx
from onnx import ModelProto

from calibration.bias import mean_shifts
from calibration.layers import Prepared, prepare
from calibration.lint import lint_quantized
from calibration.qdq import Placement, with_qdq
from calibration.ranges import Method, measure_histograms
from calibration.samples import SampleSet
from runtime.bundle.spec import Preprocess
from runtime.common.arrays import Array
from runtime.common.json_data import to_json
from runtime.errors import ExportError

# The means of channels settle with few images; they are kept in memory.
_MEAN_FEEDS = 16
_MEAN_BYTES = 128 << 20
# What cuts values off and leaves the others as they are.
_CUTTING = ("Relu", "Clip")


@dataclass(frozen=True, slots=True)
class Recipe:
    """How a graph is quantised: symmetric int8, weights per channel, activations per tensor, biases in float.

    Attributes:
        method: How an activation's range follows from its values, see :meth:`calibration.ranges.Histogram.reach`.
            ``mse`` has nothing to tune and kept OSNet x0.25 closest to float whatever it was calibrated on. Mean cosine
            on PKU-Reid: 0.986 calibrated on the wheels' photographs (``percentile`` 0.986, ``minmax`` 0.984), 0.980 on
            fashion photographs (0.979, 0.971), 0.993 on PKU-Reid (0.991, 0.988).
        percentile: What ``percentile`` keeps, in per cent.
        operators: The operators whose inputs and weights become int8. Additions are not among them: where both terms
            come from convolutions they are int8 already, and where not, rounding them cost OSNet x0.25 two points of
            mAP and made no engine faster.
        placement: What is rounded around them, see :func:`calibration.qdq.with_qdq`.
    """

    method: Method = "mse"
    percentile: float = 99.999
    operators: tuple[str, ...] = ("Conv", "Gemm", "MatMul")
    placement: Placement = "outputs"

    def __str__(self) -> str:
        ranges = f"percentile {self.percentile:g}" if self.method == "percentile" else self.method
        return (
            f"Q/DQ, symmetric int8, weights per channel, activation ranges by {ranges}, means corrected, "
            f"{'/'.join(self.operators)}"
        )


@dataclass(frozen=True, slots=True, eq=False)
class Ranges:
    """What calibration measured of one graph.

    Attributes:
        reach: The magnitude that 127 stands for, for each activation around a layer.
        shifts: What rounding takes from the mean of each channel of a layer, see :mod:`calibration.bias`.
    """

    reach: Mapping[str, float]
    shifts: Mapping[str, Array]


def measure_ranges(prepared: Prepared, feeds: Iterable[Mapping[str, Array]], recipe: Recipe) -> Ranges:
    """Run real inputs through the float graph.

    Args:
        prepared: The graph.
        feeds: Batches of real inputs; read once, one at a time. The first few are kept for the means of the channels.
        recipe: How ranges follow from values.

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
    reach = {name: histogram.reach(recipe.method, recipe.percentile) for name, histogram in histograms.items()}
    return Ranges(reach, mean_shifts(prepared.model, reach, names, kept))


def int8_graph(
    prepared: Prepared, ranges: Ranges, recipe: Recipe, *, floats: Collection[str] = frozenset()
) -> ModelProto:
    """The graph with Q/DQ around all layers but ``floats``; it has passed :func:`lint_quantized`.

    Raises:
        ExportError: It has not; the message names the node.
    """
    reach = dict(ranges.reach)
    if recipe.placement == "outputs":
        reach.update(_reach_after_cutting(prepared.model, reach))
    layers = {layer.name for layer in prepared.layers} - set(floats)
    made = with_qdq(prepared.model, reach, layers, placement=recipe.placement, shifts=ranges.shifts)
    lint_quantized(made)
    return made


def quantize(model: ModelProto, feeds: Iterable[Mapping[str, Array]], *, recipe: Recipe | None = None) -> ModelProto:
    """Prepare, measure and convert at once: the graph with Q/DQ around all that :class:`Recipe` names.

    Args:
        model: A float graph; it is not changed. Model-local functions are inlined.
        feeds: As for :func:`measure_ranges`.
        recipe: None for the default one.

    Raises:
        ExportError: There are no feeds, or a tensor's values are not finite.
        MissingDependencyError: ONNX Runtime is not installed.
    """
    recipe = recipe or Recipe()
    prepared = prepare(model, recipe.operators)
    return int8_graph(prepared, measure_ranges(prepared, feeds, recipe), recipe)


def calibration_digest(samples: SampleSet, *, preprocess: Preprocess, weights_sha256: str, recipe: Recipe) -> str:
    """What the INT8 scales depend on, in one digest: images, preprocessing, weights, recipe."""
    parts = [samples.digest, to_json(preprocess), weights_sha256, to_json(recipe)]
    return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()


def _activations(model: ModelProto, layers: Collection[str]) -> list[str]:
    """The float inputs and outputs of the layers, each once, in order."""
    constants = {tensor.name for tensor in model.graph.initializer}
    constants |= {name for node in model.graph.node if node.op_type == "Constant" for name in node.output}
    values = (*model.graph.input, *model.graph.output, *model.graph.value_info)
    floats = {value.name for value in values if value.type.tensor_type.elem_type == onnx.TensorProto.FLOAT}
    used = (name for node in model.graph.node if node.name in layers for name in (*node.input, *node.output))
    return [name for name in dict.fromkeys(used) if name in floats and name not in constants]


def _reach_after_cutting(model: ModelProto, reach: Mapping[str, float]) -> dict[str, float]:
    """The reach of tensors that only a ReLU or Clip reads: that of its result.

    What it cuts off needs no integers. With both on one grid, the second rounding changes nothing.
    """
    readers: dict[str, list[onnx.NodeProto]] = {}
    for node in model.graph.node:
        for name in node.input:
            readers.setdefault(name, []).append(node)
    kept = {value.name for value in model.graph.output}
    shared = {}
    for name in reach:
        nodes = readers.get(name, [])
        if len(nodes) == 1 and nodes[0].op_type in _CUTTING and name not in kept and nodes[0].output[0] in reach:
            shared[name] = reach[nodes[0].output[0]]
    return shared


def _keeping(feeds: Iterable[Mapping[str, Array]], kept: list[Mapping[str, Array]]) -> Iterator[Mapping[str, Array]]:
    """The same feeds; the first ones, as many as memory allows, end up in ``kept``."""
    size = 0
    for feed in feeds:
        size += sum(array.nbytes for array in feed.values())
        if not kept or (len(kept) < _MEAN_FEEDS and size <= _MEAN_BYTES):
            kept.append(feed)
        yield feed
