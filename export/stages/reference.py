"""Run the model in float32 on the verification images; a few rows of it become ``golden.npz``."""

from __future__ import annotations

from calibration.data.samples import samples_from_photographs
from export.reference import golden_of, golden_rows, needs_masks, reference_of
from export.request import BuildProgress
from export.state import BuildState
from runtime.bundle.bundle import GOLDEN
from runtime.common.arrays import Array, write_arrays
from runtime.common.levels import compact


def run(state: BuildState, progress: BuildProgress) -> None:
    """Set ``reference`` and ``golden``, and write ``golden.npz``.

    Raises:
        ExportError: A graph takes an input that nothing makes.
    """
    progress.begin("reference")
    deployment, images = state.deployment, len(state.verification_samples)
    state.reference = reference_of(state.model, deployment, state.verification_samples, progress.advance)
    state.golden = _photographs(state) if state.request.calibration_data is not None else None
    path = state.folder / GOLDEN
    write_arrays(path, compact(golden_of(state.golden or state.reference, deployment)))
    progress.end(
        f"{state.model} in float32 on {images} images; {golden_rows(deployment)} "
        f"{'of them' if state.golden is None else 'photographs, none of them yours,'} kept as {GOLDEN}",
        size_bytes=path.stat().st_size,
    )


def _photographs(state: BuildState) -> dict[str, Array]:
    """Photographs for the bundle of a build on the user's images, which are not copied into it."""
    size, count = state.deployment.preprocess, golden_rows(state.deployment)
    samples = samples_from_photographs(height=size.height, width=size.width, count=count, to_copy=True)
    if needs_masks(state.deployment):
        samples = samples.with_masks()
    return reference_of(state.model, state.deployment, samples, lambda done, total: None)
