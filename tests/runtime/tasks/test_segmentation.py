"""The tasks that make maps, on real engines: a few-shot model that finds a colour, and one with fixed classes."""

from __future__ import annotations

import json
import threading
import tracemalloc
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
    SourceError,
    UnknownLabelError,
)
from edgevis.cli import main
from runtime import results
from runtime.bundle.bundle import Bundle
from runtime.bundle.spec import TensorSpec
from runtime.common.json_data import to_json
from runtime.images.resize import resize_aligned, rows_aligned, rows_linear, widened
from runtime.predictor import predictor_of
from runtime.selection.choose import SelectedEngine
from runtime.sessions.open import open_sessions
from runtime.tasks import _maps as maps
from runtime.verification.answers.compare import AnswersCheck, check_answers
from runtime.verification.answers.file import Answers, AnswersHeader, answers_from, arrays_of
from runtime.verification.answers.reference import reference_answers

from bundles import Array, edited_manifest, enrolled_rows, installed
from segmentation_bundles import FEW_SHOT, FIXED, GREY, SIDE, few_shot_onnx, fixed_onnx, write

pytestmark = pytest.mark.skipif(not installed("onnx"), reason="onnx makes the graphs of these tests")

BACKENDS = [
    "onnxruntime",
    pytest.param("openvino", marks=pytest.mark.skipif(not installed("openvino"), reason="openvino is not installed")),
]
RED, GREEN, WHITE = (40, 40, 230), (40, 220, 40), (250, 250, 250)


@pytest.fixture(params=BACKENDS)
def few_shot(request: pytest.FixtureRequest, tmp_path: Path) -> Path:
    return write(tmp_path / "colours.edgevis", FEW_SHOT, few_shot_onnx(), request.param)


@pytest.fixture(params=BACKENDS)
def fixed(request: pytest.FixtureRequest, tmp_path: Path) -> Path:
    return write(tmp_path / "levels.edgevis", FIXED, fixed_onnx(), request.param)


def scene(*squares: tuple[tuple[int, int, int], int, int], height: int = 64, width: int = 96) -> Array:
    """A grey picture with squares of 16 pixels: colour, top, left."""
    image = np.full((height, width, 3), 120, np.uint8)
    for color, top, left in squares:
        image[top : top + 16, left : left + 16] = color
    return image


def square(top: int, left: int, height: int = 64, width: int = 96) -> Array:
    mask = np.zeros((height, width), bool)
    mask[top : top + 16, left : left + 16] = True
    return mask


def overlap(found: Array, wanted: Array) -> float:
    return float((found & wanted).sum() / (found | wanted).sum())


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
        with pytest.raises(UnknownLabelError, match="'red' is not enrolled; enrolled: green"):
            predictor.forget("red")
        with pytest.raises(UnknownLabelError, match="no label 'red'; known: green"):
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
        with pytest.raises(EnrolmentRefusedError, match="the same picture and mask as one enrolled as 'red'"):
            predictor.enroll("red", scene((RED, 8, 8)), masks=square(8, 8), strict=True)
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


def test_many_images_of_different_sizes(few_shot: Path) -> None:
    pictures = [scene((RED, 8, 8 * index), height=48 + index, width=96 + 2 * index) for index in range(9)]
    with Predictor(few_shot) as predictor:
        predictor.enroll("red", scene((RED, 8, 8)), masks=square(8, 8))
        for index, result in enumerate(predictor.predict(pictures)):
            assert result.mask.shape == pictures[index].shape[:2]
            assert overlap(result.mask, square(8, 8 * index, *pictures[index].shape[:2])) > 0.6
            alone = predictor.predict(pictures[index])
            assert (alone.mask == result.mask).mean() > 0.999


