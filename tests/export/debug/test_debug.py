"""Faults that are planted in real engines, and what ``python -m export.debug`` says of each."""

import json
import shutil
import subprocess
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import ModelProto, helper, numpy_helper

pytest.importorskip("polygraphy")

from export.debug.__main__ import main
from export.debug.graphs import CuttableGraph, parents_among
from export.debug.onnx_graph import OnnxGraph
from export.debug.openvino_graph import OpenVinoGraph
from export.debug.runners import EngineSide, exact_runner
from export.debug.search import compare, first_wrong, relative_error, smallest_part
from export.request import BuildRequest
from export.stages import build_bundle
from runtime import ready
from runtime.bundle.bundle import Bundle
from runtime.bundle.staging import write_manifest
from runtime.common.arrays import Array
from runtime.common.vendors import import_openvino

from built import Recorder
from bundles import needs_openvino
from locations import ROOT
from tiny_models import pictures, tiny_entry, write_pictures

pytestmark = [pytest.mark.torch, needs_openvino, pytest.mark.xdist_group("debug")]

OSNET = "osnet-x0-25"


@pytest.fixture(scope="module")
def int8_bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The tiny model in FP32 and INT8 for both engines."""
    folder = tmp_path_factory.mktemp("debugged")
    data = write_pictures(folder / "people", pictures(48))
    request = BuildRequest(
        tiny_entry(), folder / "tiny.edgevis", precisions=("fp32", "int8"), max_drop=1.0, calibration_data=data
    )
    return build_bundle(request, Recorder()).path


def altered(bundle: Path, target: Path, file: str, edit: Callable[[Any], None]) -> Path:
    """A copy of a bundle in which one engine's file is another one, as a faulty compiler would have written it."""
    shutil.copytree(bundle, target)
    path = target / file
    if path.suffix == ".onnx":
        model = onnx.load(path)
        edit(model)
        onnx.save(model, path)
    else:
        openvino = import_openvino()
        ir = openvino.Core().read_model(model=path.read_bytes(), weights=path.with_suffix(".bin").read_bytes())
        edit(ir)
        openvino.save_model(ir, path, compress_to_fp16=False)
    manifest = Bundle(bundle).manifest
    (target / "manifest.json").unlink()
    write_manifest(target, manifest)
    return target


def report_of(capsys: pytest.CaptureFixture[str], *arguments: str) -> tuple[int, Mapping[str, Any]]:
    """The exit status and the report on the last graph."""
    capsys.readouterr()
    status = main([*arguments, "--json", "-q"])
    return status, json.loads(capsys.readouterr().out)[-1]


def set_weight(model: ModelProto, name: str, edit: Callable[[Array], Array]) -> None:
    for tensor in model.graph.initializer:
        if tensor.name == name:
            tensor.CopyFrom(numpy_helper.from_array(edit(numpy_helper.to_array(tensor).copy()), name))
            return
    raise AssertionError(name)


