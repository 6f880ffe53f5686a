"""The tasks that make maps, on real engines: a few-shot model that finds a colour, and one with fixed classes."""

from __future__ import annotations

import json
import threading
from dataclasses import replace
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest

from edgevis import (
    EdgevisError,
    EnrolmentError,
    EnrolmentMismatchError,
    EnrolmentRefusedError,
    InputError,
    Predictor,
    SchemaError,
    Segmentation,
    UnknownLabelError,
)
from edgevis.cli import main
from runtime.bundle.bundle import Bundle
from runtime.bundle.spec import TensorSpec
from runtime.common.json_data import to_json
from runtime.predictor import predictor_of
from runtime.selection.choose import SelectedEngine
from runtime.sessions.open import open_sessions
from runtime.verification.answers.compare import AnswersCheck, check_answers
from runtime.verification.answers.file import Answers, AnswersHeader, answers_from, arrays_of
from runtime.verification.answers.reference import reference_answers

from bundles import Array, edited_manifest, enrolled_rows, installed
from segmentation_bundles import (
    FEW_SHOT,
    FIXED,
    GREEN,
    GREY,
    RED,
    SIDE,
    WHITE,
    few_shot_onnx,
    fixed_onnx,
    overlap,
    scene,
    square,
    write,
)

pytestmark = pytest.mark.skipif(not installed("onnx"), reason="onnx makes the graphs of these tests")


def test_an_object_is_found_by_one_mask(few_shot: Path) -> None:
    with Predictor(few_shot) as predictor:
        predictor.enroll("red", scene((RED, 8, 8)), masks=square(8, 8))
        assert predictor.labels == ("red",)
        result = predictor.predict(scene((GREEN, 4, 4), (RED, 40, 64)))
        assert isinstance(result, Segmentation)
        assert result.mask.dtype == np.bool_
        assert result.probability.dtype == np.float32
        assert result.label_map.dtype == np.int16
        assert overlap(result.mask, square(40, 64)) > 0.7
        np.testing.assert_array_equal(result.mask, result.mask_of("red"))
        np.testing.assert_array_equal(result.mask, result.probability > 0.5)
        assert not predictor.predict(scene((GREEN, 4, 4))).mask.any()


def test_labels_stay_apart_and_can_be_forgotten(few_shot: Path) -> None:
    """More shots in all than one run of the engine takes."""
    picture = scene((GREEN, 4, 4), (RED, 40, 64))
    with Predictor(few_shot) as predictor:
        for _ in range(3):
            predictor.enroll("red", [scene((RED, 8, 8))], masks=[square(8, 8)])
        predictor.enroll("green", [scene((GREEN, 0, 0))] * 2, masks=np.stack([square(0, 0)] * 2))
        result = predictor.predict(picture)
        assert result.labels == predictor.labels == ("red", "green")
        assert overlap(result.mask_of("red"), square(40, 64)) > 0.7
        assert overlap(result.mask_of("green"), square(4, 4)) > 0.7
        np.testing.assert_array_equal(result.mask, result.mask_of("red") | result.mask_of("green"))
        predictor.forget("red")
        after = predictor.predict(picture)
        assert after.labels == ("green",)
        np.testing.assert_array_equal(after.mask, result.mask_of("green"))
        with pytest.raises(UnknownLabelError):
            predictor.forget("red")
        with pytest.raises(UnknownLabelError):
            after.mask_of("red")


def test_shots_are_judged_by_their_object(few_shot: Path) -> None:
    """Of a shot whose mask vanishes at the model's size nothing is enrolled; the same shot twice adds nothing."""
    mask = np.zeros((640, 960), bool)
    mask[3, 3] = True
    large = cv2.resize(scene((RED, 8, 8)), (960, 640), interpolation=cv2.INTER_NEAREST)
    with Predictor(few_shot) as predictor:
        first = predictor.enroll("red", scene((RED, 8, 8)), masks=square(8, 8))
        assert (first.enrolled, first.warnings) == (1, ())
        images = [scene((RED, 8, 8)), large, scene((GREEN, 40, 64))]
        report = predictor.enroll("red", images, masks=[square(8, 8), mask, square(40, 64)])
        assert report.enrolled == 2
        assert [[finding.reason for finding in item.findings] for item in report.judgements] == [
            ["duplicate"],
            ["unusable"],
            [],
        ]
        assert enrolled_rows(predictor)["red"].shape[0] == 3
        with pytest.raises(EnrolmentRefusedError) as caught:
            predictor.enroll("red", scene((RED, 8, 8)), masks=square(8, 8), strict=True)
        assert [finding.reason for finding in caught.value.report.judgements[0].findings] == ["duplicate"]
        assert enrolled_rows(predictor)["red"].shape[0] == 3


