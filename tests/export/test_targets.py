"""Bundles for machines with an NVIDIA GPU, built where there is none: what they hold, and what they say of it."""

from __future__ import annotations

import json
import re
import sys
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import TensorProto

from calibration.quantize.lint import lint_quantized
from edgevis import Predictor
from edgevis.cli import main as edgevis
from export import targets
from export.build import main
from export.engine_selection import candidates_of, summary_text
from export.parity import check_parity
from export.profiles import ShapeProfileRequest, parsed_shapes, profiles_of, with_profile_max_batch
from export.report import engines_table
from export.request import BuildRequest
from export.stages import build_bundle
from export.targets import PlanSettings
from export.triton.repository import main as export_triton
from runtime.backends._tensorrt.spec import BuildSpec, spec_path
from runtime.bundle.build_report import measured_text
from runtime.bundle.bundle import Bundle
from runtime.bundle.manifest import EngineRecord
from runtime.bundle.spec import LABELS, MAX_LABELS, Deployment, Graph, Preprocess, TensorSpec
from runtime.common.extras import install_command
from runtime.errors import (
    ExportError,
    InputError,
    MissingDependencyError,
    ParityError,
    SchemaError,
    UnavailableError,
)

from built import Recorder
from tiny_models import DEPLOYMENT, HEIGHT, WIDTH, pictures, reference_of, tiny_entry, tiny_net, write_pictures

# What its fixtures build, one worker builds.
pytestmark = [pytest.mark.torch, pytest.mark.xdist_group("targets")]

GPU = ("datacenter", "jetson", "rtx")
ENGINES = {
    "jetson": ["tensorrt-int8", "tensorrt-fp16", "tensorrt-fp32"],
    "datacenter": ["tensorrt-int8", "tensorrt-fp16", "onnxruntime-fp16", "tensorrt-fp32", "onnxruntime-fp32"],
    "rtx": ["tensorrt_rtx-int8", "tensorrt_rtx-fp16", "tensorrt_rtx-fp32"],
}


def runs_here(target: str, backend: str) -> bool:
    return targets.load(target).runs_here(backend)


@pytest.fixture(scope="module")
def folder_of_pictures(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_pictures(tmp_path_factory.mktemp("pictures") / "people", pictures(32))


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory, folder_of_pictures: Path) -> Mapping[str, tuple[Bundle, Recorder]]:
    """The tiny model's bundle for every GPU target that can be built here, with at most four images at once."""
    made = {}
    for name in GPU:
        recorder = Recorder()
        request = BuildRequest(
            tiny_entry(),
            tmp_path_factory.mktemp(name) / "tiny.edgevis",
            target=name,
            calibration_data=folder_of_pictures,
            shapes=ShapeProfileRequest(largest={"image": (4, 3, HEIGHT, WIDTH)}),
            settings=PlanSettings(optimization_level=2 if name == "jetson" else None),
        )
        try:
            made[name] = build_bundle(request, recorder), recorder
        except MissingDependencyError:  # TensorRT-RTX has wheels for x86-64 only
            continue
    return made


@pytest.fixture(params=GPU)
def target(request: pytest.FixtureRequest, built: Mapping[str, tuple[Bundle, Recorder]]) -> str:
    if request.param not in built:
        pytest.skip("TensorRT-RTX has wheels for x86-64 only")
    return str(request.param)


def bundle_of(built: Mapping[str, tuple[Bundle, Recorder]], target: str) -> Bundle:
    return built[target][0]


def test_engines_come_fastest_first_and_say_what_is_proved(
    built: Mapping[str, tuple[Bundle, Recorder]], target: str
) -> None:
    bundle = bundle_of(built, target)
    assert [record.name for record in bundle.manifest.engines] == ENGINES[target]
    for record in bundle.manifest.engines:
        assert record.device == "cuda"
        if runs_here(target, record.backend):
            assert record.holds_parity
            assert record.graph_parity is None
            continue
        assert record.parity is None
        assert record.latency_ms is None
        assert record.graph_parity is not None
        assert record.graph_parity.passed
        assert record.graph_parity.machine.startswith("ONNX Runtime on ")
        (parity,) = record.graph_parity.graphs
        assert parity.mean_cosine > {"fp32": 0.99999, "fp16": 0.9999, "int8": 0.97}[record.precision]
        if record.precision == "fp16":
            assert parity.max_relative_error > 1e-5, "it was not the float32 graph that was run"


