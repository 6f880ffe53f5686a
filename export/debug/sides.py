"""The sides of a comparison, from a bundle or from what an earlier comparison wrote."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from types import MappingProxyType

from export.compilers import GRAPHS, graph_path
from export.debug.graphs import CuttableGraph
from export.debug.onnx_graph import OnnxGraph
from export.debug.openvino_graph import OpenVinoGraph
from export.debug.runners import EngineSide, OpenRunner, backend_runner, exact_runner, tensorrt_runner
from export.failed import GRAPH, SOURCES
from runtime.bundle.bundle import Bundle
from runtime.bundle.engine_files import ONNX
from runtime.bundle.manifest import EngineRecord
from runtime.bundle.spec import Precision
from runtime.errors import ExportError, UnknownBackendError

TOLERANCES: Mapping[Precision, float] = MappingProxyType({"fp32": 1e-4, "fp16": 1e-2, "bf16": 1.5e-1, "int8": 2e-1})
"""The default tolerance against a float graph, relative by the Euclidean norm over a tensor.

Measured with OpenVINO 2026.4 against the FP32 graph: of OSNet x0.25 the furthest tensor is 1.2e-6 off in FP32, 0.027
in BF16 and 0.12 in INT8; the scores of the person detector are 0.084 off in BF16.
"""

SAME_ROUNDING = 5e-2
"""The default tolerance where both sides round to INT8 in the same places: single values fall on the other side."""


def engine_side(bundle: Bundle, engine: str, graph: str) -> EngineSide:
    """An engine of a bundle.

    Raises:
        UnknownBackendError: There is no such engine.
        ExportError: Its file holds no graph that could be cut.
        IntegrityError: A file is not what the manifest lists.
    """
    record = _record(bundle, engine)
    path = bundle.engine_file(record.files[graph])
    return EngineSide(engine, record.precision, load_graph(path), runner_of(record.backend, record.precision))


def reference_side(bundle: Bundle, against: str, engine: EngineSide, graph: str) -> EngineSide:
    """The side that an engine is compared with: another engine, or a graph run node by node.

    Args:
        bundle: The engine's.
        against: An engine's name, or :data:`GRAPH`: the graph that the engine was compiled from where the bundle has
            it (one that failed its build does), or the portable float32 graph.
        engine: The engine.
        graph: The graph's name.
    """
    if against != GRAPH:
        return engine_side(bundle, against, graph)
    source = f"{SOURCES}/{engine.name}/{graph}{ONNX}"
    if source in bundle.manifest.files:
        return EngineSide(GRAPH, engine.precision, OnnxGraph.load(bundle.file(source)), exact_runner)
    portable = graph_path(Path(), graph).as_posix()
    return EngineSide(GRAPH, "fp32", OnnxGraph.load(bundle.engine_file(portable)), exact_runner)


def tolerance_of(engine: EngineSide, reference: EngineSide) -> float:
    """The default tolerance between two sides."""
    if engine.precision == reference.precision == "int8":
        return SAME_ROUNDING
    return max(TOLERANCES[engine.precision], TOLERANCES[reference.precision])


def load_graph(path: Path) -> CuttableGraph:
    """The graph of an engine's main file; ExportError where it holds none."""
    if path.suffix == ONNX:
        return OnnxGraph.load(path)
    if path.suffix == ".xml":
        return OpenVinoGraph.load(path)
    raise ExportError(
        f"{path.name} is a compiled plan, whose layers cannot be taken apart: name an engine whose file is a graph "
        f"({ONNX}, .xml), such as the one of the folder {GRAPHS}/ by --engine {GRAPH}"
    )


def runner_of(backend: str, precision: Precision) -> OpenRunner:
    """The runner of a backend's engines; :data:`GRAPH` is ONNX Runtime, node by node."""
    if backend == GRAPH:
        return exact_runner
    return tensorrt_runner if backend == "tensorrt" else backend_runner(backend, precision)


def _record(bundle: Bundle, name: str) -> EngineRecord:
    for record in bundle.manifest.engines:
        if record.name == name:
            return record
    known = ", ".join([record.name for record in bundle.manifest.engines] + [GRAPH])
    raise UnknownBackendError(f"{bundle.path} has no engine {name!r}; it has {known}")
