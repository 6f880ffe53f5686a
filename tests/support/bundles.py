"""Tiny bundles, built in code: a real convolutional graph for real engines, small enough to be built in milliseconds.

The model maps ``image`` (N, 3, 32, 16) to ``embedding`` (N, D): convolution, ReLU, mean over the picture, one dense
layer. :func:`expected_embeddings` computes the same in NumPy, float64, and shares no code with an engine.
"""

from __future__ import annotations

import functools
import hashlib
import importlib.util
import json
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import numpy.typing as npt
import pytest

from runtime.backends._tensorrt.spec import BuildSpec, spec_path
from runtime.bundle.bundle import GOLDEN, MANIFEST, Bundle, sha256
from runtime.bundle.identity import DIGEST, encoder_identity, manifest_digest
from runtime.bundle.manifest import Decisions, EngineRecord, GraphParity, Manifest, ParityReport, Weights
from runtime.bundle.spec import Deployment, Graph, Precision, Preprocess, TensorSpec
from runtime.bundle.staging import staged_bundle, write_manifest
from runtime.common.arrays import write_arrays
from runtime.enrolment.file import load_enrolment
from runtime.open_set.space import FILE as OPEN_SET
from runtime.predictor import Predictor

Array = npt.NDArray[Any]

HEIGHT, WIDTH, CHANNELS, DIMENSION = 32, 16, 8, 8
GRAPHS = {"reid": "embed", "classify": "encode"}
TINY_PREPROCESS = Preprocess(HEIGHT, WIDTH, mean=(0.5, 0.45, 0.4), std=(0.25, 0.3, 0.35))

# FP32 engines differ from float64 only in rounding: sums of 27 and 8 terms of size one, far above 1e-5 relative.
FP32_TOLERANCE = 1e-5


def installed(package: str) -> bool:
    """Whether a package can be imported, without importing it."""
    return importlib.util.find_spec(package) is not None


needs_openvino = pytest.mark.skipif(not installed("openvino"), reason="openvino is not installed")


@dataclass(frozen=True)
class TinyWeights:
    """The tiny model's parameters: convolution (8, 3, 3, 3) with stride 2, dense (D, 8), and their biases."""

    conv: Array
    conv_bias: Array
    dense: Array
    dense_bias: Array


def tiny_weights(seed: int = 0, dimension: int = DIMENSION) -> TinyWeights:
    """Seeded random parameters, centred so that the embeddings of different pictures point in different directions.

    No bias is zero, because zero hides faults of quantisation.
    """
    random = np.random.default_rng(seed)

    def normal(*shape: int) -> Array:
        return random.standard_normal(shape).astype(np.float32)

    raw = TinyWeights(normal(CHANNELS, 3, 3, 3), normal(CHANNELS), normal(dimension, CHANNELS), np.zeros(1, np.float32))
    pictures = _tensor([picture(index) for index in range(1000, 1032)], TINY_PREPROCESS)
    return replace(raw, dense_bias=-expected_embeddings(pictures, raw).mean(axis=0).astype(np.float32))


@dataclass(frozen=True)
class TinyEngine:
    """One engine of a tiny bundle, and what the manifest shall say of it."""

    backend: str = "onnxruntime"
    precision: Precision = "fp32"
    latency_ms: float | None = 1.0
    with_parity: bool = True
    shares_enrolments: bool = True
    device: str = "cpu"

    @property
    def name(self) -> str:
        return f"{self.backend}-{self.precision}"


ORT = TinyEngine()


