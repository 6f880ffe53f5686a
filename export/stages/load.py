"""Load the model and its weights, and fix the shapes that engines are built for."""

from __future__ import annotations

import torch

from edgevis import __version__, models
from edgevis.open_set.sidecar import weights_digest
from export.profiles import profiles_of, with_profile_max_batch
from export.reference_models.torch_module import TorchModel
from export.report import UNTRAINED
from export.request import BuildProgress
from export.state import BuildState
from runtime.bundle.manifest import Weights


def run(state: BuildState, progress: BuildProgress) -> None:
    """Set ``model``, ``deployment``, ``weights``, ``parameters`` and ``profiles``.

    Raises:
        ModelError: The model has no such option.
        WeightsError: The checkpoint does not fit.
        InputError: A shape that is asked for is impossible.
    """
    progress.begin("weights")
    _load_module(state)
    state.profiles = {}
    if state.target.profiled:
        shapes, usual_batch = state.request.shapes, state.target.usual_batch
        state.profiles = profiles_of(state.deployment, shapes, usual_batch=usual_batch)
        state.deployment = with_profile_max_batch(state.deployment, state.profiles)
    progress.end(f"{state.weights.source}; {state.parameters:,} parameters")
    if not state.weights.trained:
        progress.warn(UNTRAINED)


def _load_module(state: BuildState) -> None:
    request = state.request
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(request.seed)
        module = models.module_from(request.entry, request.options)
    shipped = models.shipped_weights(request.entry, request.options)
    if request.checkpoint is not None:
        models.load_weights(module, request.checkpoint)
        source = request.checkpoint.name
    elif shipped is not None:
        models.load_weights(module, shipped)
        source = f"shipped with edgevis {__version__}: {shipped.name}"
    else:
        source = f"random, seed {request.seed}"
    trained = request.checkpoint is not None or shipped is not None
    state.model = TorchModel(module)
    state.deployment = models.deployment_of(request.entry, module)
    state.weights = Weights(trained=trained, source=source, sha256=weights_digest(module))
    state.parameters = models.parameters(module)
