"""Choose the images to calibrate on, and those to verify on."""

from __future__ import annotations

from calibration.data.samples import samples_from, samples_from_photographs, split
from export.reference import limit_samples, needs_masks
from export.request import BuildProgress
from export.state import BuildState


def run(state: BuildState, progress: BuildProgress) -> None:
    """Set ``calibration_samples`` and ``verification_samples``.

    Raises:
        InputError: There are too few images.
        SourceError: One cannot be read.
    """
    progress.begin("samples")
    size = state.deployment.preprocess
    if state.request.calibration_data is not None:
        samples = samples_from(state.request.calibration_data)
    else:
        samples = samples_from_photographs(height=size.height, width=size.width)
    calibration, verification = (limit_samples(part, state.model, state.deployment) for part in split(samples))
    if needs_masks(state.deployment):
        calibration, verification = calibration.with_masks(), verification.with_masks()
    state.calibration_samples, state.verification_samples = calibration, verification
    progress.end(f"{len(calibration)} to calibrate, {len(verification)} to verify: {verification.source}")
