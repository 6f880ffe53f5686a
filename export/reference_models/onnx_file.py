"""An ONNX file as the reference: its graph in float32, run by ONNX Runtime node by node, nothing optimised.

The file may come from anywhere. It is read without external data, checked, and rewritten as a build's own graphs are:
input ``image``, output named by the task, open batch axis, constants folded, batch norms folded into convolutions.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from onnx import ModelProto, TensorProto, inliner
from onnxscript import ir, optimizer
from onnxscript.rewriter import rewrite
from onnxscript.rewriter.rules.common import (
    fuse_batchnorm_into_conv_rule,
    fuse_batchnorm_into_conv_transpose_rule,
    fuse_batchnorm_into_gemm_rule,
)

from calibration.data.samples import SampleSet
from calibration.quantize.rules import prepare
from export.cpu_proxy import CpuProxy
from export.onnx import IR_VERSION, check_io, fold_constants, strip_metadata
from export.reference_models import LoadedModel
from export.request import OnnxSource
from runtime import tasks
from runtime.bundle.manifest import Weights
from runtime.bundle.onnx_file import external_locations, non_finite_weight
from runtime.bundle.spec import Deployment, Graph, Preprocess, TensorSpec
from runtime.common.arrays import Array
from runtime.common.json_data import from_json
from runtime.errors import EngineError, ExportError, WeightsError

MAX_BYTES = (2 << 30) - 1
"""The largest protocol buffer."""
OPSETS = range(13, 22)
"""13 is the first with scales per channel; ONNX Runtime 1.19 reads none after 21."""

_COUNTED = ("Conv", "ConvTranspose", "Gemm", "MatMul")
_QUANTIZED = frozenset(("QuantizeLinear", "DequantizeLinear", "DynamicQuantizeLinear", "QLinearConv", "QLinearMatMul"))
_STANDARD = ("", "ai.onnx")
_ROWS = 2
_BATCH_TOLERANCE = 1e-3
_HOW_TO_EXPORT = (
    "export it again: torch.onnx.export(model.eval(), (image,), path, dynamo=True, opset_version=18, "
    "external_data=False, dynamic_shapes=({0: 'batch'},))"
)


class OnnxModel:
    """One float32 graph, run on one thread with no node fused.

    Args:
        model: The rewritten graph.

    Raises:
        EngineError: ONNX Runtime refuses it.
    """

    def __init__(self, model: ModelProto) -> None:
        self._model = model
        self._engine = CpuProxy(model.SerializeToString(), exact=True, threads=1)

    def __str__(self) -> str:
        return "ONNX Runtime, nothing optimised,"

    def outputs(self, graph: Graph, inputs: Sequence[Array]) -> tuple[Array, ...]:
        outputs = self._engine.run(dict(zip((tensor.name for tensor in graph.inputs), inputs, strict=True)))
        return tuple(outputs[tensor.name] for tensor in graph.outputs)

    def flops(self, graph: Graph) -> int:
        return 2 * sum(layer.macs for layer in prepare(self._model, _COUNTED).layers)

    def to_onnx(self, graph: Graph) -> ModelProto:
        check_io(self._model, graph)
        model = ModelProto()
        model.CopyFrom(self._model)
        return model

    def calibration_warning(self, deployment: Deployment, samples: SampleSet) -> str:
        return ""  # the statistics of the training are folded into the weights


def load_onnx(source: OnnxSource) -> LoadedModel:
    """Read, check and rewrite an ONNX file.

    Raises:
        ExportError: The file cannot be read, is no float32 graph of one image, or not what the task needs; the message
            says how to export it.
        WeightsError: A weight is not finite.
        SchemaError: The preprocessing is impossible.
    """
    graphs = {name: graph for name in tasks.names() if (graph := tasks.load(name).TRAITS.single_graph) is not None}
    if source.task not in graphs:
        raise ExportError(f"--task is {source.task!r}; allowed for an ONNX file: {', '.join(graphs)}")
    single = graphs[source.task]
    output_name = single.output
    data = _read(source.path)
    graph_ir = _folded(_checked(data, source.path))
    preprocess = _preprocess_of(graph_ir.graph, source)
    _rename(graph_ir.graph, output_name, preprocess, source.path)
    proto = ir.to_proto(graph_ir)
    proto.ir_version = min(proto.ir_version, IR_VERSION)
    strip_metadata(proto)
    try:
        shape = _output_shape(OnnxModel(proto), preprocess, output_name)
    except EngineError as error:
        raise ExportError(
            f"{source.path.name}: ONNX Runtime cannot run it on {_ROWS} images of {preprocess.input.shape}: {error}; "
            f"{_HOW_TO_EXPORT}"
        ) from error
    if len(shape) != 1 + len(single.axes):
        raise ExportError(
            f"{source.path.name}: its output has the shape {('N', *shape[1:])}; the task {source.task!r} needs "
            f"({', '.join(('N', *single.axes))}) {output_name}"
        )
    if tasks.load(source.task).TRAITS.enrolment == "nothing" and len(source.labels) != shape[1]:
        raise ExportError(
            f"{source.path.name} has {shape[1]} classes and {len(source.labels)} labels; give one name for each: "
            "--labels A,B"
        )
    output = TensorSpec(output_name, "float32", ("N", *shape[1:]))
    del proto.graph.output[:]
    proto.graph.output.append(onnx.helper.make_tensor_value_info(output_name, TensorProto.FLOAT, output.shape))
    deployment = Deployment(
        source.task,
        (Graph(single.name, (preprocess.input,), (output,)),),
        preprocess,
        {"labels": list(source.labels)} if source.labels else {},
    )
    # Scalars are constants, such as the bounds of a clip.
    parameters = sum(
        int(np.prod(tensor.dims))
        for tensor in proto.graph.initializer
        if tensor.data_type == TensorProto.FLOAT and tensor.dims
    )
    weights = Weights(trained=True, source=source.path.name, sha256=hashlib.sha256(data).hexdigest())
    return LoadedModel(OnnxModel(proto), deployment, weights, parameters)


def _read(path: Path) -> bytes:
    try:
        size = path.stat().st_size
        if size > MAX_BYTES:
            raise ExportError(f"{path} has {size} bytes; an ONNX file has at most {MAX_BYTES}")
        data = path.read_bytes()
    except OSError as error:
        raise ExportError(f"{path} cannot be read: {error.strerror or error}") from error
    try:
        outside = external_locations(data)
        bad = None if outside else non_finite_weight(data, {})
    except ValueError as error:
        raise ExportError(f"{path} is no ONNX file: {error}") from error
    if outside:
        raise ExportError(
            f"{path} keeps weights in other files, such as {sorted(outside)[0]!r}; only a self-contained file is read: "
            f"{_HOW_TO_EXPORT}"
        )
    if bad is not None:
        raise WeightsError(f"{path}: the weight {bad!r} holds NaN or infinity; take weights of a sound training")
    return data


def _checked(data: bytes, path: Path) -> ModelProto:
    try:
        model = ModelProto.FromString(data)
    except Exception as error:  # protobuf's errors depend on its implementation
        raise ExportError(f"{path} is no ONNX model: {error}") from error
    for opset in model.opset_import:
        if opset.domain in _STANDARD and opset.version not in OPSETS:
            raise ExportError(
                f"{path.name} has opset {opset.version}; allowed: {OPSETS[0]} to {OPSETS[-1]}; {_HOW_TO_EXPORT}"
            )
    try:
        onnx.checker.check_model(model, full_check=True)
    except Exception as error:  # those of the checker and of shape inference share no base but Exception
        raise ExportError(f"{path} is no valid ONNX model: {str(error).strip().splitlines()[0]}") from error
    model = inliner.inline_local_functions(model)
    for node in model.graph.node:
        if node.domain not in _STANDARD:
            raise ExportError(
                f"{path.name}: the operator {node.domain}::{node.op_type} is not a standard one; allowed: ONNX's own, "
                "and functions that the file defines"
            )
        if node.op_type in _QUANTIZED:
            raise ExportError(
                f"{path.name} is quantised already ({node.op_type}); give the float32 graph, INT8 is made from it"
            )
    return model


def _folded(model: ModelProto) -> ir.Model:
    """The graph with constants and batch norms folded, as PyTorch's exporter writes it."""
    graph_ir = ir.from_proto(model)
    ir.passes.common.RemoveInitializersFromInputsPass()(graph_ir)
    ir.passes.common.LiftConstantsToInitializersPass(lift_all_constants=True)(graph_ir)
    fold_constants(graph_ir)
    rules = [
        fuse_batchnorm_into_conv_rule,
        fuse_batchnorm_into_conv_transpose_rule,
        fuse_batchnorm_into_gemm_rule,
    ]
    graph_ir = rewrite(graph_ir, pattern_rewrite_rules=rules)
    optimizer.remove_unused_nodes(graph_ir)
    return graph_ir


