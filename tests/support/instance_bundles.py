"""An instance segmentation bundle with a graph written by hand: the red and green cells of :mod:`detection_bundles`.

The outline of a cell is the triangle below the diagonal of its box: lower left, lower right, upper right corner.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from runtime.bundle.spec import Align, Deployment, Graph, TensorSpec

from detection_bundles import CELLS, detector, detector_onnx
from segmentation_bundles import write

VERTICES = 3
_CORNERS = np.array([0, 3, 2, 3, 2, 1])  # of x0, y0, x1, y1


def outliner(
    align: Align = "center", postprocess: Mapping[str, Any] | None = None, *, vertices: int = VERTICES
) -> Deployment:
    """The model's declaration; ``postprocess`` changes the settings."""
    made = detector(align, postprocess)
    polygons = TensorSpec("polygons", "float32", ("N", CELLS, vertices, 2))
    graph = Graph("outline", made.graphs[0].inputs, (*made.graphs[0].outputs, polygons))
    return replace(made, task="instance_segment", graphs=(graph,))


def outliner_onnx(growth: str = "Identity", outline: str = "Identity") -> Any:
    """The graph as an ONNX ModelProto: the detector's, see :func:`detection_bundles.detector_onnx`, and the triangles.

    ``outline`` is an operator on the triangles' coordinates: ``Sqrt`` gives NaN left of the image or above it.
    """
    from onnx import TensorProto, checker, helper, numpy_helper

    model = detector_onnx(growth)
    graph = model.graph
    graph.name = "outline"
    constants = {"corners": _CORNERS, "outlines": np.array([0, CELLS, VERTICES, 2])}
    graph.initializer.extend(numpy_helper.from_array(value, name) for name, value in constants.items())
    graph.node.extend(
        [
            helper.make_node("Gather", ["boxes", "corners"], ["triangles"], axis=2),
            helper.make_node("Reshape", ["triangles", "outlines"], ["points"]),
            helper.make_node(outline, ["points"], ["polygons"]),
        ]
    )
    shape = outliner().graphs[0].outputs[-1].shape
    graph.output.append(helper.make_tensor_value_info("polygons", TensorProto.FLOAT, shape))
    checker.check_model(model, full_check=False)
    return model


def write_outliner(
    path: Path,
    backend: str = "onnxruntime",
    *,
    deployment: Deployment | None = None,
    growth: str = "Identity",
    outline: str = "Identity",
) -> Path:
    """Write the bundle to ``path``; returns ``path``."""
    return write(path, deployment or outliner(), {"outline": outliner_onnx(growth, outline)}, backend)
