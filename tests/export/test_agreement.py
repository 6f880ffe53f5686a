"""Engines are held to the graph that they were compiled from, and to what they gave themselves."""

from __future__ import annotations

import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from onnx import ModelProto

from benchmarks.fault_kinds import Fault, faults_of, planted
from calibration.data.activation_spread import spread_ratio, unlike_text
from edgevis.training.freeze import fold_statistics
from export.cpu_proxy import CpuProxy
from export.engine_selection import UNMEASURABLE, summary_text
from export.request import BuildProgress, BuildRequest
from export.rounding import rounded_graph
from export.stages import build_bundle
from export.stages import compile as compile_engines
from export.state import BuildState
from runtime.bundle.bundle import MANIFEST, Bundle
from runtime.bundle.manifest import Candidate
from runtime.errors import InputError, ParityError
from runtime.parity.recorded import FILE
from runtime.verification.verify import verify_bundle

from built import Recorder
from bundles import edited_manifest, needs_openvino, replace_file
from logs import logged_warnings
from tiny_models import DEPLOYMENT, pictures, tiny_entry, tiny_net, write_pictures

# What its fixtures build, one worker builds.
pytestmark = [pytest.mark.torch, needs_openvino, pytest.mark.xdist_group("agreement")]

KINDS = ("scale x1/4", "weights x2", "weights shuffled", "bias negated")


@pytest.fixture(scope="module")
def folder_of_pictures(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_pictures(tmp_path_factory.mktemp("pictures") / "people", pictures(48))


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory, folder_of_pictures: Path) -> Bundle:
    output = tmp_path_factory.mktemp("agreement") / "tiny.edgevis"
    return build_bundle(BuildRequest(tiny_entry(), output, calibration_data=folder_of_pictures), Recorder())


def faulty_compile(monkeypatch: pytest.MonkeyPatch, kind: str, backend: str) -> None:
    """A compiler that plants a fault into one INT8 engine after everything was measured."""
    compile_right = compile_engines.run

    def compile_wrong(state: BuildState, progress: BuildProgress) -> None:
        model = state.graphs[backend, "int8"]["embed"]
        state.graphs[backend, "int8"] = {"embed": planted(model, _place(model, kind))}
        compile_right(state, progress)

    monkeypatch.setattr(compile_engines, "run", compile_wrong)


