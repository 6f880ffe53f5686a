"""The public face: images in, results out, enrolments kept, and no state changed by what fails."""

from __future__ import annotations

import copy
import json
import math
import pickle
import time
from collections.abc import Callable, Iterator
from dataclasses import FrozenInstanceError
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import PIL.Image
import pytest

from runtime.bundle.spec import Preprocess
from runtime.errors import EdgevisError, EnrolmentError, InputError, SourceError, UnknownLabelError
from runtime.predictor import Predictor
from runtime.results import Classification, Identification

from bundles import Tiny, expected_rows, picture, write_tiny_bundle

PICTURES = [picture(seed) for seed in range(6)]
TOLERANCE = 1e-5  # unit rows of a float32 engine against float64


def opened(folder: Path, tiny: Tiny | None = None) -> Predictor:
    return Predictor(write_tiny_bundle(folder / "made.edgevis", tiny), threads=1)


@pytest.fixture
def gallery(predictor: Predictor) -> Predictor:
    """Three people, one picture each."""
    for index, label in enumerate(("anna", "björn", "chloé")):
        predictor.enroll(label, PICTURES[index])
    return predictor


# Embedding and predicting


@pytest.mark.parametrize("color", ["RGB", "BGR"])
@pytest.mark.parametrize("rows", [1, 3, 4, 5, 13])
def test_embeddings_are_the_models(tmp_path: Path, rows: int, color: Any) -> None:
    tiny = Tiny(preprocess=Preprocess(32, 16, color, mean=(0.5, 0.45, 0.4), std=(0.25, 0.3, 0.35)))
    images = [picture(seed) for seed in range(rows)]
    with opened(tmp_path, tiny) as predictor:
        found = predictor.embed(images)
    assert found.shape == (rows, tiny.dimension)
    assert found.dtype == np.float32
    np.testing.assert_allclose(found, expected_rows(images, tiny), atol=TOLERANCE)
    np.testing.assert_allclose(np.linalg.norm(found, axis=1), 1, atol=1e-6)


def test_every_kind_of_input_is_the_same_image(tmp_path: Path, gallery: Predictor) -> None:
    path = tmp_path / "picture.png"
    cv2.imwrite(str(path), PICTURES[1])
    pil = PIL.Image.fromarray(PICTURES[1][..., ::-1])
    expected = gallery.predict(PICTURES[1])
    assert expected.label == "björn"
    for same in (path, str(path), pil, np.asfortranarray(PICTURES[1])):
        assert gallery.predict(same) == expected
    assert gallery(PICTURES[1]) == expected


def test_several_images_give_several_results(gallery: Predictor) -> None:
    for several in (PICTURES, tuple(PICTURES), np.stack(PICTURES)):
        results = gallery.predict(several)
        assert isinstance(results, list)
        assert len(results) == 6
        assert [result.label for result in results[:3]] == ["anna", "björn", "chloé"]
        for image, result in zip(several, results, strict=True):
            alone = gallery.predict(image)
            assert [match.label for match in alone.matches] == [match.label for match in result.matches]
            assert alone.score == pytest.approx(result.score, abs=TOLERANCE)
    (only,) = gallery.predict([PICTURES[0]])
    assert only.label == "anna"


def test_scores_are_cosines_of_the_models_embeddings(gallery: Predictor) -> None:
    expected = expected_rows(PICTURES, Tiny())
    for index, result in enumerate(gallery.predict(PICTURES, top_k=3)):
        scores = dict(zip(("anna", "björn", "chloé"), expected[:3] @ expected[index], strict=True))
        assert {match.label: match.score for match in result.matches} == pytest.approx(scores, abs=TOLERANCE)
        assert result.matches == tuple(sorted(result.matches, key=lambda match: -match.score))
        assert result.score == result.matches[0].score


@pytest.mark.parametrize(("top_k", "count"), [(1, 1), (2, 2), (3, 3), (99, 3), (np.int64(2), 2)])
def test_top_k(gallery: Predictor, top_k: int, count: int) -> None:
    assert len(gallery.predict(PICTURES[0], top_k=top_k).matches) == count


@pytest.mark.parametrize("top_k", [0, -1, True, 2.0, "3", None])
def test_a_wrong_top_k(gallery: Predictor, top_k: Any) -> None:
    with pytest.raises(InputError, match=r"top_k is .*; allowed: an int >= 1"):
        gallery.predict(PICTURES[0], top_k=top_k)


def test_pictures_of_any_size_and_views_of_a_frame(gallery: Predictor) -> None:
    frame = picture(7, 108, 192)
    kept = frame.copy()
    crop = frame[10:90, 30:70]
    results = [gallery.predict(view) for view in (crop, np.ascontiguousarray(crop), crop.copy(order="F"))]
    assert results[0] == results[1] == results[2]
    gallery.predict([frame[:1, :1], frame[:, :1], frame[5:6], np.rot90(frame)])
    np.testing.assert_array_equal(frame, kept)


