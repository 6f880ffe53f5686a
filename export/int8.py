"""INT8 graphs for the backends of a target: calibrated, the harmful layers put back to float, all measured.

Each backend gets a graph of its own, because each rounds and fuses in its own way: OSNet x0.25's embeddings of one
Q/DQ graph by ONNX Runtime and by OpenVINO 2026.4 differ by a cosine of 0.998. So every graph is tried in the engine
that it is for, at the batch sizes that it is for.

EfficientNet-b0 (EPRI-Net, random weights, 384x192) is what this was hard for. Rounding is not what ruins it: in ONNX
Runtime the embedding keeps a mean cosine of 0.998 to 0.999 however it is quantised. What does is OpenVINO 2026.4, which
given a graph with only the inputs of layers rounded and a batch that is not fixed computes something else: 0.757; with
a fixed batch, or with the outputs of convolutions rounded too, 0.999. The cure is to try both placements of Q/DQ in the
engine. Squeeze-and-excitation stays float by rule (32 convolutions, hardly any work). Drop 0.001, no layer back in
float; 17.5 ms where BF16 takes 20.6 ms and FP32 38.1 ms.

NNCF 3.4 (post-training quantisation to OpenVINO IR, asymmetric activations, fast bias correction) was measured beside
this as the engine's native way, on one thread, batch not fixed, all layers in INT8; it won nowhere and is not used:

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

import hashlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import get_args

from onnx import ModelProto

from calibration import cache
from calibration.data.samples import SampleSet
from calibration.quantize.config import QuantizationConfig
from calibration.quantize.graph import Ranges, int8_graph, measure_ranges
from calibration.quantize.qdq import Placement
from calibration.quantize.rules import Prepared, prepare
from calibration.search.accuracy_drop import drop_of
from calibration.search.search import search
from calibration.search.sensitivity import LayerSensitivity, measure_sensitivity
from export import compilers
from runtime import backends, tasks
from runtime.bundle.manifest import EngineRecord, Int8Search
from runtime.bundle.spec import Deployment
from runtime.common.arrays import Array
from runtime.common.files import scratch_folder
from runtime.common.json_data import to_json
from runtime.errors import MissingDependencyError, UnavailableError, UnknownBackendError
from runtime.parity.compare import golden_feeds, outputs_of
from runtime.parity.latency import interleaved
from runtime.parity.measure import one_image
from runtime.sessions.open import open_graphs
from runtime.sessions.session import Session

# The engine that judges for those that do not run on this processor: it is always there, and the dozens of TensorRT
# engines that a search would try take minutes each.
_CPU_PROXY = "onnxruntime"
_LATENCY_SECONDS = 0.3

Advance = Callable[[int, int], None]


@dataclass(frozen=True, slots=True, eq=False)
class Calibrated:
    """The graphs of a model with what was measured of each.

    Attributes:
        prepared: Graph name to the float graph, ready for Q/DQ.
        ranges: Graph name to its ranges.
        notes: For each graph whether its ranges came from the cache, and if not, why.
    """

    prepared: Mapping[str, Prepared]
    ranges: Mapping[str, Ranges]
    notes: Mapping[str, str]


@dataclass(frozen=True, slots=True, eq=False)
class Searched:
    """What a search came to.

    Attributes:
        graphs: Backend to its INT8 graphs.
        searches: How they were found.
        outputs: Backend to ``GRAPH/OUTPUT``, what its own engine of these graphs gave for all images that verify; of
            those that run here.
    """

    graphs: Mapping[str, Mapping[str, ModelProto]]
    searches: tuple[Int8Search, ...]
    outputs: Mapping[str, Mapping[str, Array]]


NOT_SEARCHED = Searched({}, (), {})


def calibrate(
    fp32_graphs: Mapping[str, ModelProto],
    feeds: Callable[[str], Iterator[Mapping[str, Array]]],
    *,
    config: QuantizationConfig,
    key: Callable[[str, str], cache.Key],
    folder: Path | None,
) -> Calibrated:
    """Measure the ranges of every graph, or take them from the cache.

    Args:
        fp32_graphs: Graph name to float graph.
        feeds: From a graph's name to batches of its real inputs; not called where the cache has the ranges.
        config: How.
        key: From a graph's name and the digest of its ONNX to what its ranges depend on.
        folder: The cache; None for none.
    """
    prepared, ranges, notes = {}, {}, {}
    for name, model in fp32_graphs.items():
        prepared[name] = prepare(model, config.operators)
        if folder is None:
            found, notes[name] = None, "no cache"
        else:
            entry = key(name, hashlib.sha256(model.SerializeToString(deterministic=True)).hexdigest())
            found, notes[name] = cache.load(folder, entry)
        if found is None:
            found = measure_ranges(prepared[name], feeds(name), config)
            if folder is not None:
                try:
                    cache.store(folder, entry, found)
                except OSError as error:  # a full disk, say: the build goes on without
                    notes[name] += f", and not kept: {error}"
        ranges[name] = found
    return Calibrated(prepared, ranges, notes)


def cache_key(
    model: str, *, weights: str, samples: SampleSet, deployment: Deployment, config: QuantizationConfig
) -> Callable[[str, str], cache.Key]:
    """What :func:`calibrate` asks for. Where Q/DQ go does not matter to the ranges."""

    def digest(value: object) -> str:
        return hashlib.sha256(repr(to_json(value)).encode()).hexdigest()

    algorithm = digest(replace(config, placement="outputs"))
    return lambda graph, onnx_digest: cache.Key(
        model=f"{model}/{graph}",
        weights=weights,
        graph=onnx_digest,
        data=samples.digest,
        preprocessing=digest(deployment.preprocess),
        algorithm=algorithm,
    )


def layer_sensitivities(
    calibrated: Calibrated,
    deployment: Deployment,
    reference: Mapping[str, Array],
    config: QuantizationConfig,
    advance: Advance,
) -> tuple[LayerSensitivity, ...]:
    """Those of all graphs, measured on the images that verify."""
    total = sum(len(prepared.layers) for prepared in calibrated.prepared.values())
    found: list[LayerSensitivity] = []

    def told(number: int, _: int) -> None:
        advance(done + number, total)

    for graph in deployment.graphs:
        inputs, _ = golden_feeds(reference, graph)
        done = len(found)
        found += measure_sensitivity(
            calibrated.prepared[graph.name],
            calibrated.ranges[graph.name],
            replace(config, placement="inputs"),
            graph=graph.name,
            inputs=inputs,
            batched=[tensor.name for tensor in graph.inputs if tensor.batched],
            advance=told,
        )
    return tuple(found)


def search_int8(
    calibrated: Calibrated,
    sensitivity: Sequence[LayerSensitivity],
    *,
    names: Sequence[str],
    device: str,
    deployment: Deployment,
    reference: Mapping[str, Array],
    config: QuantizationConfig,
    max_drop: float,
    advance: Advance,
) -> Searched:
    """For each backend the graphs with as many layers in INT8 as ``max_drop`` lets be, and how they were found.

    Of the two placements of Q/DQ the one that loses less is taken, with no layer put back; where they lose about the
    same, within a quarter of ``max_drop``, the faster one, if it can be timed. (When a difference of one decision in
    128 was let pass here, OSNet x0.25 with the weights that ship lost 0.013 and 0.008 of mAP on PKU-Reid in ONNX
    Runtime and OpenVINO; now it loses 0.000 and 0.002.)

    Args:
        calibrated: What was measured.
        sensitivity: Of all layers.
        names: The backends.
        device: The kind of device that the engines are for.
        deployment: The model's graphs.
        reference: Real inputs and what PyTorch makes of them.
        config: How graphs are quantised.
        max_drop: See :func:`calibration.search.accuracy_drop.drop_of`.
        advance: Called with the number of backends that are done, and of all.
    """
    order = [f"{item.graph}/{item.layer}" for item in sorted(sensitivity, key=lambda item: -item.sensitivity_per_mac)]
    graphs: dict[str, dict[str, ModelProto]] = {}
    searches: list[Int8Search] = []
    outputs: dict[str, Mapping[str, Array]] = {}
    for number, name in enumerate(names, start=1):
        own = device == "cpu" and _runs_here(name)
        known = (
            None if own else next((item for item in searches if item.measured_with == _CPU_PROXY != item.backend), None)
        )
        if known is not None:  # judged by the same proxy, it would find the same
            graphs[name] = graphs[known.backend]
            searches.append(replace(known, backend=name))
            advance(number, len(names))
            continue
        runner = _Runner(name if own else _CPU_PROXY, deployment, reference)
        naive = {}
        for placement in get_args(Placement):
            trial = replace(config, placement=placement)
            naive[placement] = runner.measure(_graphs(calibrated, trial, frozenset()))
        least = min(drop for drop, _ in naive.values())
        fitting = [placement for placement, (drop, _) in naive.items() if drop <= least + max_drop / 4]
        chosen = min(fitting, key=lambda placement: naive[placement][1 if own else 0])
        trial = replace(config, placement=chosen)

        def lost(excluded: frozenset[str], runner: _Runner = runner, trial: QuantizationConfig = trial) -> float:
            return runner.drop(_graphs(calibrated, trial, excluded))

        found = search(order, lost, max_drop=max_drop)
        kept = order[: found.excluded]
        graphs[name] = _graphs(calibrated, trial, frozenset(kept))
        before, after, made = runner.compare(_graphs(calibrated, trial, frozenset()), graphs[name])
        if own:
            outputs[name] = made
        searches.append(
            Int8Search(
                backend=name,
                placement=chosen,
                measured_with=runner.backend,
                max_drop=max_drop,
                drop=round(found.drop, 6),
                naive_drop=round(naive[chosen][0], 6),
                latency_ms=round(after, 3) if own else None,
                naive_latency_ms=round(before, 3) if own else None,
                layers=len(order),
                float_layers=tuple(kept),
                trials=found.trials,
            )
        )
        advance(number, len(names))
    return Searched(graphs, tuple(searches), outputs)


class _Runner:
    """Compiles INT8 graphs for one backend and runs them on the images that verify."""

    def __init__(self, backend: str, deployment: Deployment, reference: Mapping[str, Array]) -> None:
        self.backend = backend
        self._deployment = deployment
        self._reference = reference

    def drop(self, graphs: Mapping[str, ModelProto]) -> float:
        with self._open(graphs) as sessions:
            return self._lost(sessions)

    def measure(self, graphs: Mapping[str, ModelProto]) -> tuple[float, float]:
        """What is lost, and the median time of one image in ms."""
        with self._open(graphs) as sessions:
            call = one_image(sessions, self._deployment, self._reference)
            return self._lost(sessions), interleaved({"": call}, seconds=_LATENCY_SECONDS)[""].p50_ms

    def compare(
        self, first: Mapping[str, ModelProto], second: Mapping[str, ModelProto]
    ) -> tuple[float, float, dict[str, Array]]:
        """The median times of one image in ms, taken in turns, and what the second gives for all images."""
        with self._open(first) as one, self._open(second) as other:
            calls = {
                name: one_image(sessions, self._deployment, self._reference)
                for name, sessions in (("first", one), ("second", other))
            }
            times = interleaved(calls, seconds=2 * _LATENCY_SECONDS)
            return times["first"].p50_ms, times["second"].p50_ms, outputs_of(other, self._reference, finite=True)

    def _lost(self, sessions: Mapping[str, Session]) -> float:
        outputs = outputs_of(sessions, self._reference, finite=True)
        return max(
            0.0,
            *(
                drop_of(
                    graph,
                    self._reference,
                    {tensor.name: outputs[f"{graph.name}/{tensor.name}"] for tensor in graph.outputs},
                    tasks.load(self._deployment.task).agreement,
                )
                for graph in self._deployment.graphs
            ),
        )

    @contextmanager
    def _open(self, graphs: Mapping[str, ModelProto]) -> Iterator[Mapping[str, Session]]:
        with scratch_folder("edgevis-int8-") as folder:
            compiler = compilers.load(self.backend)
            files = {}
            for graph, model in graphs.items():
                made = compiler.engine_from_onnx(model, graph=graph, precision="int8", bundle=folder)
                files[graph] = made.relative_to(folder).as_posix()
            record = EngineRecord(self.backend, "int8", "cpu", files)
            sessions = open_graphs(record, self._deployment, lambda file: folder / file, threads=None)
            try:
                yield sessions
            finally:
                for session in sessions.values():
                    session.close()


def _graphs(calibrated: Calibrated, config: QuantizationConfig, excluded: frozenset[str]) -> dict[str, ModelProto]:
    """The INT8 graphs of a model with these layers, named ``GRAPH/NODE``, in float."""
    return {
        name: int8_graph(
            prepared,
            calibrated.ranges[name],
            config,
            nodes_to_exclude={layer.name for layer in prepared.layers if f"{name}/{layer.name}" in excluded},
        )
        for name, prepared in calibrated.prepared.items()
    }


def _runs_here(backend: str) -> bool:
    try:
        return "cpu" in backends.load(backend).devices()
    except (MissingDependencyError, UnavailableError, UnknownBackendError):
        return False
