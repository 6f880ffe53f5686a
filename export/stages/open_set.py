"""Add the weights' open-set statistics, ``open_set.npz``."""

from __future__ import annotations

from dataclasses import replace

from edgevis.open_set.sidecar import sidecar_of
from export.request import BuildProgress
from export.state import BuildState
from runtime import tasks
from runtime.common.arrays import write_arrays
from runtime.common.json_data import to_json
from runtime.open_set.space import FILE


def run(state: BuildState, progress: BuildProgress) -> None:
    """Add the statistics to ``deployment`` and write the arrays, for a model with embeddings whose weights have any."""
    if tasks.load(state.deployment.task).TRAITS.embedding is None:
        return
    sidecar = sidecar_of(state.weights.sha256, state.request.checkpoint)
    if sidecar is None:
        return
    progress.begin("open set")
    path = state.folder / FILE
    write_arrays(path, sidecar.arrays)
    statistics = sidecar.header.statistics
    progress.end(f"measured on {statistics.source}", size_bytes=path.stat().st_size)
    postprocess = {**state.deployment.postprocess, "open_set": to_json(statistics)}
    state.deployment = replace(state.deployment, postprocess=postprocess)
