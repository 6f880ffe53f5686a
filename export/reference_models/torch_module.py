"""A PyTorch module as the reference: a graph named X is the module's method ``X``."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import torch
from onnx import ModelProto
from torch import nn

from calibration.data.activation_spread import unlike_text
from calibration.data.samples import SampleSet
from edgevis import __version__, models
from edgevis.flops import graph_flops
from edgevis.models.entry import ModelEntry
from edgevis.open_set.sidecar import weights_digest
from export.onnx import onnx_from_module
from export.reference_models import LoadedModel
from export.request import BuildRequest
from runtime.bundle.manifest import Weights
from runtime.bundle.spec import Deployment, Graph
from runtime.common.arrays import Array


class TorchModel:
    """A module in evaluation mode, run in float32 on one thread.

    Args:
        module: It has a method for each graph of its deployment.
    """

    def __init__(self, module: nn.Module) -> None:
        self._module = module

    def __str__(self) -> str:
        return "PyTorch"

    def outputs(self, graph: Graph, inputs: Sequence[Array]) -> tuple[Array, ...]:
        with torch.no_grad(), one_thread():
            outputs = getattr(self._module, graph.name)(*(torch.from_numpy(array) for array in inputs))
        return tuple(tensor.numpy() for tensor in (outputs if isinstance(outputs, tuple) else (outputs,)))

    def flops(self, graph: Graph) -> int:
        return graph_flops(self._module, graph)

    def to_onnx(self, graph: Graph) -> ModelProto:
        return onnx_from_module(self._module, graph)

    def calibration_warning(self, deployment: Deployment, samples: SampleSet) -> str:
        return unlike_text(self._module, deployment, samples)


@contextmanager
def one_thread() -> Iterator[None]:
    """PyTorch on one thread: the same sums whatever the machine's number of cores.

    It is also the safer choice for speed: on two busy cores, eight images of EPRI-Net took 1.3 s on one thread and
    5 s on two that waited for each other.
    """
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(threads)


def load_module(entry: ModelEntry, request: BuildRequest) -> LoadedModel:
    """Make a model of :mod:`edgevis.models` and load its weights.

    Raises:
        ModelError: The model has no such option.
        WeightsError: The checkpoint does not fit.
    """
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(request.seed)
        module = models.module_from(entry, request.options)
    shipped = models.shipped_weights(entry, request.options)
    if request.checkpoint is not None:
        models.load_weights(module, request.checkpoint)
        source = request.checkpoint.name
    elif shipped is not None:
        models.load_weights(module, shipped)
        source = f"shipped with edgevis {__version__}: {shipped.name}"
    else:
        source = f"random, seed {request.seed}"
    trained = request.checkpoint is not None or shipped is not None
    weights = Weights(trained=trained, source=source, sha256=weights_digest(module))
    return LoadedModel(TorchModel(module), models.deployment_of(entry, module), weights, models.parameters(module))
