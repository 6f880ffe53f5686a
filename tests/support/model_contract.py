"""What the contract asks of a model's graphs: portable ONNX, and engines that compute what PyTorch computes."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import numpy as np
import onnx
import torch
from onnx import ModelProto, inliner, shape_inference
from torch import nn

from calibration.data.samples import samples_from_photographs
from calibration.quantize.graph import quantize
from calibration.quantize.lint import lint_quantized
from edgevis import models
from edgevis.layers.efficientnet import EfficientNetB0
from edgevis.models.epri_net import EPRINet
from edgevis.models.hsnet import HSNet
from edgevis.provenance import read_provenance
from export import targets
from export.autocast import fp16_from_fp32
from export.cpu_proxy import CpuProxy
from export.profiles import ShapeProfileRequest, profiles_of
from runtime.backends import Engine
from runtime.backends._tensorrt.compiler import build_engine
from runtime.bundle.spec import LABELS, MAX_LABELS, Deployment, Graph, Precision, Preprocess
from runtime.common.arrays import Array
from runtime.images.preprocess import Preprocessor
from runtime.parity.compare import TOLERANCES, compare_rows, settle_flips
from runtime.sessions.session import Session

from built import SMALL
from support_query_models import shorten_hsnet

# Batch and shots: one image, any number, the largest batch, several shots.
SIZES = ((1, 1), (2, 1), (3, 2), (8, 1))
MAX_RANK = 5
FLOAT16_MIN_COSINE = 0.999


def small(name: str) -> tuple[nn.Module, Deployment]:
    """The module that :func:`built.small_bundle` builds from, and its deployment."""
    options = SMALL.get(name, {})
    shipped = models.shipped_weights(name, options)
    provenance = None if shipped is None else read_provenance(shipped)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        module = models.create(name, **{**({} if provenance is None else provenance.options), **options})
    if shipped is not None:
        models.load_weights(module, shipped)
    return module, models.deployment_of(models.entry(name), module)


def short_variant(name: str) -> tuple[nn.Module, Deployment]:
    """Of a model that is not built the small module, with fewer blocks in its backbone, which is that of the built one.

    So an export, whose time grows with the number of nodes, takes a third of the time.
    """
    module, _ = small(name)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        if isinstance(module, HSNet):
            shorten_hsnet(module)
        elif isinstance(module, EPRINet) and isinstance(module.backbone, EfficientNetB0):
            blocks = module.backbone.blocks
            for place, stage in enumerate(blocks):
                assert isinstance(stage, nn.Sequential)
                blocks[place] = stage[:1]
    return module, models.deployment_of(models.entry(name), module)


def inputs_of(
    graph: Graph, batch: int, shots: int, *, seed: int = 0, preprocess: Preprocess | None = None
) -> dict[str, Array]:
    """Random inputs of the range that real ones have; masks are discs.

    A detector is given photographs where ``preprocess`` says how: a trained one has scores of 1e-8 for noise, which
    engines round in their own ways.
    """
    random = np.random.default_rng(seed)
    if graph.name == "detect" and preprocess is not None:
        photographs = samples_from_photographs(height=preprocess.height, width=preprocess.width, count=16).images
        chosen = random.choice(len(photographs), batch, replace=False)
        return {"image": Preprocessor(preprocess)([photographs[number] for number in chosen])}
    inputs: dict[str, Array] = {}
    for tensor in graph.inputs:
        shape = shape_of(tensor.shape, batch, shots)
        if tensor.name == "mask":
            rows, columns = np.mgrid[: shape[1], : shape[2]]
            middle = random.uniform(0.3, 0.7, (batch, 2, 1, 1)) * np.array(shape[1:])[:, None, None]
            distance = np.hypot(rows - middle[:, :1, 0, 0][:, None], columns - middle[:, 1:, 0, 0][:, None])
            inputs[tensor.name] = (distance < min(shape[1:]) / 3).astype(np.float32)
        else:
            inputs[tensor.name] = random.standard_normal(shape).astype(np.float32)
            if tensor.name.startswith("support"):  # unit features
                inputs[tensor.name] /= np.linalg.norm(inputs[tensor.name], axis=-2, keepdims=True)
    return inputs


def shape_of(declared: tuple[int | str, ...], batch: int, shots: int) -> tuple[int, ...]:
    sizes = {"N": batch, "K": shots, LABELS: shots}
    return tuple(sizes[size] if isinstance(size, str) else size for size in declared)


def outputs_of(module: nn.Module, graph: Graph, inputs: Mapping[str, Array]) -> dict[str, Array]:
    with torch.no_grad():
        made = getattr(module, graph.name)(*(torch.from_numpy(inputs[tensor.name]) for tensor in graph.inputs))
    values = made if isinstance(made, tuple) else (made,)
    return {tensor.name: value.numpy() for tensor, value in zip(graph.outputs, values, strict=True)}


def check_portable(model: ModelProto) -> list[str]:
    """Standard operators and edgevis's own with their definition, no Einsum, no tensor of a rank that engines lack.

    Returns:
        The operators of edgevis, one for each node.
    """
    onnx.checker.check_model(model, full_check=True)
    own = [node.op_type for node in model.graph.node if node.domain == "edgevis"]
    assert {node.domain for node in model.graph.node} <= {"", "edgevis"}
    assert {function.name for function in model.functions} == set(own)
    check_function_names(model)
    flat = shape_inference.infer_shapes(inliner.inline_local_functions(model), strict_mode=True, data_prop=True)
    assert not [node for node in flat.graph.node if node.op_type == "Einsum"]
    ranks = {
        value.name: len(value.type.tensor_type.shape.dim)
        for value in (*flat.graph.value_info, *flat.graph.input, *flat.graph.output)
    }
    assert {key: rank for key, rank in ranks.items() if rank > MAX_RANK} == {}
    return own


def check_function_names(model: ModelProto) -> None:
    """No tensor of a function is named like one of the graph: TensorRT's importer would take that one instead."""
    graph = model.graph
    outside = {name for node in graph.node for name in (*node.input, *node.output)}
    outside |= {value.name for value in (*graph.input, *graph.output, *graph.initializer)}
    for function in model.functions:
        inside = {name for node in function.node for name in (*node.input, *node.output)}
        assert not ((inside | {*function.input, *function.output}) - {""}) & outside, function.name
        assert all(name.startswith(f"_{function.name}_") for name in function.input)