@dataclass(frozen=True)
class Tiny:
    """What a tiny bundle is made of; every field can be set by a test."""

    task: str = "reid"
    engines: Sequence[TinyEngine] = (ORT,)
    weights: TinyWeights = field(default_factory=tiny_weights)
    preprocess: Preprocess = TINY_PREPROCESS
    postprocess: Mapping[str, Any] = field(default_factory=dict)
    open_set: Mapping[str, Array] | None = None  # the arrays of a score space
    max_batch: int = 4
    sha256: str = ""  # what the manifest says of the weights, where that is not theirs
    broken: str = ""  # "Div": an embedding of NaN, "Log": of infinities, from sound weights

    @property
    def dimension(self) -> int:
        return int(self.weights.dense.shape[0])

    @property
    def graph(self) -> Graph:
        image = TensorSpec("image", "float32", ("N", 3, HEIGHT, WIDTH))
        return Graph(GRAPHS[self.task], (image,), (TensorSpec("embedding", "float32", ("N", self.dimension)),))

    @property
    def deployment(self) -> Deployment:
        return Deployment(self.task, (self.graph,), self.preprocess, self.postprocess, self.max_batch)

    @property
    def weights_sha256(self) -> str:
        own = hashlib.sha256(b"".join(part.tobytes() for part in vars(self.weights).values())).hexdigest()
        return self.sha256 or own

    @property
    def identity(self) -> str:
        return encoder_identity("tiny", self.deployment, self.weights_sha256)


def write_tiny_bundle(path: Path, tiny: Tiny | None = None) -> Path:
    """Build a whole bundle with engines, golden arrays and a full manifest at ``path``; returns ``path``."""
    tiny = tiny or Tiny()

    def fill(folder: Path) -> Manifest:
        records = []
        for engine in tiny.engines:
            place = folder / "engines" / engine.name
            place.mkdir(parents=True)
            main = write_engine(place, engine, tiny)
            records.append(_record(engine, tiny.graph.name, main.relative_to(folder).as_posix()))
        image = np.random.default_rng(7).standard_normal((5, 3, HEIGHT, WIDTH)).astype(np.float32)
        expected = expected_embeddings(image, tiny.weights).astype(np.float32)
        if tiny.open_set is not None:
            write_arrays(folder / OPEN_SET, tiny.open_set)
        write_arrays(folder / GOLDEN, {f"{tiny.graph.name}/image": image, f"{tiny.graph.name}/embedding": expected})
        return Manifest(
            name=path.stem,
            model="tiny",
            target="cpu",
            deployment=tiny.deployment,
            encoder_identity=tiny.identity,
            weights=Weights(trained=False, source="seeded random numbers", sha256=tiny.weights_sha256),
            parameters=sum(part.size for part in vars(tiny.weights).values()),
            engines=tuple(records),
            files={},
            tools={"numpy": np.__version__},
            machine="the machine of the tests",
            created="2026-01-01T00:00:00Z",
        )

    write_bundle(path, fill)
    return path


def write_bundle(path: Path, fill: Callable[[Path], Manifest]) -> Bundle:
    """Stage a bundle: ``fill`` writes its files into the folder that it is given and returns the manifest."""
    with staged_bundle(path) as folder:
        write_manifest(folder, fill(folder))
    return Bundle(path)


def write_engine(folder: Path, engine: TinyEngine, tiny: Tiny) -> Path:
    """Write the tiny model for one backend; returns the engine's main file."""
    model = quantized_onnx(tiny) if engine.precision == "int8" else float_onnx(tiny)
    return write_model(folder / f"{tiny.graph.name}.onnx", model, engine.backend)


def write_model(source: Path, model: Any, backend: str) -> Path:
    """Write an ONNX ModelProto to ``source`` as the backend wants it; returns the engine's main file."""
    source.write_bytes(model.SerializeToString())
    if backend == "onnxruntime":
        return source
    if backend == "openvino":
        if not installed("openvino"):
            pytest.skip("openvino is not installed")
        ir = ir_from_onnx(source)
        source.unlink()
        return ir
    if backend.startswith("tensorrt"):
        spec_path(source).write_text(_build_spec(model).dumps())
        return source
    pytest.skip(f"tests/support/bundles.py cannot write an engine for the backend {backend}")


