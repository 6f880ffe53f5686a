"""Tiny bundles of a model that adapts prototypes, built in code: the tiny encoder and a graph over the set of labels.

``adapt`` adds to each prototype what attention takes from all of them; :func:`expected_adapted` computes the same in
NumPy, float64, and shares no code with an engine.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from runtime.bundle.bundle import GOLDEN
from runtime.bundle.identity import encoder_identity
from runtime.bundle.manifest import EngineRecord, Manifest, Weights
from runtime.bundle.spec import LABELS, Deployment, Graph, TensorSpec
from runtime.common.arrays import write_arrays

from bundles import (
    DIMENSION,
    HEIGHT,
    ORT,
    WIDTH,
    Array,
    Tiny,
    TinyEngine,
    checked_model,
    expected_embeddings,
    write_bundle,
    write_engine,
    write_model,
)

TINY = Tiny(task="classify")
ADAPT = Graph(
    "adapt",
    inputs=(TensorSpec("prototypes", "float32", (1, LABELS, DIMENSION)),),
    outputs=(TensorSpec("adapted", "float32", (1, LABELS, DIMENSION)),),
    set_of="encode/embedding",
)
SCALE = 0.02  # so that each label takes something of the others
MIX = np.random.default_rng(3).standard_normal((DIMENSION, DIMENSION)).astype(np.float32)


def adapted_deployment(tiny: Tiny = TINY) -> Deployment:
    """The deployment of the tiny classifier with the graph ``adapt``."""
    return replace(tiny.deployment, graphs=(*tiny.deployment.graphs, ADAPT))


def write_adapted_bundle(path: Path, engines: Sequence[TinyEngine] = (ORT,), tiny: Tiny = TINY) -> Path:
    """Build a bundle of the tiny classifier with the graph ``adapt``; returns ``path``."""
    deployment = adapted_deployment(tiny)

    def fill(folder: Path) -> Manifest:
        records = []
        for engine in engines:
            place = folder / "engines" / engine.name
            place.mkdir(parents=True)
            mains = {
                "encode": write_engine(place, engine, tiny),
                "adapt": write_model(place / "adapt.onnx", adapt_onnx(), engine.backend),
            }
            files = {name: main.relative_to(folder).as_posix() for name, main in mains.items()}
            records.append(EngineRecord(engine.backend, engine.precision, engine.device, files, latency_ms=1.0))
        image = np.random.default_rng(7).standard_normal((5, 3, HEIGHT, WIDTH)).astype(np.float32)
        embedding = expected_embeddings(image, tiny.weights).astype(np.float32)
        golden = {
            "encode/image": image,
            "encode/embedding": embedding,
            "adapt/prototypes": embedding[None],
            "adapt/adapted": expected_adapted(embedding)[None].astype(np.float32),
        }
        write_arrays(folder / GOLDEN, golden)
        return Manifest(
            name=path.stem,
            model="tiny",
            target="cpu",
            deployment=deployment,
            encoder_identity=encoder_identity("tiny", deployment, tiny.weights_sha256),
            weights=Weights(trained=False, source="seeded random numbers", sha256=tiny.weights_sha256),
            parameters=1,
            engines=tuple(records),
            files={},
        )

    write_bundle(path, fill)
    return path


def expected_adapted(prototypes: Array) -> Array:
    """What ``adapt`` makes of (L, D) raw prototypes, in float64."""
    rows = np.asarray(prototypes, np.float64)
    products = SCALE * rows @ rows.T
    weights = np.exp(products - products.max(axis=1, keepdims=True))
    weights /= weights.sum(axis=1, keepdims=True)
    return np.asarray(rows + weights @ rows @ MIX)


def adapt_onnx() -> Any:
    """The graph ``adapt`` as an ONNX ModelProto."""
    from onnx import TensorProto, helper, numpy_helper

    nodes = [
        helper.make_node("Transpose", ["prototypes"], ["turned"], perm=[0, 2, 1]),
        helper.make_node("MatMul", ["prototypes", "turned"], ["products"]),
        helper.make_node("Mul", ["products", "scale"], ["scaled"]),
        helper.make_node("Softmax", ["scaled"], ["weights"], axis=-1),
        helper.make_node("MatMul", ["weights", "prototypes"], ["attended"]),
        helper.make_node("MatMul", ["attended", "mix"], ["mixed"]),
        helper.make_node("Add", ["prototypes", "mixed"], ["adapted"]),
    ]
    taken, made = (
        helper.make_tensor_value_info(tensor.name, TensorProto.FLOAT, tensor.shape)
        for tensor in (*ADAPT.inputs, *ADAPT.outputs)
    )
    constants = [numpy_helper.from_array(MIX, "mix"), numpy_helper.from_array(np.array(SCALE, np.float32), "scale")]
    return checked_model(helper.make_graph(nodes, "adapt", [taken], [made], constants))
