"""Search the INT8 graphs with a drop of at most ``max_drop`` for each backend, and list the engines' graphs."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace

from onnx import ModelProto

from calibration.search.calibrate import CalibratedModel
from calibration.search.engines import Int8Measurement
from calibration.search.search import search_int8
from calibration.search.sensitivity import LayerSensitivity
from export.engine_selection import no_int8_text
from export.int8 import open_int8_engines
from export.request import BuildProgress
from export.stages import measure_sensitivity
from export.state import BuildState
from runtime import tasks
from runtime.bundle.build_report import search_text
from runtime.bundle.manifest import Calibration
from runtime.bundle.spec import Deployment


def run(state: BuildState, progress: BuildProgress) -> None:
    """Set ``search`` and ``calibration`` where INT8 is built, then ``graphs`` and ``uncast_graphs``."""
    if state.calibrated is not None:
        _search(state, state.calibrated, progress)
    state.graphs = {
        (name, precision): state.search.graphs[name] if precision == "int8" else state.float_graphs
        for precision in state.precisions
        for name in state.target.compilers[precision]
    }
    state.uncast_graphs = dict(state.graphs)


def _search(state: BuildState, calibrated: CalibratedModel, progress: BuildProgress) -> None:
    target = state.target

    def sensitivities() -> Sequence[LayerSensitivity]:
        if state.sensitivity is None:
            measure_sensitivity.run(state, progress)
            progress.begin("search")
        return state.sensitivity or ()

    progress.begin("search")
    state.search = search_int8(
        calibrated,
        sensitivities,
        Int8Measurement(open_int8_engines, _of_images(state.deployment), state.reference, state.compare_decisions),
        backends=target.compilers["int8"],
        runs_here=lambda backend: target.device == "cpu" and target.runs_here(backend),
        max_drop=state.max_drop,
        float_first=tasks.load(state.deployment.task).TRAITS.float_first,
        advance=progress.advance,
    )
    over_sets = {graph.name: state.float_graphs[graph.name] for graph in state.deployment.set_graphs}
    if over_sets:
        state.search = replace(state.search, graphs=_with_graphs(state.search.graphs, over_sets))
    searches, samples = state.search.searches, state.calibration_samples
    progress.end("; ".join(search_text(search) for search in searches))
    for search in searches:
        if not search.holds:
            progress.warn(no_int8_text(search))
    state.calibration = Calibration(
        digest=state.calibration_inputs.digest(calibrated.config),
        images=len(samples),
        source=samples.source,
        algorithm=str(calibrated.config),
        excluded_by_rule=calibrated.excluded_by_rule,
        searches=searches,
    )


def _of_images(deployment: Deployment) -> Deployment:
    """The deployment without graphs over a set, which have no INT8 form."""
    return replace(deployment, graphs=deployment.image_graphs) if deployment.set_graphs else deployment


def _with_graphs(
    searched: Mapping[str, Mapping[str, ModelProto]], more: Mapping[str, ModelProto]
) -> dict[str, Mapping[str, ModelProto]]:
    """Each backend's graphs and ``more``; backends that shared one object still do."""
    merged = {id(graphs): {**graphs, **more} for graphs in searched.values()}
    return {name: merged[id(graphs)] for name, graphs in searched.items()}
