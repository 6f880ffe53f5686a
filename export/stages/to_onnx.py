"""Export the portable float32 graphs, ``graphs/NAME.onnx``."""

from __future__ import annotations

import onnx
from onnx import ModelProto

from export.compilers import graph_path
from export.metadata import describe_graph
from export.request import BuildProgress
from export.state import BuildState


def run(state: BuildState, progress: BuildProgress) -> None:
    """Set ``float_graphs`` and write them.

    Raises:
        ExportError: A graph cannot be exported.
    """
    progress.begin("onnx")
    graphs: dict[str, ModelProto] = {}
    size_bytes = 0
    for number, graph in enumerate(state.deployment.graphs, start=1):
        graphs[graph.name] = model = state.model.to_onnx(graph)
        describe_graph(model, name=state.request.name, graph=graph.name, deployment=state.deployment)
        path = graph_path(state.folder, graph.name)
        path.parent.mkdir(exist_ok=True)
        onnx.save(model, path)
        size_bytes += path.stat().st_size
        progress.advance(number, len(state.deployment.graphs))
    state.float_graphs = graphs
    nodes = sum(len(model.graph.node) for model in graphs.values())
    progress.end(f"{', '.join(graphs)}: {nodes} nodes, batch free", size_bytes=size_bytes)