def test_shots_vote(few_shot: Path) -> None:
    """Two of three shots show the object, one something else: the pixels with most votes win."""
    with Predictor(few_shot) as predictor:
        shots = [scene((RED, 8, 8)), scene((RED, 8, 8)), scene((GREEN, 8, 8))]
        predictor.enroll("thing", shots, masks=[square(8, 8)] * 3)
        result = predictor.predict(scene((GREEN, 4, 4), (RED, 40, 64)))
        # Of at most two votes anywhere, one is half: the divisor is the largest vote, not the number of shots.
        assert overlap(result.mask, square(40, 64) | square(4, 4)) > 0.7
        assert result.probability[48, 72] == pytest.approx(2 / 3, abs=0.1)
        assert result.probability[12, 12] == pytest.approx(1 / 3, abs=0.1)


def test_what_was_enrolled_outlives_the_process(few_shot: Path, tmp_path: Path) -> None:
    picture = scene((GREEN, 4, 4), (RED, 40, 64))
    with Predictor(few_shot) as predictor:
        predictor.enroll("red", [scene((RED, 8, 8))] * 2, masks=[square(8, 8)] * 2)
        first = predictor.predict(picture)
        predictor.save(tmp_path / "colours.enrolment")
    with Predictor(few_shot) as predictor:
        predictor.load(tmp_path / "colours.enrolment")
        np.testing.assert_array_equal(predictor.predict(picture).mask, first.mask)
    with edited_manifest(few_shot) as data:
        data["weights"]["sha256"] = "2e" * 32
    with Predictor(few_shot) as predictor, pytest.raises(EnrolmentMismatchError):
        predictor.load(tmp_path / "colours.enrolment")


def test_enrolments_of_another_shape_are_refused(few_shot: Path, tmp_path: Path) -> None:
    from runtime.common.arrays import read_arrays, write_arrays

    path = tmp_path / "colours.enrolment"
    with Predictor(few_shot) as predictor:
        predictor.enroll("red", scene((RED, 8, 8)), masks=square(8, 8))
        predictor.save(path)
        arrays = read_arrays(path, error=EnrolmentError)
        for wrong, message in ((arrays["embeddings"][:, :2], "this model's is"), (np.full((1, 4), np.nan), "damaged")):
            write_arrays(path, {**arrays, "embeddings": wrong.astype(np.float32)})
            with pytest.raises(EnrolmentError, match=message):
                predictor.load(path)
            assert predictor.labels == ("red",)


