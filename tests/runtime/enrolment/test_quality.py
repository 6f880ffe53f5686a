"""Enrolment quality: what is damaged is named, what is ordinary is not, and only what cannot work is refused."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from dataclasses import FrozenInstanceError, replace
from pathlib import Path
from typing import Any, get_args

import cv2
import numpy as np
import PIL.Image
import pytest
from hypothesis import given
from hypothesis import strategies as st

import edgevis
from edgevis import EnrolmentRefusedError, EnrolmentReport
from runtime.bundle.spec import Preprocess
from runtime.enrolment.quality import Reason, inspect, report_on
from runtime.enrolment.quality_bounds import CLASSIFY, FEW_SHOT_SEGMENT, REID, Bounds
from runtime.enrolment.quality_relations import relations
from runtime.gallery.embedded import EmbeddedGallery
from runtime.gallery.state import Scoring
from runtime.predictor import Predictor

from bundles import Array, Tiny, enrolled_rows, picture, textured, tiny_weights, write_tiny_bundle

PERSON = Preprocess(256, 128, mean=(0.5,) * 3, std=(0.5,) * 3)
THING = Preprocess(224, 224, mean=(0.5,) * 3, std=(0.5,) * 3, fit="center-crop")
MODELS = {"reid": (PERSON, REID, (128, 48)), "classify": (THING, CLASSIFY, (348, 420))}


def reasons(image: Array, spec: Preprocess, bounds: Bounds, mask: Array | None = None) -> list[str]:
    return [finding.reason for finding in inspect(image, spec, bounds, mask)]


def shrunk(width: int, height: int, back: int | None = None) -> Callable[[Array], Array]:
    def apply(image: Array) -> Array:
        small = cv2.resize(image, (width, height), interpolation=cv2.INTER_AREA)
        return small if back is None else cv2.resize(small, image.shape[1::-1], interpolation=back)

    return apply


def motion(angle: float) -> Callable[[Array], Array]:
    """Moved by a seventh of the image's height."""

    def apply(image: Array) -> Array:
        size = image.shape[0] // 7 | 1
        kernel = np.zeros((size, size), np.float32)
        reach = np.array([math.cos(angle), math.sin(angle)]) * (size // 2)
        centre = np.array([size // 2, size // 2])
        cv2.line(kernel, tuple(np.round(centre - reach).astype(int)), tuple(np.round(centre + reach).astype(int)), 1.0)
        return cv2.filter2D(image, -1, kernel / kernel.sum())

    return apply


def light(gain: float, offset: float = 0) -> Callable[[Array], Array]:
    return lambda image: np.clip(image * gain + offset, 0, 255).astype(np.uint8)


DAMAGE: dict[str, tuple[Callable[[Array], Array], str]] = {
    "22 x 28": (shrunk(22, 28), "too_small"),
    "22 x 28 enlarged, linear": (shrunk(22, 28, cv2.INTER_LINEAR), "blurred"),
    "22 x 28 enlarged, cubic": (shrunk(22, 28, cv2.INTER_CUBIC), "blurred"),
    "22 x 28 enlarged, nearest": (shrunk(22, 28, cv2.INTER_NEAREST), "too_small"),
    "out of focus": (lambda image: cv2.GaussianBlur(image, (0, 0), 0.016 * image.shape[0]), "blurred"),
    "far out of focus": (lambda image: cv2.GaussianBlur(image, (0, 0), 0.04 * image.shape[0]), "blurred"),
    "moved across": (motion(0.0), "blurred"),
    "moved down": (motion(math.pi / 2), "blurred"),
    "dark": (light(0.1), "dark"),
    "bright": (light(0.15, 217), "bright"),
    "fog": (light(0.1, 110), "low_contrast"),
}


@pytest.mark.parametrize("model", MODELS)
@pytest.mark.parametrize("seed", range(4))
def test_nothing_speaks_against_an_ordinary_image(model: str, seed: int) -> None:
    spec, bounds, size = MODELS[model]
    image = textured(seed, *size)
    assert reasons(image, spec, bounds) == []
    assert reasons(cv2.imdecode(cv2.imencode(".jpg", image, [1, 80])[1], 1), spec, bounds) == []  # type: ignore[arg-type]
    assert reasons(light(0.5, 30)(image), spec, bounds) == []


@pytest.mark.parametrize("model", MODELS)
@pytest.mark.parametrize("damage", DAMAGE)
@pytest.mark.parametrize("seed", range(3))
def test_damage_is_named(model: str, damage: str, seed: int) -> None:
    spec, bounds, size = MODELS[model]
    apply, reason = DAMAGE[damage]
    assert reasons(apply(textured(seed, *size)), spec, bounds) == [reason]


@pytest.mark.parametrize("model", MODELS)
def test_noise_and_jpeg_do_not_hide_blur(model: str) -> None:
    spec, bounds, size = MODELS[model]
    blurred = cv2.GaussianBlur(textured(1, *size), (0, 0), 0.016 * size[0])
    noisy = np.clip(blurred + np.random.default_rng(1).normal(0, 3, blurred.shape), 0, 255).astype(np.uint8)
    assert reasons(cv2.imdecode(cv2.imencode(".jpg", noisy, [1, 80])[1], 1), spec, bounds) == ["blurred"]  # type: ignore[arg-type]


@pytest.mark.parametrize("angle", [math.pi / 4, -math.pi / 4])
def test_motion_along_a_diagonal_is_seen(angle: float) -> None:
    spec, bounds, size = MODELS["classify"]
    for seed in range(3):
        assert reasons(motion(angle)(textured(seed, *size)), spec, bounds) == ["blurred"]


def test_stripes_are_not_blurred() -> None:
    """No detail along the stripes is no blur."""
    stripes = np.repeat(textured(3, 1, 48), 128, axis=0)
    for image, spec in ((stripes, PERSON), (cv2.resize(stripes, (128, 256), interpolation=cv2.INTER_AREA), PERSON)):
        assert "blurred" not in reasons(image, spec, REID)


@pytest.mark.parametrize("shape", [(1, 1), (1, 40000), (40000, 1), (3, 300), (300, 3)])
def test_too_few_pixels_are_refused(shape: tuple[int, int]) -> None:
    (finding,) = inspect(textured(1, 4, 4)[:1, :1].repeat(shape[0], 0).repeat(shape[1], 1), PERSON, REID)
    assert (finding.reason, finding.severity, finding.bound) == ("unusable", "refuse", 4.0)
    assert f"{shape[0]} x {shape[1]} pixels" in finding.detail


@pytest.mark.parametrize("color", [(0, 0, 0), (255, 255, 255), (10, 200, 90)])
def test_one_colour_is_refused(color: tuple[int, int, int]) -> None:
    (finding,) = inspect(np.full((128, 48, 3), color, np.uint8), PERSON, REID)
    assert (finding.reason, finding.severity) == ("unusable", "refuse")


def test_colours_of_equal_brightness_are_not_one_colour() -> None:
    image = np.full((128, 48, 3), (200, 100, 60), np.uint8)
    image[40:90] = (30, 100, 147)
    assert "unusable" not in reasons(image, PERSON, REID)


@given(st.integers(1, 90), st.integers(1, 90), st.integers(0, 3))
def test_every_image_is_judged(height: int, width: int, kind: int) -> None:
    random = np.random.default_rng([height, width, kind])
    image = [
        random.integers(0, 256, (height, width, 3)),
        np.zeros((height, width, 3)),
        np.full((height, width, 3), 255),
        np.arange(height * width * 3).reshape(height, width, 3) % 256,
    ][kind].astype(np.uint8)
    for spec, bounds, _ in MODELS.values():
        for fit in ("stretch", "center-crop", "letterbox"):
            for finding in inspect(image, replace(spec, fit=fit), bounds):
                assert finding.reason in get_args(Reason)
                assert math.isfinite(finding.value)
                assert finding.detail
            inspect(image, replace(spec, fit=fit), FEW_SHOT_SEGMENT, np.ones((height, width), bool))


def test_only_what_the_model_sees_is_judged() -> None:
    """The sides of a wide picture are cut off: their sharpness does not help."""
    image = textured(4, 300, 900).copy()
    image[:, 300:600] = cv2.GaussianBlur(image[:, 300:600], (0, 0), 6)
    assert reasons(image, THING, CLASSIFY) == ["blurred"]


# Relations


def rows(*angles: float) -> Array:
    """Unit rows in a plane."""
    return np.array([[math.cos(angle), math.sin(angle), 0, 0] for angle in angles], np.float32)


def judged(gallery: EmbeddedGallery, label: str, embeddings: Array) -> list[list[str]]:
    names = [f"image {place}" for place in range(1, len(embeddings) + 1)]
    found = relations(label, embeddings, names, gallery, REID)
    return [[finding.reason for finding in item] for item in found]


@pytest.mark.parametrize("scoring", ["nearest", "prototype", "blend"])
def test_relations(scoring: Scoring) -> None:
    gallery = EmbeddedGallery(4, scoring)
    assert judged(gallery, "anna", rows(0.0)) == [[]]
    assert judged(gallery, "anna", rows(0.0, 0.3, 0.001)) == [[], [], ["duplicate"]]
    gallery.add("anna", rows(0.0, 0.3))
    gallery.add("björn", rows(1.2, 2.1))
    assert judged(gallery, "anna", rows(-0.3, 0.301)) == [[], ["duplicate"]]
    assert judged(gallery, "anna", rows(1.65)) == [["closer_to_other_label"]]
    assert judged(gallery, "anna", rows(1.2)) == [["duplicate", "closer_to_other_label"]]
    assert judged(gallery, "chloé", rows(1.65)) == [[]]  # of a new label nothing says yet that it is not the label's
    assert judged(gallery, "chloé", rows(1.2)) == [["duplicate"]]
    other = np.array([[0, 0, 1, 0]], np.float32)
    assert judged(gallery, "dora", np.concatenate([rows(3.0, 3.3, 3.6, 3.9), other])) == [[], [], [], [], ["outlier"]]


def test_an_enrolled_majority_makes_an_outlier_of_a_new_image() -> None:
    gallery = EmbeddedGallery(4, "nearest")
    gallery.add("anna", rows(*np.linspace(0, 0.4, 500)))
    assert judged(gallery, "anna", rows(1.4)) == [["outlier"]]


def test_a_close_series_makes_no_outlier_of_another_view() -> None:
    """Frames of one video are nearly equal: another view is far from them, and is what was lacking."""
    gallery = EmbeddedGallery(4, "nearest")
    gallery.add("anna", rows(*np.linspace(0, 0.02, 20)))
    assert judged(gallery, "anna", rows(0.5)) == [[]]


# Predictor.enroll


def classifying(folder: Path, **changes: Any) -> Predictor:
    return Predictor(write_tiny_bundle(folder / "made.edgevis", Tiny("classify", **changes)), threads=1)


def test_the_report_of_an_enrolment(predictor: Predictor, tmp_path: Path) -> None:
    path = tmp_path / "anna 1.png"
    good = textured(1, 64, 32)
    cv2.imwrite(str(path), good)
    report = predictor.enroll("anna", [path, textured(2, 64, 32), np.zeros((64, 32, 3), np.uint8), good, good[:1, :1]])
    assert isinstance(report, EnrolmentReport)
    assert report.label == "anna"
    assert report.enrolled == 3
    assert [item.image for item in report.judgements] == [str(path), *(f"image {place} of 5" for place in (2, 3, 4, 5))]
    assert [item.enrolled for item in report.judgements] == [True, True, False, True, False]
    assert [[finding.reason for finding in item.findings] for item in report.judgements] == [
        [],
        [],
        ["unusable"],
        ["duplicate"],
        ["unusable"],
    ]
    assert report.warnings[0] == "image 3 of 5: unusable (refused): the same colour everywhere: it shows nothing"
    assert f"nearly the same picture as {path} (cosine 1.000)" in report.warnings[1]
    text = str(report)
    assert text.splitlines()[0] == "3 of 5 images enrolled as 'anna'; remarks:"
    assert all(f"  {line}" in text.splitlines() for line in report.warnings)
    data = json.loads(json.dumps(report.to_dict(), allow_nan=False))
    assert data["enrolled"] == 3
    assert data["judgements"][3]["findings"][0]["bound"] == REID.max_cosine
    assert data["warnings"] == list(report.warnings)
    assert len(enrolled_rows(predictor)["anna"]) == 3
    with pytest.raises(FrozenInstanceError):
        report.enrolled = 5  # type: ignore[misc]


@pytest.mark.parametrize("kind", ["path", "pil", "array", "tuple", "batch"])
def test_a_sound_image_has_no_remarks(predictor: Predictor, tmp_path: Path, kind: str) -> None:
    image = textured(5, 64, 32)
    cv2.imwrite(str(tmp_path / "a.png"), image)
    given: Any = {
        "path": str(tmp_path / "a.png"),
        "pil": PIL.Image.fromarray(image[..., ::-1]),
        "array": image,
        "tuple": (image,),
        "batch": image[None],
    }[kind]
    report = predictor.enroll("anna", given)
    assert report.warnings == ()
    assert str(report) == "1 of 1 image enrolled as 'anna'; nothing to remark"
    assert report.judgements[0].image == (given if kind == "path" else "image 1 of 1")


@pytest.mark.parametrize("task", ["reid", "classify"])
def test_strict_enrols_nothing_and_lists_all(built: dict[str, Path], task: str) -> None:
    good, blurred = textured(1, 64, 32), cv2.GaussianBlur(textured(2, 64, 32), (0, 0), 4)
    with Predictor(built[task], threads=1) as predictor:
        with pytest.raises(EnrolmentRefusedError) as caught:
            predictor.enroll("anna", [good, blurred, good], strict=True)
        assert predictor.labels == ()
        message = str(caught.value)
        assert "\n" not in message
        assert "nothing was enrolled as 'anna'" in message
        assert "image 2 of 3: blurred" in message
        assert "image 3 of 3: duplicate" in message
        report = caught.value.report
        assert report is not None
        assert report.enrolled == 0
        assert not any(item.enrolled for item in report.judgements)
        assert predictor.enroll("anna", good, strict=True).enrolled == 1


def test_strict_leaves_what_is_known_of_a_label(predictor: Predictor) -> None:
    predictor.enroll("anna", textured(1, 64, 32))
    before = enrolled_rows(predictor)["anna"]
    with pytest.raises(edgevis.InputError, match="duplicate"):
        predictor.enroll("anna", textured(1, 64, 32), strict=True)
    np.testing.assert_array_equal(enrolled_rows(predictor)["anna"], before)


def test_embeddings_without_direction_are_refused(tmp_path: Path) -> None:
    weights = tiny_weights()
    dead = replace(weights, dense=0 * weights.dense, dense_bias=0 * weights.dense_bias)
    with classifying(tmp_path, weights=dead) as predictor:
        with pytest.raises(EnrolmentRefusedError) as caught:
            predictor.enroll("anna", [textured(1, 64, 32), textured(2, 64, 32)])
        assert {finding.reason for item in caught.value.report.judgements for finding in item.findings} == {"unusable"}
        assert predictor.labels == ()


def test_nothing_is_a_python_warning(predictor: Predictor) -> None:
    """Warnings are errors in these tests: a user's ``-W error`` must not stop an enrolment."""
    assert predictor.enroll("anna", [picture(1), picture(1), picture(2)]).warnings


def test_a_report_without_images_is_not_made() -> None:
    with pytest.raises(EnrolmentRefusedError):
        report_on("anna", ["image 1 of 1"], [inspect(np.zeros((1, 1, 3), np.uint8), PERSON, REID)], strict=False)


# Few-shot segmentation


def test_the_object_is_judged_not_the_picture() -> None:
    spec = replace(THING, fit="stretch")
    image, mask = textured(6, 240, 320), np.zeros((240, 320), bool)
    mask[60:160, 80:200] = True
    assert reasons(image, spec, FEW_SHOT_SEGMENT, mask) == []
    plain = image.copy()
    plain[mask] = (40, 40, 200)
    assert reasons(plain, spec, FEW_SHOT_SEGMENT, mask) == []  # an object may have one colour
    black = image.copy()
    black[mask] = 3
    assert reasons(black, spec, FEW_SHOT_SEGMENT, mask) == ["dark"]
    blurred = cv2.GaussianBlur(image, (0, 0), 9)
    assert reasons(blurred, spec, FEW_SHOT_SEGMENT, mask) == ["blurred"]
    beside = np.where(mask[..., None], image, blurred)
    assert reasons(beside, spec, FEW_SHOT_SEGMENT, mask) == []
    small = np.zeros_like(mask)
    small[60:72, 80:96] = True
    (finding,) = inspect(image, spec, FEW_SHOT_SEGMENT, small)
    assert finding.reason == "too_small"
    assert finding.value == pytest.approx(math.sqrt(12 * 16 * 0.7 * 224 / 240 / 224 / 224), rel=1e-6)