# Who is known


def test_unknown_is_none(gallery: Predictor) -> None:
    gallery.threshold = 0.999
    known, unknown = gallery.predict([PICTURES[0], PICTURES[4]])
    assert known.label == "anna"
    assert unknown.label is None
    assert unknown.matches  # who comes closest is said all the same
    assert unknown.score == unknown.matches[0].score < 0.999


def test_an_empty_gallery_knows_nobody(predictor: Predictor) -> None:
    result = predictor.predict(PICTURES[0])
    assert isinstance(result, Identification)
    assert (result.label, result.score, result.matches) == (None, 0.0, ())


def test_a_classifier_without_classes_says_what_to_do(classifier: Predictor) -> None:
    with pytest.raises(EnrolmentError, match=r"no class is enrolled; enrol at least one: predictor\.enroll\('label'"):
        classifier.predict(PICTURES[0])


def test_a_classifier_compares_with_the_mean_of_the_shots(classifier: Predictor) -> None:
    classifier.enroll("even", [PICTURES[0], PICTURES[2]])
    classifier.enroll("odd", [PICTURES[1], PICTURES[3], PICTURES[5]])
    rows = expected_rows(PICTURES, Tiny("classify"))
    means = np.stack([rows[[0, 2]].mean(axis=0), rows[[1, 3, 5]].mean(axis=0)])
    means /= np.linalg.norm(means, axis=1, keepdims=True)
    result = classifier.predict(PICTURES[4])
    assert isinstance(result, Classification)
    expected = dict(zip(("even", "odd"), means @ rows[4], strict=True))
    assert dict(zip(result.labels, result.scores, strict=True)) == pytest.approx(expected, abs=TOLERANCE)
    assert result.labels[0] == max(expected, key=lambda label: expected[label])
    assert result.score == result.scores[0] >= result.scores[1]


def test_a_label_gets_more_examples(gallery: Predictor) -> None:
    gallery.enroll("anna", [PICTURES[3], PICTURES[4]])
    assert gallery.labels == ("anna", "björn", "chloé")
    assert gallery.predict(PICTURES[4]).label == "anna"
    assert gallery.predict(PICTURES[4]).score == pytest.approx(1, abs=TOLERANCE)


def test_forget(gallery: Predictor) -> None:
    gallery.forget("björn")
    assert gallery.labels == ("anna", "chloé")
    assert gallery.predict(PICTURES[1]).matches[0].label != "björn"
    with pytest.raises(UnknownLabelError):
        gallery.forget("björn")
    assert gallery.labels == ("anna", "chloé")


@pytest.mark.parametrize(
    "label", ["", " ", "\n", "a\tb", "nul\0", "x" * 257, "\ud800", None, 3, b"anna", ["anna"], True]
)
def test_labels_that_are_not_allowed(gallery: Predictor, label: Any) -> None:
    with pytest.raises(InputError, match=r"label .* is not allowed: printable text of 1 to 256 characters"):
        gallery.enroll(label, PICTURES[0])
    assert gallery.labels == ("anna", "björn", "chloé")


@pytest.mark.parametrize("label", ["x", "Ægir Ó.", "车站 7", "🚉", "x" * 256, "../etc/passwd", "'; drop table"])
def test_labels_that_are_allowed(predictor: Predictor, label: str) -> None:
    predictor.enroll(label, PICTURES[0])
    assert predictor.predict(PICTURES[0]).label == label


# What fails changes nothing

BAD_IMAGES: dict[str, tuple[Callable[[], Any], type[EdgevisError], str]] = {
    "None": (lambda: None, InputError, "image is None: the camera or file gave no frame"),
    "grey": (lambda: PICTURES[0][..., 0], InputError, "COLOR_GRAY2BGR"),
    "RGBA": (lambda: np.zeros((8, 8, 4), np.uint8), InputError, "COLOR_BGRA2BGR"),
    "float": (lambda: PICTURES[0] / 255, InputError, r"dtype float64; .*\(image \* 255\)"),
    "17 channels": (lambda: np.zeros((8, 8, 17), np.uint8), InputError, r"\(8, 8, 17\)"),
    "empty crop": (lambda: PICTURES[0][3:3], InputError, "it has no pixels; check the crop's corners"),
    "a number": (lambda: 3, InputError, "image is a int"),
    "a generator": (lambda: (image for image in PICTURES), InputError, "image is a generator"),
    "one of several": (lambda: [PICTURES[0], None], InputError, "image 1 of 2 is None"),
    "a list in a list": (lambda: [[PICTURES[0]]], InputError, "image 0 of 1 is a list"),
    "grey stack": (lambda: np.zeros((2, 8, 8, 1), np.uint8), InputError, r"image 0 of 2 has shape \(8, 8, 1\)"),
    "missing file": (lambda: "missing.png", SourceError, r"there is no image file missing\.png"),
    "a folder": (lambda: Path(), SourceError, "is a folder; give its images"),
    "an empty PIL image": (lambda: PIL.Image.new("RGB", (0, 3)), InputError, "it has no pixels"),
}