def _place(model: ModelProto, kind: str) -> Fault:
    places = faults_of("embed", model)[kind]
    return places[len(places) // 2]


def test_a_compiler_that_does_not_compile_the_graph_stops_the_build(
    tmp_path: Path, folder_of_pictures: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    faulty_compile(monkeypatch, "weights shuffled", "onnxruntime")
    request = BuildRequest(
        tiny_entry(), tmp_path / "x.edgevis", precisions=("fp32", "int8"), calibration_data=folder_of_pictures
    )
    with pytest.raises(ParityError) as caught:
        build_bundle(request, Recorder())
    assert "the engine onnxruntime-int8 and its graph disagree" in str(caught.value)
    assert "calibrate on images like" not in str(caught.value)
    assert not request.output.exists()


def test_an_engine_that_was_not_named_is_left_out(
    tmp_path: Path, folder_of_pictures: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    faulty_compile(monkeypatch, "weights x2", "openvino")
    recorder = Recorder()
    request = BuildRequest(tiny_entry(), tmp_path / "x.edgevis", calibration_data=folder_of_pictures)
    made = build_bundle(request, recorder)
    assert "openvino-int8" not in [record.name for record in made.manifest.engines]
    assert any("the engine openvino-int8 and its graph disagree" in text for text in recorder.warnings)


def test_what_is_right_is_recorded_and_found_again(bundle: Bundle) -> None:
    rounding = [record for record in bundle.manifest.engines if record.precision == "int8"]
    assert all(record.recorded is not None for record in rounding)
    assert FILE in bundle.manifest.files
    for check in verify_bundle(bundle, threads=3, batch_sizes=(1, 3, 7)):
        assert check.status == "passed", check.reason
        assert not check.reason
        assert ("recorded outputs within" in check.tolerance) == check.engine.endswith("int8")


@pytest.mark.parametrize("kind", KINDS)
def test_verify_finds_an_engine_that_was_exchanged(bundle: Bundle, kind: str, tmp_path: Path) -> None:
    import onnx

    copy = shutil.copytree(bundle.path, tmp_path / "tiny.edgevis")
    name = next(record for record in bundle.manifest.engines if record.name == "onnxruntime-int8").files["embed"]
    model = onnx.load(copy / name)
    replace_file(copy, name, planted(model, _place(model, kind)).SerializeToString())
    with edited_manifest(copy) as data:
        data["engines"] = [engine for engine in data["engines"] if engine["backend"] == "onnxruntime"]
    assert [check.status for check in verify_bundle(Bundle(copy))] == ["passed", "failed"]


def test_bundles_of_before_are_held_to_the_tolerance_and_say_so(bundle: Bundle, tmp_path: Path) -> None:
    copy = shutil.copytree(bundle.path, tmp_path / "tiny.edgevis")
    with edited_manifest(copy) as data:
        for engine in data["engines"]:
            del engine["recorded"]
    for check in verify_bundle(Bundle(copy)):
        assert check.status == "passed"
        assert ("recorded no outputs" in check.reason) == check.engine.endswith("int8")


# --- a graph of another arithmetic


@pytest.mark.parametrize("precision", ["fp16", "bf16"])
def test_rounded_graphs_lose_what_their_type_loses(bundle: Bundle, precision: str, tmp_path: Path) -> None:
    import onnx

    golden = bundle.golden()
    rounded = rounded_graph(onnx.load(bundle.path / "graphs" / "embed.onnx"), precision)  # type: ignore[arg-type]
    onnx.save(rounded, tmp_path / "x.onnx")
    made = CpuProxy(tmp_path / "x.onnx", exact=True).run({"image": golden["embed/image"]})["embedding"]
    wanted = golden["embed/embedding"]
    error = float(np.abs(made - wanted).max() / np.abs(wanted).max())
    steps = {"fp16": 2.0**-11, "bf16": 2.0**-8}[precision]
    assert steps / 50 < error < steps * 10


# --- every outcome of every target


@pytest.mark.parametrize(
    ("candidates", "text"),
    [
        ([], ""),
        ([Candidate("tensorrt-int8", None, 0.1, "loses more than 0.005", True)], "no INT8 engine passes"),
        (
            [
                Candidate("tensorrt-int8", None, 0.1, "loses more than 0.005", True),
                Candidate("tensorrt-fp32", None, 0.0, "first that passes; not timed here", True),
            ],
            "no INT8 engine passes; the first that passes is tensorrt-fp32, not timed here",
        ),
        (
            [
                Candidate("openvino-fp32", 2.0, 0.0, "fastest that passes", True),
                Candidate("openvino-int8", 3.0, 0.0, "passes", True),
            ],
            "INT8 passes, and is not the fastest here; the fastest that passes is openvino-fp32, 2.00 ms",
        ),
        (
            [
                Candidate("tensorrt-fp32", None, 0.0, "first that passes; not timed here", True),
                Candidate("tensorrt-int8", None, 0.0, "passes", True),
            ],
            "INT8 passes, and is not the first; the first that passes is tensorrt-fp32, not timed here",
        ),
        (
            [Candidate("openvino-int8", None, None, "cannot run here: no device", False)],
            "no INT8 engine passes",
        ),
        (
            [Candidate("openvino-int8", None, None, UNMEASURABLE, False)],
            "INT8 could not be measured on these images, and does not count as passed",
        ),
    ],
)
def test_summaries_of_all_outcomes(candidates: list[Candidate], text: str) -> None:
    assert summary_text(candidates) == text


# --- images that show nothing


def trained_request(folder: Path, data: Path, **changes: object) -> BuildRequest:
    from safetensors.torch import save_file

    save_file(tiny_net(seed=3).state_dict(), folder / "weights.safetensors")
    request = BuildRequest(
        tiny_entry(), folder / "x.edgevis", checkpoint=folder / "weights.safetensors", calibration_data=data
    )
    return replace(request, **changes)  # type: ignore[arg-type]


@pytest.fixture(scope="module")
def black(tmp_path_factory: pytest.TempPathFactory) -> Path:
    from calibration.data.samples import sample_set

    random = np.random.default_rng(0)
    images = [random.integers(0, 3, (32, 16, 3)).astype(np.uint8) for _ in range(32)]
    labels = [f"person {index % 4}" for index in range(32)]
    return write_pictures(tmp_path_factory.mktemp("black") / "people", sample_set(images, labels, "black"))


def test_images_that_are_all_alike_prove_nothing_of_int8(tmp_path: Path, black: Path) -> None:
    recorder = Recorder()
    made = build_bundle(trained_request(tmp_path, black), recorder)
    assert [record.precision for record in made.manifest.engines] == ["fp32", "fp32"]
    assert any("INT8 is not measurable" in text for text in recorder.warnings)
    verdicts = {item.engine: item.verdict for item in made.manifest.candidates}
    assert verdicts["openvino-int8"] == verdicts["onnxruntime-int8"] == UNMEASURABLE
    assert "does not count as passed" in summary_text(made.manifest.candidates)


def test_int8_alone_on_images_that_prove_nothing_is_refused(tmp_path: Path, black: Path) -> None:
    with pytest.raises(InputError, match="INT8 is not measurable"):
        build_bundle(trained_request(tmp_path, black, precisions=("int8",)), Recorder())
    assert not (tmp_path / "x.edgevis").exists()


def test_int8_that_is_accepted_unmeasured_does_not_count_as_passed(tmp_path: Path, black: Path) -> None:
    made = build_bundle(trained_request(tmp_path, black, max_drop=1.0), Recorder())
    assert "openvino-int8" in [record.name for record in made.manifest.engines]
    assert not any(record.shares_enrolments for record in made.manifest.engines if record.precision == "int8")
    verdicts = {item.engine: item.verdict for item in made.manifest.candidates}
    assert verdicts["openvino-int8"] == UNMEASURABLE


def test_calibration_images_are_compared_with_the_trainings_spread() -> None:
    module = tiny_net(seed=3)
    samples = pictures(16)
    for norm in (module.stem_norm, module.norm):
        norm.reset_running_stats()
        norm.momentum = None  # an average over all batches
    module.train()
    from runtime.images.preprocess import Preprocessor

    with torch.no_grad():
        module.embed(torch.from_numpy(Preprocessor(DEPLOYMENT.preprocess)(samples.images)))
    module.eval()
    ratio = spread_ratio(module, DEPLOYMENT, samples)
    assert ratio is not None
    assert 0.8 < ratio < 1.25
    assert not unlike_text(module, DEPLOYMENT, samples)
    from calibration.data.samples import sample_set

    dark = sample_set([image // 16 for image in samples.images], samples.labels, "dark")
    assert "unlike those that the model was trained on" in unlike_text(module, DEPLOYMENT, dark)
    fold_statistics(module)
    assert spread_ratio(module, DEPLOYMENT, samples) is None
    assert not unlike_text(module, DEPLOYMENT, dark)


def test_an_engine_that_is_not_what_was_recorded_is_passed_over(bundle: Bundle, tmp_path: Path) -> None:
    import onnx

    from edgevis import Predictor

    copy = shutil.copytree(bundle.path, tmp_path / "tiny.edgevis")
    record = next(record for record in bundle.manifest.engines if record.name == "onnxruntime-int8")
    model = onnx.load(copy / record.files["embed"])
    replace_file(copy, record.files["embed"], planted(model, _place(model, "weights zeroed")).SerializeToString())
    with edited_manifest(copy) as data:
        for engine in data["engines"]:
            engine["shares_enrolments"] = True
            engine["latency_ms"] = 0.1 if engine["precision"] == "int8" and engine["backend"] == "onnxruntime" else 5.0
    assert (copy / MANIFEST).exists()
    with logged_warnings(match="does not give here what it gave when it was built"):
        predictor = Predictor(copy)
    with predictor:
        assert (predictor.info.backend, predictor.info.precision) != ("onnxruntime", "int8")
    with logged_warnings(match="does not give here what it gave"):
        predictor = Predictor(copy, backend="onnxruntime", precision="int8")
    with predictor:
        assert predictor.info.precision == "int8"
    with Predictor(bundle.path, backend="onnxruntime", precision="int8") as right:
        assert right.info.precision == "int8"
