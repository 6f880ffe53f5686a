"""Somebody's own ONNX file as a bundle: what is read, what is refused, and that its engines are proved."""

from __future__ import annotations

import json
import warnings
from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from onnx import ModelProto, TensorProto, helper, numpy_helper
from torch import Tensor, nn

from edgevis import Predictor
from export.build import main
from export.preprocess_option import parsed_preprocess
from export.reference_models.onnx_file import load_onnx
from export.request import OnnxSource
from runtime.bundle.bundle import Bundle
from runtime.common.arrays import Array
from runtime.errors import EdgevisError, ExportError, InputError, WeightsError
from runtime.images.preprocess import Preprocessor

from bundles import needs_openvino
from tiny_models import HEIGHT, PREPROCESS, WIDTH, TinyNet, pictures, tiny_net, write_pictures

# What its fixtures build, one worker builds.
pytestmark = [pytest.mark.torch, needs_openvino, pytest.mark.xdist_group("onnx_file")]

FIELDS = {"mean": list(PREPROCESS.mean), "std": list(PREPROCESS.std)}


class Whole(nn.Module):
    """The tiny model with ``forward``, as a model outside edgevis has it."""

    def __init__(self) -> None:
        super().__init__()
        self.net: TinyNet = tiny_net(seed=5)

    def forward(self, pixels: Tensor) -> Tensor:
        return self.net.embed(pixels)


class Maps(nn.Module):
    """image (N, 3, 32, 16) -> two maps of its size."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.layers = nn.Sequential(nn.Conv2d(3, 8, 3, padding=1), nn.ReLU(), nn.Conv2d(8, 2, 1))

    def forward(self, pixels: Tensor) -> Tensor:
        maps: Tensor = self.layers(pixels)
        return maps


def exported(module: nn.Module, path: Path) -> Path:
    """The module as an engineer exports it: other names than a bundle's, an open batch."""
    with warnings.catch_warnings():
        # torch 2.13 uses its own deprecated class while it copies an exported program.
        warnings.simplefilter("ignore", FutureWarning)
        torch.onnx.export(
            module.eval(),
            (torch.zeros(2, 3, HEIGHT, WIDTH),),
            path,
            dynamo=True,
            input_names=["pixels"],
            output_names=["features"],
            dynamic_shapes=({0: torch.export.Dim("batch")},),
            opset_version=18,
            external_data=False,
            verbose=False,
        )
    return path


@pytest.fixture(scope="module")
def file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return exported(Whole(), tmp_path_factory.mktemp("onnx") / "my model.onnx")


@pytest.fixture(scope="module")
def maps_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return exported(Maps(), tmp_path_factory.mktemp("onnx") / "maps.onnx")


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory, file: Path) -> Bundle:
    """FP32 and INT8, built by the command line."""
    folder = tmp_path_factory.mktemp("built")
    data = write_pictures(folder / "people", pictures(48))
    text = ",".join(f"{name}={':'.join(map(str, values))}" for name, values in FIELDS.items())
    arguments = ["--onnx", str(file), "--task", "reid", "--preprocess", f"color=RGB,scale=1/255,{text}"]
    output = folder / "own.edgevis"
    arguments += ["--calibration-data", str(data), "--output", str(output), "--no-cache", "--quiet"]
    assert main(arguments) == 0
    return Bundle(output)


def embedded(images: Array) -> Array:
    with torch.no_grad():
        embeddings: Array = Whole().eval()(torch.from_numpy(images)).numpy()
    return embeddings


def test_engines_in_fp32_and_int8_are_proved(bundle: Bundle) -> None:
    manifest = bundle.manifest
    assert (manifest.model, manifest.deployment.task) == ("my-model", "reid")
    assert manifest.deployment.preprocess == PREPROCESS
    assert {engine.precision for engine in manifest.engines} == {"fp32", "int8"}
    assert all(engine.holds_parity for engine in manifest.engines)
    assert manifest.weights.source == "my model.onnx"
    # The biases, too; batch norms are folded into the convolutions.
    assert manifest.parameters == 3 * 16 * 9 + 16 + 16 * 9 + 16 + 16 * 16 + 16 + 16 * 24 + 24
    assert manifest.calibration is not None


def test_a_predictor_embeds_as_the_module_does(bundle: Bundle) -> None:
    samples = pictures(4, seed=11)
    expected = embedded(Preprocessor(PREPROCESS)(samples.images))
    expected /= np.linalg.norm(expected, axis=1, keepdims=True)
    with Predictor(bundle.path, precision="fp32") as predictor:
        actual = predictor.embed(list(samples.images))
    np.testing.assert_allclose(actual, expected, rtol=1e-3, atol=1e-4)


