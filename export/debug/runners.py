"""Polygraphy's runners of cut graphs: ONNX Runtime's and TensorRT's are its own, the runtime's backends' is here."""

from __future__ import annotations

import time
from collections import OrderedDict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from calibration.quantize.sessions import open_session
from export.debug.graphs import GIVEN, CuttableGraph
from runtime import backends
from runtime.bundle.spec import Precision
from runtime.common.arrays import Array
from runtime.common.extras import install_command
from runtime.errors import EngineError, MissingDependencyError

try:
    from polygraphy.backend.base import BaseRunner
    from polygraphy.common import TensorMetadata
    from polygraphy.comparator import Comparator
    from polygraphy.logger import G_LOGGER
except ImportError as error:
    raise MissingDependencyError(f"comparing engines needs Polygraphy: {install_command('debug')}") from error

OpenRunner = Callable[[CuttableGraph, Mapping[str, Array]], BaseRunner]


@dataclass(frozen=True, slots=True)
class EngineSide:
    """One of the two that are compared: a graph, and what runs it.

    Attributes:
        name: The engine's name, or ``graph``.
        precision: What it computes in.
        graph: Its graph.
        open_runner: A runner of a graph that was cut from it, for inputs of those shapes.
    """

    name: str
    precision: Precision
    graph: CuttableGraph
    open_runner: OpenRunner

    def run(self, feeds: Mapping[str, Array], outputs: Sequence[str]) -> dict[str, Array]:
        """What the part from the tensors of ``feeds`` to ``outputs`` computes.

        Raises:
            EngineError: The engine refused the part, or failed.
        """
        part = self.graph.cut(feeds, outputs)
        named = {name: feeds[name.removesuffix(GIVEN)] for name in part.inputs}
        runner = self.open_runner(part, named)
        G_LOGGER.module_severity = G_LOGGER.ERROR
        try:
            results = Comparator.run([runner], data_loader=[named])
        except Exception as error:  # each vendor's own, and Polygraphy's
            raise EngineError(f"{self.name} cannot run its part up to {outputs[-1]}: {error}") from error
        ((_, iterations),) = results.items()
        return {name: iterations[0][name] for name in outputs}


class BackendRunner(BaseRunner):  # type: ignore[misc]  # Polygraphy carries no types
    """A runner of an engine as the runtime opens it: the same settings, the same precision.

    Args:
        backend: Its name.
        graph: What it runs.
        precision: The arithmetic.
        feeds: Input name to an array of the shape and type that it will be given.
    """

    def __init__(self, backend: str, graph: CuttableGraph, precision: Precision, feeds: Mapping[str, Array]) -> None:
        super().__init__(name=f"{backend}-{precision}", prefix=f"edgevis-{backend}")
        self._backend, self._precision = backends.load(backend), precision
        self._files = graph.files("part")
        self._feeds = feeds

    def activate_impl(self) -> None:
        self._engine = self._backend.open_engine(self._files, precision=self._precision, device="cpu", threads=None)

    def get_input_metadata_impl(self) -> TensorMetadata:
        metadata = TensorMetadata()
        for name, array in self._feeds.items():
            metadata.add(name, array.dtype, array.shape)
        return metadata

    def infer_impl(self, feed_dict: Mapping[str, Array]) -> OrderedDict[str, Array]:
        begun = time.perf_counter()
        outputs = self._engine.run(dict(feed_dict))
        self.inference_time = time.perf_counter() - begun
        return OrderedDict(outputs)

    def deactivate_impl(self) -> None:
        self._engine.close()
        del self._engine


def backend_runner(backend: str, precision: Precision) -> OpenRunner:
    """Opens :class:`BackendRunner`."""
    return lambda graph, feeds: BackendRunner(backend, graph, precision, feeds)


def exact_runner(graph: CuttableGraph, feeds: Mapping[str, Array]) -> BaseRunner:
    """Polygraphy's ONNX Runtime runner: node by node, nothing fused, float between Q and DQ."""
    from polygraphy.backend.onnxrt import OnnxrtRunner

    return OnnxrtRunner(lambda: open_session(graph.files("part").main, exact=True), name="graph")


def tensorrt_runner(graph: CuttableGraph, feeds: Mapping[str, Array]) -> BaseRunner:
    """Polygraphy's TensorRT runner: a strongly typed network, as the bundles' engines are built."""
    from polygraphy.backend.trt import CreateConfig, EngineFromNetwork, NetworkFromOnnxBytes, Profile, TrtRunner

    profile = Profile()
    for name, array in feeds.items():
        profile.add(name, array.shape, array.shape, array.shape)
    network = NetworkFromOnnxBytes(graph.files("part").main, strongly_typed=True)
    return TrtRunner(EngineFromNetwork(network, CreateConfig(profiles=[profile])), name="tensorrt")
