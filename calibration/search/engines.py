"""Measure INT8 graphs in their engines: the drop on the verification images, and the latency."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Protocol

from onnx import ModelProto

from calibration.search.accuracy_drop import drop_of
from runtime.bundle.spec import Deployment
from runtime.common.arrays import Array
from runtime.parity.compare import outputs_of
from runtime.parity.latency import interleaved
from runtime.parity.measure import CompareDecisions, one_image
from runtime.sessions.session import Session

_LATENCY_SECONDS = 0.3

Graphs = Mapping[str, ModelProto]
"""Graph name to int8 graph, for all graphs of a model."""


class OpenEngines(Protocol):
    """Compiles the int8 graphs of a model and opens them."""

    def __call__(
        self, graphs: Graphs, *, backend: str, deployment: Deployment
    ) -> AbstractContextManager[Mapping[str, Session]]:
        """Graph name to session; leaving the context closes the sessions and deletes the engines' files."""
        ...


@dataclass(frozen=True, slots=True, eq=False)
class Int8Measurement:
    """Measures int8 graphs on the verification images.

    Attributes:
        open_engines: How graphs become sessions.
        deployment: The model's graphs.
        reference: ``GRAPH/TENSOR``: the verification inputs and PyTorch's outputs for them, float32.
        agreement: The comparison of decisions.
    """

    open_engines: OpenEngines
    deployment: Deployment
    reference: Mapping[str, Array]
    agreement: CompareDecisions

    def drop(self, graphs: Graphs, backend: str) -> float:
        """The largest drop of any graph, see :func:`calibration.search.accuracy_drop.drop_of`."""
        with self._open(graphs, backend) as sessions:
            return self._drop(sessions)

    def drop_and_latency(self, graphs: Graphs, backend: str) -> tuple[float, float]:
        """The drop, and the median time of one image in ms."""
        with self._open(graphs, backend) as sessions:
            call = one_image(sessions, self.deployment, self.reference)
            return self._drop(sessions), interleaved({"": call}, seconds=_LATENCY_SECONDS)[""].p50_ms

    def compare(self, first: Graphs, second: Graphs, backend: str) -> tuple[float, float, dict[str, Array]]:
        """The median times of one image in ms, measured in turns, and the second's outputs for all images."""
        with self._open(first, backend) as one, self._open(second, backend) as other:
            calls = {
                name: one_image(sessions, self.deployment, self.reference)
                for name, sessions in (("first", one), ("second", other))
            }
            times = interleaved(calls, seconds=2 * _LATENCY_SECONDS)
            return times["first"].p50_ms, times["second"].p50_ms, outputs_of(other, self.reference, finite=True)

    def _drop(self, sessions: Mapping[str, Session]) -> float:
        outputs = outputs_of(sessions, self.reference, finite=True)
        drops = []
        for graph in self.deployment.graphs:
            actual = {tensor.name: outputs[f"{graph.name}/{tensor.name}"] for tensor in graph.outputs}
            drops.append(drop_of(graph, self.reference, actual, self.agreement))
        return max(0.0, *drops)

    def _open(self, graphs: Graphs, backend: str) -> AbstractContextManager[Mapping[str, Session]]:
        return self.open_engines(graphs, backend=backend, deployment=self.deployment)