def _build_spec(model: Any) -> BuildSpec:
    """Every open axis from 1 to 8."""

    def sized(value: Any, size: int) -> tuple[int, ...]:
        return tuple(axis.dim_value or size for axis in value.type.tensor_type.shape.dim)

    return BuildSpec({value.name: (sized(value, 1), sized(value, 2), sized(value, 8)) for value in model.graph.input})


def ir_from_onnx(source: Path) -> Path:
    """Convert an ONNX file to OpenVINO IR beside it; returns the ``.xml``."""
    import openvino

    target = source.with_suffix(".xml")
    openvino.save_model(openvino.Core().read_model(source), target, compress_to_fp16=False)
    return target


def float_onnx(tiny: Tiny) -> Any:
    """The tiny model as an ONNX ModelProto in float32."""
    from onnx import helper

    weights = tiny.weights
    nodes = [helper.make_node("Conv", ["image", "conv", "conv_bias"], ["features"], strides=[2, 2], pads=[1] * 4)]
    return _model(tiny, nodes, vars(weights))


def quantized_onnx(tiny: Tiny) -> Any:
    """The tiny model with the convolution in INT8: Q/DQ around its input, DQ of its INT8 weights per channel."""
    from onnx import helper

    weights = tiny.weights
    scale = (np.abs(weights.conv).max(axis=(1, 2, 3)) / 127).astype(np.float32)
    whole = np.round(weights.conv / scale[:, None, None, None]).astype(np.int8)
    arrays = {
        "image_scale": np.float32(2.5 / 127),  # covers what the preprocessing makes of 0..255
        "image_zero": np.int8(0),
        "conv_int8": whole,
        "conv_scale": scale,
        "conv_zero": np.zeros(CHANNELS, np.int8),
        "conv_bias": weights.conv_bias,
        "dense": weights.dense,
        "dense_bias": weights.dense_bias,
    }
    nodes = [
        helper.make_node("QuantizeLinear", ["image", "image_scale", "image_zero"], ["image_q"]),
        helper.make_node("DequantizeLinear", ["image_q", "image_scale", "image_zero"], ["image_dq"]),
        helper.make_node("DequantizeLinear", ["conv_int8", "conv_scale", "conv_zero"], ["conv_dq"], axis=0),
        helper.make_node("Conv", ["image_dq", "conv_dq", "conv_bias"], ["features"], strides=[2, 2], pads=[1] * 4),
    ]
    return _model(tiny, nodes, arrays)


MATCH = Graph(
    "match",
    inputs=(
        TensorSpec("query", "float32", ("N", 4)),
        TensorSpec("weight", "float32", ("N",)),
        TensorSpec("support", "float32", ("K", 4)),
    ),
    outputs=(TensorSpec("scores", "float32", ("N", "K")), TensorSpec("total", "float32", (4,))),
)
"""A graph of several inputs: ``scores = (query * weight) @ support.T`` and ``total = support.sum(axis=0)``."""


def match_onnx() -> Any:
    """:data:`MATCH` as an ONNX ModelProto."""
    from onnx import TensorProto, helper, numpy_helper

    def values(tensors: Sequence[TensorSpec]) -> list[Any]:
        return [helper.make_tensor_value_info(item.name, TensorProto.FLOAT, item.shape) for item in tensors]

    graph = helper.make_graph(
        [
            helper.make_node("Unsqueeze", ["weight", "last"], ["column"]),
            helper.make_node("Mul", ["query", "column"], ["weighted"]),
            helper.make_node("Transpose", ["support"], ["transposed"], perm=[1, 0]),
            helper.make_node("MatMul", ["weighted", "transposed"], ["scores"]),
            helper.make_node("ReduceSum", ["support", "first"], ["total"], keepdims=0),
        ],
        MATCH.name,
        values(MATCH.inputs),
        values(MATCH.outputs),
        [numpy_helper.from_array(np.array([1]), "last"), numpy_helper.from_array(np.array([0]), "first")],
    )
    return checked_model(graph)


