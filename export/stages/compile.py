"""Compile every engine for the target."""

from __future__ import annotations

from export import compilers
from export.metadata import describe_graph
from export.request import BuildProgress
from export.state import BuildState, EngineKey
from runtime.bundle.manifest import EngineRecord
from runtime.bundle.spec import Precision


def run(state: BuildState, progress: BuildProgress) -> None:
    """Set ``records`` and write the engines' files.

    Raises:
        CompileError: A vendor's compiler refused a graph.
    """
    progress.begin("compile")
    records: list[EngineRecord] = []
    for number, key in enumerate(state.graphs, start=1):
        records.append(_compile(state, key))
        progress.advance(number, len(state.graphs))
    state.records = tuple(records)
    size = sum(path.stat().st_size for path in (state.folder / compilers.ENGINES).rglob("*") if path.is_file())
    progress.end(", ".join(record.name for record in records), size_bytes=size)


def _compile(state: BuildState, key: EngineKey) -> EngineRecord:
    backend, precision = key
    files = {}
    for graph, model in state.graphs[key].items():
        describe_graph(model, name=state.request.name, graph=graph, deployment=state.deployment)
        profiles = state.profiles.get(graph)
        arithmetic: Precision = "fp32" if state.deployment.graph(graph).set_of else precision
        path = compilers.load(backend).engine_from_onnx(
            model,
            graph=graph,
            precision=precision,
            bundle=state.folder,
            spec=None if profiles is None else state.target.spec(profiles, arithmetic, state.request.settings),
        )
        files[graph] = path.relative_to(state.folder).as_posix()
    return EngineRecord(backend, precision, state.target.device, files)
