"""Load the model and its weights, and fix the shapes that engines are built for."""

from __future__ import annotations

from export.profiles import profiles_of, with_profile_max_batch
from export.reference_models.onnx_file import load_onnx
from export.reference_models.torch_module import load_module
from export.request import BuildProgress, OnnxSource
from export.state import BuildState


def run(state: BuildState, progress: BuildProgress) -> None:
    """Set ``model``, ``deployment``, ``weights``, ``parameters`` and ``profiles``.

    Raises:
        ModelError: The model has no such option.
        ExportError: An ONNX file is not as the task needs it.
        WeightsError: The checkpoint does not fit.
        InputError: A shape that is asked for is impossible.
    """
    progress.begin("weights")
    source = state.request.entry
    loaded = load_onnx(source) if isinstance(source, OnnxSource) else load_module(source, state.request)
    state.model, state.deployment = loaded.model, loaded.deployment
    state.weights, state.parameters = loaded.weights, loaded.parameters
    state.profiles = {}
    if state.target.profiled:
        shapes, usual_batch = state.request.shapes, state.target.usual_batch
        state.profiles = profiles_of(state.deployment, shapes, usual_batch=usual_batch)
        state.deployment = with_profile_max_batch(state.deployment, state.profiles)
    progress.end(f"{state.weights.source}; {state.parameters:,} parameters")
