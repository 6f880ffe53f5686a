"""The build's part of the way from pixel to answer: the pictures, the PyTorch model's answers, the gate."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import cv2
import numpy as np
import onnx
import pytest
import torch

from edgevis import Predictor
from edgevis.cli import main as edgevis
from export import compilers
from export.answers import write_answers
from export.compilers import graph_path
from export.onnx import onnx_from_module
from export.pictures import DRAWN, Pictures, drawn_pictures, given_pictures
from export.reference_models.torch_module import TorchModel
from export.request import BuildRequest
from export.stages import build_bundle
from runtime.bundle.bundle import GOLDEN, Bundle
from runtime.bundle.identity import encoder_identity
from runtime.bundle.manifest import ANSWERS, EngineRecord, Manifest, Weights
from runtime.bundle.spec import Preprocess
from runtime.common.arrays import Array, write_arrays
from runtime.errors import ExportError, InputError, ParityError, SourceError
from runtime.images.preprocess import Preprocessor
from runtime.verification.answers.compare import check_preprocessing, read_answers
from runtime.verification.answers.file import Answers

from built import Recorder
from bundles import needs_openvino, write_bundle
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

pytestmark = [pytest.mark.torch, needs_openvino]


def bundle_of(path: Path, engine: TinyNet, model: TinyNet, shown: Pictures) -> tuple[Bundle, list[Answers]]:
    """A bundle with FP32 engines made of one model, and answers made of another."""
    made: list[Answers] = []

    def fill(folder: Path) -> Manifest:
        graph = graph_path(folder, "embed")
        graph.parent.mkdir()
        onnx.save(onnx_from_module(engine, GRAPH), graph)
        records = []
        for name in ("onnxruntime", "openvino"):
            file = compilers.load(name).engine_from_onnx(
                onnx.load(graph), graph="embed", precision="fp32", bundle=folder
            )
            records.append(EngineRecord(name, "fp32", "cpu", {"embed": file.relative_to(folder).as_posix()}))
        write_arrays(folder / GOLDEN, reference_of(engine, pictures(8)))
        manifest = Manifest(
            name=path.stem,
            model="tiny",
            target="cpu",
            deployment=DEPLOYMENT,
            encoder_identity=encoder_identity("tiny", DEPLOYMENT, "0" * 64),
            weights=Weights(trained=True, source="drawn", sha256="0" * 64),
            parameters=0,
            engines=tuple(records),
            files={},
        )
        made.append(
            write_answers(folder, manifest, TorchModel(model), shown, here=records, advance=lambda done, total: None)
        )
        return manifest

    return write_bundle(path, fill), made


DRAWN_PICTURES = drawn_pictures(PREPROCESS, few=False)


def test_engines_answer_as_the_model(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    bundle, (answers,) = bundle_of(tmp_path / "tiny.edgevis", tiny_net(), tiny_net(), DRAWN_PICTURES)
    assert set(answers.header.distances) == {"onnxruntime-fp32", "openvino-fp32"}
    assert 0 < max(answers.header.one_step.values()) < 1
    assert answers.header.source == DRAWN
    read = read_answers(bundle)
    assert read is not None
    assert read.header == answers.header
    assert (bundle.path / ANSWERS).stat().st_size < 40_000
    assert edgevis(["verify", str(bundle.path)]) == 0
    assert capsys.readouterr().out.count(" holds") == 2
    # The embeddings are the PyTorch model's, by a way that shares nothing with a session.
    images = torch.from_numpy(np.stack(read.inputs))
    with torch.no_grad():
        rows = tiny_net().embed(images).numpy()
    np.testing.assert_allclose(
        read.expected["embedding"], rows / np.linalg.norm(rows, axis=1, keepdims=True), atol=1e-6
    )


def test_engines_of_another_model_fail_the_build(tmp_path: Path) -> None:
    path = tmp_path / "tiny.edgevis"
    with pytest.raises(
        ParityError, match=r"the engine onnxruntime-fp32 does not answer .*embedding off by .*allowed 1e-05"
    ):
        bundle_of(path, tiny_net(1), tiny_net(0), DRAWN_PICTURES)
    assert not path.exists()


def test_a_model_that_makes_nothing_of_pictures(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    dead = tiny_net()
    with torch.no_grad():
        for parameter in dead.head.parameters():
            parameter.zero_()
    bundle, (answers,) = bundle_of(tmp_path / "dead.edgevis", dead, dead, DRAWN_PICTURES)
    assert answers.expected == {}
    assert check_preprocessing(bundle, read_answers(bundle)).exact
    assert edgevis(["verify", str(bundle.path)]) == 0
    assert "beyond" not in capsys.readouterr().out


def test_a_build_on_an_opencv_that_resizes_otherwise(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    resize = cv2.resize

    def averaged(image: Array, size: tuple[int, int], interpolation: int = cv2.INTER_LINEAR) -> Array:
        return resize(image, size, interpolation=cv2.INTER_AREA)

    monkeypatch.setattr(cv2, "resize", averaged)
    with pytest.raises(ExportError, match=r"of this machine makes another input of a picture of \(20, 14\) than"):
        bundle_of(tmp_path / "tiny.edgevis", tiny_net(), tiny_net(), DRAWN_PICTURES)


# The pictures


@pytest.mark.parametrize("few", [False, True])
@pytest.mark.parametrize("size", [(32, 16), (256, 128), (97, 193), (24, 24)])
def test_drawn_pictures(size: tuple[int, int], few: bool) -> None:
    shown = drawn_pictures(Preprocess(*size), few=few)
    again = drawn_pictures(Preprocess(*size), few=few)
    assert len(shown.images) == (4 if few else 8)
    for image, same in zip(shown.images, again.images, strict=True):
        assert image.dtype == np.uint8
        np.testing.assert_array_equal(image, same)
    first, *others = shown.images
    assert first.shape == (*size, 3)
    if first[..., 0].size >= 256:
        assert all(len(np.unique(first[..., channel])) == 256 for channel in range(3))
    assert (first[..., 0] != first[..., 2]).mean() > 0.9, "colour order shows"
    ratios = [(image.shape[0] / size[0], image.shape[1] / size[1]) for image in others]
    assert any(rows < 1 and columns < 1 for rows, columns in ratios), "one is enlarged"
    assert any(rows > 1 and columns > 1 for rows, columns in ratios), "one is shrunk"
    assert any((rows < 1) != (columns < 1) for rows, columns in ratios), "one is both"
    assert any(shown.enrolled)
    assert not all(shown.enrolled)
    for image, mask, enrolled in zip(shown.images, shown.masks, shown.enrolled, strict=True):
        assert (mask is not None) == enrolled
        assert mask is None or (mask.shape == image.shape[:2] and 0.02 < mask.mean() < 0.8)


def test_given_pictures(tmp_path: Path) -> None:
    samples = pictures(6, labels=2)
    shown = given_pictures(write_pictures(tmp_path / "given", samples), PREPROCESS)
    assert shown.images[0].shape == (32, 16, 3)
    assert shown.shows == (-1, 0, 0, 0, 1, 1, 1)
    assert shown.enrolled == (False, True, False, False, True, False, False)
    assert sorted(image.tobytes() for image in shown.images[1:]) == sorted(image.tobytes() for image in samples.images)
    assert "label" not in shown.source


def test_given_pictures_of_different_things(tmp_path: Path) -> None:
    for index in range(3):
        path = tmp_path / f"secret-{index}" / "large.png"
        path.parent.mkdir()
        assert cv2.imwrite(str(path), np.random.default_rng(index).integers(0, 256, (40, 1500, 3)).astype(np.uint8))
    shown = given_pictures(tmp_path, PREPROCESS)
    assert shown.enrolled == (False, True, False, False)
    assert max(max(image.shape) for image in shown.images) == 1024


@pytest.mark.parametrize("count", [1, 16])
def test_too_few_or_too_many(tmp_path: Path, count: int) -> None:
    folder = write_pictures(tmp_path / "given", pictures(count))
    with pytest.raises(InputError, match=rf"--golden-pictures: .* holds {count} image files; allowed: 2 to 15"):
        given_pictures(folder, PREPROCESS)


def test_no_such_folder(tmp_path: Path) -> None:
    with pytest.raises(SourceError, match="nowhere"):
        given_pictures(tmp_path / "nowhere", PREPROCESS)


def test_a_build_carries_the_pictures_it_was_given_and_none_of_the_calibration(tmp_path: Path) -> None:
    calibration = pictures(24)
    given = pictures(4, seed=77, labels=2)
    request = BuildRequest(
        entry=tiny_entry(),
        output=tmp_path / "tiny.edgevis",
        precisions=("fp32",),
        calibration_data=write_pictures(tmp_path / "calibration", calibration),
        golden_pictures=write_pictures(tmp_path / "given", given),
    )
    for asked, source in ((request, "4 pictures that were given"), (replace(request, golden_pictures=None), DRAWN)):
        recorder = Recorder()
        answers = read_answers(build_bundle(asked, recorder))
        assert answers is not None
        assert answers.expected
        assert answers.header.source.startswith(source)
        assert source in recorder.details["answers"]
        kept = {picture.tobytes() for picture in answers.pictures}
        assert (kept >= {image.tobytes() for image in given.images}) == (asked is request)
        assert not kept & {image.tobytes() for image in calibration.images}
        bundle = Bundle(request.output)
        tensors = Preprocessor(bundle.manifest.deployment.preprocess)(list(calibration.images))
        golden = next(array for name, array in bundle.golden().items() if name.endswith("/image"))
        assert not {row.tobytes() for row in golden} & {row.tobytes() for row in tensors}
    with Predictor(request.output) as predictor:
        assert len(predictor.info.digest) == 64
