"""Measure the INT8 sensitivity of each layer: where the search needs an order of all layers, and for the report."""

from __future__ import annotations

from calibration.search.sensitivity import layer_sensitivities
from export.request import BuildProgress
from export.state import BuildState


def run(state: BuildState, progress: BuildProgress) -> None:
    """Set ``sensitivity``, where INT8 is built."""
    calibrated = state.calibrated
    if calibrated is None:
        return
    progress.begin("layers")
    state.sensitivity = layer_sensitivities(calibrated, state.deployment, state.reference, progress.advance)
    layers, by_rule = len(state.sensitivity), calibrated.excluded_by_rule
    progress.end(f"{layers} layers, each alone in INT8; {by_rule} more are float by rule")
