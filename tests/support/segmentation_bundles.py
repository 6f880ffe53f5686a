"""Segmentation bundles with graphs written by hand: a few-shot model that finds a colour, one with fixed classes."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from runtime.bundle.identity import encoder_identity
from runtime.bundle.manifest import EngineRecord, GraphParity, Manifest, ParityReport, Weights
from runtime.bundle.spec import Deployment, Graph, Precision, Preprocess, TensorSpec

from bundles import Array, write_bundle, write_model

SIDE = 32
RED, GREEN, WHITE = (40, 40, 230), (40, 220, 40), (250, 250, 250)
PLAIN = Preprocess(SIDE, SIDE, "BGR")
IMAGE = TensorSpec("image", "float32", ("N", 3, SIDE, SIDE))
FEW_SHOT = Deployment(
    "few_shot_segment",
    (
        Graph(
            "support",
            (IMAGE, TensorSpec("mask", "float32", ("N", SIDE, SIDE))),
            (TensorSpec("support_mean", "float32", ("N", 3)), TensorSpec("support_area", "float32", ("N", 1, 1))),
        ),
        Graph(
            "query",
            (
                IMAGE,
                TensorSpec("support_mean", "float32", ("K", 3)),
                TensorSpec("support_area", "float32", ("K", 1, 1)),
            ),
            (TensorSpec("logits", "float32", ("N", "K", 2, SIDE, SIDE)),),
        ),
    ),
    PLAIN,
    max_batch=4,
)
GREY = Preprocess(SIDE, SIDE, "GRAY")
FIXED = Deployment(
    "segment",
    (
        Graph(
            "segment",
            (GREY.input,),
            (TensorSpec("logits", "float32", ("N", 2, SIDE, SIDE)),),
        ),
    ),
    GREY,
    {"labels": ["bright", "dark"], "threshold": 0.6},
    max_batch=4,
)


def few_shot_onnx() -> dict[str, Any]:
    """``support``: the mean colour under the mask. ``query``: object where a pixel is closer than 0.4 to that."""
    support = [
        ("Unsqueeze", ["mask", "one"], "planes"),
        ("Mul", ["image", "planes"], "seen"),
        ("ReduceSum", ["seen", "places"], "sum"),
        ("ReduceSum", ["planes", "places"], "count"),
        ("Div", ["sum", "count"], "support_mean"),
        ("Unsqueeze", ["count", "one"], "support_area"),
    ]
    query = [
        ("Unsqueeze", ["image", "one"], "images"),
        ("Unsqueeze", ["support_mean", "places"], "colours"),
        ("Sub", ["images", "colours"], "apart"),
        ("Mul", ["apart", "apart"], "squares"),
        ("ReduceSum", ["squares", "two"], "distance"),
        ("Mul", ["support_area", "zero"], "nothing"),
        ("Sub", ["limit", "nothing"], "flat_limits"),
        ("Unsqueeze", ["flat_limits", "last"], "limits"),
        ("Sub", ["limits", "distance"], "margin"),
        ("Mul", ["margin", "steep"], "object"),
        ("Mul", ["object", "zero"], "background"),
        ("Concat", ["background", "object"], "logits"),
    ]
    return {graph.name: onnx_of(graph, nodes) for graph, nodes in zip(FEW_SHOT.graphs, (support, query), strict=True)}


def fixed_onnx() -> dict[str, Any]:
    """``bright`` where a pixel is above 0.7, ``dark`` where it is below 0.2."""
    nodes = [
        ("Sub", ["image", "high"], "above"),
        ("Sub", ["low", "image"], "below"),
        ("Concat", ["above", "below"], "both"),
        ("Mul", ["both", "steep"], "logits"),
    ]
    return {"segment": onnx_of(FIXED.graphs[0], nodes, axis=1)}


def onnx_of(graph: Graph, nodes: list[tuple[str, list[str], str]], *, axis: int = 2) -> Any:
    from onnx import TensorProto, checker, helper, numpy_helper

    constants = {
        "one": np.array([1]),
        "two": np.array([2]),
        "last": np.array([3]),
        "places": np.array([2, 3]),
        "zero": np.float32(0),
        "limit": np.float32(0.16),
        "steep": np.float32(40),
        "high": np.float32(0.7),
        "low": np.float32(0.2),
    }

    def values(tensors: tuple[TensorSpec, ...]) -> list[Any]:
        return [helper.make_tensor_value_info(item.name, TensorProto.FLOAT, item.shape) for item in tensors]

    made = []
    for operator, inputs, output in nodes:
        attributes: dict[str, int] = {"axis": axis} if operator == "Concat" else {}
        if operator == "ReduceSum":
            attributes = {"keepdims": int(output == "distance")}
            if output == "count":
                inputs = [inputs[0], "places"]
        made.append(helper.make_node(operator, inputs, [output], None, None, None, None, **attributes))
    used = {name for _, inputs, _ in nodes for name in inputs}
    model = helper.make_model(
        helper.make_graph(
            made,
            graph.name,
            values(graph.inputs),
            values(graph.outputs),
            [numpy_helper.from_array(np.asarray(value), name) for name, value in constants.items() if name in used],
        ),
        opset_imports=[helper.make_opsetid("", 18)],
        ir_version=10,
    )
    checker.check_model(model, full_check=False)
    return model


def write(
    path: Path,
    deployment: Deployment,
    models: Mapping[str, Any],
    backend: str,
    *,
    int8: Mapping[str, Any] | None = None,
) -> Path:
    """A bundle with an FP32 engine, and with one of other graphs that is called INT8."""

    def fill(folder: Path) -> Manifest:
        report = ParityReport(True, "none", "drawn", tuple(GraphParity(name, (1,), 0.0, 1.0, 1.0) for name in models))
        engines = []
        given: tuple[tuple[Precision, Mapping[str, Any] | None], ...] = (("fp32", models), ("int8", int8))
        for precision, graphs in given:
            files = {}
            for name, model in (graphs or {}).items():
                place = folder / "engines" / f"{backend}-{precision}"
                place.mkdir(parents=True, exist_ok=True)
                files[name] = write_model(place / f"{name}.onnx", model, backend).relative_to(folder).as_posix()
            if graphs is not None:
                engines.append(EngineRecord(backend, precision, "cpu", files, 1.0, report))
        return Manifest(
            name=path.stem,
            model="colours",
            target="cpu",
            deployment=deployment,
            encoder_identity=encoder_identity("colours", deployment, "0" * 64),
            weights=Weights(True, "written by hand", "0" * 64),
            parameters=0,
            engines=tuple(engines),
            files={},
        )

    write_bundle(path, fill)
    return path


def scene(*squares: tuple[tuple[int, int, int], int, int], height: int = 64, width: int = 96) -> Array:
    """A grey picture with squares of 16 pixels: colour, top, left."""
    image = np.full((height, width, 3), 120, np.uint8)
    for color, top, left in squares:
        image[top : top + 16, left : left + 16] = color
    return image


def square(top: int, left: int, height: int = 64, width: int = 96) -> Array:
    mask = np.zeros((height, width), bool)
    mask[top : top + 16, left : left + 16] = True
    return mask


def overlap(actual: Array, expected: Array) -> float:
    """The intersection over union of two masks."""
    return float((actual & expected).sum() / (actual | expected).sum())
