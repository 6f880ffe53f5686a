"""INT8 graphs for the backends of a target: sensitive layers stay float until the measured drop is within bounds.

Each backend gets its own graphs, because each rounds and fuses differently: OSNet x0.25's embeddings of one Q/DQ graph
by ONNX Runtime and by OpenVINO 2026.4 differ by a cosine of 0.998. Every graph is measured in the engine that it is
for, at the batch sizes that it is for.

Both placements of Q/DQ are tried in the engine because of EfficientNet-b0 (EPRI-Net, random weights, 384x192). In ONNX
Runtime its embedding keeps a mean cosine of 0.998 to 0.999 however it is quantised. OpenVINO 2026.4, given a graph with
only the inputs of layers rounded and an open batch axis, computes something else: 0.757; with a fixed batch, or with
the outputs of convolutions rounded too, 0.999. Squeeze-and-excitation stays float by rule (32 convolutions, hardly any
work). Drop 0.001, no layer excluded; 17.5 ms where BF16 takes 20.6 ms and FP32 38.1 ms.

NNCF 3.4 (post-training quantisation to OpenVINO IR, asymmetric activations, fast bias correction) was measured as the
engine's native way, on one thread, open batch axis, all layers in INT8; it won nowhere and is not used:

=============================  ==================  ==================  ===================
one image, ms / mean cosine    OSNet x0.25         MobileNetV2         EPRI-Net
=============================  ==================  ==================  ===================
FP32                           2.72                7.11                64.0
Q/DQ, inputs rounded           2.35 / 0.989        3.55 / 0.9921       28.3 / see above
NNCF, preset performance       2.94 / 0.966        3.66 / 0.9925       40.6 / below 0.1
NNCF, preset mixed             2.76 / 0.960        3.70 / 0.9858       40.1 / below 0.1
=============================  ==================  ==================  ===================
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import get_args

from onnx import ModelProto

from calibration.quantize.qdq import Placement
from calibration.search.calibrate import CalibratedModel
from calibration.search.engines import Int8Measurement
from calibration.search.exclusions import fewest_exclusions
from calibration.search.sensitivity import LayerSensitivity
from runtime.bundle.manifest import Int8Search
from runtime.common.arrays import Array
from runtime.tasks import LayerKind

# The proxy for engines that do not run on this machine: it is always installed, and the dozens of TensorRT
# engines that a search would try take minutes each.
_CPU_PROXY = "onnxruntime"


@dataclass(frozen=True, slots=True, eq=False)
class SearchedGraphs:
    """The int8 graphs of a model for each backend.

    Attributes:
        graphs: Backend to its int8 graphs.
        searches: How each was chosen.
        outputs: Backend to ``GRAPH/OUTPUT``: what its own engine of these graphs returned for all verification images;
            only for the backends that run here.
    """

    graphs: Mapping[str, Mapping[str, ModelProto]]
    searches: tuple[Int8Search, ...]
    outputs: Mapping[str, Mapping[str, Array]]


NOT_SEARCHED = SearchedGraphs({}, (), {})


def search_int8(
    calibrated: CalibratedModel,
    sensitivities: Callable[[], Sequence[LayerSensitivity]],
    measurement: Int8Measurement,
    *,
    backends: Sequence[str],
    runs_here: Callable[[str], bool],
    max_drop: float,
    float_first: Collection[LayerKind],
    advance: Callable[[int, int], None],
) -> SearchedGraphs:
    """Find, for each backend, the graphs with as many layers in INT8 as ``max_drop`` allows.

    Of the two placements of Q/DQ the one with the smaller drop is taken, measured with no layer excluded; where their
    drops differ by less than a quarter of ``max_drop``, the faster one, if it can be timed. (When a difference of one
    decision in 128 was tolerated here, OSNet x0.25 with the weights that ship lost 0.013 and 0.008 of mAP on PKU-Reid
    in ONNX Runtime and OpenVINO; now it loses 0.000 and 0.002.)

    Args:
        calibrated: The float graphs and their ranges.
        sensitivities: Measures those of all layers: after ``float_first`` those with the most loss per multiplication
            are excluded. Called at most once, and only if that is needed.
        measurement: Compiles, opens and measures graphs.
        backends: The backends that need graphs.
        runs_here: Whether the engines of a backend run on this machine as they will in use.
        max_drop: The allowed drop, see :func:`calibration.search.accuracy_drop.drop_of`.
        float_first: The kinds of layers that are excluded first, and together.
        advance: Called with the number of backends that are done, and of all.
    """

    @functools.cache
    def order() -> tuple[str, ...]:
        ordered = sorted(sensitivities(), key=lambda item: -item.sensitivity_per_mac)
        return tuple(f"{item.graph}/{item.layer}" for item in ordered)

    first = calibrated.layers_of(float_first)
    graphs: dict[str, Mapping[str, ModelProto]] = {}
    searches: list[Int8Search] = []
    outputs: dict[str, Mapping[str, Array]] = {}
    proxied: Int8Search | None = None
    for number, backend in enumerate(backends, start=1):
        is_native = runs_here(backend)
        if not is_native and proxied is not None:  # measured by the same engine, the result would be the same
            graphs[backend] = graphs[proxied.backend]
            searches.append(replace(proxied, backend=backend))
        else:
            graphs[backend], result, actual = _search(
                calibrated,
                order,
                measurement,
                backend=backend,
                is_native=is_native,
                max_drop=max_drop,
                first=first,
            )
            searches.append(result)
            if is_native:
                outputs[backend] = actual
            else:
                proxied = result
        advance(number, len(backends))
    return SearchedGraphs(graphs, tuple(searches), outputs)


def _search(
    calibrated: CalibratedModel,
    order: Callable[[], Sequence[str]],
    measurement: Int8Measurement,
    *,
    backend: str,
    is_native: bool,
    max_drop: float,
    first: Sequence[str],
) -> tuple[dict[str, ModelProto], Int8Search, dict[str, Array]]:
    """The graphs of one backend, how they were chosen, and what they return for all verification images."""
    engine = backend if is_native else _CPU_PROXY
    placements: tuple[Placement, ...] = get_args(Placement)
    naive = {
        placement: measurement.drop_and_latency(calibrated.int8_graphs(placement), engine) for placement in placements
    }
    least = min(drop for drop, _ in naive.values())
    fitting = [placement for placement in placements if naive[placement][0] <= least + max_drop / 4]
    placement = min(fitting, key=lambda item: naive[item][1 if is_native else 0])
    exclusions = fewest_exclusions(
        order,
        lambda excluded: measurement.drop(calibrated.int8_graphs(placement, excluded), engine),
        max_drop=max_drop,
        first=first,
        naive_drop=naive[placement][0],
    )
    excluded = exclusions.layers
    graphs = calibrated.int8_graphs(placement, excluded)
    before, after, outputs = measurement.compare(calibrated.int8_graphs(placement), graphs, engine)
    search = Int8Search(
        backend=backend,
        placement=placement,
        measured_with=engine,
        max_drop=max_drop,
        drop=round(exclusions.drop, 6),
        naive_drop=round(naive[placement][0], 6),
        latency_ms=round(after, 3) if is_native else None,
        naive_latency_ms=round(before, 3) if is_native else None,
        layers=calibrated.layers,
        float_layers=excluded,
        trials=exclusions.trials,
    )
    return graphs, search, outputs
