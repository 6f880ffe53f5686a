"""The subjects of :mod:`benchmarks.faults`: models with their engines, a finished bundle, a measure."""

from __future__ import annotations

import copy
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np
import onnx

from benchmarks.fault_kinds import inlined
from benchmarks.reid import Split, read_split
from calibration.data.samples import SampleSet, samples_from_photographs, split
from edgevis import EdgevisError, models
from edgevis.metrics import reid_ranking
from export.compilers import graph_path
from export.cpu_proxy import CpuProxy
from export.engine_selection import unopenable
from export.parity import check_parity
from export.profiles import ShapeProfileRequest, profiles_of
from export.reference import needs_masks, reference_of
from export.request import BuildRequest
from export.stages import (
    Stage,
    calibrate,
    cast_fp16,
    describe,
    load,
    measure_sensitivity,
    reference,
    search_int8,
    to_onnx,
    with_trained_options,
)
from export.stages import check_parity as parity_stage
from export.stages import compile as compile_stage
from export.state import BuildState, Graphs
from export.targets import Target
from runtime import tasks
from runtime.bundle.bundle import GOLDEN, Bundle
from runtime.bundle.manifest import EngineRecord
from runtime.bundle.spec import Deployment, Precision
from runtime.bundle.staging import staged_bundle, write_manifest
from runtime.common.arrays import Array, read_arrays, unit_rows, write_arrays
from runtime.errors import IntegrityError
from runtime.images.preprocess import Preprocessor
from runtime.parity.compare import BATCH_SIZES, TOLERANCES, golden_feeds, mask_agreement, measure_graph, run_in_batches
from runtime.parity.recorded import FILE as RECORDED
from runtime.parity.recorded import deviation_text, deviations, read_recorded
from runtime.results import Detections, Segmentation
from runtime.sessions.open import open_graphs
from runtime.sessions.session import Session
from runtime.verification.verify import verify_bundle

GPU = "tensorrt"


@dataclass(frozen=True, slots=True)
class Kind:
    """The specification of a subject.

    Attributes:
        model: A name in :mod:`edgevis.models`.
        options: The model's, besides those that the weights which ship were trained with.
        engines: Backend and precision; ``tensorrt`` is a graph that ONNX Runtime runs in the engine's place.
        samples: Photographs' crops, half to calibrate and half to verify.
        layers: Whether the search may put layers back to float, as a build does; that takes minutes.
    """

    model: str
    options: Mapping[str, int | str]
    engines: tuple[tuple[str, Precision], ...]
    samples: int = 64
    layers: bool = False


_CPU: tuple[tuple[str, Precision], ...] = (
    ("onnxruntime", "fp32"),
    ("openvino", "fp32"),
    ("openvino", "bf16"),
    ("onnxruntime", "int8"),
    ("openvino", "int8"),
)
SUBJECTS: Mapping[str, Kind] = {
    "osnet-x0-25": Kind("osnet-x0-25", {}, (*_CPU, (GPU, "fp16"), (GPU, "int8")), samples=128, layers=True),
    "enet": Kind("enet", {"side": 64}, (*_CPU, (GPU, "fp16"), (GPU, "int8")), samples=32, layers=True),
    "hsnet-hm": Kind("hsnet-hm", {}, _CPU, samples=32),
    "person-detector": Kind(
        "person-detector", {}, (("openvino", "bf16"), ("onnxruntime", "int8"), ("openvino", "int8")), layers=True
    ),
    "afl-net": Kind(
        "afl-net", {"backbone": "mobilenetv2"}, (("onnxruntime", "int8"), ("openvino", "int8")), samples=32
    ),
}


