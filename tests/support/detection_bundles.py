"""A detection bundle with a graph written by hand: a cell of 8 x 8 pixels with enough red or green is an object.

The graph averages the input over cells; the share of red is the score of ``red``, that of green the score of
``green``. The cell's box is the cell, made wider on each side by four pixels for each share of blue.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from runtime.bundle.spec import Align, Deployment, Graph, Preprocess, TensorSpec

from bundles import Array
from segmentation_bundles import write

SIDE, CELL = 64, 8
CELLS = (SIDE // CELL) ** 2
LABELS = ("red", "green")


def detector(align: Align = "center", postprocess: Mapping[str, Any] | None = None) -> Deployment:
    """The detector's declaration; ``postprocess`` changes the settings."""
    preprocess = Preprocess(SIDE, SIDE, "RGB", fit="letterbox", pad_value=0, align=align, interpolation="nearest")
    outputs = (
        TensorSpec("scores", "float32", ("N", CELLS, len(LABELS))),
        TensorSpec("boxes", "float32", ("N", CELLS, 4)),
    )
    settings = {"labels": list(LABELS), "score": 0.5, **(postprocess or {})}
    return Deployment("detect", (Graph("detect", (preprocess.input,), outputs),), preprocess, settings, max_batch=4)


def cell_boxes() -> Array:
    """(CELLS, 4) xyxy of the cells in pixels of the input, row by row."""
    top, left = np.divmod(np.arange(CELLS), SIDE // CELL)
    return (np.stack([left, top, left + 1, top + 1], axis=1) * CELL).astype(np.float32)


def detector_onnx(growth: str = "Identity") -> Any:
    """The graph as an ONNX ModelProto.

    ``growth`` is what the boxes grow by: ``Exp`` overflows where there is blue, ``Sqrt`` gives NaN there.
    """
    from onnx import TensorProto, checker, helper, numpy_helper

    graph = detector().graphs[0]
    widths = np.array([-4, -4, 4, 4], np.float32).reshape(1, 1, 4)
    constants = {
        "cells": np.array([0, 3, CELLS]),
        "cell": cell_boxes()[None],
        "widths": widths,
        "steepness": np.float32({"Identity": 1, "Exp": 1000, "Sqrt": -1}[growth]),
        "start": np.array([0]),
        "two": np.array([2]),
        "three": np.array([3]),
        "last": np.array([2]),
    }
    nodes = [
        helper.make_node("AveragePool", ["image"], ["means"], kernel_shape=[CELL, CELL], strides=[CELL, CELL]),
        helper.make_node("Reshape", ["means", "cells"], ["rows"]),
        helper.make_node("Transpose", ["rows"], ["shares"], perm=[0, 2, 1]),
        helper.make_node("Slice", ["shares", "start", "two", "last"], ["scores"]),
        helper.make_node("Slice", ["shares", "two", "three", "last"], ["blue"]),
        helper.make_node("Mul", ["blue", "steepness"], ["steep"]),
        helper.make_node(growth, ["steep"], ["growth"]),
        helper.make_node("Mul", ["growth", "widths"], ["wider"]),
        helper.make_node("Add", ["cell", "wider"], ["boxes"]),
    ]

    def values(tensors: tuple[TensorSpec, ...]) -> list[Any]:
        return [helper.make_tensor_value_info(item.name, TensorProto.FLOAT, item.shape) for item in tensors]

    model = helper.make_model(
        helper.make_graph(
            nodes,
            graph.name,
            values(graph.inputs),
            values(graph.outputs),
            [numpy_helper.from_array(np.asarray(value), name) for name, value in constants.items()],
        ),
        opset_imports=[helper.make_opsetid("", 18)],
        ir_version=10,
    )
    checker.check_model(model, full_check=False)
    return model


def write_detector(
    path: Path, backend: str = "onnxruntime", *, deployment: Deployment | None = None, growth: str = "Identity"
) -> Path:
    """Write the bundle to ``path``; returns ``path``."""
    return write(path, deployment or detector(), {"detect": detector_onnx(growth)}, backend)


def board(*cells: tuple[int, int, tuple[int, int, int]], rows: int = 8, columns: int = 8, side: int = CELL) -> Array:
    """A black image of ``rows`` x ``columns`` squares of ``side`` pixels, some of them filled: row, column, BGR."""
    image = np.zeros((rows * side, columns * side, 3), np.uint8)
    for row, column, color in cells:
        image[row * side : (row + 1) * side, column * side : (column + 1) * side] = color
    return image


def with_settings(deployment: Deployment, **settings: Any) -> Deployment:
    """The declaration with other settings."""
    return replace(deployment, postprocess={**deployment.postprocess, **settings})
