"""Measure what each layer alone does in INT8."""

from __future__ import annotations

from export import int8
from export.request import BuildProgress
from export.state import BuildState


def run(state: BuildState, progress: BuildProgress) -> None:
    """Set ``sensitivity``, where INT8 is built."""
    calibrated = state.calibrated
    if calibrated is None:
        return
    progress.begin("layers")
    state.sensitivity = int8.layer_sensitivities(
        calibrated, state.deployment, state.reference, state.quantization, progress.advance
    )
    excluded_by_rule = sum(len(prepared.excluded_by_rule) for prepared in calibrated.prepared.values())
    progress.end(f"{len(state.sensitivity)} layers, each alone in INT8; {excluded_by_rule} more are float by rule")