@dataclass(frozen=True, slots=True, eq=False)
class Subject:
    """A model with built and measured engines; see :func:`subject_of`."""

    name: str
    folder: Path
    deployment: Deployment
    reference: Mapping[str, Array]
    records: tuple[EngineRecord, ...]
    measure: str
    _cpu: BuildState
    _gpu: BuildState
    _judge: _Judge = field(repr=False)

    def graphs(self, record: EngineRecord) -> Graphs:
        """The graphs that the engine is compiled from."""
        return self._state(record).graphs[record.backend, record.precision]

    def compiled(self, record: EngineRecord, graphs: Graphs, folder: Path) -> EngineRecord:
        """A copy of the bundle in ``folder`` with only this engine in it, compiled from other graphs."""
        with staged_bundle(folder) as work:
            state = copy.copy(self._state(record))
            state.folder, state.graphs = work, {(record.backend, record.precision): graphs}
            if record.precision == "fp32":
                _write_graphs(graphs, work)  # ONNX Runtime's engine is the portable graph
            compile_stage.run(state, _Silent())
            for name in (GOLDEN, RECORDED):
                if (self.folder / name).exists():
                    shutil.copy(self.folder / name, work / name)
            manifest = Bundle(self.folder).manifest
            write_manifest(work, replace(manifest, engines=(replace(record, files=state.records[0].files),)))
        return Bundle(folder).manifest.engines[0]

    def _state(self, record: EngineRecord) -> BuildState:
        return self._gpu if record.backend == GPU else self._cpu

    def build(self, record: EngineRecord, folder: Path, *, threads: int | None = None) -> str:
        """The message of the build's gate for the engine in ``folder``; empty if the engine passes."""
        cpu_proxies = {}
        if record.backend == GPU:
            cpu_proxies[record.name] = {graph: folder / file for graph, file in record.files.items()}
        try:
            proved = check_parity(
                [replace(record, parity=None, graph_parity=None, recorded=None)],
                bundle=folder,
                deployment=self.deployment,
                reference=self.reference,
                advance=lambda done, total: None,
                cpu_proxies=cpu_proxies,
                agreement=parity_stage.agreement_of(self._state(record)),
                threads=threads,
            )
        except EdgevisError as error:
            return str(error)[:300]
        return "; ".join(proved.refused)

    def verify(
        self,
        record: EngineRecord,
        folder: Path,
        *,
        threads: int | None = None,
        batch_sizes: Sequence[int] = BATCH_SIZES,
    ) -> str:
        """The message of ``edgevis verify``; empty if it passes. For a graph, the message of its device build."""
        bundle = Bundle(folder)
        if record.backend != GPU:
            checks = verify_bundle(bundle, threads=threads, batch_sizes=batch_sizes)
            (check,) = [check for check in checks if check.engine == record.name]
            return "" if check.status == "passed" else check.reason or check.status
        golden, known = bundle.golden(), read_recorded(bundle, record)
        sessions = _open(record, folder, self.deployment, threads)
        try:
            parities = [measure_graph(session, session.graph, golden)[0] for session in sessions.values()]
            differences = [] if known is None else deviations(record, sessions, golden, known, batch_sizes=batch_sizes)
        except EdgevisError as error:
            return str(error)[:300]
        finally:
            _close(sessions)
        tolerance = TOLERANCES[record.precision]
        said = ["beyond its tolerance" for parity in parities if not tolerance.holds(parity)]
        return "; ".join([*said, *(deviation_text(item) for item in differences if not item.holds)])

    def score(self, record: EngineRecord, folder: Path) -> tuple[float, ...]:
        """The task's measures, 0..1, of an engine on images that no gate sees."""
        sessions = _open(record, folder, self.deployment, None)
        try:
            return self._judge.score(sessions)
        finally:
            _close(sessions)