def test_threads_may_enrol_while_others_predict(few_shot: Path) -> None:
    picture = scene((GREEN, 4, 4), (RED, 40, 64))
    problems: list[str] = []
    with Predictor(few_shot) as predictor:
        predictor.enroll("red", scene((RED, 8, 8)), masks=square(8, 8))

        def predict() -> None:
            for _ in range(20):
                result = predictor.predict(picture)
                if overlap(result.mask_of("red"), square(40, 64)) < 0.7:
                    problems.append("red is lost")
                if "green" in result.labels and overlap(result.mask_of("green"), square(4, 4)) < 0.7:
                    problems.append("green is lost")

        def enrol() -> None:
            for _ in range(10):
                predictor.enroll("green", scene((GREEN, 0, 0)), masks=square(0, 0))
                predictor.forget("green")

        threads = [threading.Thread(target=work) for work in (predict, predict, enrol)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    assert not problems


def test_there_is_nothing_to_embed_and_no_threshold_to_fit(few_shot: Path) -> None:
    with Predictor(few_shot) as predictor:
        assert predictor.threshold is None
        with pytest.raises(InputError, match="nothing to embed"):
            predictor.embed(scene())


def test_fixed_classes(fixed: Path) -> None:
    picture = scene((WHITE, 8, 8), ((0, 0, 0), 40, 64))
    with Predictor(fixed) as predictor:
        predictor.warmup(batch_sizes=(1, 2))
        assert predictor.labels == ("bright", "dark")
        results = predictor.predict([picture] * 6)
        for result in results:
            assert overlap(result.mask_of("bright"), square(8, 8)) > 0.7
            assert overlap(result.mask_of("dark"), square(40, 64)) > 0.7
            np.testing.assert_array_equal(result.mask, result.probability >= 0.6)
        for refused in (
            lambda: predictor.enroll("new", picture),
            lambda: predictor.forget("bright"),
            lambda: predictor.save("nowhere.enrolment"),
        ):
            with pytest.raises(EnrolmentError, match="nothing can be enrolled"):
                refused()
        with pytest.raises(UnknownLabelError):
            predictor.forget("new")
        with pytest.raises(InputError, match="nothing to embed"):
            predictor.embed(picture)
    with pytest.raises(EdgevisError, match="closed"):
        predictor.warmup()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"postprocess": {}}, "labels is None"),
        ({"postprocess": {"labels": ["one", "one"]}}, "all different"),
        ({"postprocess": {"labels": ["one"]}}, "one map for each of the labels one"),
        ({"postprocess": {"labels": ["one", "two"], "threshold": 2}}, "threshold is 2"),
        ({"preprocess": replace(GREY, fit="letterbox")}, "use 'stretch'"),
        ({"preprocess": replace(GREY, height=16)}, "graph 'segment' maps"),
    ],
)
def test_deployments_that_do_not_fit_the_task(tmp_path: Path, change: dict[str, Any], message: str) -> None:
    path = write(tmp_path / "levels.edgevis", replace(FIXED, **change), fixed_onnx(), "onnxruntime")
    with pytest.raises(SchemaError, match=message):
        Predictor(path)


def test_few_shot_graphs_must_fit_together(tmp_path: Path) -> None:
    support, query = FEW_SHOT.graphs
    other = replace(query, outputs=(TensorSpec("logits", "float32", ("N", "K", 3, SIDE, SIDE)),))
    path = write(tmp_path / "c.edgevis", replace(FEW_SHOT, graphs=(support, other)), few_shot_onnx(), "onnxruntime")
    with pytest.raises(SchemaError, match="few-shot segmentation needs a graph 'support'"):
        Predictor(path)


def test_results_draw_and_print_themselves(few_shot: Path) -> None:
    picture = scene((GREEN, 4, 4), (RED, 40, 64))
    with Predictor(few_shot) as predictor:
        predictor.enroll("red", scene((RED, 8, 8)), masks=square(8, 8))
        result = predictor.predict(picture)
    drawn = result.plot(picture)
    assert drawn.shape == picture.shape
    changed = (drawn != picture).any(axis=-1)
    assert changed[result.mask].mean() > 0.95
    assert not changed[:, 40:60].any(), "what is not the object and not the caption stays"
    with pytest.raises(InputError, match="give the image predicted on"):
        result.plot(picture[:-1])
    data = json.loads(json.dumps(result.to_dict()))
    assert data["found"][0]["label"] == "red"
    assert data["found"][0]["share"] == pytest.approx(result.mask.mean())
    left, top, right, bottom = data["found"][0]["box_xyxy"]
    assert (abs(left - 64) < 4, abs(top - 40) < 4, abs(right - 80) < 4, abs(bottom - 56) < 4) == (True,) * 4


