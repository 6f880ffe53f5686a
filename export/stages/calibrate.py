"""Measure INT8's ranges on the calibration images."""

from __future__ import annotations

from collections.abc import Iterator

from export import int8
from export.reference import CALIBRATION_BATCH, calibration_feeds
from export.request import BuildProgress
from export.state import BuildState
from runtime.common.arrays import Array


def run(state: BuildState, progress: BuildProgress) -> None:
    """Set ``calibrated``, where INT8 is built."""
    if "int8" not in state.precisions:
        return
    samples, deployment, quantization = state.calibration_samples, state.deployment, state.quantization
    if state.weights.trained and (warning := state.model.calibration_warning(deployment, samples)):
        progress.warn(warning)
    progress.begin("calibrate")
    total = len(samples) * len(state.float_graphs)
    done = 0

    def feeds(name: str) -> Iterator[dict[str, Array]]:
        nonlocal done
        graph = deployment.graph(name)
        for feed in calibration_feeds(state.model, deployment, graph, samples, batch=CALIBRATION_BATCH):
            yield feed
            done += len(feed["image"])
            progress.advance(done, total)

    key = int8.cache_key(
        state.request.name,
        weights=state.weights.sha256,
        samples=samples,
        deployment=deployment,
        config=quantization,
    )
    calibrated = int8.calibrate(state.float_graphs, feeds, config=quantization, key=key, folder=state.request.cache)
    notes = ", ".join(sorted(set(calibrated.notes.values())))
    progress.end(f"{len(samples)} images ({notes}): {quantization}")
    state.calibrated = calibrated