@dataclass(frozen=True, slots=True, eq=False)
class _Judge:
    """Scores engines on images that no gate sees, against their true labels or the float model."""

    deployment: Deployment
    inputs: Mapping[str, Array]
    split: tuple[Split, Split] | None

    def score(self, sessions: Mapping[str, Session]) -> tuple[float, ...]:
        if self.split is not None:
            query, gallery = (self._embedded(sessions, side) for side in self.split)
            (one, other) = self.split
            curve, mean_ap = reid_ranking(1 - query @ gallery.T, one.ids, other.ids, one.cameras, other.cameras)
            return float(mean_ap), float(curve[0])
        # All graphs in a chain, so that a fault in the first one reaches what is decided.
        outputs: dict[str, Array] = {}
        for graph in self.deployment.image_graphs:
            inputs, _ = golden_feeds(self.inputs, graph)
            inputs = {name: outputs[name][:1] if name in outputs else array for name, array in inputs.items()}
            rows = min((len(inputs[item.name]) for item in graph.inputs if item.batched), default=1)
            outputs |= run_in_batches(sessions[graph.name], graph, inputs, size=8, rows=rows, finite=True)
        if _detects(self.deployment):
            named = {f"{self.deployment.image_graphs[-1].name}/{name}": array for name, array in outputs.items()}
            decisions = tasks.load(self.deployment.task).agreement(self.inputs, named)
            return (0.0 if decisions is None else decisions.agreement,)
        (decided,) = self.deployment.image_graphs[-1].outputs
        expected, actual = self.inputs[f"{self.deployment.image_graphs[-1].name}/{decided.name}"], outputs[decided.name]
        if _makes_masks(self.deployment):
            return (mask_agreement(expected, actual).agreement,)
        return (_neighbours(expected, actual),)

    def _embedded(self, sessions: Mapping[str, Session], side: Split) -> Array:
        graph = self.deployment.graphs[0]
        images = Preprocessor(self.deployment.preprocess)(side.images)
        outputs = run_in_batches(sessions[graph.name], graph, {"image": images}, size=8, rows=len(images), finite=True)
        return unit_rows(outputs["embedding"])


def _neighbours(expected: Array, actual: Array) -> float:
    """Mean average precision of the five neighbours that the float model names, over all images."""
    expected_rows, actual_rows = unit_rows(expected), unit_rows(actual)
    similarities, scores = expected_rows @ expected_rows.T, actual_rows @ actual_rows.T
    total = 0.0
    for index in range(len(similarities)):
        others = np.delete(np.arange(len(similarities)), index)
        relevant = set(others[np.argsort(-similarities[index, others])[:5]].tolist())
        ranked = others[np.argsort(-scores[index, others])]
        hits = np.array([item in relevant for item in ranked.tolist()])
        total += float((np.cumsum(hits)[hits] / (np.flatnonzero(hits) + 1)).mean())
    return total / len(similarities)


def subject_of(name: str, folder: Path, *, data: Path | None) -> Subject:
    """Build and prove a subject's engines by the stages of :mod:`export.stages`.

    Args:
        name: In :data:`SUBJECTS`.
        folder: For its bundle.
        data: Persons for a Re-ID model; None measures it by its neighbours among photographs.
    """
    kind = SUBJECTS[name]
    path = folder.with_suffix(".edgevis")
    request = with_trained_options(BuildRequest(models.entry(kind.model), path, options=kind.options))
    with staged_bundle(path) as work:
        cpu = _loaded(kind, request, work)
        gpu = copy.copy(cpu)
        gpu.target, gpu.precisions = _target(kind, gpu=True)
        gpu.profiles = profiles_of(gpu.deployment, ShapeProfileRequest(), usual_batch=1)
        engines: list[EngineRecord] = []
        recorded: dict[str, Array] = {}
        for state in (cpu, gpu) if gpu.precisions else (cpu,):
            _run(state, (search_int8, cast_fp16, compile_stage))
            unopened = unopenable(
                [record for record in state.records if record.backend != GPU], state.deployment, work
            )  # BF16 on a processor without it
            state.records = tuple(record for record in state.records if record.name not in unopened)
            _run(state, (parity_stage,))
            engines += state.engines
            if (work / RECORDED).exists():
                recorded |= read_arrays(work / RECORDED, error=IntegrityError)
        write_arrays(work / RECORDED, recorded)
        cpu.engines = tuple(engines)
        _run(cpu, (describe,))
        write_manifest(work, cpu.manifest)
    deployment = cpu.deployment
    persons = data is not None and deployment.task == "reid"
    sides = (read_split(data, "query"), read_split(data, "gallery")) if persons and data else None
    unseen = _samples(deployment, 48, seed=1)
    judge = _Judge(deployment, reference_of(cpu.model, deployment, unseen, lambda done, total: None), sides)
    measure = "mAP, rank-1" if sides else "neighbours' mAP"
    if _makes_masks(deployment) or _detects(deployment):
        measure = "mask IoU" if _makes_masks(deployment) else "detections' AP50"
    return Subject(name, path, deployment, cpu.reference, tuple(engines), measure, cpu, gpu, judge)