def expected_embeddings(images: Array, weights: TinyWeights) -> Array:
    """The tiny model in NumPy: (N, 3, 32, 16) -> (N, D) float64, rows not normalised."""
    padded = np.pad(images.astype(np.float64), ((0, 0), (0, 0), (1, 1), (1, 1)))
    patches = np.lib.stride_tricks.sliding_window_view(padded, (3, 3), axis=(2, 3))[:, :, ::2, ::2]
    features = np.einsum("nchwij,ocij->nohw", patches, weights.conv) + weights.conv_bias[:, None, None]
    return np.asarray(np.maximum(features, 0).mean(axis=(2, 3)) @ weights.dense.T + weights.dense_bias)


def expected_rows(images: Sequence[Array], tiny: Tiny) -> Array:
    """What ``embed`` shall return for images of the model's own size: (N, D) float64, rows of length one."""
    rows = expected_embeddings(_tensor(images, tiny.preprocess), tiny.weights)
    return np.asarray(rows / np.linalg.norm(rows, axis=1, keepdims=True))


def picture(seed: int, height: int = HEIGHT, width: int = WIDTH) -> npt.NDArray[np.uint8]:
    """A picture with large coloured shapes and a little noise: (height, width, 3) uint8 BGR."""
    random = np.random.default_rng(seed)
    coarse = random.integers(0, 256, (4, 3, 3)).astype(np.uint8)
    smooth = cv2.resize(coarse, (width, height), interpolation=cv2.INTER_LINEAR).reshape(height, width, 3)
    noise = random.integers(0, 8, smooth.shape)
    image: npt.NDArray[np.uint8] = np.clip(smooth.astype(np.int64) + noise, 0, 255).astype(np.uint8)
    return image


@functools.cache
def textured(seed: int, height: int, width: int) -> npt.NDArray[np.uint8]:
    """A picture with sharp edges at all scales, drawn four times as large and shrunk as a camera's optics would."""
    random = np.random.default_rng(seed)
    large = np.empty((height * 4, width * 4, 3), np.uint8)
    large[:] = random.integers(60, 200, 3)
    for _ in range(250):
        size = (0.02 + 0.3 * random.random() ** 3) * min(large.shape[:2])
        corners = np.array([random.random() * width * 4, random.random() * height * 4])
        points = corners + random.normal(0, size, (int(random.integers(3, 6)), 2))
        cv2.fillPoly(large, [points.astype(np.int32)], random.integers(0, 256, 3).tolist())
    small = cv2.resize(large, (width, height), interpolation=cv2.INTER_AREA)
    image: npt.NDArray[np.uint8] = np.clip(small + random.normal(0, 3, small.shape), 0, 255).astype(np.uint8)
    return image


@contextmanager
def edited_manifest(bundle: Path) -> Iterator[dict[str, Any]]:
    """The manifest's JSON data, written back when the block ends, and signed: as if it had been built like that."""
    data = json.loads((bundle / MANIFEST).read_text())
    yield data
    (bundle / MANIFEST).write_text(json.dumps(signed(data)))


def signed(data: Mapping[str, Any]) -> dict[str, Any]:
    """A manifest's JSON data with the encoder's identity and the digest of what it says, where it says anything."""
    whole = dict(data)
    with suppress(KeyError, TypeError, ValueError, RecursionError):
        whole["encoder_identity"] = encoder_identity(data["model"], data["deployment"], data["weights"]["sha256"])
    with suppress(ValueError, RecursionError):
        whole[DIGEST] = manifest_digest(whole)
    return whole


def replace_file(bundle: Path, name: str, content: bytes) -> None:
    """Put other content into a file of a bundle and make the manifest agree: hashes hold, the content is wrong."""
    (bundle / name).write_bytes(content)
    with edited_manifest(bundle) as data:
        data["files"][name] = {"size_bytes": len(content), "sha256": sha256(bundle / name)}