def test_the_graph_is_named_and_folded_as_a_builds_own(file: Path) -> None:
    loaded = load_onnx(OnnxSource(file, "reid", FIELDS))
    (graph,) = loaded.deployment.graphs
    model = loaded.model.to_onnx(graph)
    assert [value.name for value in (*model.graph.input, *model.graph.output)] == ["image", "embedding"]
    assert "BatchNormalization" not in {node.op_type for node in model.graph.node}
    images = np.random.default_rng(1).standard_normal((3, 3, HEIGHT, WIDTH)).astype(np.float32)
    (actual,) = loaded.model.outputs(graph, [images])
    np.testing.assert_allclose(actual, embedded(images), rtol=1e-4, atol=1e-5)
    assert loaded.model.flops(graph) > 2 * 16 * 27 * HEIGHT * WIDTH // 4


def test_a_segmentation_model_gets_its_labels(maps_file: Path, tmp_path: Path) -> None:
    output = tmp_path / "maps.edgevis"
    arguments = ["--onnx", str(maps_file), "--task", "segment", "--labels", "scratch,dent", "--precision", "fp32"]
    arguments += ["--calibration-data", str(write_pictures(tmp_path / "parts", pictures(32)))]
    assert main([*arguments, "--output", str(output), "--quiet", "--no-cache"]) == 0
    manifest = Bundle(output).manifest
    assert manifest.deployment.postprocess["labels"] == ["scratch", "dent"]
    graph = onnx.load(output / "graphs" / "segment.onnx")
    assert {item.key: item.value for item in graph.metadata_props}["labels"] == json.dumps(["scratch", "dent"])
    with Predictor(output) as predictor:
        assert predictor.predict(pictures(1).images[0]).labels == ("scratch", "dent")


def test_labels_must_fit_the_classes(maps_file: Path) -> None:
    with pytest.raises(ExportError, match="has 2 classes and 1 labels"):
        load_onnx(OnnxSource(maps_file, "segment", labels=("one",)))


def test_an_output_that_is_not_the_tasks(file: Path, maps_file: Path) -> None:
    with pytest.raises(ExportError, match=r"needs \(N, D\) embedding"):
        load_onnx(OnnxSource(maps_file, "reid"))
    with pytest.raises(ExportError, match="logits"):
        load_onnx(OnnxSource(file, "segment", labels=("one",)))
    with pytest.raises(ExportError, match="allowed for an ONNX file: classify, reid, segment"):
        load_onnx(OnnxSource(file, "detect"))


def _external(model: ModelProto) -> None:
    tensor = model.graph.initializer[0]
    tensor.data_location = TensorProto.EXTERNAL
    tensor.external_data.add(key="location", value="../../etc/passwd")


def _not_finite(model: ModelProto) -> None:
    tensor = model.graph.initializer[0]
    values = numpy_helper.to_array(tensor).copy()
    values.flat[0] = np.nan
    tensor.CopyFrom(numpy_helper.from_array(values, tensor.name))


def _second_input(model: ModelProto) -> None:
    model.graph.input.append(helper.make_tensor_value_info("mask", TensorProto.FLOAT, ["batch", HEIGHT, WIDTH]))


def _four_channels(model: ModelProto) -> None:
    model.graph.input[0].type.tensor_type.shape.dim[1].ClearField("dim_value")


def _old_opset(model: ModelProto) -> None:
    model.opset_import[0].version = 11


def _foreign_operator(model: ModelProto) -> None:
    model.graph.node[0].domain = "com.example"
    model.opset_import.add(domain="com.example", version=1)


def _two_outputs(model: ModelProto) -> None:
    model.graph.output.append(
        helper.make_tensor_value_info(model.graph.node[0].output[0], TensorProto.FLOAT, [None] * 4)
    )


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        (_external, ExportError, "only a self-contained file is read"),
        (_not_finite, WeightsError, "holds NaN or infinity"),
        (_second_input, ExportError, "allowed: one image and one output"),
        (_two_outputs, ExportError, "allowed: one image and one output"),
        (_four_channels, ExportError, "3 or 1, height, width"),
        (_old_opset, ExportError, "opset"),
        (_foreign_operator, ExportError, "com.example"),
    ],
    ids=lambda value: value.__name__ if callable(value) else None,
)
def test_files_that_are_refused(
    file: Path, tmp_path: Path, change: Callable[[ModelProto], None], error: type[EdgevisError], message: str
) -> None:
    model = onnx.load(file)
    change(model)
    path = tmp_path / "changed.onnx"
    path.write_bytes(model.SerializeToString())
    with pytest.raises(error, match=message):
        load_onnx(OnnxSource(path, "reid"))


