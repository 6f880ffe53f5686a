"""A task and a backend from another package: one new file each, and every verb runs on a bundle of them.

Each comes in two ways: as a file in a folder beside edgevis' own, and as an installed package with entry points.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from pathlib import Path

import cv2
import numpy as np
import pytest

from edgevis import Predictor, SchemaError
from edgevis.cli import main
from runtime import backends, tasks
from runtime.bundle.bundle import GOLDEN, MANIFEST, Bundle, sha256
from runtime.bundle.identity import encoder_identity
from runtime.bundle.manifest import EngineRecord, FileRecord, Manifest, Weights
from runtime.bundle.spec import Deployment, Graph, Preprocess, TensorSpec
from runtime.common.arrays import write_arrays
from runtime.common.discovery import names_in
from runtime.errors import EngineError, UnknownBackendError
from runtime.sessions.open import open_sessions
from runtime.verification.timing import enroll_example

import doc_pages

# The worked examples of docs/extending.md.
_NAME = "tests/contracts/test_extensions.py"
TASK, BACKEND = (block.code for block in doc_pages.blocks("docs/extending.md") if block.reason == _NAME)

IMAGE = TensorSpec("image", "float32", ("N", 3, 8, 8))
DEPLOYMENT = Deployment(
    "brightness",
    (Graph("measure", (IMAGE,), (TensorSpec("level", "float32", ("N", 1)),)),),
    Preprocess(8, 8),
    {"gain": 1.0},
    max_batch=4,
)


@pytest.fixture(params=["file", "entry point"])
def installed(request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """The task ``brightness`` and the backend ``mean``, as one file each."""
    folder = tmp_path / "site"
    folder.mkdir()
    if request.param == "file":
        for package, name, text in ((tasks, "brightness", TASK), (backends, "mean", BACKEND)):
            place = folder / package.__name__
            place.mkdir()
            (place / f"{name}.py").write_text(text)
            monkeypatch.setattr(package, "__path__", [*package.__path__, str(place)])
        names_in.cache_clear()
    else:
        (folder / "toy_task.py").write_text(TASK)
        (folder / "toy_backend.py").write_text(BACKEND)
        metadata = folder / "toy_vision-1.0.dist-info"
        metadata.mkdir()
        (metadata / "METADATA").write_text("Metadata-Version: 2.1\nName: toy-vision\nVersion: 1.0\n")
        (metadata / "entry_points.txt").write_text(
            "[edgevis.tasks]\nbrightness = toy_task\n\n[edgevis.backends]\nmean = toy_backend\n"
        )
        monkeypatch.syspath_prepend(folder)
    yield
    names_in.cache_clear()
    for name in ("runtime.tasks.brightness", "runtime.backends.mean", "toy_task", "toy_backend"):
        sys.modules.pop(name, None)
    for package, name in ((tasks, "brightness"), (backends, "mean")):
        vars(package).pop(name, None)


@pytest.fixture
def bundle(installed: None, tmp_path: Path) -> Path:
    return write_bundle_by_hand(tmp_path / "toy.edgevis", DEPLOYMENT)


def write_bundle_by_hand(folder: Path, deployment: Deployment, *, engine: str = "1.0") -> Path:
    (folder / "engines").mkdir(parents=True)
    (folder / "engines" / "measure.toy").write_text(engine)
    image = np.random.default_rng(0).random((5, 3, 8, 8), np.float32)
    level = image.mean(axis=(1, 2, 3), dtype=np.float64)[:, None].astype(np.float32)
    write_arrays(folder / GOLDEN, {"measure/image": image, "measure/level": level})
    manifest = Manifest(
        name="toy",
        model="toy",
        target="cpu",
        deployment=deployment,
        encoder_identity=encoder_identity("toy", deployment, "ab" * 32),
        weights=Weights(trained=True, source="one number", sha256="ab" * 32),
        parameters=1,
        engines=(EngineRecord("mean", "fp32", "cpu", {"measure": "engines/measure.toy"}),),
        files={
            name: FileRecord((folder / name).stat().st_size, sha256(folder / name))
            for name in ("engines/measure.toy", GOLDEN)
        },
        created="2026-01-01T00:00:00Z",
    )
    (folder / MANIFEST).write_text(manifest.dumps())
    return folder


@pytest.fixture
def photos(tmp_path: Path) -> dict[str, Path]:
    paths = {name: tmp_path / f"{name}.png" for name in ("dark", "bright", "grey")}
    for level, path in zip((20, 230, 90), paths.values(), strict=True):
        assert cv2.imwrite(str(path), np.full((40, 30, 3), level, np.uint8))
    return paths


def test_both_are_known_by_name(installed: None) -> None:
    assert "brightness" in tasks.names()
    assert "mean" in backends.names()
    with pytest.raises(SchemaError, match=r"there is no task 'nothing'; known: brightness, classify"):
        tasks.load("nothing")
    with pytest.raises(UnknownBackendError, match=r"known: mean, onnxruntime"):
        backends.load("nothing")


def test_predictor(bundle: Path, photos: dict[str, Path], tmp_path: Path) -> None:
    with Predictor(bundle) as predictor:
        assert (predictor.info.task, predictor.info.backend) == ("brightness", "mean")
        assert predictor.threshold is None
        for label in ("dark", "bright"):
            assert predictor.enroll(label, [photos[label]]).enrolled == 1
        dark, bright = predictor.predict([photos["grey"], photos["bright"]])
        assert (dark.label, bright.label) == ("dark", "bright")
        assert dark.level == pytest.approx(90 / 255, abs=1e-5)
        predictor.save(tmp_path / "toy.enrolment")
        predictor.forget("dark")
        assert predictor.predict(photos["grey"]).label == "bright"
        predictor.load(tmp_path / "toy.enrolment")
        assert predictor.labels == ("dark", "bright")


def test_the_example_enrolment_is_what_the_task_declares(bundle: Path) -> None:
    with Predictor(bundle) as predictor:
        enroll_example(predictor)
        assert predictor.labels == ("example",)


def test_the_command_line(
    bundle: Path, photos: dict[str, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    enrolment = str(tmp_path / "toy.enrolment")
    for label in ("dark", "bright"):
        assert main(["enroll", str(bundle), label, str(photos[label]), "--enrolment", enrolment]) == 0
    predict = ["predict", str(bundle), str(photos["grey"]), "--enrolment", enrolment]
    capsys.readouterr()
    assert main([*predict, "--plot", str(tmp_path / "plots")]) == 0
    assert "grey.png  dark" in capsys.readouterr().out
    drawn = cv2.imread(str(tmp_path / "plots" / "grey.png.jpg"))
    assert drawn is not None
    assert drawn.mean() == pytest.approx(90, abs=2)
    assert main([*predict, "--json"]) == 0
    (result,) = json.loads(capsys.readouterr().out)["results"]
    assert (result["label"], result["level"]) == ("dark", pytest.approx(90 / 255, abs=1e-5))
    assert main([*predict, "--masks", str(tmp_path / "masks")]) == 1
    assert "--masks is for segmentation" in capsys.readouterr().err
    assert main(["info", str(bundle), "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["running"]["backend"] == "mean"


def test_verify(bundle: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["verify", str(bundle), "--json"]) == 0
    (engine,) = json.loads(capsys.readouterr().out)["engines"]
    assert (engine["engine"], engine["status"]) == ("mean-fp32", "passed")
    wrong = write_bundle_by_hand(tmp_path / "wrong.edgevis", DEPLOYMENT, engine="1.5")
    assert main(["verify", str(wrong), "--json"]) == 1
    (engine,) = json.loads(capsys.readouterr().out)["engines"]
    assert engine["status"] == "failed"


def test_errors_are_edgevis_errors(installed: None, tmp_path: Path) -> None:
    unreadable = Bundle(write_bundle_by_hand(tmp_path / "a.edgevis", DEPLOYMENT, engine="no number"))
    with pytest.raises(EngineError, match=r"measure\.toy holds no number"):
        open_sessions(unreadable, unreadable.manifest.engines[0], threads=None)
    lying = Deployment("brightness", DEPLOYMENT.graphs, DEPLOYMENT.preprocess, {"gain": "much"})
    with pytest.raises(SchemaError, match="gain is 'much'"):
        Predictor(write_bundle_by_hand(tmp_path / "b.edgevis", lying))


@pytest.mark.torch
def test_an_onnx_file_of_the_task_becomes_a_bundle(installed: None, photos: dict[str, Path], tmp_path: Path) -> None:
    onnx = pytest.importorskip("onnx")
    build = pytest.importorskip("export.build")
    helper, numpy_helper = onnx.helper, onnx.numpy_helper
    nodes = [
        helper.make_node("Conv", ["image", "third"], ["grey"]),
        helper.make_node("GlobalAveragePool", ["grey"], ["mean"]),
        helper.make_node("Flatten", ["mean"], ["level"], axis=1),
    ]
    third = numpy_helper.from_array(np.full((1, 3, 1, 1), 1 / 3, np.float32), "third")
    values = [
        helper.make_tensor_value_info(name, onnx.TensorProto.FLOAT, shape)
        for name, shape in (("image", ["N", 3, 8, 8]), ("level", ["N", 1]))
    ]
    graph = helper.make_graph(nodes, "measure", values[:1], values[1:], [third])
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    onnx.save(model, tmp_path / "mean.onnx")
    arguments = ["--onnx", str(tmp_path / "mean.onnx"), "--task", "brightness", "--precision", "fp32", "--quiet"]
    output = tmp_path / "mean.edgevis"
    assert build.main([*arguments, "--no-cache", "--output", str(output)]) == 0
    manifest = Bundle(output).manifest
    assert manifest.deployment.task == "brightness"
    for engine in manifest.engines:
        assert engine.parity is not None
        assert engine.parity.decisions is not None
        assert (engine.parity.decisions.metric, engine.parity.decisions.agreement) == ("equal brightness", 1.0)
    with Predictor(output) as predictor:
        predictor.enroll("dark", [photos["dark"]])
        predictor.enroll("bright", [photos["bright"]])
        assert predictor.predict(photos["grey"]).label == "dark"
