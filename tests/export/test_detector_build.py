"""A detector in INT8: what its loss is measured by, which layers go back to float, and whether faults are found."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import onnx
import pytest
from tiny_detector import squares, tiny_detector_entry, weights_of, write_squares

from benchmarks.fault_kinds import Fault, faults_of, planted
from calibration.quantize import graph as quantization
from calibration.quantize.graph import Ranges
from calibration.quantize.rules import Prepared
from edgevis import Predictor
from export.labelled import labelled_samples
from export.request import BuildProgress, BuildRequest
from export.stages import build_bundle
from export.stages import compile as compile_engines
from export.state import BuildState
from runtime.bundle.bundle import Bundle
from runtime.bundle.spec import Precision
from runtime.errors import InputError, ParityError
from runtime.parity.detections import OWN
from runtime.verification.verify import verify_bundle

from built import Recorder
from bundles import needs_openvino, replace_file
from detection_bundles import CELL, LABELS

pytestmark = [pytest.mark.torch, needs_openvino]

# The two that stay hidden longest: a range that is too wide costs precision, a bias moves what a threshold cuts.
KINDS = ("scale x4", "bias negated")


@pytest.fixture(scope="module")
def weights(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return weights_of(tmp_path_factory.mktemp("weights") / "detector.safetensors")


def request(output: Path, weights: Path, data: Path, *precisions: Precision) -> BuildRequest:
    return BuildRequest(
        tiny_detector_entry(),
        output / "detector.edgevis",
        precisions=precisions or ("fp32", "int8"),
        checkpoint=weights,
        calibration_data=data,
    )


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory, weights: Path) -> Bundle:
    folder = tmp_path_factory.mktemp("detector")
    return build_bundle(request(folder, weights, write_squares(folder / "pictures", 32)), Recorder())


def test_without_boxes_the_models_own_detections_are_the_objects(bundle: Bundle) -> None:
    assert bundle.manifest.calibration is not None
    assert [search.max_drop for search in bundle.manifest.calibration.searches] == [0.01, 0.01]
    for record in bundle.manifest.engines:
        assert record.parity is not None
        decisions = record.parity.decisions
        assert decisions is not None
        assert (decisions.metric, decisions.interval, decisions.decisive) == (OWN, None, True)
        assert decisions.agreement >= (1.0 if record.precision == "fp32" else 0.99)
        assert 30 < decisions.count <= 48  # three in each of 16 pictures, some below the threshold
        assert decisions.chance < 0.2
    assert [item.verdict for item in bundle.manifest.candidates].count("passes") >= 3


def test_every_engine_is_verified_and_opens_by_name(bundle: Bundle) -> None:
    assert [check.status for check in verify_bundle(bundle)] == ["passed"] * 4
    for backend in ("onnxruntime", "openvino"):
        with Predictor(bundle.path, backend=backend, precision="int8") as predictor:
            for image, objects in squares(8, seed=9):
                found = predictor.predict(image)
                centers = (found.boxes_xyxy[:, :2] + found.boxes_xyxy[:, 2:]) // (2 * CELL)
                seen = {
                    (int(y), int(x), LABELS.index(label)) for (x, y), label in zip(centers, found.labels, strict=True)
                }
                assert seen <= set(objects)
                assert len(seen) >= 2


@pytest.mark.parametrize(("kind", "backend"), [*zip(KINDS, ("openvino", "onnxruntime"), strict=True)])
def test_a_planted_fault_stops_the_build(
    tmp_path: Path, weights: Path, kind: str, backend: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    compile_right = compile_engines.run

    def compile_wrong(state: BuildState, progress: BuildProgress) -> None:
        assert state.graphs is not None
        model = state.graphs[backend, "int8"]["detect"]
        state.graphs[backend, "int8"] = {"detect": planted(model, _place(model, kind))}
        compile_right(state, progress)

    monkeypatch.setattr(compile_engines, "run", compile_wrong)
    with pytest.raises(ParityError, match=f"the engine {backend}-int8 and its graph disagree"):
        build_bundle(request(tmp_path, weights, write_squares(tmp_path / "pictures", 32), "int8"), Recorder())


@pytest.mark.parametrize("kind", KINDS)
def test_verify_finds_a_planted_fault(bundle: Bundle, kind: str, tmp_path: Path) -> None:
    copy = shutil.copytree(bundle.path, tmp_path / "detector.edgevis")
    name = next(item for item in bundle.manifest.engines if item.name == "onnxruntime-int8").files["detect"]
    model = onnx.load(copy / name)
    replace_file(copy, name, planted(model, _place(model, kind)).SerializeToString())
    statuses = {check.engine: check.status for check in verify_bundle(Bundle(copy))}
    assert statuses.pop("onnxruntime-int8") == "failed"
    assert set(statuses.values()) == {"passed"}


def _place(model: onnx.ModelProto, kind: str) -> Fault:
    """The first place of a fault: what the whole graph reads."""
    return faults_of("detect", model)[kind][0]


def test_depthwise_convolutions_go_back_to_float_first(
    tmp_path: Path, weights: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    measure = quantization.measure_ranges
    depthwise = []

    def wrong(prepared: Prepared, *rest: object) -> Ranges:
        ranges = measure(prepared, *rest)  # type: ignore[arg-type]
        layer = next(layer for layer in prepared.layers if "depthwise" in layer.kinds)
        node = next(node for node in prepared.model.graph if node.name == layer.name)
        depthwise.append(f"detect/{layer.name}")
        name = node.inputs[0].name  # type: ignore[union-attr]
        return Ranges({**ranges.amax, name: ranges.amax[name] / 100}, ranges.bias_correction)  # type: ignore[index, dict-item]

    monkeypatch.setattr("calibration.search.calibrate.measure_ranges", wrong)
    made = build_bundle(request(tmp_path, weights, write_squares(tmp_path / "pictures", 32), "int8"), Recorder())
    assert made.manifest.calibration is not None
    for search in made.manifest.calibration.searches:
        assert search.naive_drop > 0.1
        assert search.drop <= 0.01
        assert search.trials == 2
        assert set(search.float_layers) >= set(depthwise)
        assert len(search.float_layers) == 3  # and both predictors
        assert search.layers == 4


def test_with_boxes_average_precision_is_measured(tmp_path: Path, weights: Path) -> None:
    data = write_squares(tmp_path / "labelled", 60, labelled=True)
    manifest = build_bundle(request(tmp_path, weights, data, "int8"), Recorder()).manifest
    assert manifest.engines[-1].parity is not None
    decisions = manifest.engines[-1].parity.decisions
    assert decisions is not None
    assert decisions.metric == OWN
    assert 40 < decisions.count <= 60  # of the 20 pictures that validate
    low, high = decisions.interval or (0.0, 0.0)
    assert 0.9 < low <= high < 1.1
    assert decisions.agreement >= 0.99
    assert manifest.calibration is not None
    assert manifest.calibration.images == 20  # those that train


def test_what_is_set_aside_for_a_test_is_not_looked_at(tmp_path: Path) -> None:
    data = write_squares(tmp_path / "labelled", 60, labelled=True)
    for number in range(40, 60):
        (data / "images" / f"{number:03}.png").write_bytes(b"no picture")
    parts = labelled_samples(data, LABELS)
    assert parts is not None
    assert [len(part) for part in parts] == [20, 20]
    expected = squares(60)[20][1]
    boxes = [[x * CELL, y * CELL, (x + 1) * CELL, (y + 1) * CELL] for y, x, _ in expected]
    np.testing.assert_array_equal(parts[1].objects[0].boxes, boxes)
    assert parts[1].objects[0].class_ids.tolist() == [label for _, _, label in expected]
    assert labelled_samples(data, ("bicycle",)) is None
    green = labelled_samples(data, ("green",))
    assert green is not None
    assert green[1].objects[0].class_ids.tolist() == [0] * sum(label == 1 for _, _, label in expected)
    path = data / "annotations" / "instances_val.json"
    content = json.loads(path.read_text())
    path.write_text(json.dumps({**content, "images": content["images"][:2], "annotations": []}))
    halves = labelled_samples(data, LABELS)  # two are too few to verify on
    assert halves is not None
    assert [len(part) for part in halves] == [10, 10]
    (data / "annotations" / "instances_train.json").write_text(path.read_text())
    with pytest.raises(InputError, match="at least 16"):
        labelled_samples(data, LABELS)


def test_boxes_that_cannot_be_read_are_said_and_left_out(tmp_path: Path, weights: Path) -> None:
    data = write_squares(tmp_path / "pictures", 32)
    (data / "notes.json").write_text("[]")
    recorder = Recorder()
    build_bundle(request(tmp_path, weights, data, "fp32"), recorder)
    assert any("the boxes of pictures are not used" in text for text in recorder.warnings)