def _preprocess_of(graph: ir.Graph, source: OnnxSource) -> Preprocess:
    """The requested preprocessing at the graph's input size."""
    name = source.path.name
    if len(graph.inputs) != 1 or len(graph.outputs) != 1:
        raise ExportError(
            f"{name} has the inputs {_names(graph.inputs)} and the outputs {_names(graph.outputs)}; allowed: one image "
            "and one output"
        )
    (image,), (output,) = graph.inputs, graph.outputs
    for what, value in (("input", image), ("output", output)):
        if value.dtype != ir.DataType.FLOAT:
            raise ExportError(f"{name}: the {what} {value.name!r} is {value.dtype}; allowed: float32")
    shape = None if image.shape is None else tuple(image.shape)
    if shape is None or len(shape) != 4 or shape[1] not in (1, 3):
        raise ExportError(
            f"{name}: the input {image.name!r} has the shape {_shown(shape)}; allowed: (N, 3 or 1, height, width)"
        )
    fields: dict[str, Any] = dict(source.preprocess)
    for side, size in (("height", shape[2]), ("width", shape[3])):
        if isinstance(size, int):
            if fields.setdefault(side, size) != size:
                raise ExportError(f"{name} takes images of {side} {size}, not {fields[side]}: leave it out")
        elif side not in fields:
            raise ExportError(
                f"{name} takes images of any {side}; say which one: --preprocess height=…,width=… (bundles have one)"
            )
    fields.setdefault("color", "GRAY" if shape[1] == 1 else "RGB")
    preprocess = from_json(Preprocess, fields, "--preprocess")
    if preprocess.channels != shape[1]:
        raise ExportError(f"{name} takes {shape[1]} channels; --preprocess color={preprocess.color} makes "
                          f"{preprocess.channels}")  # fmt: skip
    return preprocess


