"""A whole build: what ends up in the bundle, what is left when it fails, and what the command line says."""

from __future__ import annotations

import json
import re
import signal
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor

from calibration.data.samples import samples_from_photographs
from edgevis import Predictor, __version__, models
from edgevis.open_set.sidecar import SidecarHeader, weights_digest, write_sidecar
from edgevis.open_set.space import space_of
from export import targets
from export.metadata import describe_graph
from export.onnx import onnx_from_module
from export.request import UNTRAINED, BuildRequest
from export.stages import build_bundle
from runtime.bundle.bundle import Bundle
from runtime.bundle.identity import encoder_identity
from runtime.bundle.spec import Deployment, Graph, TensorSpec
from runtime.common.arrays import unit_rows
from runtime.common.extras import install_command
from runtime.common.json_data import to_json
from runtime.common.vendors import import_openvino
from runtime.errors import (
    BundleNotFoundError,
    ExportError,
    InputError,
    MissingDependencyError,
    ParityError,
    WeightsError,
)
from runtime.open_set.generic import generic
from runtime.verification.verify import verify_bundle

from built import Recorder
from bundles import needs_openvino
from locations import ROOT
from python_processes import python_environment
from tiny_models import (
    DEPLOYMENT,
    GRAPH,
    PREPROCESS,
    TinyNet,
    pictures,
    reference_of,
    tiny_entry,
    tiny_net,
    write_pictures,
)

# What its fixtures build, one worker builds.
pytestmark = [pytest.mark.torch, needs_openvino, pytest.mark.xdist_group("build")]

ENGINES = ["onnxruntime-fp32", "openvino-fp32", "onnxruntime-int8", "openvino-int8"]


class Drifting(TinyNet):
    """Computes something else once it has been exported, as a miscompiled model does."""

    def embed(self, image: Tensor) -> Tensor:
        embedding = super().embed(image)
        return embedding * 1.001 if torch.compiler.is_exporting() else embedding


@pytest.fixture(scope="module")
def folder_of_pictures(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_pictures(tmp_path_factory.mktemp("pictures") / "people", pictures(48))


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory, folder_of_pictures: Path) -> tuple[Bundle, Recorder]:
    """A bundle with trained weights in FP32 and INT8, calibrated on a folder."""
    folder = tmp_path_factory.mktemp("built")
    checkpoint = folder / "weights.safetensors"
    save_file(tiny_net(seed=3).state_dict(), checkpoint)
    recorder = Recorder()
    request = BuildRequest(
        tiny_entry(), folder / "tiny.edgevis", checkpoint=checkpoint, calibration_data=folder_of_pictures
    )
    return build_bundle(request, recorder), recorder


@pytest.fixture
def quick(tmp_path: Path, folder_of_pictures: Path) -> BuildRequest:
    """A request that builds one precision."""
    return BuildRequest(
        tiny_entry(), tmp_path / "tiny.edgevis", precisions=("fp32",), calibration_data=folder_of_pictures
    )


def test_stages_come_in_order(built: tuple[Bundle, Recorder]) -> None:
    _, recorder = built
    assert recorder.stages == [
        "weights",
        "samples",
        "onnx",
        "reference",
        "calibrate",
        "search",
        "compile",
        "parity",
        "answers",
    ]
    assert list(recorder.details) == recorder.stages
    # The tiny model's statistics are drawn at random: no images are like those of its training.
    (warning,) = recorder.warnings
    assert warning.startswith("the calibration images are unlike")


def test_manifest_says_what_was_built(built: tuple[Bundle, Recorder]) -> None:
    manifest = built[0].manifest
    assert (manifest.name, manifest.model, manifest.target) == ("tiny", "tiny", "cpu")
    assert [engine.name for engine in manifest.engines] == ENGINES
    assert all(engine.holds_parity and engine.latency_ms for engine in manifest.engines)
    assert manifest.weights.trained
    assert manifest.weights.source == "weights.safetensors"
    assert manifest.weights.sha256 == weights_digest(tiny_net(seed=3))
    assert manifest.parameters == models.parameters(tiny_net())
    assert manifest.calibration is not None
    assert (manifest.calibration.images, manifest.calibration.source) == (24, "people")
    assert {"edgevis", "onnx", "onnxruntime", "openvino", "torch", "python"} <= set(manifest.tools)
    assert manifest.encoder_identity == encoder_identity("tiny", DEPLOYMENT, manifest.weights.sha256)
    assert manifest.created.endswith("+00:00")


