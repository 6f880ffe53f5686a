"""Open set: strangers are accepted at the rate that was asked, scores are what they are said to be, nothing lies."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from edgevis import EnrolmentMismatchError, InputError, Predictor, SchemaError
from runtime.common.arrays import unit_rows
from runtime.common.json_data import to_json
from runtime.enrolment.file import load_enrolment
from runtime.gallery.embedded import EmbeddedGallery
from runtime.open_set.decision import OpenSet
from runtime.open_set.enrolled import FEATURES, best_of_others, features_of, label_scores
from runtime.open_set.generic import generic
from runtime.open_set.space import ScoreSpace, space_from
from runtime.open_set.statistics import HeldOutRates, OpenSetStatistics, ThresholdModel
from runtime.open_set.strangers import Rate, effective_count, rate_interval, threshold_at

from bundles import DIMENSION, Tiny, expected_rows, picture, write_tiny_bundle

RATES = (0.01, 0.05, 0.1)
STRANGERS = [picture(seed) for seed in range(500, 560)]


def rows_of(count: int, dimension: int = 16, seed: int = 0, *, around: np.ndarray[Any, Any] | None = None) -> Any:
    random = np.random.default_rng(seed)
    rows = random.standard_normal((count, dimension))
    return unit_rows(rows if around is None else 4 * around + rows / np.sqrt(dimension))


def some_space(dimension: int = DIMENSION, *, whitening: bool = True, strength: float = 0.75) -> ScoreSpace:
    random = np.random.default_rng(3)
    half = random.standard_normal((dimension, dimension))
    matrix = (half @ half.T / dimension + np.eye(dimension)).astype(np.float16).astype(np.float32)
    mean = (0.1 * random.standard_normal(dimension)).astype(np.float32)
    cohort = unit_rows(rows_of(12, dimension, 4).astype(np.float16))
    return ScoreSpace(mean, matrix if whitening else None, cohort, 3, strength, 0.25)


STATISTICS = OpenSetStatistics(
    "blend",
    RATES,
    (
        ThresholdModel(FEATURES[:2], ((0.5, 0.02, 0.1), (0.4, 0.02, 0.1), (0.3, 0.02, 0.1)), (0.0, -0.2), (2.0, 0.6)),
        ThresholdModel((), ((0.5,), (0.4,), (0.3,)), (), ()),
    ),
    (HeldOutRates(2, 5, 0.05, 0.05, 0.01, 0.12, 0.6, 0.4, 0.8),),
    0.5,
    "numbers of this test",
)


def opened(tmp_path: Path, tiny: Tiny | None = None, **arguments: Any) -> Predictor:
    return Predictor(write_tiny_bundle(tmp_path / "tiny.edgevis", tiny), **arguments)


@pytest.fixture
def spaced(tmp_path: Path) -> Iterator[Predictor]:
    """A bundle whose weights were measured."""
    tiny = Tiny(
        postprocess={"open_set": to_json(STATISTICS), "false_accept_rate": 0.05}, open_set=some_space().arrays()
    )
    with opened(tmp_path, tiny) as predictor:
        yield predictor


# Strangers


@pytest.mark.parametrize("rate", [0.01, 0.05, 0.1])
@pytest.mark.parametrize("law", ["normal", "uniform", "beta"])
def test_a_hundred_strangers_set_the_rate(rate: float, law: str) -> None:
    """The mean over many calibrations of the rate at which other strangers are accepted."""
    random = np.random.default_rng(1)
    draw = {
        "normal": lambda size: random.normal(0.3, 0.1, size),
        "uniform": lambda size: random.uniform(0, 0.6, size),
        "beta": lambda size: random.beta(2, 5, size),
    }[law]
    others = draw(200_000)
    realised = [float(np.mean(others >= threshold_at(draw(100), rate))) for _ in range(300)]
    # Four deviations of the mean: a single one has that of the k-th of 100, about sqrt(rate / 100).
    assert abs(np.mean(realised) - rate) < 4 * np.sqrt(rate / 100 / 300)


@given(st.lists(st.floats(-1, 1), min_size=1, max_size=60), st.floats(0.001, 0.5), st.floats(0.001, 0.5))
def test_a_higher_rate_never_has_the_higher_threshold(scores: list[float], one: float, other: float) -> None:
    low, high = sorted((one, other))
    assert threshold_at(np.array(scores), high) <= threshold_at(np.array(scores), low) + 1e-9


def test_images_of_one_stranger_count_as_one() -> None:
    persons = rows_of(5, 64, 2)
    views = np.concatenate([rows_of(20, 64, 10 + index, around=person) for index, person in enumerate(persons)])
    worth, distinct = effective_count(views, 0.7)
    assert distinct == 5
    assert worth == pytest.approx(5)
    assert effective_count(views[:1], 0.7) == (1.0, 1)
    assert effective_count(rows_of(40, 64, 9), 0.7)[1] == 40


def test_the_interval_is_wilsons() -> None:
    found = rate_interval(0.05, 100)
    assert (found.value, found.low, found.high) == pytest.approx((0.05, 0.02154, 0.11175), abs=1e-4)
    assert rate_interval(0.05, 0) == Rate(0.05, 0.0, 1.0)


# The space


@pytest.mark.parametrize("whitening", [True, False])
def test_a_space_is_what_its_arrays_say(whitening: bool) -> None:
    space = some_space(whitening=whitening)
    again = space_from(space.arrays(), DIMENSION, "a test")
    rows = rows_of(7, DIMENSION, 8)
    np.testing.assert_allclose(again.project(rows), space.project(rows), atol=1e-6)
    assert again.digest == space.digest
    centred = rows.astype(np.float64) - space.mean
    expected = centred @ space.whitening if whitening else centred
    expected /= np.linalg.norm(expected, axis=1, keepdims=True)
    np.testing.assert_allclose(space.project(rows), expected, atol=1e-6)
    nearest = np.sort(expected @ space.cohort.T.astype(np.float64), axis=1)[:, -3:].mean(axis=1)
    np.testing.assert_allclose(space.offsets(space.project(rows)), 0.75 * (nearest - 0.25), atol=1e-6)


LYING_SPACES = {
    "missing": ({"mean": None}, "needed: cohort, mean, normalisation"),
    "unknown": ({"more": np.zeros(3, np.float32)}, "allowed: whitening"),
    "whole numbers": ({"mean": np.zeros(DIMENSION, np.int64)}, "finite floating-point"),
    "NaN": ({"mean": np.full(DIMENSION, np.nan, np.float32)}, "finite floating-point"),
    "mean of another size": ({"mean": np.zeros(3, np.float32)}, "do not fit embeddings of 8"),
    "cohort of another size": ({"cohort": np.zeros((4, 3), np.float16)}, "do not fit embeddings of 8"),
    "whitening of another size": ({"whitening": np.zeros((3, 8), np.float16)}, r"needed: \(8, 8\)"),
    "no cohort": ({"cohort": np.zeros((0, DIMENSION), np.float16)}, "the cohort 1 to"),
    "too many neighbours": ({"normalisation": np.array([99.0, 0.5, 0.2])}, "neighbours 99"),
    "strength": ({"normalisation": np.array([2.0, 1.5, 0.2])}, "strength 1.5"),
}


@pytest.mark.parametrize("name", LYING_SPACES)
def test_a_space_that_lies(tmp_path: Path, name: str) -> None:
    changes, message = LYING_SPACES[name]
    arrays = {key: value for key, value in {**some_space().arrays(), **changes}.items() if value is not None}
    with pytest.raises(SchemaError, match=message):
        opened(tmp_path, Tiny(open_set=arrays))


LYING_STATISTICS: dict[str, Any] = {
    "no object": 3,
    "scoring": {**to_json(STATISTICS), "scoring": "best"},
    "rates": {**to_json(STATISTICS), "rates": [0.1, 0.05, 0.01]},
    "coefficients": {
        **to_json(STATISTICS),
        "models": [{**to_json(STATISTICS.models[1]), "coefficients": [[1, 2]] * 3}],
    },
    "feature": {**to_json(STATISTICS), "models": [{**to_json(STATISTICS.models[0]), "features": ["age", "height"]}]},
}


@pytest.mark.parametrize("name", LYING_STATISTICS)
def test_statistics_that_lie(tmp_path: Path, name: str) -> None:
    with pytest.raises(SchemaError, match="open_set"):
        opened(tmp_path, Tiny(postprocess={"open_set": LYING_STATISTICS[name]}))


def test_scores_are_normalised_cosines_to_nearest_and_prototype(spaced: Predictor) -> None:
    images = {"anna": [picture(1), picture(2), picture(3)], "björn": [picture(4)]}
    for label, own in images.items():
        spaced.enroll(label, own)
    space, query = some_space(), picture(9)
    asked = space.project(spaced.embed(query))[0].astype(np.float64)
    nearest = np.sort(space.cohort @ asked)[-3:].mean()
    for match in spaced.predict(query).matches:
        rows = space.project(spaced.embed(images[match.label])).astype(np.float64)
        prototype = rows.mean(axis=0) / np.linalg.norm(rows.mean(axis=0))
        cosine = 0.5 * ((rows @ asked).max() + prototype @ asked)
        assert match.score == pytest.approx(np.clip(cosine - 0.75 * (nearest - 0.25), -1, 1), abs=1e-5)


def test_embed_gives_the_models_own_rows(spaced: Predictor) -> None:
    np.testing.assert_allclose(spaced.embed(picture(1))[0], expected_rows([picture(1)], Tiny())[0], atol=1e-5)


# What is enrolled


@pytest.mark.parametrize("scoring", ["nearest", "prototype", "blend"])
def test_features_are_those_of_leaving_each_image_out(scoring: str) -> None:
    counts = np.array([3, 1, 4])
    rows = np.concatenate([rows_of(n, 16, n, around=rows_of(1, 16, 50 + n)[0]) for n in counts])
    offsets = np.linspace(-0.1, 0.1, len(rows)).astype(np.float32)
    owners = np.repeat(np.arange(3), counts)
    strangers, genuine = [], []
    for index, owner in enumerate(owners):
        others = owners != owner
        sizes = counts[[label for label in range(3) if label != owner]]
        strangers.append(label_scores(rows[[index]], rows[others], sizes, scoring).max() - offsets[index])
        rest = (owners == owner) & (np.arange(len(rows)) != index)
        if rest.any():
            alone = label_scores(rows[[index]], rows[rest], np.array([rest.sum()]), scoring)
            genuine.append(alone[0, 0] - offsets[index])
    found = features_of(
        rows, counts, offsets, best_of_others(rows, counts, scoring), labels=3, images=8 / 3, scoring=scoring
    )
    assert found.stranger_mean == pytest.approx(np.mean(strangers), abs=1e-5)
    assert found.stranger_high == pytest.approx(np.quantile(strangers, 0.9), abs=1e-5)
    assert found.genuine_median == pytest.approx(np.median(genuine), abs=1e-5)
    assert found.genuine_low == pytest.approx(np.quantile(genuine, 0.2), abs=1e-5)


def test_the_threshold_follows_what_is_enrolled(spaced: Predictor) -> None:
    assert spaced.threshold is None
    spaced.enroll("anna", picture(1))
    assert spaced.threshold == pytest.approx(0.4)
    first = spaced.info.open_set
    assert first is not None
    assert (first.method, first.calibrated, first.false_accept_rate) == ("estimated", False, 0.05)
    assert "edgevis calibrate" in first.note
    spaced.enroll("björn", picture(4))
    two = spaced.threshold
    assert two != pytest.approx(0.4)
    spaced.enroll("chloé", picture(5))
    assert spaced.threshold != two
    spaced.forget("chloé")
    assert spaced.threshold == two
    spaced.false_accept_rate = 0.01
    assert spaced.threshold is not None
    assert two is not None
    assert spaced.threshold > two
    spaced.false_accept_rate = None
    assert spaced.threshold == two


@pytest.mark.parametrize("measured", [True, False])
@pytest.mark.parametrize("labels", [2, 3, 9])
def test_labels_that_look_alike_keep_the_threshold_a_cosine(tmp_path: Path, measured: bool, labels: int) -> None:
    """Views of one picture as labels of their own: each is still recognised, and the reason is said."""
    postprocess = {"open_set": to_json(STATISTICS)} if measured else {}
    with opened(tmp_path, Tiny(postprocess=postprocess)) as predictor:
        for number in range(labels):
            predictor.enroll(f"view {number}", picture(1))
        threshold = predictor.threshold
        assert threshold is not None
        assert -1 <= threshold < 1
        predictor.threshold = threshold  # the product takes its own value
        predictor.threshold = None
        assert predictor.predict(picture(1)).label is not None
        info = predictor.info.open_set
        assert info is not None
        assert "cannot be told apart" in info.note


@settings(max_examples=40, deadline=None)
@given(st.integers(1, 12), st.integers(1, 4), st.floats(0, 3), st.integers(0, 1000))
def test_every_label_recognises_its_best_image(labels: int, images: int, spread: float, seed: int) -> None:
    gallery = EmbeddedGallery(8, "nearest")
    random = np.random.default_rng(seed)
    for number in range(labels):
        centre = random.standard_normal(8)
        gallery.add(f"{number}", unit_rows(centre + spread * random.standard_normal((images, 8))))
    open_set = OpenSet(gallery, None, None)
    threshold = open_set.threshold
    assert threshold is not None
    assert -1 <= threshold <= 1
    for _, rows in gallery.items():
        assert max(matches[0].score for matches in gallery.search(rows, 1)) >= threshold


def test_without_measured_weights_the_rate_is_an_estimate(tmp_path: Path) -> None:
    with opened(tmp_path) as predictor:
        predictor.enroll("anna", [picture(1), picture(2)])
        predictor.enroll("björn", [picture(4), picture(5)])
        info = predictor.info.open_set
        assert info is not None
        assert (info.method, info.calibrated) == ("generic", False)
        assert info.expected_fpir is not None
        assert "nothing was measured of these weights" in info.note


@pytest.mark.parametrize("scoring", ["nearest", "prototype", "blend"])
def test_a_large_enrolment_is_sampled(scoring: Any) -> None:
    """Its statistics are near those of the whole, and are not taken again for every label that comes."""
    gallery = EmbeddedGallery(32, scoring)
    centres = rows_of(300, 32, 1)
    for number, centre in enumerate(centres):
        gallery.add(f"{number}", rows_of(3, 32, 1000 + number, around=centre))
    sampled = OpenSet(gallery, None, STATISTICS).features()
    rows = np.concatenate([rows for _, rows in gallery.items()])
    counts = np.full(300, 3)
    whole = features_of(
        rows,
        counts,
        np.zeros(900, np.float32),
        best_of_others(rows, counts, scoring),
        labels=300,
        images=3.0,
        scoring=scoring,
    )
    assert sampled is not None
    assert sampled.stranger_mean == pytest.approx(whole.stranger_mean, abs=0.03)
    assert sampled.genuine_median == pytest.approx(whole.genuine_median, abs=0.03)
    open_set = OpenSet(gallery, None, STATISTICS)
    before = open_set.features()
    gallery.add("one more", rows_of(1, 32, 5))
    assert open_set.features() is before


# Calibration


def test_calibration_keeps_the_rate_while_labels_come_and_go(spaced: Predictor) -> None:
    spaced.enroll("anna", picture(1))
    spaced.calibrate(STRANGERS)
    for label, seed in (("björn", 4), ("chloé", 5), ("dora", 6)):
        spaced.enroll(label, picture(seed))
    worth, _ = effective_count(some_space().project(spaced.embed(STRANGERS)), STATISTICS.same)
    count, worth = len(STRANGERS), (len(STRANGERS) ** 2 * worth) ** (1 / 3)
    for rate in (0.1, 0.2, 0.3):
        spaced.false_accept_rate = rate
        accepted = sum(spaced.predict(image).label is not None for image in STRANGERS)
        # The k-th highest and those above it.
        assert accepted == pytest.approx((rate * (worth + 1) - 1) * count / worth + 1, abs=1)
    spaced.false_accept_rate = 0.1
    followed = spaced.threshold
    spaced.calibrate(STRANGERS)  # anew, with all labels there
    assert spaced.threshold == pytest.approx(followed, abs=1e-6)
    spaced.forget("dora")
    spaced.forget("björn")
    fewer = spaced.threshold
    spaced.calibrate(STRANGERS)
    assert spaced.threshold == pytest.approx(fewer, abs=1e-6)


def test_a_calibration_is_saved_and_forgotten(tmp_path: Path, spaced: Predictor) -> None:
    spaced.enroll("anna", picture(1))
    estimated = spaced.threshold
    spaced.false_accept_rate = 0.1
    found = spaced.calibrate(STRANGERS)
    assert (found.method, found.calibrated, found.strangers) == ("calibrated", True, len(STRANGERS))
    assert found.expected_fpir is not None
    assert found.expected_fpir.low < 0.1 < found.expected_fpir.high
    spaced.save(tmp_path / "lobby.enrolment")
    with Predictor(tmp_path / "tiny.edgevis") as other:
        other.load(tmp_path / "lobby.enrolment")
        assert other.info.open_set == spaced.info.open_set
        assert other.false_accept_rate == 0.1
    with Predictor(tmp_path / "tiny.edgevis", false_accept_rate=0.02) as stricter:
        stricter.load(tmp_path / "lobby.enrolment")
        assert stricter.false_accept_rate == 0.02
        assert stricter.threshold is not None
        assert found.threshold is not None
        assert stricter.threshold > found.threshold
    spaced.calibrate(None)
    spaced.false_accept_rate = None
    assert spaced.threshold == estimated
    spaced.update(tmp_path / "lobby.enrolment")
    assert load_enrolment(tmp_path / "lobby.enrolment").strangers is None


def test_another_process_that_enrols_keeps_the_calibration(tmp_path: Path, spaced: Predictor) -> None:
    spaced.enroll("anna", picture(1))
    spaced.save(tmp_path / "lobby.enrolment")
    with Predictor(tmp_path / "tiny.edgevis") as other:
        other.load(tmp_path / "lobby.enrolment")
        other.calibrate(STRANGERS)
        other.update(tmp_path / "lobby.enrolment")
    spaced.enroll("björn", picture(4))
    spaced.update(tmp_path / "lobby.enrolment")
    assert spaced.info.open_set is not None
    assert spaced.info.open_set.calibrated
    assert spaced.labels == ("anna", "björn")


def test_strangers_come_from_a_folder_or_a_video(tmp_path: Path, spaced: Predictor) -> None:
    import cv2

    spaced.enroll("anna", picture(1))
    for index, image in enumerate(STRANGERS):
        cv2.imwrite(str(tmp_path / f"{index:03}.png"), image)
    assert spaced.calibrate(tmp_path).strangers == len(STRANGERS)
    video = cv2.VideoWriter(str(tmp_path / "door.avi"), cv2.VideoWriter.fourcc(*"MJPG"), 10, (64, 128))
    for image in STRANGERS:
        video.write(cv2.resize(image, (64, 128)))
    video.release()
    assert spaced.calibrate(tmp_path / "door.avi").strangers == len(STRANGERS)


@pytest.mark.parametrize("strangers", [[], STRANGERS[:19]])
def test_too_few_strangers(spaced: Predictor, strangers: Any) -> None:
    spaced.enroll("anna", picture(1))
    before = spaced.info.open_set
    with pytest.raises(InputError, match="at least 20 are needed"):
        spaced.calibrate(strangers)
    assert spaced.info.open_set == before


@pytest.mark.parametrize("rate", [0, 1, -0.1, 0.6, float("nan"), "0.1", True])
def test_a_wrong_rate(tmp_path: Path, spaced: Predictor, rate: Any) -> None:
    with pytest.raises(InputError, match=r"false_accept_rate is .*; allowed: 0.0001 to 0.5"):
        spaced.false_accept_rate = rate
    with pytest.raises(InputError, match="false_accept_rate is"):
        Predictor(tmp_path / "tiny.edgevis", false_accept_rate=rate)


def test_an_enrolment_of_raw_rows_is_brought_into_the_space(tmp_path: Path, spaced: Predictor) -> None:
    """As files had them before there were score spaces."""
    with opened(tmp_path / "before") as before:
        before.enroll("anna", [picture(1), picture(2)])
        before.save(tmp_path / "old.enrolment")
    spaced.load(tmp_path / "old.enrolment")
    loaded = spaced.predict(picture(7))
    spaced.forget("anna")
    spaced.enroll("anna", [picture(1), picture(2)])
    assert spaced.predict(picture(7)).score == pytest.approx(loaded.score, abs=1e-5)


def test_an_enrolment_of_another_space_is_refused(tmp_path: Path, spaced: Predictor) -> None:
    spaced.enroll("anna", picture(1))
    spaced.save(tmp_path / "lobby.enrolment")
    other = replace(some_space(), mean=np.zeros(DIMENSION, np.float32))
    with opened(tmp_path / "other", Tiny(open_set=other.arrays())) as predictor:
        with pytest.raises(EnrolmentMismatchError, match="other open-set statistics"):
            predictor.load(tmp_path / "lobby.enrolment")
        assert predictor.labels == ()


def test_what_is_known_of_no_weights_fits_both_scorings() -> None:
    for scoring in ("nearest", "prototype"):
        found = generic(scoring)
        assert found.scoring == scoring
        assert found.measured
        assert found.models[-1].features == ("log_labels",)
