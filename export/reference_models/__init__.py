"""The models that engines are compared with: a PyTorch module, or a float32 ONNX graph."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

from onnx import ModelProto

from calibration.data.samples import SampleSet
from runtime.bundle.manifest import Weights
from runtime.bundle.spec import Deployment, Graph
from runtime.common.arrays import Array


class ReferenceModel(Protocol):
    """The model that a build exports and compares its engines with. ``str()`` names what computes it."""

    def outputs(self, graph: Graph, inputs: Sequence[Array]) -> tuple[Array, ...]:
        """The outputs of a graph in float32, in the graph's order, computed on one thread."""
        ...

    def flops(self, graph: Graph) -> int:
        """Floating-point operations of one image in that graph."""
        ...

    def to_onnx(self, graph: Graph) -> ModelProto:
        """The graph as a self-contained float32 ONNX model with the inputs and outputs that ``graph`` declares.

        Raises:
            ExportError: It cannot be exported, or computes from other inputs.
        """
        ...

    def calibration_warning(self, deployment: Deployment, samples: SampleSet) -> str:
        """A warning where the calibration images are unlike the training's; empty where alike or unknown."""
        ...


@dataclass(frozen=True, slots=True, eq=False)
class LoadedModel:
    """A reference model with its declaration and provenance.

    Attributes:
        model: It runs in float32.
        deployment: Its graphs and preprocessing.
        weights: The source and digest of the weights.
        parameters: The number of parameters.
    """

    model: ReferenceModel
    deployment: Deployment
    weights: Weights
    parameters: int