def test_files_are_where_the_design_says(built: tuple[Bundle, Recorder]) -> None:
    assert sorted(built[0].manifest.files) == [
        "answers.npz",
        "engines/onnxruntime-int8/embed.onnx",
        "engines/openvino-fp32/embed.bin",
        "engines/openvino-fp32/embed.xml",
        "engines/openvino-int8/embed.bin",
        "engines/openvino-int8/embed.xml",
        "golden.npz",
        "graphs/embed.onnx",
        "recorded.npz",
    ]


def test_graph_files_say_what_they_are(built: tuple[Bundle, Recorder]) -> None:
    """What Netron and other runtimes show; nothing of it differs between two builds."""
    expected = {
        "model_name": "tiny",
        "graph": "embed",
        "task": "reid",
        "edgevis_version": __version__,
        "preprocess": json.dumps(to_json(DEPLOYMENT.preprocess), sort_keys=True),
    }
    for name in ("graphs/embed.onnx", "engines/onnxruntime-int8/embed.onnx"):
        model = onnx.load(built[0].path / name)
        assert {item.key: item.value for item in model.metadata_props} == expected
        assert (model.producer_name, model.producer_version) == ("edgevis", __version__)
        assert "task reid" in model.doc_string
    for precision in ("fp32", "int8"):
        ir = import_openvino().Core().read_model(built[0].path / f"engines/openvino-{precision}/embed.xml")
        assert {key: ir.get_rt_info(["model_info", key]).astype(str) for key in expected} == expected


def test_labels_of_a_model_with_fixed_ones_are_in_its_graphs() -> None:
    model = onnx_from_module(tiny_net(), GRAPH)
    deployment = replace(DEPLOYMENT, postprocess={"labels": ["scratch", "dent"]})
    describe_graph(model, name="tiny", graph="embed", deployment=deployment)
    assert {item.key: item.value for item in model.metadata_props}["labels"] == '["scratch", "dent"]'


def test_no_file_tells_of_the_machine(built: tuple[Bundle, Recorder]) -> None:
    secrets = (str(built[0].path.parent), str(ROOT), str(Path(torch.__file__).parent))
    for path in built[0].path.rglob("*"):
        if path.is_file():
            data = path.read_bytes()
            assert not any(secret.encode() in data for secret in secrets), path.name


def test_golden_inputs_are_preprocessed_photographs_and_none_of_the_calibration(
    built: tuple[Bundle, Recorder],
) -> None:
    golden = built[0].golden()
    assert set(golden) == {"embed/image", "embed/embedding"}
    size = built[0].manifest.deployment.preprocess
    photographs = samples_from_photographs(height=size.height, width=size.width, count=8, to_copy=True)
    for name, expected in reference_of(tiny_net(seed=3), photographs).items():
        np.testing.assert_allclose(golden[name], expected, rtol=1e-5, atol=1e-5)  # another order of summation
    given = reference_of(tiny_net(seed=3), pictures(48))["embed/image"]
    assert not any((given == image).all(axis=(1, 2, 3)).any() for image in golden["embed/image"])


def test_the_bundle_proves_itself_again(built: tuple[Bundle, Recorder]) -> None:
    assert [(check.engine, check.status) for check in verify_bundle(built[0])] == [(name, "passed") for name in ENGINES]


def test_predictor_runs_it(built: tuple[Bundle, Recorder]) -> None:
    samples = pictures(6, seed=8)
    wanted = reference_of(tiny_net(seed=3), samples)["embed/embedding"]
    wanted /= np.linalg.norm(wanted, axis=1, keepdims=True)
    with Predictor(built[0].path, precision="fp32", backend="openvino") as predictor:
        np.testing.assert_allclose(predictor.embed(list(samples.images)), wanted, atol=1e-5)