def one_off(weights: Array) -> Array:
    """The weights with one of them changed."""
    weights.flat[weights.size // 2] += 3 * np.abs(weights).max()
    return weights


def replace_constant(ir: Any, port: Any, values: Array) -> None:
    openvino = import_openvino()
    constant = openvino.opset13.constant(values)
    port.replace_source_output(constant.output(0))


def makes(model: ModelProto, weight: str) -> str:
    """The tensor that the node with that weight makes."""
    return next(node.output[0] for node in model.graph.node if weight in node.input)


# --- engines that are right


@pytest.mark.parametrize("engine", ["openvino-fp32", "onnxruntime-fp32"])
def test_right_engines_agree(engine: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    output = tmp_path / "debug"
    status, report = report_of(capsys, OSNET, "--engine", engine, "--rows", "2", "--output", str(output))
    assert status == 0
    assert report["outputs"]["embedding"] < 1e-5
    assert not output.exists()


def test_int8_engines_agree(int8_bundle: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for engine in ("openvino-int8", "onnxruntime-int8"):
        status, report = report_of(capsys, str(int8_bundle), "--engine", engine)
        assert status == 0, report


def test_the_commands_of_the_page(int8_bundle: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    lines = (ROOT / "docs/debugging.md").read_text().splitlines()
    commands = [line for line in lines if line.startswith("python -m export.debug reid.edgevis")]
    assert len(commands) == 2
    (tmp_path / "reid.edgevis").symlink_to(int8_bundle)
    monkeypatch.chdir(tmp_path)
    for command in commands:
        assert main(command.split()[3:]) == 0


# --- one weight


WEIGHT = "model.conv3.1.conv2c.1.conv1.weight"


def test_one_weight_in_openvino(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    def edit(ir: Any) -> None:
        for operation in ir.get_ordered_ops():
            for port in operation.inputs():
                constant = port.get_source_output().get_node()
                if constant.get_friendly_name() == WEIGHT:
                    replace_constant(ir, port, one_off(np.array(constant.data)))
                    return
        raise AssertionError("the IR names its weights otherwise")

    bundle = altered(ready.bundle_path(OSNET), tmp_path / "wrong.edgevis", "engines/openvino-fp32/embed.xml", edit)
    output = tmp_path / "found here"
    status, report = report_of(capsys, str(bundle), "--engine", "openvino-fp32", "--output", str(output))
    culprit = report["culprit"]
    graph = onnx.load(bundle / "graphs/embed.onnx")
    assert status == 1
    assert culprit["tensor"] == makes(graph, WEIGHT)
    assert WEIGHT in culprit["weights"]
    assert len(culprit["inputs"]) == 1
    assert len(onnx.load(output / "reference.onnx").graph.node) == 1
    lines = (output / "tensors.csv").read_text().splitlines()
    assert len(lines) > 300
    assert lines[0] == "tensor,kind,error,alone,channel"

    # What is written repeats the fault, and with the right part in its place it does not.
    assert culprit["repeat"] == f"python -m export.debug '{output}'"
    assert main([str(output)]) == 1
    assert "still wrong" in capsys.readouterr().out
    record = json.loads((output / "reduced.json").read_text())
    record["engine"] = {**record["engine"], "backend": "onnxruntime", "file": record["reference"]["file"]}
    (output / "reduced.json").write_text(json.dumps(record))
    assert main([str(output)]) == 0


def test_one_weight_in_onnx_runtime(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    bundle = altered(
        ready.bundle_path(OSNET),
        tmp_path / "wrong.edgevis",
        "graphs/embed.onnx",
        lambda model: set_weight(model, WEIGHT, one_off),
    )
    found = ("--against", "openvino-fp32", "--output", str(tmp_path / "debug"))
    status, report = report_of(capsys, str(bundle), "--engine", "onnxruntime-fp32", *found)
    assert status == 1
    assert report["culprit"]["tensor"] == makes(onnx.load(bundle / "graphs/embed.onnx"), WEIGHT)
    # The graph is what is wrong, not an engine of it: against itself it agrees, and the trained model says otherwise.
    status, report = report_of(capsys, str(bundle), "--engine", "onnxruntime-fp32")
    assert status == 1
    assert report["model"]["embedding"] > 1e-4
    assert "culprit" not in report


# --- one scale


def test_one_scale_in_onnx_runtime(int8_bundle: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    def edit(model: ModelProto) -> None:
        graph = model.graph
        produced = {name for node in graph.node if node.op_type == "QuantizeLinear" for name in node.output}
        node = [n for n in graph.node if n.op_type == "DequantizeLinear" and n.input[0] in produced][1]
        scale = next(numpy_helper.to_array(t) for t in graph.initializer if t.name == node.input[1])
        graph.initializer.append(numpy_helper.from_array(np.asarray(scale * 3), "wrong_scale"))
        node.input[1] = "wrong_scale"
        wrong.append(next(n.output[0] for n in graph.node if node.output[0] in n.input))

    wrong: list[str] = []
    bundle = altered(int8_bundle, tmp_path / "wrong.edgevis", "engines/onnxruntime-int8/embed.onnx", edit)
    status, report = report_of(capsys, str(bundle), "--engine", "onnxruntime-int8", "--output", str(tmp_path / "debug"))
    assert status == 1
    assert report["culprit"]["tensor"] == wrong[0]
    assert "DequantizeLinear" in [layer["kind"] for layer in report["culprit"]["layers"]]


def test_one_scale_in_openvino(int8_bundle: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    def edit(ir: Any) -> None:
        for operation in ir.get_ordered_ops():
            if operation.get_type_name() != "Convolution":
                continue
            multiply = operation.input(1).get_source_output().get_node()  # of the weights, after their type
            scale = multiply.input(1).get_source_output().get_node()
            if multiply.get_type_name() == "Multiply" and scale.get_type_name() == "Constant":
                replace_constant(ir, multiply.input(1), np.array(scale.data) * 3)
                reader = operation
                while not reader.output(0).get_names():  # the bias's addition has the convolution's name
                    (port,) = reader.output(0).get_target_inputs()
                    reader = port.get_node()
                wrong.append(reader.output(0).get_any_name())
                return
        raise AssertionError("the IR has no scale")

    wrong: list[str] = []
    bundle = altered(int8_bundle, tmp_path / "wrong.edgevis", "engines/openvino-int8/embed.xml", edit)
    status, report = report_of(capsys, str(bundle), "--engine", "openvino-int8", "--output", str(tmp_path / "debug"))
    assert status == 1
    assert wrong[0] == report["culprit"]["tensor"]
    assert "Convolution" in [layer["kind"] for layer in report["culprit"]["layers"]]


# --- one activation


def test_an_activation_in_openvino(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    def edit(ir: Any) -> None:
        relus = [operation for operation in ir.get_ordered_ops() if operation.get_type_name() == "Relu"]
        relu = relus[20]
        clamp = import_openvino().opset13.clamp(relu.input(0).get_source_output(), 0.0, 0.1)
        wrong.append(relu.output(0).get_any_name())
        for reader in list(relu.output(0).get_target_inputs()):
            reader.replace_source_output(clamp.output(0))
        relu.output(0).get_tensor().set_names(set())
        clamp.output(0).get_tensor().set_names({wrong[0]})

    wrong: list[str] = []
    bundle = altered(ready.bundle_path(OSNET), tmp_path / "wrong.edgevis", "engines/openvino-fp32/embed.xml", edit)
    status, report = report_of(capsys, str(bundle), "--engine", "openvino-fp32", "--output", str(tmp_path / "debug"))
    assert status == 1
    assert report["culprit"]["tensor"] == wrong[0]
    assert [layer["kind"] for layer in report["culprit"]["layers"]] == ["Clamp"]


def fusing_wrongly(graph: CuttableGraph, feeds: Mapping[str, Array]) -> Any:
    """ONNX Runtime, given what a faulty optimiser makes: one convolution's ReLU becomes a leaky one when fused.

    As real optimisers do, it fuses only where nothing else asks for the convolution's own output.
    """
    model = onnx.ModelProto.FromString(graph.files("part").main)
    asked = {value.name for value in model.graph.output}
    for conv in [node for node in model.graph.node if node.op_type == "Conv" and WEIGHT not in node.input]:
        readers = [node for node in model.graph.node if conv.output[0] in node.input]
        if FUSED in conv.input and [n.op_type for n in readers] == ["Relu"] and conv.output[0] not in asked:
            fused = helper.make_node(
                "FusedConv",
                conv.input,
                readers[0].output,
                domain="com.microsoft",
                activation="LeakyRelu",
                activation_params=[0.5],
            )
            fused.attribute.extend(conv.attribute)
            model.graph.node.insert(list(model.graph.node).index(conv), fused)
            model.graph.node.remove(conv)
            model.graph.node.remove(readers[0])
            model.opset_import.append(helper.make_opsetid("com.microsoft", 1))
    return exact_runner(OnnxGraph(model), feeds)


FUSED = "model.conv4.0.conv2b.0.conv2.weight"


def test_a_fault_that_only_fusing_brings_out() -> None:
    bundle = Bundle(ready.bundle_path(OSNET))
    graph = OnnxGraph.load(bundle.path / "graphs/embed.onnx")
    image = bundle.golden()["embed/image"][:1]
    found = compare(
        EngineSide("fusing", "fp32", graph, fusing_wrongly),
        EngineSide("graph", "fp32", graph, exact_runner),
        {"image": image},
        tolerance=1e-4,
    )
    conv = makes(onnx.load(bundle.path / "graphs/embed.onnx"), FUSED)
    relu = next(layer.outputs[0] for layer in graph.layers if conv in layer.inputs)
    assert max(item.alone for item in found.tensors) < 1e-4
    assert max(item.error for item in found.tensors) < 1e-4  # it hides when it is looked at
    assert found.culprit is not None
    assert found.culprit.tensor == relu
    assert [layer.kind for layer in found.culprit.layers] == ["Conv", "Relu"]
    assert found.culprit.error > 1e-2


def test_small_errors_that_add_up_are_called_so() -> None:
    """A chain of twelve factors, each off by a thousandth: no one is beyond the tolerance, five together are."""

    def chain(factor: float) -> OnnxGraph:
        names = [f"t{number}" for number in range(13)]
        weights = [numpy_helper.from_array(np.full((1, 3), factor, np.float32), f"w{number}") for number in range(12)]
        nodes = [helper.make_node("Mul", [names[i], f"w{i}"], [names[i + 1]]) for i in range(12)]
        ends = [helper.make_tensor_value_info(name, onnx.TensorProto.FLOAT, [1, 3]) for name in (names[0], names[-1])]
        graph = helper.make_graph(nodes, "chain", ends[:1], ends[1:], weights)
        return OnnxGraph(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=10))

    sides = (
        EngineSide("off", "fp32", chain(1.001), exact_runner),
        EngineSide("graph", "fp32", chain(1.0), exact_runner),
    )
    found = compare(*sides, {"t0": np.ones((1, 3), np.float32)}, tolerance=4.5e-3)
    assert found.culprit is not None
    assert max(item.alone for item in found.tensors) == pytest.approx(1e-3, rel=0.01)
    assert found.culprit.tensor == "t5"
    assert len(found.culprit.layers) == 5
    assert "together" in found.culprit.how


# --- the search itself


def test_the_search_by_halving() -> None:
    # Two branches; the fault is in the right one, and what follows it is wrong.
    parents = {"a": ("image",), "b": ("a",), "c": ("b",), "x": ("a",), "y": ("x",), "z": ("y",), "out": ("c", "z")}
    asked: list[str] = []

    def is_wrong(name: str) -> bool:
        asked.append(name)
        return name in {"y", "z", "out"}

    assert first_wrong(["out"], parents, is_wrong) == "y"
    assert len(asked) <= 5
    assert first_wrong(["out"], {"out": ("image",)}, lambda _: True) == "out"


def test_the_smallest_part() -> None:
    before = [f"t{number}" for number in range(40)]
    tried: list[int] = []

    def fails(part: list[str]) -> bool:
        tried.append(len(part))
        return {"t30", "t37"} <= set(part)

    assert smallest_part("out", before, fails) == ["t30", "t37", "out"]
    assert len(tried) < 30


@pytest.mark.parametrize(
    ("actual", "expected", "error"),
    [
        ([3.0, 4.0], [3.0, 4.0], 0.0),
        ([0.0, 0.0], [3.0, 4.0], 1.0),
        ([float("nan"), 4.0], [3.0, 4.0], float("inf")),
        ([3.0], [3.0, 4.0], float("inf")),
    ],
)
def test_relative_error(actual: list[float], expected: list[float], error: float) -> None:
    assert relative_error(np.array(actual), np.array(expected)) == error


def test_both_formats_have_the_same_tensors() -> None:
    bundle = ready.bundle_path(OSNET)
    graph = OnnxGraph.load(bundle / "graphs/embed.onnx")
    ir = OpenVinoGraph.load(bundle / "engines/openvino-fp32/embed.xml")
    shared = graph.float_tensors & ir.float_tensors
    assert len(shared) == len(graph.float_tensors)
    # OpenVINO may read a tensor past an operation that changes nothing, but never one that the graph does not.
    of_ir, of_graph = parents_among(ir, shared), parents_among(graph, shared)
    assert of_ir.keys() == of_graph.keys()
    differing = [name for name, parents in of_graph.items() if set(of_ir[name]) != set(parents)]
    assert not differing


# --- Polygraphy's own tools


@pytest.mark.parametrize(
    "arguments",
    [
        ("inspect", "model", "GRAPH"),
        ("run", "GRAPH", "--onnxrt", "--input-shapes", "image:[1,3,256,128]"),
        ("surgeon", "sanitize", "GRAPH", "--fold-constants", "-o", "clean.onnx"),
    ],
)
def test_polygraphy_reads_the_graphs(arguments: tuple[str, ...], tmp_path: Path) -> None:
    if arguments[0] == "surgeon":
        pytest.importorskip("onnx_graphsurgeon")
    graph = str(ready.bundle_path(OSNET) / "graphs/embed.onnx")
    tool = Path(sys.executable).with_name("polygraphy")
    command = [tool, *(graph if item == "GRAPH" else item for item in arguments)]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stdout + done.stderr
    if arguments[0] == "surgeon":
        clean = OnnxGraph.load(tmp_path / "clean.onnx")
        image = {"image": Bundle(ready.bundle_path(OSNET)).golden()["embed/image"][:1]}
        sides = (
            EngineSide("clean", "fp32", clean, exact_runner),
            EngineSide("graph", "fp32", OnnxGraph.load(Path(graph)), exact_runner),
        )
        assert compare(*sides, image, tolerance=1e-5).agrees
