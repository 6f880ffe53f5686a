"""Which layers hurt in int8, and how much: each layer alone in int8, all others in float.

The other way, all in int8 but one, was measured too, on OSNet x0.25 with 140 layers: it takes eight times as long
(152 s and 18 s on the same busy machine, int8 being slow in ONNX Runtime), and the order that it gives is worse. With
as many layers back in float, mean cosine by *all but it* and by *it alone*: 16 layers 0.9975 and 0.9982, 64 layers
0.9984 and 0.9997: what one layer gives back drowns in what all others take.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from calibration.quantize.config import QuantizationConfig
from calibration.quantize.graph import Ranges, int8_graph
from calibration.quantize.rules import Prepared
from calibration.quantize.sessions import open_session
from runtime.common.arrays import Array
from runtime.parity.compare import compare_rows

# Images that the layers are measured on, and how many multiplications all runs together may cost: about a minute.
_MOST_IMAGES = 32
_FEWEST_IMAGES = 2
_MACS = 1.2e12
_BATCH = 8


@dataclass(frozen=True, slots=True)
class LayerSensitivity:
    """What one layer does to the graph's outputs when it alone is int8.

    Attributes:
        graph: The graph's name.
        layer: The node's name.
        operator: Its ONNX operator.
        weight: The name of its weight; empty for a product of two activations.
        macs: Multiplications for one image: what int8 makes faster.
        cosine_loss: 1 - mean cosine between the rows of the outputs, of the output where it is the most.
        sqnr_db: Signal to quantisation noise of the outputs, ``10 log10(sum float^2 / sum (float - int8)^2)``, of the
            output where it is the least; 200 where nothing changes.
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
        """The loss for each multiplication that int8 makes faster: the layers with the highest go back to float first.

        By the loss alone, the search put OSNet x0.25's largest layers back first, and with 16 of them INT8 was slower
        than FP32; by the sensitivity_per_mac it is faster than FP32 with 80 layers back.
        """
        return self.cosine_loss / max(self.macs, 1)


def images_for(prepared: Prepared) -> int:
    """On how many images the layers of a graph are measured."""
    macs = sum(layer.macs for layer in prepared.layers) * len(prepared.layers)
    return int(np.clip(_MACS // max(macs, 1), _FEWEST_IMAGES, _MOST_IMAGES))


def measure_sensitivity(
    prepared: Prepared,
    ranges: Ranges,
    config: QuantizationConfig,
    *,
    graph: str,
    inputs: Mapping[str, Array],
    batched: Sequence[str],
    advance: Callable[[int, int], None],
) -> tuple[LayerSensitivity, ...]:
    """Every layer's sensitivity, in the graph's order.

    Args:
        prepared: The float graph; it is run once, and each layer is compared with that run.
        ranges: Measured on other images than ``inputs``.
        config: How the graph is quantised.
        graph: Its name, for the report.
        inputs: Real inputs by name; the first :func:`images_for` rows count.
        batched: The inputs that have one row for each image.
        advance: Called with the number of layers measured, and of all.
    """
    count = images_for(prepared)
    feeds = [
        {name: array[start : start + _BATCH] if name in batched else array for name, array in rows.items()}
        for rows in [{name: array[:count] if name in batched else array for name, array in inputs.items()}]
        for start in range(0, min([count, *(len(rows[name]) for name in batched)]), _BATCH)
    ]
    names = [value.name for value in prepared.model.graph.output]
    wanted = _run(open_session(prepared.model), names, feeds)
    every = {layer.name for layer in prepared.layers}
    measured = []
    for number, layer in enumerate(prepared.layers, start=1):
        made = int8_graph(prepared, ranges, config, nodes_to_exclude=every - {layer.name})
        found = _run(open_session(made), names, feeds)
        losses, ratios = zip(*map(_distance, wanted, found), strict=True)
        measured.append(
            LayerSensitivity(graph, layer.name, layer.operator, layer.weight, layer.macs, max(losses), min(ratios))
        )
        advance(number, len(prepared.layers))
    return tuple(measured)


def _run(session: Any, names: Sequence[str], feeds: Sequence[Mapping[str, Array]]) -> list[list[Array]]:
    """The outputs, each as its batches."""
    made = [session.run(list(names), dict(feed)) for feed in feeds]
    return [list(batches) for batches in zip(*made, strict=True)]


def _distance(wanted: Sequence[Array], found: Sequence[Array]) -> tuple[float, float]:
    """1 - mean cosine, and the signal to noise ratio in dB."""
    cosines = np.concatenate([compare_rows(*pair)[1] for pair in zip(wanted, found, strict=True)])
    signal = sum(float((array.astype(np.float64) ** 2).sum()) for array in wanted)
    noise = sum(float(((one.astype(np.float64) - other) ** 2).sum()) for one, other in zip(wanted, found, strict=True))
    ratio = 200.0 if noise == 0 else min(200.0, 10 * float(np.log10(max(signal, 1e-300) / noise)))
    return max(0.0, 1.0 - float(np.nan_to_num(cosines, nan=-1.0).mean())), ratio