def test_what_was_measured_beside_the_weights_goes_into_the_bundle(quick: BuildRequest, tmp_path: Path) -> None:
    checkpoint = tmp_path / "weights.safetensors"
    save_file(tiny_net(seed=3).state_dict(), checkpoint)
    dimension = DEPLOYMENT.graphs[0].outputs[0].shape[-1]
    assert isinstance(dimension, int)
    rows = unit_rows(np.random.default_rng(0).standard_normal((40, dimension)))
    space = space_of(rows, np.repeat(np.arange(10), 4), shrink=0.5, neighbours=3, strength=0.5, cohort=8)
    statistics = generic("nearest")
    beside = tmp_path / "weights.open_set.npz"
    write_sidecar(beside, SidecarHeader("tiny", weights_digest(tiny_net(seed=3)), "a command", statistics), space)
    recorder = Recorder()
    bundle = build_bundle(replace(quick, checkpoint=checkpoint), recorder)
    assert "open set" in recorder.stages
    assert bundle.manifest.deployment.postprocess["open_set"] == to_json(statistics)
    with Predictor(bundle.path) as predictor:
        predictor.enroll("anna", pictures(2).images[0])
        assert predictor.info.open_set is not None
        assert predictor.info.open_set.method == "estimated"
    write_sidecar(beside, SidecarHeader("tiny", weights_digest(tiny_net(seed=4)), "a command", statistics), space)
    with pytest.raises(WeightsError, match="was measured on other weights"):
        build_bundle(replace(quick, checkpoint=checkpoint), Recorder())


def test_random_weights_are_said_loudly(quick: BuildRequest) -> None:
    recorder = Recorder()
    manifest = build_bundle(quick, recorder).manifest
    assert recorder.warnings == [UNTRAINED]
    assert not manifest.weights.trained
    assert manifest.weights.source == "random, seed 0"
    assert manifest.calibration is None
    assert "calibrate" not in recorder.stages


def test_weights_of_which_nothing_was_measured_bring_nothing(built: tuple[Bundle, Recorder]) -> None:
    assert "open_set" not in built[0].manifest.deployment.postprocess


# --- identity


def test_identity_follows_weights_preprocessing_and_graphs_only() -> None:
    digest = weights_digest(tiny_net())
    identity = encoder_identity("tiny", DEPLOYMENT, digest)
    assert identity == encoder_identity("tiny", replace(DEPLOYMENT, postprocess={"x": 1}, max_batch=2), digest)
    wide = replace(DEPLOYMENT, graphs=(Graph("embed", GRAPH.inputs, (TensorSpec("embedding", "float32", ("N", 8)),)),))
    others = {
        encoder_identity("tiny2", DEPLOYMENT, digest),
        encoder_identity("tiny", replace(DEPLOYMENT, preprocess=replace(PREPROCESS, color="BGR")), digest),
        encoder_identity("tiny", wide, digest),
        encoder_identity("tiny", DEPLOYMENT, weights_digest(tiny_net(seed=1))),
    }
    assert len(others - {identity}) == 4


def test_weights_digest_ignores_only_the_counters() -> None:
    model = tiny_net()
    digest = weights_digest(model)
    model.norm.num_batches_tracked += 7
    assert weights_digest(model) == digest
    model.norm.running_mean[0] += 1e-3
    assert weights_digest(model) != digest
    assert weights_digest(tiny_net().to(torch.bfloat16)) != digest


# --- failing


def test_a_fault_leaves_what_finds_it(quick: BuildRequest, capsys: pytest.CaptureFixture[str]) -> None:
    drifting = replace(quick, entry=replace(tiny_entry(), build=lambda: Drifting().eval()))
    failed = quick.output.with_suffix(".failed")
    for _ in range(2):  # the second one takes the place of the first
        with pytest.raises(ParityError, match="graph 'embed' of the engine onnxruntime-fp32") as raised:
            build_bundle(drifting, Recorder())
        assert list(quick.output.parent.iterdir()) == [failed]
    with pytest.raises(BundleNotFoundError):  # no predictor opens it
        Bundle(failed)
    command = f"python -m export.debug {failed} --engine onnxruntime-fp32"
    assert str(raised.value).splitlines()[-1] == f"Where that begins: {command}"
    pytest.importorskip("polygraphy")
    from export.debug.__main__ import main

    assert main(command.split()[3:]) == 1
    # The engines compute what the exported graph says.
    assert "but the graph itself leaves the trained model: embedding 1.0" in capsys.readouterr().out


def test_what_is_in_the_way_of_a_fault_stays(quick: BuildRequest, caplog: pytest.LogCaptureFixture) -> None:
    drifting = replace(quick, entry=replace(tiny_entry(), build=lambda: Drifting().eval()))
    failed = quick.output.with_suffix(".failed")
    failed.mkdir(parents=True)
    (failed / "mine.txt").write_text("mine")
    with pytest.raises(ParityError) as raised:
        build_bundle(drifting, Recorder())
    assert [path.name for path in failed.iterdir()] == ["mine.txt"]
    assert "export.debug" not in str(raised.value)
    assert "are not kept" in caplog.text


