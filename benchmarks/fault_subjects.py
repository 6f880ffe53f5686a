"""What :mod:`benchmarks.faults` plants faults into: models with their engines, a finished bundle, a measure."""

from __future__ import annotations

import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np
import onnx
import torch
from onnx import ModelProto

from benchmarks.fault_kinds import inlined
from benchmarks.reid import Split, read_split
from calibration.data.samples import SampleSet, samples_from_photographs, split
from calibration.quantize.config import QuantizationConfig
from calibration.search.sensitivity import LayerSensitivity
from edgevis import EdgevisError, models
from edgevis.metrics import reid_ranking
from edgevis.open_set.sidecar import weights_digest
from edgevis.provenance import read_provenance
from export import compilers, int8
from export.agreement import Agreement, write_recorded
from export.autocast import fp16_from_fp32
from export.compilers import graph_path
from export.cpu_proxy import CpuProxy
from export.onnx import onnx_from_module
from export.parity import check_parity
from export.reference import calibration_feeds, golden_of, needs_masks, reference_of
from export.reference_models.torch_module import TorchModel
from runtime.bundle.bundle import GOLDEN, Bundle
from runtime.bundle.identity import encoder_identity
from runtime.bundle.manifest import EngineRecord, Manifest, Weights
from runtime.bundle.spec import Deployment, Precision
from runtime.bundle.staging import staged_bundle, write_manifest
from runtime.common.arrays import Array, unit_rows, write_arrays
from runtime.errors import UnavailableError
from runtime.images.preprocess import Preprocessor
from runtime.parity.compare import BATCH_SIZES, TOLERANCES, golden_feeds, mask_agreement, measure_graph, run_in_batches
from runtime.parity.recorded import deviation_text, deviations, read_recorded
from runtime.sessions.open import open_graphs
from runtime.sessions.session import Session
from runtime.verification.verify import verify_bundle

GPU = "tensorrt"


@dataclass(frozen=True, slots=True)
class Kind:
    """What a subject is built from.

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
    "afl-net": Kind("afl-net", {}, (("onnxruntime", "int8"), ("openvino", "int8")), samples=32),
}


@dataclass(frozen=True, slots=True, eq=False)
class Subject:
    """A model whose engines are built and proved; see :func:`subject_of`."""

    name: str
    folder: Path
    deployment: Deployment
    reference: Mapping[str, Array]
    records: tuple[EngineRecord, ...]
    measure: str
    _graphs: Mapping[tuple[str, Precision], Mapping[str, ModelProto]]
    _agreement: Agreement
    _judge: _Judge = field(repr=False)

    def graphs(self, record: EngineRecord) -> Mapping[str, ModelProto]:
        """What the engine is compiled from."""
        return self._graphs[record.backend, record.precision]

    def compiled(self, record: EngineRecord, graphs: Mapping[str, ModelProto], folder: Path) -> EngineRecord:
        """A copy of the bundle in ``folder`` with only this engine in it, compiled from other graphs."""
        with staged_bundle(folder) as work:
            files = _compile(record.backend, record.precision, graphs, work)
            for name in (GOLDEN, "recorded.npz"):
                if (self.folder / name).exists():
                    shutil.copy(self.folder / name, work / name)
            manifest = Bundle(self.folder).manifest
            write_manifest(work, replace(manifest, engines=(replace(record, files=files),)))
        return Bundle(folder).manifest.engines[0]

    def build(self, record: EngineRecord, folder: Path, *, threads: int | None = None) -> str:
        """What the build's gate says to the engine in ``folder``; empty where it lets it pass."""
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
                agreement=self._agreement,
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
        """What ``edgevis verify`` says; empty where it passes. For a graph: what finishing it on a device would."""
        bundle = Bundle(folder)
        if record.backend != GPU:
            checks = verify_bundle(bundle, threads=threads, batch_sizes=batch_sizes)
            (check,) = [check for check in checks if check.engine == record.name]
            return "" if check.status == "passed" else check.reason or check.status
        golden, known = bundle.golden(), read_recorded(bundle, record)
        sessions = _open(record, folder, self.deployment, threads)
        try:
            parities = [measure_graph(session, session.graph, golden)[0] for session in sessions.values()]
            apart = [] if known is None else deviations(record, sessions, golden, known, batch_sizes=batch_sizes)
        except EdgevisError as error:
            return str(error)[:300]
        finally:
            _close(sessions)
        tolerance = TOLERANCES[record.precision]
        said = ["beyond its tolerance" for parity in parities if not tolerance.holds(parity)]
        return "; ".join([*said, *(deviation_text(item) for item in apart if not item.holds)])

    def score(self, record: EngineRecord, folder: Path) -> tuple[float, ...]:
        """The task's measures, 0..1, of an engine on images that no gate sees."""
        sessions = _open(record, folder, self.deployment, None)
        try:
            return self._judge.score(sessions)
        finally:
            _close(sessions)