VERBS: dict[str, Callable[[Predictor, Any], Any]] = {
    "predict": lambda predictor, image: predictor.predict(image),
    "call": lambda predictor, image: predictor(image),
    "embed": lambda predictor, image: predictor.embed(image),
    "enroll new": lambda predictor, image: predictor.enroll("new", image),
    "enroll known": lambda predictor, image: predictor.enroll("anna", image),
}


@pytest.mark.parametrize("name", BAD_IMAGES)
@pytest.mark.parametrize("verb", VERBS)
def test_a_wrong_image_is_refused_and_changes_nothing(gallery: Predictor, name: str, verb: str) -> None:
    make, error, message = BAD_IMAGES[name]
    before = (gallery.labels, gallery.threshold, gallery.predict(PICTURES))
    with pytest.raises(error, match=message):
        VERBS[verb](gallery, make())
    assert (gallery.labels, gallery.threshold, gallery.predict(PICTURES)) == before


# The threshold; see also test_open_set.py


def test_a_threshold_set_by_hand(gallery: Predictor) -> None:
    fitted = gallery.threshold
    for value in (0.5, -1, 1, np.float32(0.25), 0):
        gallery.threshold = value
        assert gallery.threshold == float(value)
        assert type(gallery.threshold) is float
    gallery.enroll("dora", PICTURES[3])
    assert gallery.threshold == 0.0
    gallery.forget("dora")
    gallery.threshold = None
    assert gallery.threshold == fitted


@pytest.mark.parametrize("value", [1.01, -2, math.nan, math.inf, "0.5", True, [0.5]])
def test_a_wrong_threshold(gallery: Predictor, value: Any) -> None:
    before = gallery.threshold
    with pytest.raises(InputError, match=r"threshold is .*; allowed: a cosine, -1\.\.1, or None to have it fitted"):
        gallery.threshold = value
    assert gallery.threshold == before


# Streams, warm-up, information, life


def test_a_stream_gives_each_frame_with_its_result(tmp_path: Path, gallery: Predictor) -> None:
    pairs = list(gallery.stream(PICTURES))
    assert [frame is image for (frame, _), image in zip(pairs, PICTURES, strict=True)] == [True] * 6
    assert [result.label for _, result in pairs[:3]] == ["anna", "björn", "chloé"]
    for index, image in enumerate(PICTURES):
        cv2.imwrite(str(tmp_path / f"{index}.png"), image)
    from_folder = list(gallery.stream(tmp_path, top_k=1))
    for (frame, result), image in zip(from_folder, PICTURES, strict=True):
        np.testing.assert_array_equal(frame, image)
        assert len(result.matches) == 1  # type: ignore[union-attr]


@pytest.mark.parametrize("batch", [1, 4, 100])
def test_a_stream_predicts_as_single_calls_do(tmp_path: Path, gallery: Predictor, batch: int) -> None:
    """Preprocessing of the next images by a thread changes nothing; a hundred are more than the engine takes."""
    draw = np.random.default_rng(0)
    for index in range(120):
        assert cv2.imwrite(str(tmp_path / f"{index:03}.png"), draw.integers(0, 256, (12, 9, 3), np.uint8))
    streamed = [result.matches for _, result in gallery.stream(tmp_path, batch=batch)]  # type: ignore[union-attr]
    assert streamed == [gallery.predict(path).matches for path in sorted(tmp_path.glob("*.png"))]


def test_a_stream_is_lazy(gallery: Predictor) -> None:
    def camera() -> Iterator[Any]:
        yield PICTURES[0]
        yield None

    stream = gallery.stream(camera())
    assert next(stream)[1].label == "anna"
    with pytest.raises(InputError, match="frame 1 is None"):
        next(stream)


@pytest.mark.parametrize("nothing", [[], (), np.zeros((0, 8, 8, 3), np.uint8)])
def test_of_no_images_there_are_no_results(gallery: Predictor, nothing: Any) -> None:
    assert gallery.predict(nothing) == []
    embeddings = gallery.embed(nothing)
    assert embeddings.shape == (0, gallery.embed(PICTURES[0]).shape[1])
    assert embeddings.dtype == np.float32
    with pytest.raises(InputError, match="the list of images is empty; give at least one image"):
        gallery.enroll("new", nothing)
    assert "new" not in gallery.labels