def test_graphs_are_typed_and_have_their_build_spec(built: Mapping[str, tuple[Bundle, Recorder]], target: str) -> None:
    bundle = bundle_of(built, target)
    for record in bundle.manifest.engines:
        path = bundle.engine_file(record.files["embed"])
        if path.suffix != ".onnx":
            assert (target, path.suffix) == ("rtx", ".plan")
            assert path.stat().st_size > 1000
            continue
        model = onnx.load(path)
        types = {tensor.data_type for tensor in model.graph.initializer}
        if record.precision == "fp32":
            assert path.parent.name == "graphs", "the portable graph is not stored twice"
            assert TensorProto.FLOAT16 not in types
        else:
            assert TensorProto.FLOAT16 in types
        if record.precision == "int8":
            assert TensorProto.INT8 in types
            lint_quantized(model)
        assert all(value.type.tensor_type.elem_type == TensorProto.FLOAT for value in model.graph.input)
        spec = BuildSpec.loads(spec_path(path).read_bytes())
        image = (3, HEIGHT, WIDTH)
        usual = {"jetson": 1, "datacenter": 4}[target]  # of the 8 that are usual there only 4 are allowed
        assert spec.profiles == {"image": ((1, *image), (usual, *image), (4, *image))}
        assert spec.tf32 == (record.precision != "fp32")
        assert spec.optimization_level == (2 if target == "jetson" else None)
        assert not spec.compute_capabilities
        assert spec_path(path).relative_to(bundle.path).as_posix() in bundle.manifest.files


def test_no_plan_in_a_bundle_that_is_finished_on_the_device(built: Mapping[str, tuple[Bundle, Recorder]]) -> None:
    for name in ("jetson", "datacenter"):
        suffixes = {Path(file).suffix for file in bundle_of(built, name).manifest.files}
        assert suffixes <= {".onnx", ".json", ".npz", ".pbtxt", ".py"}


def test_the_largest_batch_is_what_the_engines_take(built: Mapping[str, tuple[Bundle, Recorder]], target: str) -> None:
    manifest = bundle_of(built, target).manifest
    assert manifest.deployment.max_batch == 4
    assert manifest.target == target