@dataclass(frozen=True, slots=True, eq=False)
class _Judge:
    """Images that no gate sees, and what is right of them."""

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
        made: dict[str, Array] = {}
        for graph in self.deployment.graphs:
            inputs, _ = golden_feeds(self.inputs, graph)
            inputs = {name: made[name][:1] if name in made else array for name, array in inputs.items()}
            rows = min((len(inputs[item.name]) for item in graph.inputs if item.batched), default=1)
            made |= run_in_batches(sessions[graph.name], graph, inputs, size=8, rows=rows, finite=True)
        (decided,) = self.deployment.graphs[-1].outputs
        wanted, found = self.inputs[f"{self.deployment.graphs[-1].name}/{decided.name}"], made[decided.name]
        if found.ndim >= 4:
            return (mask_agreement(wanted, found).agreement,)
        return (_neighbours(wanted, found),)

    def _embedded(self, sessions: Mapping[str, Session], side: Split) -> Array:
        graph = self.deployment.graphs[0]
        images = Preprocessor(self.deployment.preprocess)(side.images)
        made = run_in_batches(sessions[graph.name], graph, {"image": images}, size=8, rows=len(images), finite=True)
        return unit_rows(made["embedding"])


def _neighbours(wanted: Array, found: Array) -> float:
    """Mean average precision of the five neighbours that the float model names, over all images."""
    right, made = unit_rows(wanted), unit_rows(found)
    true, scores = right @ right.T, made @ made.T
    total = 0.0
    for index in range(len(true)):
        others = np.delete(np.arange(len(true)), index)
        relevant = set(others[np.argsort(-true[index, others])[:5]].tolist())
        ranked = others[np.argsort(-scores[index, others])]
        hits = np.array([item in relevant for item in ranked.tolist()])
        total += float((np.cumsum(hits)[hits] / (np.flatnonzero(hits) + 1)).mean())
    return total / len(true)


