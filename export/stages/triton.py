"""Write a Triton model repository into the bundle, with the engine that a predictor would take."""

from __future__ import annotations

from export.request import BuildProgress
from export.state import BuildState
from export.triton.repository import FOLDER, write_repository


def run(state: BuildState, progress: BuildProgress) -> None:
    """Write the repository if the target has one."""
    if not state.target.triton:
        return
    progress.begin("triton")
    # Not INT8: Triton's ONNX Runtime backend cannot tell TensorRT that such a graph computes in float16, too.
    engines = [engine for engine in state.engines if engine.precision != "int8"] or list(state.engines)
    record = next((engine for engine in engines if engine.precision == "fp32" or engine.shares_enrolments), engines[0])
    repository = state.folder / FOLDER
    written = write_repository(
        repository,
        name=state.request.output.stem,
        deployment=state.deployment,
        record=record,
        files=state.graph_paths(record),
        bundle="../..",
    )
    size = sum(path.stat().st_size for path in repository.rglob("*") if path.is_file())
    progress.end(f"models {', '.join(path.name for path in written)} on {record.name}", size_bytes=size)