def test_datacenter_has_a_triton_repository(
    built: Mapping[str, tuple[Bundle, Recorder]], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    bundle, recorder = built["datacenter"]
    assert recorder.stages[-2:] == ["triton", "answers"]
    for model in ("tiny", "tiny-embed"):
        config = (bundle.path / "triton" / model / "config.pbtxt").read_text()
        assert "max_batch_size: 4" in config
    assert "triton/tiny/config.pbtxt" in bundle.manifest.files
    # The server keeps the engines of graphs where the command says, or nowhere.
    command = [str(bundle.path), "--output", str(tmp_path), "--engine", "tensorrt-fp16", "--graphs"]
    for arguments, told, kept in (([], True, False), (["--engine-cache", "/private"], False, True)):
        assert export_triton([*command, *arguments]) == 0
        assert ("to keep them: --engine-cache DIR" in capsys.readouterr().out) == told
        assert ('value: "/private"' in (tmp_path / "tiny-embed" / "config.pbtxt").read_text()) == kept


@pytest.mark.parametrize(
    ("max_drop", "unopened", "text"),
    [
        (0.9, False, ""),
        (-1.0, False, "no INT8 engine passes; the first that passes is tensorrt"),
        (0.9, True, "no INT8 engine passes"),
    ],
)
def test_a_builds_whole_summary_whatever_becomes_of_int8(
    built: Mapping[str, tuple[Bundle, Recorder]], target: str, max_drop: float, unopened: bool, text: str
) -> None:
    """It passes, it loses too much, no engine opens; what is not timed here has no latency to be shown."""
    manifest = bundle_of(built, target).manifest
    candidates = candidates_of(
        manifest.engines,
        manifest.engines,
        unopened={record.name: "no device" for record in manifest.engines if unopened},
        max_drop=max_drop,
        choose=False,
    )
    assert measured_text(replace(manifest, candidates=candidates))
    assert engines_table(manifest.engines)
    if not runs_here(target, "tensorrt"):
        assert summary_text(candidates).startswith(text)
        assert bool(summary_text(candidates)) == bool(text)


def test_stages(built: Mapping[str, tuple[Bundle, Recorder]]) -> None:
    recorder = built["jetson"][1]
    assert recorder.stages == [
        "weights", "samples", "onnx", "reference", "calibrate", "search", "autocast", "compile", "parity",
        "answers",
    ]  # fmt: skip
    if not runs_here("jetson", "tensorrt"):
        assert recorder.details["parity"] == (
            "the graphs of 3 engines hold it on 16 images; the engines are not yet proved"
        )


def test_opening_it_here_says_what_is_missing(built: Mapping[str, tuple[Bundle, Recorder]]) -> None:
    if runs_here("jetson", "tensorrt"):
        pytest.skip("this is a Jetson with TensorRT: it opens")
    with pytest.raises((MissingDependencyError, UnavailableError), match=r"TensorRT|CUDA") as caught:
        Predictor(bundle_of(built, "jetson").path)
    assert "tensorrt-fp16" in str(caught.value)
    assert "tensorrt-fp32" in str(caught.value)


def test_info_and_verify_say_not_yet_proved(
    built: Mapping[str, tuple[Bundle, Recorder]], capsys: pytest.CaptureFixture[str]
) -> None:
    if runs_here("jetson", "tensorrt"):
        pytest.skip("this is a Jetson with TensorRT: it is proved")
    bundle = str(bundle_of(built, "jetson").path)
    assert edgevis(["info", bundle]) == 0
    text = capsys.readouterr().out
    assert "tensorrt-fp16 (parity not measured yet)" in text
    assert "edgevis build-engine BUNDLE" in text
    measured = text[text.index("When it was built:") :]
    assert "candidate" in measured
    assert "layers back in float" in measured
    assert edgevis(["info", bundle, "--json"]) == 0
    engine = json.loads(capsys.readouterr().out)["manifest"]["engines"][1]
    assert engine["parity"] is None
    assert engine["graph_parity"]["passed"] is True
    assert edgevis(["verify", bundle]) == 1
    text = capsys.readouterr().out
    assert "not run" in text
    # What no engine is needed for is proved all the same.
    assert "preprocessing: 8 pictures become the build's input tensors exactly" in text


def test_a_graph_that_computes_something_else_fails_the_build(
    built: Mapping[str, tuple[Bundle, Recorder]], tmp_path: Path
) -> None:
    """The CPU proxy is held to the engine's tolerance."""
    graph = tmp_path / "embed.onnx"
    graph.write_bytes((bundle_of(built, "jetson").path / "graphs" / "embed.onnx").read_bytes())
    record = EngineRecord("tensorrt", "fp16", "cuda", {"embed": "embed.onnx"})
    arguments: dict[str, Any] = {
        "bundle": tmp_path,
        "deployment": DEPLOYMENT,
        "reference": reference_of(tiny_net(), pictures(16)),
        "advance": lambda done, total: None,
        "cpu_proxies": {record.name: {"embed": graph}},
    }
    proved = check_parity([record], **arguments)
    assert proved.engines[0].graph_parity is not None
    assert not proved.refused
    model = onnx.load(graph)
    for tensor in model.graph.initializer:
        if tensor.data_type == TensorProto.FLOAT and len(tensor.dims) == 4:
            values = onnx.numpy_helper.to_array(tensor)
            tensor.CopyFrom(onnx.numpy_helper.from_array(np.ascontiguousarray(values[::-1]), tensor.name))
    onnx.save(model, graph)
    with pytest.raises(ParityError, match="graph 'embed' of the engine tensorrt-fp16"):
        check_parity([record], **arguments)


def test_a_build_needs_a_vendor_only_where_it_compiles(
    tmp_path: Path, folder_of_pictures: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for module in ("tensorrt", "tensorrt_rtx", "tensorrt_rtx_bindings"):
        monkeypatch.setitem(sys.modules, module, None)
    request = BuildRequest(
        tiny_entry(), tmp_path / "x.edgevis", target="jetson", precisions=("fp16",), calibration_data=folder_of_pictures
    )
    assert [record.name for record in build_bundle(request, Recorder()).manifest.engines] == ["tensorrt-fp16"]
    recorder = Recorder()
    with pytest.raises(MissingDependencyError, match=re.escape(install_command("tensorrt-rtx"))):
        build_bundle(replace(request, target="rtx"), recorder)
    assert not recorder.stages


@pytest.mark.parametrize("name", targets.names())
def test_targets_keep_their_rules(name: str) -> None:
    target = targets.load(name)
    assert set(target.autocast) <= set(target.compilers)
    for precision, compilers in target.compilers.items():
        assert len(set(compilers)) == len(compilers), precision
    if name in GPU:
        assert target.device == "cuda"
        assert target.profiled
        assert set(target.autocast) == {"int8", "fp16"}
        assert target.default_precisions[-1] == "fp32", "what everything falls back to"
    spec = target.spec({"image": ((1, 3), (1, 3), (2, 3))}, "fp32")
    assert not spec.tf32


# --- shapes

IMAGE = TensorSpec("image", "float32", ("N", 3, 8, 8))
MASK = TensorSpec("mask", "float32", ("N", 8, 8))
SUPPORT = TensorSpec("features", "float32", ("K", 4))
OUT = (TensorSpec("result", "float32", ("N", 4)),)
TWO = Deployment(
    "few_shot_segment",
    (Graph("support", (IMAGE, MASK), OUT), Graph("query", (IMAGE, SUPPORT), OUT)),
    Preprocess(8, 8),
    max_batch=8,
)


def test_default_shapes_follow_from_the_deployment() -> None:
    profiles = profiles_of(TWO, ShapeProfileRequest(), usual_batch=4)
    assert profiles["support"]["mask"] == ((1, 8, 8), (4, 8, 8), (8, 8, 8))
    assert profiles["query"]["features"] == ((1, 4), (1, 4), (8, 4)), "one shot is the usual number"
    assert with_profile_max_batch(TWO, profiles) == TWO
    assert profiles_of(TWO, ShapeProfileRequest(), usual_batch=64)["support"]["mask"][1] == (8, 8, 8)


def test_a_set_has_as_many_labels_as_may_be_enrolled() -> None:
    rows = TensorSpec("rows", "float32", (1, LABELS, 4))
    encode = Graph("encode", (IMAGE,), (TensorSpec("embedding", "float32", ("N", 4)),))
    adapt = Graph("adapt", (rows,), (replace(rows, name="adapted"),), set_of="encode/embedding")
    deployment = replace(TWO, graphs=(*TWO.graphs, encode, adapt))
    profiles = profiles_of(deployment, ShapeProfileRequest(), usual_batch=4)
    assert profiles["adapt"]["rows"] == ((1, 1, 4), (1, 20, 4), (1, MAX_LABELS, 4))
    assert with_profile_max_batch(deployment, profiles) == deployment
    tuned = profiles_of(deployment, ShapeProfileRequest(usual={"rows": (1, 200, 4)}), usual_batch=4)
    assert tuned["adapt"]["rows"][1] == (1, 200, 4)
    with pytest.raises(InputError, match=f"axis labels ends at 50; allowed: {MAX_LABELS}, the most labels"):
        profiles_of(deployment, ShapeProfileRequest(largest={"rows": (1, 50, 4)}), usual_batch=4)


def test_one_input_sets_the_axis_of_the_others_and_the_largest_batch() -> None:
    wanted = ShapeProfileRequest(usual={"image": (2, 3, 8, 8)}, largest={"image": (16, 3, 8, 8)})
    profiles = profiles_of(TWO, wanted, usual_batch=1)
    assert profiles["support"]["mask"] == ((1, 8, 8), (2, 8, 8), (16, 8, 8))
    assert with_profile_max_batch(TWO, profiles).max_batch == 8, "no more shots than 8"
    small = profiles_of(TWO, ShapeProfileRequest(largest={"features": (2, 4)}), usual_batch=1)
    assert with_profile_max_batch(TWO, small).max_batch == 2


@pytest.mark.parametrize(
    ("wanted", "message"),
    [
        (
            ShapeProfileRequest(largest={"picture": (1, 3, 8, 8)}),
            "--max-shapes: the model has no input 'picture'; it takes fea",
        ),
        (
            ShapeProfileRequest(usual={"image": (1, 3, 8)}),
            "--opt-shapes: 'image' has the shape 1x3x8; graph 'support' takes",
        ),
        (ShapeProfileRequest(largest={"image": (1, 3, 9, 8)}), "'image' has the shape 1x3x9x8"),
        (ShapeProfileRequest(largest={"image": (0, 3, 8, 8)}), "'image' has the shape 0x3x8x8"),
        (ShapeProfileRequest(usual={"image": (9, 3, 8, 8)}), "axis N has the sizes min 1, opt 9, max 8"),
        (ShapeProfileRequest(largest={"image": (9999, 3, 8, 8)}), "min 1, opt 1, max 9999"),
        (ShapeProfileRequest(smallest={"image": (2, 3, 8, 8)}), "axis N begins at 2; allowed: 1"),
        (
            ShapeProfileRequest(largest={"image": (4, 3, 8, 8), "mask": (2, 8, 8)}),
            "--max-shapes: the inputs of graph 'support' disagree on axis N: 4 and 2",
        ),
    ],
)
def test_wrong_shapes(wanted: ShapeProfileRequest, message: str) -> None:
    with pytest.raises(InputError, match=message):
        profiles_of(TWO, wanted, usual_batch=1)


def test_shapes_are_written_as_for_trtexec() -> None:
    assert parsed_shapes("image:1x3x8x8, mask:1x8x8") == {"image": (1, 3, 8, 8), "mask": (1, 8, 8)}


@pytest.mark.parametrize("text", ["image", "image:", ":1x3", "image:1x-3", "image:1,3", "image:1.5x3", "image:axb"])
def test_what_is_no_shape(text: str) -> None:
    with pytest.raises(InputError, match="is not a shape"):
        parsed_shapes(text)


def test_two_shapes_of_one_input() -> None:
    with pytest.raises(InputError, match="'image' two shapes"):
        parsed_shapes("image:1x3,image:2x3")


def test_shapes_for_a_target_without_profiles(tmp_path: Path) -> None:
    wanted = ShapeProfileRequest(largest={"image": (4, 3, HEIGHT, WIDTH)})
    with pytest.raises(ExportError, match="'cpu' has engines for any shape; leave --min-shapes"):
        build_bundle(BuildRequest(tiny_entry(), tmp_path / "x.edgevis", shapes=wanted), Recorder())


SHAPES = {"x": ((1, 4), (2, 4), (8, 4))}
ASKED = PlanSettings(1 << 20, optimization_level=1, version_compatible=True, hardware_compatible=True)


def test_plan_settings_take_the_place_of_the_targets_own() -> None:
    target = targets.load("datacenter")
    target.check(ASKED)
    spec = target.spec(SHAPES, "fp16", ASKED)
    assert spec == BuildSpec(SHAPES, 1 << 20, (), True, True, True, 1)
    jetson = targets.load("jetson")
    assert jetson.spec(SHAPES, "fp32", PlanSettings(optimization_level=0)).workspace_bytes == jetson.workspace_bytes
    with pytest.raises(SchemaError, match=r"optimization_level is 6, allowed 0\.\.5"):
        target.spec(SHAPES, "fp16", PlanSettings(optimization_level=6))


@pytest.mark.parametrize(
    ("target", "asked", "message"),
    [
        ("jetson", ASKED, "hardware compatible cannot be set for this target; it has workspace bytes, optimization"),
        ("rtx", PlanSettings(version_compatible=True), "version compatible cannot be set for this target; it has no"),
        ("cpu", PlanSettings(workspace_bytes=1), "workspace bytes cannot be set for this target; it has no such"),
    ],
)
def test_plan_settings_without_effect_are_refused(
    target: str, asked: PlanSettings, message: str, tmp_path: Path
) -> None:
    with pytest.raises(ExportError, match=message):
        build_bundle(BuildRequest(tiny_entry(), tmp_path / "x.edgevis", target=target, settings=asked), Recorder())


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--hardware-compatible"], "hardware compatible cannot be set for this target"),
        (["--max-shapes", "image:4x3x256"], "'image' has the shape 4x3x256; graph 'embed' takes Nx3x256x128"),
        (["--opt-shapes", "picture:1x3"], "--opt-shapes: the model has no input 'picture'"),
        (["--min-shapes", "image"], "'image' is not a shape; write NAME:1x3x256x128"),
        (["--precision", "bf16"], "the target 'jetson' has no precision 'bf16'; it has int8, fp16, fp32"),
    ],
)
def test_bad_flags(arguments: list[str], message: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    output = tmp_path / "x.edgevis"
    command = ["--model", "osnet-x0-25", "--target", "jetson", "--quiet", "--output", str(output), *arguments]
    assert main(command) == 1
    errors = capsys.readouterr().err
    assert message in errors
    assert errors.rstrip().endswith("no bundle was written")
    assert not output.exists()
