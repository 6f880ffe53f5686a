"""The parity gate on real engines: it passes what is right and names what is not."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import ModelProto, helper, numpy_helper

from calibration.quantize.graph import quantize
from export import compilers
from export.compilers import graph_path
from export.onnx import onnx_from_module
from export.parity import check_parity
from runtime.bundle.manifest import EngineRecord
from runtime.bundle.spec import Graph, Precision, TensorSpec
from runtime.common.arrays import Array
from runtime.common.machine import machine_name
from runtime.errors import CompileError, EngineError, ExportError, ParityError
from runtime.parity.measure import SHARING_MIN_AGREEMENT, SHARING_MIN_MEAN_COSINE

from bundles import needs_openvino
from locations import ROOT
from tiny_models import DEPLOYMENT, GRAPH, feeds_of, pictures, reference_of, tiny_net

# What its fixtures build, one worker builds.
pytestmark = [pytest.mark.torch, needs_openvino, pytest.mark.xdist_group("parity")]

BACKENDS = ("onnxruntime", "openvino")


@pytest.fixture(scope="module")
def models() -> tuple[ModelProto, ModelProto]:
    """The float graph and the quantised one."""
    model = onnx_from_module(tiny_net(), GRAPH)
    return model, quantize(model, feeds_of(pictures(48)))


@pytest.fixture(scope="module")
def reference() -> dict[str, Array]:
    return reference_of(tiny_net(), pictures(40, seed=5))


def compiled(
    folder: Path, models: tuple[ModelProto, ModelProto], *, precisions: tuple[Precision, ...] = ("fp32",)
) -> list[EngineRecord]:
    """The engines of both backends in ``folder``."""
    path = graph_path(folder, "embed")
    path.parent.mkdir(parents=True)
    onnx.save(models[0], path)
    records = []
    for precision in precisions:
        for name in BACKENDS:
            source = models[1] if precision == "int8" else models[0]
            file = compilers.load(name).engine_from_onnx(source, graph="embed", precision=precision, bundle=folder)
            records.append(EngineRecord(name, precision, "cpu", {"embed": file.relative_to(folder).as_posix()}))
    return records


def prove(records: list[EngineRecord], folder: Path, reference: dict[str, Array]) -> tuple[EngineRecord, ...]:
    proved = check_parity(
        records, bundle=folder, deployment=DEPLOYMENT, reference=reference, advance=lambda done, total: None
    )
    assert not proved.refused
    return proved.engines


def test_engines_that_are_right(
    tmp_path: Path, models: tuple[ModelProto, ModelProto], reference: dict[str, Array]
) -> None:
    records = compiled(tmp_path, models, precisions=("fp32", "int8"))
    steps: list[tuple[int, int]] = []
    proved = check_parity(
        records,
        bundle=tmp_path,
        deployment=DEPLOYMENT,
        reference=reference,
        advance=lambda done, total: steps.append((done, total)),
    ).engines
    assert steps == [(1, 4), (2, 4), (3, 4), (4, 4)]
    assert [record.name for record in proved] == [record.name for record in records]
    for record in proved:
        assert record.holds_parity
        assert record.parity is not None
        assert record.parity.machine == machine_name()
        assert record.latency_ms is not None
        assert record.latency_ms > 0
        (parity,) = record.parity.graphs
        assert parity.graph == "embed"
        assert parity.batch_sizes == (1, 2, 5, 8)
        decisions = record.parity.decisions
        assert decisions is not None
        assert decisions.count == 40
        assert decisions.mean_cosine is not None
        if record.precision == "fp32":
            assert parity.max_relative_error <= 1e-4
            assert parity.min_cosine >= 0.99999
            assert decisions.agreement == 1.0
        else:
            assert parity.max_relative_error > 1e-4, "an INT8 engine that rounds nothing is no INT8 engine"
        assert record.shares_enrolments == (
            decisions.agreement >= SHARING_MIN_AGREEMENT and decisions.mean_cosine >= SHARING_MIN_MEAN_COSINE
        )


def change_onnx_weight(folder: Path) -> None:
    path = graph_path(folder, "embed")
    model = onnx.load(path)
    tensor = next(item for item in model.graph.initializer if item.name.endswith("stem.weight"))
    values = numpy_helper.to_array(tensor).copy()
    values.flat[np.abs(values).argmax()] *= -1
    tensor.CopyFrom(numpy_helper.from_array(values, tensor.name))
    onnx.save(model, path)


def change_ir_weight(folder: Path) -> None:
    path = folder / "engines" / "openvino-fp32" / "embed.bin"
    values = np.fromfile(path, np.float32)
    # The largest finite number below 10 is a weight, whatever shapes and axes lie between the weights.
    magnitude = np.where(np.abs(values) < 10, np.abs(values), 0)
    values[magnitude.argmax()] *= -1
    values.tofile(path)


@pytest.mark.parametrize(
    ("plant", "engine"), [(change_onnx_weight, "onnxruntime-fp32"), (change_ir_weight, "openvino-fp32")]
)
def test_one_changed_weight_is_found(
    plant: Callable[[Path], None],
    engine: str,
    tmp_path: Path,
    models: tuple[ModelProto, ModelProto],
    reference: dict[str, Array],
) -> None:
    records = compiled(tmp_path, models)
    plant(tmp_path)
    with pytest.raises(ParityError) as caught:
        prove(records, tmp_path, reference)
    message = str(caught.value)
    assert f"graph 'embed' of the engine {engine} does not compute what the reference model computes" in message
    assert "max relative error" in message
    assert "allowed: max relative error <= 0.0001, cosine >= 0.99999" in message
    (other,) = {"onnxruntime-fp32", "openvino-fp32"} - {engine}
    assert other not in message


def test_quantised_graph_with_a_wrong_layout_is_found(
    tmp_path: Path, models: tuple[ModelProto, ModelProto], reference: dict[str, Array]
) -> None:
    broken = ModelProto.FromString(models[1].SerializeToString())
    (tensor,) = (item for item in broken.graph.initializer if item.name.endswith("head.weight_quantized"))
    tensor.CopyFrom(numpy_helper.from_array(np.roll(numpy_helper.to_array(tensor), 3, axis=0), tensor.name))
    records = compiled(tmp_path, (models[0], broken), precisions=("int8",))
    with pytest.raises(ParityError, match=r"engine onnxruntime-int8 .*\n.*engine openvino-int8 "):
        prove(records, tmp_path, reference)


def test_engine_that_returns_nan_is_found(
    tmp_path: Path, models: tuple[ModelProto, ModelProto], reference: dict[str, Array]
) -> None:
    model = ModelProto.FromString(models[0].SerializeToString())
    (name,) = model.graph.node[-1].output
    model.graph.node[-1].output[0] = "before"
    steps = ["before", "absolute", "negative", name]
    for kind, source, target in zip(("Abs", "Neg", "Sqrt"), steps, steps[1:], strict=False):
        model.graph.node.append(helper.make_node(kind, [source], [target]))
    records = compiled(tmp_path, (model, models[1]))
    with pytest.raises(ParityError, match="max relative error nan"):
        prove(records, tmp_path, reference)


def test_engine_that_does_not_open(
    tmp_path: Path, models: tuple[ModelProto, ModelProto], reference: dict[str, Array]
) -> None:
    records = compiled(tmp_path, models)
    graph_path(tmp_path, "embed").write_bytes(b"no ONNX")
    with pytest.raises(EngineError, match=r"embed\.onnx"):
        prove(records, tmp_path, reference)


def test_without_an_embedding_nothing_is_shared(
    tmp_path: Path, models: tuple[ModelProto, ModelProto], reference: dict[str, Array]
) -> None:
    model = ModelProto.FromString(models[0].SerializeToString())
    model.graph.node[-1].output[0] = model.graph.output[0].name = "logits"
    graph = Graph("embed", GRAPH.inputs, (TensorSpec("logits", "float32", ("N", 24)),))
    deployment = replace(DEPLOYMENT, graphs=(graph,))
    records = compiled(tmp_path, (model, models[1]))[:1]
    renamed = {"embed/image": reference["embed/image"], "embed/logits": reference["embed/embedding"]}
    (proved,) = check_parity(
        records, bundle=tmp_path, deployment=deployment, reference=renamed, advance=lambda done, total: None
    ).engines
    assert proved.holds_parity
    assert proved.parity is not None
    assert proved.parity.decisions is None
    assert not proved.shares_enrolments


# --- the compilers


def test_bf16_is_the_float_ir(tmp_path: Path, models: tuple[ModelProto, ModelProto]) -> None:
    compiler = compilers.load("openvino")
    paths = {
        compiler.engine_from_onnx(models[0], graph="embed", precision=precision, bundle=tmp_path)
        for precision in ("fp32", "bf16")
    }
    assert len(paths) == 1
    assert paths.pop().with_suffix(".bin").is_file()


@pytest.mark.parametrize(("name", "precision"), [("onnxruntime", "bf16"), ("openvino", "fp16")])
def test_precision_that_a_compiler_lacks(
    name: str, precision: Precision, tmp_path: Path, models: tuple[ModelProto, ModelProto]
) -> None:
    with pytest.raises(CompileError, match=f"graph 'embed': .* not {precision}"):
        compilers.load(name).engine_from_onnx(models[0], graph="embed", precision=precision, bundle=tmp_path)


def test_ir_keeps_float32_weights_and_tells_no_paths(tmp_path: Path, models: tuple[ModelProto, ModelProto]) -> None:
    path = compilers.load("openvino").engine_from_onnx(models[0], graph="embed", precision="fp32", bundle=tmp_path)
    text = path.read_text()
    assert 'element_type="f16"' not in text
    assert str(tmp_path) not in text
    assert str(ROOT) not in text


def test_ir_of_a_graph_with_local_functions(tmp_path: Path) -> None:
    text = """
        <ir_version: 10, opset_import: ["" : 18, "edgevis" : 1]>
        g (float[N, 4] x) => (float[N, 4] y) { y = edgevis.Twice(x) }
        <domain: "edgevis", opset_import: ["" : 18]>
        Twice (x) => (y) { y = Add(x, x) }
    """
    model = onnx.parser.parse_model(text)
    path = compilers.load("openvino").engine_from_onnx(model, graph="double", precision="fp32", bundle=tmp_path)
    assert path.name == "double.xml"


def test_graph_that_openvino_refuses(tmp_path: Path) -> None:
    text = """
        <ir_version: 10, opset_import: ["" : 18, "nowhere" : 1]>
        g (float[N, 4] x) => (float[N, 4] y) { y = nowhere.Unknown(x) }
    """
    with pytest.raises(CompileError, match="cannot make an IR of the graph 'odd'"):
        compilers.load("openvino").engine_from_onnx(
            onnx.parser.parse_model(text), graph="odd", precision="fp32", bundle=tmp_path
        )
    assert not list(tmp_path.rglob("*.xml"))


def test_unknown_compiler() -> None:
    with pytest.raises(ExportError, match="no compiler 'tvm'; known: onnxruntime, openvino"):
        compilers.load("tvm")