def test_a_stream_may_go_on_after_a_bad_picture(gallery: Predictor, tmp_path: Path) -> None:
    for name in ("a.png", "c.png"):
        assert cv2.imwrite(str(tmp_path / name), PICTURES[0])
    (tmp_path / "b.png").write_bytes(b"")
    errors: list[EdgevisError] = []
    assert len(list(gallery.stream(tmp_path, on_error=errors.append))) == 2
    assert [str(error) for error in errors] == [f"{tmp_path / 'b.png'} is empty: it has no bytes, and is not an image"]
    assert len(list(gallery.stream([PICTURES[0], None, PICTURES[1]], on_error=errors.append))) == 2
    assert "frame 1 is None" in str(errors[1])


def test_a_stream_from_nowhere(gallery: Predictor) -> None:
    with pytest.raises(SourceError, match="there is no file"):
        next(gallery.stream("missing.mp4"))


def test_warmup(predictor: Predictor) -> None:
    predictor.warmup()
    predictor.warmup(batch_sizes=(1, 3, 9))
    assert predictor.labels == ()
    with pytest.raises(InputError, match="empty"):
        predictor.warmup(batch_sizes=(0,))


def test_info_says_what_runs(tmp_path: Path) -> None:
    with opened(tmp_path) as predictor:
        predictor.enroll("anna", PICTURES[0])
        info = predictor.info
        assert info.bundle == str(tmp_path / "made.edgevis")
        assert (info.model, info.task, info.trained) == ("tiny", "reid", False)
        assert (info.backend, info.device, info.precision, info.threads) == ("onnxruntime", "cpu", "fp32", 1)
        assert info.encoder_identity == Tiny().identity
        assert info.parity is not None
        assert info.parity.passed
        assert info.labels == ("anna",)
        assert info.threshold == predictor.threshold
        assert json.loads(json.dumps(info.to_dict())) == info.to_dict()
        assert info.to_dict()["parity"]["graphs"][0]["graph"] == "embed"
        assert repr(predictor) == "<Predictor made.edgevis: onnxruntime-fp32 on cpu, 1 labels>"


def test_results_say_how_long_they_took(gallery: Predictor) -> None:
    start = time.perf_counter()
    results = gallery.predict(PICTURES)
    elapsed_ms = (time.perf_counter() - start) * 1e3
    assert set(results[0].speed_ms) == {"preprocess", "inference", "postprocess"}
    assert all(value > 0 for value in results[0].speed_ms.values())
    assert sum(sum(result.speed_ms.values()) for result in results) <= elapsed_ms
    assert json.loads(json.dumps(results[0].to_dict()))["speed_ms"] == results[0].speed_ms


@pytest.mark.parametrize(
    "use",
    [
        lambda p: p.predict(PICTURES[0]),
        lambda p: p(PICTURES),
        lambda p: p.embed(PICTURES[0]),
        lambda p: p.enroll("dora", PICTURES[0]),
        lambda p: next(p.stream(PICTURES)),
        lambda p: p.warmup(),
    ],
)
def test_a_closed_predictor(gallery: Predictor, use: Callable[[Predictor], Any]) -> None:
    gallery.close()
    with pytest.raises(EdgevisError, match="this predictor has been closed; open another one"):
        use(gallery)
    assert gallery.labels == ("anna", "björn", "chloé")
    gallery.close()


def test_what_was_enrolled_can_be_saved_after_closing(tmp_path: Path, gallery: Predictor) -> None:
    gallery.close()
    gallery.save(tmp_path / "lobby.enrolment")
    with opened(tmp_path) as again:
        again.load(tmp_path / "lobby.enrolment")
        assert again.labels == ("anna", "björn", "chloé")


def test_a_with_block_closes_also_when_it_fails(tmp_path: Path) -> None:
    predictor = opened(tmp_path)

    def fail() -> None:
        with predictor as same:
            assert same is predictor
            raise RuntimeError("in the block")

    with pytest.raises(RuntimeError, match="in the block"):
        fail()
    with pytest.raises(EdgevisError, match="closed"):
        predictor.predict(PICTURES[0])


@pytest.mark.parametrize("transfer", [pickle.dumps, copy.copy, copy.deepcopy])
def test_a_predictor_stays_in_its_process(predictor: Predictor, transfer: Callable[[object], object]) -> None:
    with pytest.raises(TypeError, match="a Predictor cannot be copied or sent to another process: open a Predictor"):
        transfer(predictor)


def test_results_are_frozen(gallery: Predictor) -> None:
    result = gallery.predict(PICTURES[0])
    with pytest.raises(FrozenInstanceError):
        result.label = "somebody else"