def _rename(graph: ir.Graph, output_name: str, preprocess: Preprocess, path: Path) -> None:
    """Name input and output as the task does, and open the batch axis."""
    (image,), (output,) = graph.inputs, graph.outputs
    names = {"image", output_name}
    if taken := sorted(names & graph.initializers.keys()):
        raise ExportError(f"{path.name} calls a weight {taken[0]!r}, which is the name of the image or of the output")
    for node in graph.all_nodes():
        for value in node.outputs:
            if value.name in names and value is not output:
                value.name = f"{value.name}_inner"
    image.name, output.name = "image", output_name
    image.shape = ir.Shape(preprocess.input.shape)
    output.shape = None


def _output_shape(model: OnnxModel, preprocess: Preprocess, output_name: str) -> tuple[int, ...]:
    """The output's shape for two images, after checking that each alone gives the same values."""
    shape = (_ROWS, *(size for size in preprocess.input.shape[1:] if isinstance(size, int)))
    images = np.random.default_rng(0).standard_normal(shape).astype(np.float32)
    graph = Graph("probe", (preprocess.input,), (TensorSpec(output_name, "float32", ("N",)),))
    (both,) = model.outputs(graph, [images])
    alone = [model.outputs(graph, [images[row : row + 1]])[0] for row in range(_ROWS)]
    if not np.isfinite(both).all():
        raise ExportError("the graph computes NaN or infinity from ordinary numbers; take weights of a sound training")
    scale = max(float(np.abs(both).max()), 1e-6)
    if both.shape[:1] != (_ROWS,) or any(
        one.shape[1:] != both.shape[1:] or np.abs(one[0] - row).max() > _BATCH_TOLERANCE * scale
        for one, row in zip(alone, both, strict=False)
    ):
        raise ExportError(f"the graph computes something else of an image beside another one; {_HOW_TO_EXPORT}")
    return tuple(both.shape)


def _names(values: Sequence[ir.Value]) -> str:
    return ", ".join(repr(value.name) for value in values) or "none"


def _shown(shape: tuple[object, ...] | None) -> str:
    return "unknown" if shape is None else f"({', '.join(map(str, shape))})"