@pytest.mark.parametrize("data", [b"", b"PK\x03\x04 no model", b"\x08\x0a" * 9])
def test_what_is_no_model(tmp_path: Path, data: bytes) -> None:
    path = tmp_path / "x.onnx"
    path.write_bytes(data)
    with pytest.raises(ExportError, match=r"is no (valid )?ONNX"):
        load_onnx(OnnxSource(path, "reid"))
    with pytest.raises(ExportError, match="cannot be read"):
        load_onnx(OnnxSource(tmp_path / "missing.onnx", "reid"))


def test_a_graph_that_takes_one_image_only(tmp_path: Path) -> None:
    """Its shape says that the batch is open; a reshape to one row says otherwise."""
    shape = numpy_helper.from_array(np.array([1, -1], np.int64), "shape")
    graph = helper.make_graph(
        [helper.make_node("Reshape", ["pixels", "shape"], ["features"])],
        "one",
        [helper.make_tensor_value_info("pixels", TensorProto.FLOAT, ["batch", 3, 4, 4])],
        [helper.make_tensor_value_info("features", TensorProto.FLOAT, [None, None])],
        [shape],
    )
    path = tmp_path / "one.onnx"
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=10), path)
    with pytest.raises(ExportError, match="dynamic_shapes"):
        load_onnx(OnnxSource(path, "reid"))


def test_open_sides_need_a_size(tmp_path: Path) -> None:
    graph = helper.make_graph(
        [helper.make_node("ReduceMean", ["pixels"], ["features"], axes=[2, 3], keepdims=0)],
        "mean",
        [helper.make_tensor_value_info("pixels", TensorProto.FLOAT, ["n", 1, "h", "w"])],
        [helper.make_tensor_value_info("features", TensorProto.FLOAT, ["n", 1])],
    )
    path = tmp_path / "mean.onnx"
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8), path)
    with pytest.raises(ExportError, match="images of any height"):
        load_onnx(OnnxSource(path, "classify"))
    preprocess = load_onnx(OnnxSource(path, "classify", {"height": 8, "width": 4})).deployment.preprocess
    assert (preprocess.height, preprocess.width, preprocess.color) == (8, 4, "GRAY")
    with pytest.raises(ExportError, match="takes 1 channels"):
        load_onnx(OnnxSource(path, "classify", {"height": 8, "width": 4, "color": "RGB"}))


def test_a_size_that_the_graph_does_not_take(file: Path) -> None:
    with pytest.raises(ExportError, match=f"takes images of height {HEIGHT}, not 99"):
        load_onnx(OnnxSource(file, "reid", {"height": 99}))


def test_preprocessing_as_text_and_as_a_file(tmp_path: Path) -> None:
    expected = {"color": "BGR", "mean": [0.5, 0.25, 0.125], "scale": 1 / 255, "pad_value": 7}
    assert parsed_preprocess("color=BGR, mean=0.5:0.25:1/8,scale=1/255,pad_value=7") == expected
    path = tmp_path / "preprocess.json"
    path.write_text(json.dumps(expected))
    assert parsed_preprocess(str(path)) == expected


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("mean", "is not NAME=VALUE"),
        ("colour=RGB", "has no 'colour'"),
        ("scale=1/0", "a number such as 1/255"),
        ("scale=1/255,scale=1", "two values"),
        ("mean=1:x:2", "one for each channel"),
        ("height=3.5", "a whole number"),
        ("missing.json", "cannot be read as JSON"),
    ],
)
def test_wrong_preprocessing(text: str, message: str) -> None:
    with pytest.raises(InputError, match=message):
        parsed_preprocess(text)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--onnx", "x.onnx"], "--onnx needs --task"),
        (["--onnx", "x.onnx", "--task", "reid", "--model", "enet"], "--onnx takes no --model"),
        (["--onnx", "x.onnx", "--task", "reid", "--checkpoint", "w.pt"], "--onnx takes no --checkpoint"),
        (["--model", "enet", "--task", "segment"], "--task goes with --onnx"),
    ],
)
def test_arguments_that_exclude_each_other(
    arguments: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit):
        main(arguments)
    assert message in capsys.readouterr().err
