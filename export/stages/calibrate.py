"""Measure INT8's ranges on the calibration images."""

from __future__ import annotations

from collections.abc import Iterator

from calibration.cache import RangesCache
from calibration.search.calibrate import calibrate
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
    graphs = {graph.name: state.float_graphs[graph.name] for graph in deployment.image_graphs}
    total = len(samples) * len(graphs)
    done = 0

    def feeds(name: str) -> Iterator[dict[str, Array]]:
        nonlocal done
        graph = deployment.graph(name)
        for feed in calibration_feeds(state.model, deployment, graph, samples, batch=CALIBRATION_BATCH):
            yield feed
            done += len(feed["image"])
            progress.advance(done, total)

    cache = None if state.request.cache is None else RangesCache(state.request.cache, state.calibration_inputs)
    state.calibrated = calibrate(
        graphs,
        feeds,
        config=quantization,
        cache=cache,
        float32_outputs={graph.name: graph.float32_outputs for graph in deployment.image_graphs},
    )
    progress.end(f"{len(samples)} images ({state.calibrated.notes}): {quantization}")