def enrolled_rows(predictor: Predictor) -> Mapping[str, Array]:
    """Label to the rows that a predictor's enrolment file holds."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "rows.enrolment"
        predictor.save(path)
        return load_enrolment(path).rows


def tree(folder: Path) -> dict[str, bytes]:
    """Every file below a folder with its content."""
    return {
        item.relative_to(folder).as_posix(): item.read_bytes() for item in sorted(folder.rglob("*")) if item.is_file()
    }


def mutate(data: Any, path: Sequence[str | int], change: Callable[[Any], Any]) -> None:
    """Replace the value at ``path`` inside JSON data by ``change(value)``."""
    for key in path[:-1]:
        data = data[key]
    data[path[-1]] = change(data[path[-1]])


def json_paths(data: Any, prefix: tuple[str | int, ...] = ()) -> Iterator[tuple[str | int, ...]]:
    """The path of every value inside JSON data, the root left out."""
    items: Sequence[tuple[str | int, Any]] = ()
    if isinstance(data, dict):
        items = list(data.items())
    elif isinstance(data, list):
        items = list(enumerate(data))
    for key, value in items:
        yield (*prefix, key)
        yield from json_paths(value, (*prefix, key))


def _tensor(images: Sequence[Array], spec: Preprocess) -> Array:
    pixels = np.stack([image[..., ::-1] if spec.color == "RGB" else image for image in images]).astype(np.float64)
    rows: Array = ((pixels * spec.scale - np.array(spec.mean)) / np.array(spec.std)).transpose(0, 3, 1, 2)
    return rows


def _record(engine: TinyEngine, graph: str, file: str) -> EngineRecord:
    report = ParityReport(
        passed=True,
        tolerance="cosine >= 0.99999",
        machine="the machine of the tests",
        graphs=(GraphParity(graph, (1, 2, 5), 1e-7, 1.0, 1.0),),
        decisions=Decisions("rank-1 agreement", 1.0, 5, 1.0),
    )
    return EngineRecord(
        backend=engine.backend,
        precision=engine.precision,
        device=engine.device,
        files={graph: file},
        latency_ms=engine.latency_ms,
        parity=report if engine.with_parity else None,
        shares_enrolments=engine.shares_enrolments,
    )


def _model(tiny: Tiny, nodes: list[Any], arrays: Mapping[str, Array]) -> Any:
    """``nodes`` make ``features`` from ``image``; the rest of the model is added here."""
    from onnx import TensorProto, helper, numpy_helper

    tail = [
        helper.make_node("Relu", ["features"], ["positive"]),
        helper.make_node("GlobalAveragePool", ["positive"], ["pooled"]),
        helper.make_node("Flatten", ["pooled"], ["flat"], axis=1),
        helper.make_node("Gemm", ["flat", "dense", "dense_bias"], ["made" if tiny.broken else "embedding"], transB=1),
    ]
    if tiny.broken:
        tail.append(helper.make_node("Sub", ["made", "made"], ["zero"]))
        tail.append(helper.make_node(tiny.broken, ["zero"] * (1 + (tiny.broken == "Div")), ["embedding"]))
    graph = helper.make_graph(
        [*nodes, *tail],
        tiny.graph.name,
        [helper.make_tensor_value_info("image", TensorProto.FLOAT, ["N", 3, HEIGHT, WIDTH])],
        [helper.make_tensor_value_info("embedding", TensorProto.FLOAT, ["N", tiny.dimension])],
        [numpy_helper.from_array(np.asarray(array), name) for name, array in arrays.items()],
    )
    return checked_model(graph)


def checked_model(graph: Any) -> Any:
    """An ONNX ModelProto of a graph, checked."""
    from onnx import checker, helper

    # IR 8 and opset 17: read by every version of the engines that pyproject.toml allows.
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    checker.check_model(model)
    return model
