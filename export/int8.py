"""INT8 graphs in the engines of a backend: the part of the search that needs the compilers."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager

from onnx import ModelProto

from export import compilers
from runtime.bundle.manifest import EngineRecord
from runtime.bundle.spec import Deployment
from runtime.common.files import scratch_folder
from runtime.sessions.open import open_graphs
from runtime.sessions.session import Session


@contextmanager
def open_int8_engines(
    graphs: Mapping[str, ModelProto], *, backend: str, deployment: Deployment
) -> Iterator[Mapping[str, Session]]:
    """Compile int8 graphs for the processor and open them, see :class:`calibration.search.engines.OpenEngines`.

    Raises:
        CompileError: The vendor's compiler refused a graph.
        EngineError: The engine cannot be opened.
        MissingDependencyError: The backend's package is not installed.
    """
    with scratch_folder("edgevis-int8-") as folder, ExitStack() as stack:
        compiler = compilers.load(backend)
        files = {}
        for graph, model in graphs.items():
            path = compiler.engine_from_onnx(model, graph=graph, precision="int8", bundle=folder)
            files[graph] = path.relative_to(folder).as_posix()
        record = EngineRecord(backend, "int8", "cpu", files)
        sessions = open_graphs(record, deployment, lambda file: folder / file, threads=None)
        for session in sessions.values():
            stack.callback(session.close)
        yield sessions
