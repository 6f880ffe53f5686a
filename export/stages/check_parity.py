"""Compare every engine with the reference model, and keep those within their tolerance."""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from pathlib import Path

import onnx

from export import compilers
from export.agreement import Agreement, write_recorded
from export.engine_selection import candidates_of, unopenable
from export.parity import check_parity
from export.request import BuildProgress
from export.state import BuildState
from runtime.bundle.manifest import EngineRecord
from runtime.bundle.spec import Precision
from runtime.common.files import scratch_folder


def run(state: BuildState, progress: BuildProgress) -> None:
    """Set ``engines`` and ``candidates``, write ``recorded.npz`` and delete the files of engines that are not kept.

    Raises:
        ParityError: An engine is too far from the model.
        BackendError: An engine cannot be opened or run here.
    """
    progress.begin("parity")
    request, records = state.request, state.records
    here = [record for record in records if state.target.runs_here(record.backend)]
    unopened = unopenable(here, state.deployment, state.folder) if request.choose else {}
    with scratch_folder("edgevis-graphs-") as work:
        checked = check_parity(
            [record for record in records if record.name not in unopened],
            bundle=state.folder,
            deployment=state.deployment,
            reference=state.reference,
            optional=_optional(state),
            advance=progress.advance,
            cpu_proxies=_cpu_proxies(state, work),
            agreement=agreement_of(state),
            decide=state.compare_decisions,
        )
    progress.end(_summary(checked.engines, len(state.verification_samples)))
    for complaint in checked.refused:
        progress.warn(f"{complaint}. It is not in the bundle")
    state.candidates = candidates_of(
        records,
        checked.engines,
        unopened=unopened,
        max_drop=state.max_drop,
        choose=request.choose,
        left_out=state.left_out,
    )
    in_bundle = {candidate.engine for candidate in state.candidates if candidate.in_bundle}
    state.engines = tuple(engine for engine in checked.engines if engine.name in in_bundle)
    _remove_unused_files(records, state.engines, state.folder)
    write_recorded(state.engines, checked.recorded, state.folder)


def agreement_of(state: BuildState) -> Agreement:
    """The comparison of engines with the graphs that they are compiled from."""
    return Agreement(
        state.uncast_graphs,
        state.search.outputs,
        state.target.autocast,
        state.deployment,
        state.reference,
        state.golden,
    )


def _optional(state: BuildState) -> frozenset[Precision]:
    """The precisions that may be left out: those not requested by name, except FP32, the fallback of all."""
    if state.request.precisions and not state.request.choose:
        return frozenset()
    return frozenset(state.precisions) - {"fp32"}


def _cpu_proxies(state: BuildState, work: Path) -> dict[str, dict[str, Path]]:
    """The ONNX files of the engines that cannot run here, written if no file of the bundle holds them."""
    proxies: dict[str, dict[str, Path]] = {}
    for record in state.records:
        if state.target.runs_here(record.backend):
            continue
        proxies[record.name] = {}
        for graph, path in state.graph_paths(record).items():
            file = path
            if path.suffix != ".onnx":
                file = work / f"{record.name}-{graph}.onnx"
                onnx.save(state.graphs[record.backend, record.precision][graph], file)
            proxies[record.name][graph] = file
    return proxies


def _summary(engines: Sequence[EngineRecord], images: int) -> str:
    proved = sum(engine.parity is not None for engine in engines)
    waiting = len(engines) - proved
    parts = [f"{proved} engines on {images} images hold their tolerance"] if proved or not waiting else []
    if waiting:
        parts.append(f"the graphs of {waiting} engines hold it on {images} images; the engines are not yet proved")
    return "; ".join(parts)


def _remove_unused_files(compiled: Sequence[EngineRecord], in_bundle: Sequence[EngineRecord], folder: Path) -> None:
    """Delete the folders of those engines that are not in the bundle."""
    used = {Path(file).parent for record in in_bundle for file in record.files.values()}
    for record in compiled:
        for parent in {Path(file).parent for file in record.files.values()} - used:
            if parent.parts[0] == compilers.ENGINES:
                shutil.rmtree(folder / parent, ignore_errors=True)