def test_a_large_image_is_put_together_from_strips(
    few_shot: Path, fixed: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The same result as in one piece: votes are counted over all of the image, whatever strip they fall into."""
    picture = scene((GREEN, 4, 4), (RED, 40, 64), (WHITE, 24, 30), height=71, width=96)
    with Predictor(few_shot) as shots, Predictor(fixed) as classes:
        shots.enroll("thing", [scene((RED, 8, 8)), scene((RED, 8, 8)), scene((GREEN, 8, 8))], masks=[square(8, 8)] * 3)
        shots.enroll("red", scene((RED, 8, 8)), masks=square(8, 8))
        for predictor in (shots, classes):
            whole = predictor.predict(picture)
            drawn = whole.plot(picture)
            for values in (1, 96 * 20, 96 * 300):
                monkeypatch.setattr(maps, "STRIP_VALUES", values)
                monkeypatch.setattr(results, "_STRIP_PIXELS", values)
                found = predictor.predict(picture)
                np.testing.assert_array_equal(found.label_map, whole.label_map)
                np.testing.assert_array_equal(found.mask, whole.mask)
                np.testing.assert_allclose(found.probability, whole.probability, atol=1e-5)
                assert found.shares == whole.shares
                for part, other in zip(found.to_dict()["found"], whole.to_dict()["found"], strict=True):
                    assert part.pop("probability") == pytest.approx(other["probability"], abs=1e-5)
                    assert part == {name: value for name, value in other.items() if name != "probability"}
                np.testing.assert_array_equal(found.plot(picture), drawn)
                monkeypatch.undo()


def test_a_large_image_takes_little_more_memory_than_its_result(
    few_shot: Path, fixed: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A result has 7 bytes a pixel; to put it together, describe and draw it takes a buffer that does not grow."""
    monkeypatch.setattr(maps, "STRIP_VALUES", 1 << 17)
    monkeypatch.setattr(results, "_STRIP_PIXELS", 1 << 17)
    picture = np.tile(scene((GREEN, 4, 4), (RED, 40, 64)), (32, 32, 1))
    with Predictor(few_shot) as shots, Predictor(fixed) as classes:
        shots.enroll("thing", [scene((RED, 8, 8))] * 3, masks=[square(8, 8)] * 3)
        shots.enroll("green", scene((GREEN, 8, 8)), masks=square(8, 8))
        for predictor in (shots, classes):
            predictor.predict(picture[:64])
            tracemalloc.start()
            result = predictor.predict(picture)
            predicted = tracemalloc.get_traced_memory()[1]
            result.to_dict()
            described = tracemalloc.get_traced_memory()[1]
            result.plot(picture)
            drawn = tracemalloc.get_traced_memory()[1]
            tracemalloc.stop()
            pixels = picture.shape[0] * picture.shape[1]
            assert predicted < 7 * pixels + (16 << 20)
            assert described < 7 * pixels + (16 << 20)
            assert drawn < 12 * pixels + (16 << 20)


@pytest.mark.parametrize("size", [(1, 500), (500, 1), (2, 40_000), (1, 1)])
def test_slivers(few_shot: Path, fixed: Path, size: tuple[int, int]) -> None:
    picture = np.full((*size, 3), RED, np.uint8)
    with Predictor(few_shot) as shots, Predictor(fixed) as classes:
        shots.enroll("red", scene((RED, 8, 8)), masks=square(8, 8))
        assert shots.predict(picture).mask.all()
        for predictor in (shots, classes):
            result = predictor.predict(picture)
            assert result.mask.shape == result.probability.shape == result.label_map.shape == size
            result.to_dict()
            result.plot(picture)


@pytest.mark.parametrize(
    ("old", "new"), [((5, 7), (11, 3)), ((1, 4), (6, 4)), ((32, 32), (1000, 333)), ((9, 9), (4, 5))]
)
def test_rows_resize_as_the_whole_does(old: tuple[int, int], new: tuple[int, int]) -> None:
    values = np.random.default_rng(0).random(old, np.float32)
    linear = cv2.resize(values, new[::-1], interpolation=cv2.INTER_LINEAR)
    wide = cv2.resize(values, (new[1], old[0]), interpolation=cv2.INTER_LINEAR).reshape(old[0], new[1])
    aligned, across = resize_aligned(values[None], new)[0], widened(values[None], new[1])
    for rows in (slice(0, 1), slice(1, new[0]), slice(new[0] // 2, new[0] // 2 + 1)):
        np.testing.assert_allclose(rows_linear(wide, new[0], rows), linear[rows], atol=1e-5)
        np.testing.assert_allclose(rows_aligned(across, new[0], rows)[0], aligned[rows], atol=1e-5)


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


@pytest.mark.parametrize(
    ("masks", "message"),
    [
        (None, "give one mask for each image"),
        (square(8, 8)[:-1], "mask is \\(63, 96\\), its image \\(64, 96\\)"),
        (np.zeros((64, 96), bool), "marks nothing"),
        (square(8, 8) * 1.0, "bool or integers"),
        (square(8, 8).astype(np.uint8) + np.eye(64, 96, dtype=np.uint8), "has the values 0, 1, 2; say which"),
        ([square(8, 8)] * 2, "2 masks for 1 images"),
        ([], "0 masks for 1 images"),
        ("nowhere.png", "no image file nowhere.png"),
        (7, "is a int"),
        (np.stack([square(8, 8), square(8, 9), square(8, 8)], axis=-1), "holds colours"),
    ],
)
def test_bad_masks_are_refused_and_nothing_is_enrolled(few_shot: Path, masks: Any, message: str) -> None:
    with Predictor(few_shot) as predictor:
        with pytest.raises((InputError, SourceError), match=message):
            predictor.enroll("red", scene((RED, 8, 8)), masks=masks)
        assert predictor.labels == ()
        with pytest.raises(EnrolmentError, match="no object is enrolled; enrol at least one"):
            predictor.predict(scene())


def test_a_mask_too_small_for_the_model_says_so(few_shot: Path) -> None:
    """Of a 640 x 640 mask the model's 32 x 32 sees every twentieth pixel."""
    mask = np.zeros((640, 640), bool)
    mask[1, 1] = True
    with Predictor(few_shot) as predictor, pytest.raises(InputError, match="marks so little"):
        predictor.enroll("dot", np.zeros((640, 640, 3), np.uint8), masks=mask)


def test_masks_may_be_files_and_pil_images(few_shot: Path, tmp_path: Path) -> None:
    image_module = pytest.importorskip("PIL.Image")
    mask = square(8, 8).astype(np.uint8) * 255
    assert cv2.imwrite(str(tmp_path / "mask.png"), mask)
    # Of a palette, the index counts: labelling tools show the object red, and the rest in no colour that is 0.
    palette = image_module.fromarray(square(8, 8).astype(np.uint8))
    palette.putpalette([9, 9, 9, 224, 0, 0])
    palette.save(tmp_path / "palette.png")
    forms = {
        "path": tmp_path / "mask.png",
        "palette": tmp_path / "palette.png",
        "pil": image_module.fromarray(mask),
        "pil palette": palette,
    }
    with Predictor(few_shot) as predictor:
        predictor.enroll("array", scene((RED, 8, 8)), masks=mask)
        for name, given in forms.items():
            predictor.enroll(name, scene((RED, 8, 8)), masks=given)
        rows = enrolled_rows(predictor)
    for name in forms:
        np.testing.assert_array_equal(rows[name], rows["array"], err_msg=name)


@pytest.mark.parametrize("form", ["path", "bytes", "PIL"])
def test_a_mask_of_a_photograph_that_exif_turns(few_shot: Path, tmp_path: Path, form: str) -> None:
    """The photograph and its mask are stored on their side; one has EXIF, and the size says that the other was not."""
    pil = pytest.importorskip("PIL.Image")
    upright, mask = scene((RED, 8, 30)), square(8, 30)
    photograph, mask_file, exif = tmp_path / "photo.png", tmp_path / "mask.png", pil.Exif()

    def given() -> Any:
        return {"path": lambda: photograph, "bytes": photograph.read_bytes, "PIL": lambda: pil.open(photograph)}[form]()

    exif[0x0112] = 6
    pil.fromarray(np.rot90(upright)[..., ::-1]).save(photograph, exif=exif)
    assert cv2.imwrite(str(mask_file), np.rot90(mask).astype(np.uint8) * 255)
    with Predictor(few_shot) as predictor:
        predictor.enroll("array", upright, masks=mask)
        predictor.enroll("stored", given(), masks=mask_file)
        predictor.enroll("several", [given(), upright], masks=[mask_file, mask])
        rows = enrolled_rows(predictor)
        np.testing.assert_array_equal(rows["stored"], rows["array"])
        np.testing.assert_array_equal(rows["several"], np.concatenate([rows["array"]] * 2))
        exif[0x0112] = 3
        pil.fromarray(np.rot90(upright, 2)[..., ::-1]).save(photograph, exif=exif)
        with pytest.raises(InputError, match="EXIF orientation 3, and their size does not say"):
            predictor.enroll("wrong", given(), masks=mask)
        assert "wrong" not in predictor.labels


def test_a_mask_with_colours_or_of_a_lossy_format_is_refused(few_shot: Path, tmp_path: Path) -> None:
    for name, content, message in (
        ("colour.png", scene((RED, 8, 8)), "holds colours"),
        ("mask.jpg", square(8, 8).astype(np.uint8) * 255, "is a JPEG, which does not keep"),
    ):
        assert cv2.imwrite(str(tmp_path / name), content)
        with Predictor(few_shot) as predictor, pytest.raises(SourceError, match=message):
            predictor.enroll("red", scene((RED, 8, 8)), masks=tmp_path / name)


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