def subject_of(name: str, folder: Path, *, data: Path | None) -> Subject:
    """Build and prove a subject's engines, as :mod:`export.stages` does.

    Args:
        name: In :data:`SUBJECTS`.
        folder: For its bundle.
        data: Persons for a Re-ID model; None measures it by its neighbours among photographs.
    """
    kind = SUBJECTS[name]
    entry = models.entry(kind.model)
    weights = models.shipped_weights(entry, kind.options)
    provenance = None if weights is None else read_provenance(weights)
    options = {**({} if provenance is None else provenance.options), **kind.options}
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        module = models.module_from(entry, options)
    if weights is not None:
        models.load_weights(module, weights)
    digest = weights_digest(module)
    deployment = models.deployment_of(entry, module)
    model = TorchModel(module)
    calibrate, verify = split(_samples(deployment, kind.samples))
    reference = reference_of(model, deployment, verify, lambda done, total: None)
    floats = {graph.name: inlined(onnx_from_module(module, graph)) for graph in deployment.graphs}
    precisions = {precision for _, precision in kind.engines}
    searched = int8.NOT_SEARCHED
    if "int8" in precisions:
        searched = _searched(kind, model, deployment, floats, calibrate, reference)
    graphs: dict[tuple[str, Precision], Mapping[str, ModelProto]] = {
        (backend, precision): searched.graphs[backend] if precision == "int8" else floats
        for backend, precision in kind.engines
    }
    agreement = Agreement(dict(graphs), searched.outputs, (), deployment, reference)
    fp16_graphs = [key for key in graphs if key[0] == GPU]
    if fp16_graphs:
        agreement = replace(agreement, autocast=("int8", "fp16"))
    for key in fp16_graphs:
        graphs[key] = {
            graph.name: fp16_from_fp32(
                graphs[key][graph.name], calibration_feeds(model, deployment, graph, calibrate, batch=4)
            )
            for graph in deployment.graphs
        }

    path = folder.with_suffix(".edgevis")
    with staged_bundle(path) as work:
        for graph, onnx_model in floats.items():
            graph_path(work, graph).parent.mkdir(exist_ok=True)
            onnx.save(onnx_model, graph_path(work, graph))
        write_arrays(work / GOLDEN, golden_of(reference, deployment))
        records = [
            EngineRecord(
                backend, precision, "cuda" if backend == GPU else "cpu", _compile(backend, precision, own, work)
            )
            for (backend, precision), own in graphs.items()
        ]
        for record in list(records):
            try:
                _close(_open(record, work, deployment, None))
            except UnavailableError:  # BF16 on a processor without it
                records.remove(record)
        proved = check_parity(
            records,
            bundle=work,
            deployment=deployment,
            reference=reference,
            advance=lambda done, total: None,
            cpu_proxies={
                record.name: {graph: work / file for graph, file in record.files.items()}
                for record in records
                if record.backend == GPU
            },
            agreement=agreement,
            optional=("fp16", "bf16", "int8"),  # what this model loses too much in has nothing to be broken
        )
        write_recorded(proved.engines, proved.recorded, work)
        manifest = Manifest(
            name, kind.model, "cpu", deployment, encoder_identity(kind.model, deployment, digest),
            Weights(weights is not None, "", digest),
            models.parameters(module), proved.engines, {},
        )  # fmt: skip
        write_manifest(work, manifest)
    bundle = Bundle(path)
    persons = data is not None and deployment.task == "reid"
    sides = (read_split(data, "query"), read_split(data, "gallery")) if persons and data else None
    unseen = _samples(deployment, 48, seed=1)
    judge = _Judge(deployment, reference_of(model, deployment, unseen, lambda done, total: None), sides)
    measure = "mAP, rank-1" if sides else "mask IoU" if _makes_masks(deployment) else "neighbours' mAP"
    return Subject(name, bundle.path, deployment, reference, bundle.manifest.engines, measure, graphs, agreement, judge)


def _searched(
    kind: Kind,
    model: TorchModel,
    deployment: Deployment,
    floats: Mapping[str, ModelProto],
    calibrate: SampleSet,
    reference: Mapping[str, Array],
) -> int8.Searched:
    config = QuantizationConfig()
    calibrated = int8.calibrate(
        floats,
        lambda name: calibration_feeds(model, deployment, deployment.graph(name), calibrate, batch=4),
        config=config,
        key=lambda graph, digest: (_ for _ in ()).throw(AssertionError("no cache")),
        folder=None,
    )
    layers: tuple[LayerSensitivity, ...] = ()
    if kind.layers:
        layers = int8.layer_sensitivities(calibrated, deployment, reference, config, lambda done, total: None)
    return int8.search_int8(
        calibrated,
        layers,
        names=[backend for backend, precision in kind.engines if precision == "int8"],
        device="cpu",
        deployment=deployment,
        reference=reference,
        config=config,
        max_drop=0.005,
        advance=lambda done, total: None,
    )


def _compile(backend: str, precision: Precision, graphs: Mapping[str, ModelProto], folder: Path) -> dict[str, str]:
    files = {}
    for graph, model in graphs.items():
        if backend == GPU:
            path = compilers.engine_path(folder, backend, precision, graph, ".onnx")
            onnx.save(model, path)
        else:
            if backend == "onnxruntime" and precision == "fp32":
                graph_path(folder, graph).parent.mkdir(exist_ok=True)
                onnx.save(model, graph_path(folder, graph))
            path = compilers.load(backend).engine_from_onnx(model, graph=graph, precision=precision, bundle=folder)
        files[graph] = path.relative_to(folder).as_posix()
    return files


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


def _makes_masks(deployment: Deployment) -> bool:
    return len(deployment.graphs[-1].outputs[0].shape) >= 4