def test_a_fault_keeps_the_bundle_that_was_there(quick: BuildRequest) -> None:
    build_bundle(quick, Recorder())
    before = {path: path.read_bytes() for path in quick.output.rglob("*") if path.is_file()}
    drifting = replace(quick, entry=replace(tiny_entry(), build=lambda: Drifting().eval()))
    with pytest.raises(ParityError):
        build_bundle(drifting, Recorder())
    with pytest.raises(KeyboardInterrupt):
        build_bundle(quick, Recorder(interrupt_at="parity"))
    assert {path: path.read_bytes() for path in quick.output.rglob("*") if path.is_file()} == before
    assert set(quick.output.parent.iterdir()) == {quick.output, quick.output.with_suffix(".failed")}


@pytest.mark.parametrize("stage", ["weights", "samples", "onnx", "reference", "compile", "parity", "answers"])
def test_an_interrupt_at_any_stage_leaves_nothing(quick: BuildRequest, stage: str) -> None:
    with pytest.raises(KeyboardInterrupt):
        build_bundle(quick, Recorder(interrupt_at=stage))
    assert list(quick.output.parent.iterdir()) == []


def test_a_termination_leaves_nothing(tmp_path: Path, folder_of_pictures: Path) -> None:
    """In a process of its own: pytest's fault handler gives signals a stack that is too small for some processors."""
    command = [sys.executable, "-m", "export.build", "--model", "enet", "--option", "side=64", "--precision", "fp32"]
    command += ["--calibration-data", str(folder_of_pictures), "--output", str(tmp_path / "enet.edgevis")]
    env = {**python_environment(), "PYTHONUNBUFFERED": "1"}
    with subprocess.Popen(command, env=env, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        begun = next(line for line in process.stdout if line.startswith("samples"))
        assert begun
        assert [path.name[:13] for path in tmp_path.iterdir()] == [".enet.edgevis"]
        process.send_signal(signal.SIGTERM)
        _, errors = process.communicate(timeout=120)
    assert process.returncode == 143
    assert errors.splitlines()[-1] == "terminated: nothing was written"
    assert list(tmp_path.iterdir()) == []


def test_wrong_checkpoint(quick: BuildRequest, tmp_path: Path) -> None:
    save_file({"stem.weight": torch.zeros(1)}, tmp_path / "other.safetensors")
    with pytest.raises(WeightsError, match=r"other\.safetensors does not fit"):
        build_bundle(replace(quick, checkpoint=tmp_path / "other.safetensors"), Recorder())


def test_precision_that_the_target_lacks(quick: BuildRequest) -> None:
    with pytest.raises(ExportError, match="target 'cpu' has no precision 'fp16'; it has fp32, bf16, int8"):
        build_bundle(replace(quick, precisions=("fp16",)), Recorder())


def test_unknown_target(quick: BuildRequest) -> None:
    with pytest.raises(ExportError, match="no target 'toaster'; known: cpu"):
        build_bundle(replace(quick, target="toaster"), Recorder())


def test_missing_compiler_is_found_before_the_work(quick: BuildRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "openvino", None)
    recorder = Recorder()
    with pytest.raises(MissingDependencyError, match=re.escape(install_command("openvino"))):
        build_bundle(quick, recorder)
    assert not recorder.stages


def test_graph_with_other_inputs(quick: BuildRequest) -> None:
    support = Graph("embed", (*GRAPH.inputs, TensorSpec("gain", "float32", ("N", 32, 16))), GRAPH.outputs)

    class Masked(TinyNet):
        def embed(self, image: Tensor, gain: Tensor) -> Tensor:  # type: ignore[override]
            return super().embed(image * gain[:, None])

    entry = replace(tiny_entry(deployment=Deployment("reid", (support,), PREPROCESS)), build=lambda: Masked().eval())
    with pytest.raises(ExportError, match=r"graph 'embed' takes .*'gain'.*; a build makes"):
        build_bundle(replace(quick, entry=entry), Recorder())


@pytest.mark.parametrize("name", targets.names())
def test_targets_are_consistent(name: str) -> None:
    target = targets.load(name)
    assert target.summary
    assert set(target.default_precisions) <= set(target.compilers)
    assert all(target.compilers.values())


def test_samples_that_are_too_few(quick: BuildRequest, tmp_path: Path) -> None:
    few = write_pictures(tmp_path / "few", pictures(5))
    with pytest.raises(InputError, match="few holds 5 images"):
        build_bundle(replace(quick, calibration_data=few), Recorder())