def test_command_line(few_shot: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert cv2.imwrite(str(tmp_path / "shot.png"), scene((RED, 8, 8)))
    assert cv2.imwrite(str(tmp_path / "mask.png"), square(8, 8).astype(np.uint8))
    assert cv2.imwrite(str(tmp_path / "frame.png"), scene((GREEN, 4, 4), (RED, 40, 64)))
    enrolment = str(tmp_path / "colours.enrolment")
    shot, mask, frame = (str(tmp_path / f"{name}.png") for name in ("shot", "mask", "frame"))
    assert main(["enroll", str(few_shot), "red", shot, "--masks", mask, "--enrolment", enrolment]) == 0
    assert main(["enroll", str(few_shot), "red", shot, "--enrolment", enrolment]) == 1
    assert "give one mask for each image" in capsys.readouterr().err
    out = tmp_path / "out"
    arguments = ["predict", str(few_shot), frame, "--enrolment", enrolment, "--masks", str(out), "--plot", str(out)]
    assert main(arguments) == 0
    printed = capsys.readouterr().out
    assert "red" in printed
    assert "%" in printed
    labels = cv2.imread(str(out / "frame.png.png"), cv2.IMREAD_UNCHANGED)
    assert labels is not None
    assert overlap(labels == 1, square(40, 64)) > 0.7
    assert (out / "frame.png.jpg").exists()
    assert main([*arguments, "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["results"][0]["found"][0]["label"] == "red"


def test_masks_out_of_step_with_their_images_are_refused(
    few_shot: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for folder, names in (("images", "abc"), ("masks", "bcd")):
        (tmp_path / folder).mkdir()
        for name in names:
            assert cv2.imwrite(str(tmp_path / folder / f"{name}.png"), square(8, 8).astype(np.uint8))
    images, masks, enrolment = (tmp_path / name for name in ("images", "masks", "x.enrolment"))
    command = ["enroll", str(few_shot), "red", str(images), "--masks", str(masks), "--enrolment", str(enrolment)]
    assert main(command) == 1
    error = capsys.readouterr().err
    assert f"the mask of {images / 'a.png'} would be {masks / 'b.png'}, which is named as {images / 'b.png'}" in error
    assert not enrolment.exists()


def test_bench_times_what_a_frame_costs(few_shot: Path, fixed: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for bundle in (few_shot, fixed):
        assert main(["bench", str(bundle), "--batch", "1,3", "--seconds", "0.1", "--json"]) == 0
        results = json.loads(capsys.readouterr().out)["results"]
        assert [timing["batch"] for timing in results] == [1, 3]
        assert all(timing["latency"]["p50_ms"] > 0 for timing in results)


# From pixel to answer


def answers_with(bundle: Bundle, header: AnswersHeader, pictures: list[Array], masks: list[Array | None]) -> Answers:
    sessions = open_sessions(bundle, bundle.manifest.engines[0], threads=1)
    answers = reference_answers(bundle, sessions, header, pictures, masks)
    for session in sessions.values():
        session.close()
    return answers_from(arrays_of(answers), bundle.manifest.deployment.preprocess.input)


def checked(bundle: Bundle, answers: Answers) -> AnswersCheck:
    record = bundle.manifest.engines[0]
    with predictor_of(bundle, SelectedEngine(record, open_sessions(bundle, record, threads=1), "", ())) as predictor:
        return check_answers(predictor, record, answers, exact=True)


def test_answers_of_a_model_with_fixed_classes(fixed: Path) -> None:
    bundle = Bundle(fixed)
    pictures = [scene((GREEN, 4, 4), (RED, 40, 64)), scene((RED, 8, 8), height=45, width=31)]
    header = AnswersHeader("drawn", to_json(bundle.manifest.deployment), (0, 0), (False, False))
    answers = answers_with(bundle, header, pictures, [None, None])
    assert set(answers.expected) == {"labels/0", "labels/1", "probability/0", "probability/1"}
    assert answers.expected["labels/1"].shape == (45, 31)
    assert checked(bundle, answers).beyond == ()
    with edited_manifest(fixed) as data:
        data["deployment"]["postprocess"]["threshold"] = 0.0
    assert checked(Bundle(fixed), answers).beyond == ("pixels",)


def test_answers_of_an_object_that_is_enrolled_with_its_mask(few_shot: Path) -> None:
    bundle = Bundle(few_shot)
    pictures = [scene((RED, 8, 8)), scene((GREEN, 20, 40)), scene((GREEN, 4, 4), (RED, 40, 64))]
    header = AnswersHeader("drawn", to_json(bundle.manifest.deployment), (0, 1, 0), (True, True, False))
    answers = answers_with(bundle, header, pictures, [square(8, 8), square(20, 40), None])
    assert set(np.unique(answers.expected["labels/0"])) == {-1, 0, 1}
    assert checked(bundle, answers).beyond == ()
    # The masks are compared, too: with another one another thing is found.
    other = replace(answers, masks=(square(40, 8), *answers.masks[1:]))
    assert "pixels" in checked(bundle, other).beyond
