"""Search for each backend the INT8 graphs that lose no more than ``max_drop``, and list what engines are made of."""

from __future__ import annotations

from calibration.quantize.config import calibration_digest
from export import int8
from export.engine_selection import no_int8_text
from export.request import BuildProgress
from export.state import BuildState
from runtime.bundle.build_report import search_text
from runtime.bundle.manifest import Calibration


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


def _search(state: BuildState, calibrated: int8.Calibrated, progress: BuildProgress) -> None:
    progress.begin("search")
    state.search = int8.search_int8(
        calibrated,
        state.sensitivity,
        names=state.target.compilers["int8"],
        device=state.target.device,
        deployment=state.deployment,
        reference=state.reference,
        config=state.quantization,
        max_drop=state.request.max_drop,
        advance=progress.advance,
    )
    searches, samples = state.search.searches, state.calibration_samples
    progress.end("; ".join(search_text(search) for search in searches))
    for search in searches:
        if not search.holds:
            progress.warn(no_int8_text(search))
    state.calibration = Calibration(
        digest=calibration_digest(
            samples,
            preprocess=state.deployment.preprocess,
            weights_sha256=state.weights.sha256,
            config=state.quantization,
        ),
        images=len(samples),
        source=samples.source,
        algorithm=str(state.quantization),
        excluded_by_rule=sum(len(prepared.excluded_by_rule) for prepared in calibrated.prepared.values()),
        searches=searches,
    )
