"""Choose the images to calibrate on, and those to verify on."""

from __future__ import annotations

from calibration.data.samples import SampleSet, samples_from, samples_from_photographs, split
from export.labelled import labelled_samples
from export.reference import limit_samples, needs_masks
from export.request import BuildProgress
from export.state import BuildState
from runtime import tasks
from runtime.errors import SourceError
from runtime.results import Detections
from runtime.tasks.detect import settings_from


def run(state: BuildState, progress: BuildProgress) -> None:
    """Set ``calibration_samples`` and ``verification_samples``.

    Raises:
        InputError: There are too few images.
        SourceError: One cannot be read.
    """
    progress.begin("samples")
    calibration, verification = (
        limit_samples(part, state.model, state.deployment) for part in _samples(state, progress)
    )
    if needs_masks(state.deployment):
        calibration, verification = calibration.with_masks(), verification.with_masks()
    state.calibration_samples, state.verification_samples = calibration, verification
    count = sum(int((~item.ignored).sum()) for item in verification.objects)
    boxes = f", with {count} boxes" if verification.objects else ""
    progress.end(f"{len(calibration)} to calibrate, {len(verification)} to verify{boxes}: {verification.source}")


def _samples(state: BuildState, progress: BuildProgress) -> tuple[SampleSet, SampleSet]:
    """The images to calibrate on, and those to verify on; with objects where a detector is given data with boxes."""
    data, size = state.request.calibration_data, state.deployment.preprocess
    if data is None:
        return split(samples_from_photographs(height=size.height, width=size.width))
    if issubclass(tasks.load(state.deployment.task).TRAITS.result, Detections):
        try:
            labelled = labelled_samples(data, settings_from(state.deployment.postprocess).labels)
        except SourceError as error:
            progress.warn(f"the boxes of {data.name} are not used, its images are: {error}")
            labelled = None
        if labelled is not None:
            return labelled
    return split(samples_from(data))