def check_engine(engine: Engine, graph: Graph, module: nn.Module, deployment: Deployment) -> None:
    """The engine, which is closed, computes what PyTorch computes at batches that no build runs, with several shots.

    A batch of 8 is left out where no session runs as many images at once.
    """
    tolerance = TOLERANCES["fp32"].max_relative_error
    assert tolerance is not None
    session = Session(engine, graph, max_batch=64)
    for batch, shots in [size for size in SIZES if size[0] <= max(3, deployment.max_batch)]:
        inputs = inputs_of(graph, batch, shots, seed=batch, preprocess=deployment.preprocess)
        expected = outputs_of(module, graph, inputs)
        for key, array in session.run(inputs).items():
            settled, _ = settle_flips(expected[key], array, graph.max_flipped)
            error, cosines = compare_rows(expected[key], settled)
            assert error < tolerance, (graph.name, key, batch, shots)
            assert cosines.min() > 0.9999
    session.close()


def check_tensorrt(model: ModelProto, graph: Graph, deployment: Deployment, folder: Path) -> None:
    """TensorRT-RTX, which needs no GPU for that, builds it as the GPU targets cast and quantise it.

    The very graphs are run by ONNX Runtime: in float16 they compute what the float32 ones do. A graph over a set stays
    float32 in both.
    """
    target = targets.load("rtx")
    profiles = profiles_of(deployment, ShapeProfileRequest(), usual_batch=target.usual_batch)
    if graph.set_of:
        spec = target.spec(profiles[graph.name], "fp32")
        assert not spec.tf32
        assert [shape[1] for shape in spec.profiles[graph.inputs[0].name]] == [1, 20, MAX_LABELS]
        assert len(build_engine(model.SerializeToString(), spec, flavour="tensorrt_rtx").plan) > 1000
        return
    feeds = [inputs_of(graph, 1, 1, preprocess=deployment.preprocess)]
    half = fp16_from_fp32(model, feeds)
    quantized = fp16_from_fp32(quantize(model, feeds), feeds)
    lint_quantized(quantized)
    check_scale_types(quantized)
    expected, actual = _run(model, feeds[0], folder), _run(half, feeds[0], folder)
    for key, array in actual.items():
        assert compare_rows(expected[key], array)[1].mean() > FLOAT16_MIN_COSINE, (graph.name, key)
    assert any((expected[key] != array).any() for key, array in actual.items()), "float16 rounds"
    _run(quantized, feeds[0], folder)
    compiled: tuple[tuple[Precision, ModelProto], ...] = (("fp16", half), ("int8", quantized))
    for precision, cast in compiled:
        spec = target.spec(profiles[graph.name], precision)
        assert spec.compute_capabilities == ("SM80", "SM86", "SM89", "SM120")
        assert len(build_engine(cast.SerializeToString(), spec, flavour="tensorrt_rtx").plan) > 1000


def check_scale_types(model: ModelProto) -> None:
    """Every scale is of the type of what is read or given, and no float16 result is cast."""
    types = {
        value.name: value.type.tensor_type.elem_type for value in shape_inference.infer_shapes(model).graph.value_info
    }
    types |= {value.name: value.type.tensor_type.elem_type for value in (*model.graph.input, *model.graph.output)}
    types |= {tensor.name: tensor.data_type for tensor in model.graph.initializer}
    makers = {name: node for node in model.graph.node for name in node.output}
    half = onnx.TensorProto.FLOAT16
    for node in model.graph.node:
        if node.op_type == "QuantizeLinear":
            assert types[node.input[0]] == types[node.input[1]], node.name
        if node.op_type == "DequantizeLinear":
            assert types[node.output[0]] == types[node.input[1]], node.name
        if node.op_type == "Cast" and node.input[0] in makers:
            maker = makers[node.input[0]]
            assert maker.op_type != "DequantizeLinear" or types[maker.input[1]] != half, (maker.name, node.name)


def _run(model: ModelProto, feed: Mapping[str, Array], folder: Path) -> dict[str, Array]:
    """What ONNX Runtime makes of it; no value may be infinite or NaN."""
    onnx.save(model, folder / "model.onnx")
    made = CpuProxy(folder / "model.onnx").run(feed)
    assert all(np.isfinite(array).all() for array in made.values())
    return made