def _loaded(kind: Kind, request: BuildRequest, folder: Path) -> BuildState:
    """The state of a build up to the INT8 ranges, with inlined graphs, so that faults can be planted into any node."""
    target, precisions = _target(kind, gpu=False)
    state = BuildState(request, target, precisions, folder)
    _run(state, (load,))
    state.calibration_samples, state.verification_samples = split(_samples(state.deployment, kind.samples))
    _run(state, (to_onnx,))
    state.float_graphs = {name: inlined(model) for name, model in state.float_graphs.items()}
    _write_graphs(state.float_graphs, folder)
    _run(state, (reference, calibrate, *((measure_sensitivity,) if kind.layers else ())))
    if not kind.layers:
        state.sensitivity = ()
    return state


def _run(state: BuildState, stages: Sequence[Stage]) -> None:
    for stage in stages:
        stage.run(state, _Silent())


def _target(kind: Kind, *, gpu: bool) -> tuple[Target, tuple[Precision, ...]]:
    """The target and its precisions: the CPU, or a GPU that is absent, whose graphs ONNX Runtime runs."""
    compilers: dict[Precision, tuple[str, ...]] = {}
    for backend, precision in kind.engines:
        if (backend == GPU) == gpu:
            compilers[precision] = (*compilers.get(precision, ()), backend)
    if gpu:
        return Target("", "cuda", compilers, (), machine="none", autocast=("int8", "fp16")), tuple(compilers)
    return Target("", "cpu", compilers, ()), tuple(compilers)


class _Silent:
    """A progress that prints nothing."""

    def begin(self, stage: str) -> None: ...

    def advance(self, done: int, total: int) -> None: ...

    def end(self, detail: str, *, size_bytes: int | None = None) -> None: ...

    def warn(self, message: str) -> None: ...


def _write_graphs(graphs: Graphs, folder: Path) -> None:
    for name, model in graphs.items():
        path = graph_path(folder, name)
        path.parent.mkdir(exist_ok=True)
        onnx.save(model, path)


def _open(record: EngineRecord, folder: Path, deployment: Deployment, threads: int | None) -> dict[str, Session]:
    if record.backend != GPU:
        return open_graphs(record, deployment, lambda file: folder / file, threads=threads)
    return {
        graph.name: Session(CpuProxy(folder / record.files[graph.name]), graph, max_batch=deployment.max_batch)
        for graph in deployment.graphs
    }


def _close(sessions: Mapping[str, Session]) -> None:
    for session in sessions.values():
        session.close()


def _samples(deployment: Deployment, count: int, *, seed: int = 0) -> SampleSet:
    preprocess = deployment.preprocess
    samples = samples_from_photographs(height=preprocess.height, width=preprocess.width, count=count, seed=seed)
    return samples.with_masks() if needs_masks(deployment) else samples


def _detects(deployment: Deployment) -> bool:
    return issubclass(tasks.load(deployment.task).TRAITS.result, Detections)


def _makes_masks(deployment: Deployment) -> bool:
    return issubclass(tasks.load(deployment.task).TRAITS.result, Segmentation)
