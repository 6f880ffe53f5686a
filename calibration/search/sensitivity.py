"""The INT8 sensitivity of layers: the graph's loss with one layer in int8 and all others in float.

The inverse, all layers in int8 but one, was measured too, on OSNet x0.25 with 140 layers: it takes eight times as long
(152 s and 18 s on the same busy machine, int8 being slow in ONNX Runtime), and the order that it gives is worse. With
as many layers excluded, mean cosine by *all but it* and by *it alone*: 16 layers 0.9975 and 0.9982, 64 layers 0.9984
and 0.9997: the effect of one layer is lost in that of all others.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from calibration.quantize.config import QuantizationConfig
from calibration.quantize.graph import Ranges, int8_graph
from calibration.quantize.rules import Layer, Prepared
from calibration.quantize.sessions import open_session
from calibration.search.calibrate import CalibratedModel
from runtime.bundle.spec import Deployment
from runtime.common.arrays import Array
from runtime.parity.compare import batches_of, compare_rows, golden_feeds, rows_of

# Images that the layers are measured on, and how many multiplications all runs together may cost: about a minute.
_MAX_IMAGES = 32
_MIN_IMAGES = 2
_MACS = 1.2e12
_BATCH = 8
# The signal-to-noise ratio that stands for no noise at all.
_MAX_SQNR_DB = 200.0

Feeds = Sequence[Mapping[str, Array]]


@dataclass(frozen=True, slots=True)
class LayerSensitivity:
    """The loss of a graph's outputs with one layer in int8 and all others in float.

    Attributes:
        graph: The graph's name.
        layer: The node's name.
        operator: Its ONNX operator.
        weight: The name of its weight; empty for a product of two activations.
        macs: Multiplications for one image: the work that int8 makes faster.
        cosine_loss: 1 - mean cosine between the rows of the outputs, of the output with the largest loss; 0..2.
        sqnr_db: Signal-to-quantisation-noise ratio of the outputs in dB, ``10 log10(sum float^2 / sum (float -
            int8)^2)``, of the output with the smallest ratio; 200 where nothing changes.
    """

    graph: str
    layer: str
    operator: str
    weight: str
    macs: int
    cosine_loss: float
    sqnr_db: float

    @property
    def sensitivity_per_mac(self) -> float:
        """The loss per multiplication; the layers with the highest are excluded first.

        Ordered by the loss alone, the search excluded OSNet x0.25's largest layers first, and with 16 of them INT8 was
        slower than FP32; in this order it is faster than FP32 with 80 layers excluded.
        """
        return self.cosine_loss / max(self.macs, 1)


def layer_sensitivities(
    calibrated: CalibratedModel,
    deployment: Deployment,
    reference: Mapping[str, Array],
    advance: Callable[[int, int], None],
) -> tuple[LayerSensitivity, ...]:
    """The sensitivities of all layers of all graphs, in the graphs' order.

    Args:
        calibrated: The float graphs and their ranges.
        deployment: The model's graphs.
        reference: ``GRAPH/TENSOR``: real inputs, other than the ranges were measured on.
        advance: Called with the number of layers that are measured, and of all.
    """
    total = sum(len(graph.prepared.layers) for graph in calibrated.graphs.values())
    config = replace(calibrated.config, placement="inputs")
    sensitivities: list[LayerSensitivity] = []
    for graph in deployment.image_graphs:
        inputs, _ = golden_feeds(reference, graph)
        entry = calibrated.graphs[graph.name]
        rows = min(image_count(entry.prepared), rows_of(graph, inputs))
        feeds = list(batches_of(graph, inputs, size=_BATCH, rows=rows))
        for item in graph_sensitivities(entry.prepared, entry.ranges, config, graph=graph.name, feeds=feeds):
            sensitivities.append(item)
            advance(len(sensitivities), total)
    return tuple(sensitivities)


def image_count(prepared: Prepared) -> int:
    """The number of images that the layers of a graph are measured on."""
    macs = sum(layer.macs for layer in prepared.layers) * len(prepared.layers)
    return int(np.clip(_MACS // max(macs, 1), _MIN_IMAGES, _MAX_IMAGES))


def graph_sensitivities(
    prepared: Prepared, ranges: Ranges, config: QuantizationConfig, *, graph: str, feeds: Feeds
) -> Iterable[LayerSensitivity]:
    """Yield the sensitivity of every layer of one graph, in the graph's order.

    Args:
        prepared: The float graph; its own outputs are the reference.
        ranges: Measured on other images than ``feeds``.
        config: How the graph is quantised.
        graph: The graph's name, for the report.
        feeds: Batches of real inputs.
    """
    names = [value.name or "" for value in prepared.model.graph.outputs]
    expected = _run(open_session(prepared.model), names, feeds)
    layers = {layer.name for layer in prepared.layers}

    def measure(layer: Layer) -> LayerSensitivity:
        model = int8_graph(prepared, ranges, config, nodes_to_exclude=layers - {layer.name})
        actual = _run(open_session(model), names, feeds)
        losses, ratios = zip(*map(_distance, expected, actual), strict=True)
        return LayerSensitivity(graph, layer.name, layer.operator, layer.weight, layer.macs, max(losses), min(ratios))

    return map(measure, prepared.layers)


def _run(session: Any, names: Sequence[str], feeds: Feeds) -> list[list[Array]]:
    """Run the batches; returns the list of batch results for each output."""
    results = [session.run(list(names), dict(feed)) for feed in feeds]
    return [list(batches) for batches in zip(*results, strict=True)]


def _distance(expected: Sequence[Array], actual: Sequence[Array]) -> tuple[float, float]:
    """1 - mean cosine, and the signal-to-noise ratio in dB."""
    pairs = list(zip(expected, actual, strict=True))
    cosines = np.concatenate([compare_rows(*pair)[1] for pair in pairs])
    signal = sum(float((array.astype(np.float64) ** 2).sum()) for array in expected)
    noise = sum(float(((one.astype(np.float64) - other) ** 2).sum()) for one, other in pairs)
    ratio = _MAX_SQNR_DB if noise == 0 else min(_MAX_SQNR_DB, 10 * float(np.log10(max(signal, 1e-300) / noise)))
    return max(0.0, 1.0 - float(np.nan_to_num(cosines, nan=-1.0).mean())), ratio
