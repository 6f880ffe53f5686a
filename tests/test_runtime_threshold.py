"""The open-set threshold lets in the share of strangers that it promises."""

from __future__ import annotations

import math
from statistics import NormalDist
from typing import Any

import numpy as np
import pytest

from runtime.errors import SchemaError
from runtime.gallery.embedded import EmbeddedGallery
from runtime.threshold import Impostors, false_accept_rate_of, fit_threshold, impostors_of

KNOWN = Impostors(0.2, 0.1, 1000)


@pytest.mark.parametrize("rate", [0.001, 0.01, 0.1, 0.5])
@pytest.mark.parametrize("labels", [1, 2, 10, 300])
def test_simulated_strangers_are_let_in_at_the_promised_rate(labels: int, rate: float) -> None:
    """A stranger scores against every label; the best of them counts."""
    threshold = fit_threshold(KNOWN, None, labels=labels, false_accept_rate=rate)
    assert threshold is not None
    random = np.random.default_rng(labels)
    strangers = 200_000 if labels < 100 else 20_000
    best = np.full(strangers, -np.inf)
    for _ in range(labels):
        np.maximum(best, random.normal(KNOWN.mean, KNOWN.std, strangers), out=best)
    accepted = float((best >= threshold).mean())
    # Four deviations of a count of that many strangers.
    assert abs(accepted - rate) < 4 * math.sqrt(rate * (1 - rate) / strangers)


def test_strangers_to_a_real_gallery_are_let_in_at_about_the_promised_rate() -> None:
    """Nothing is known beforehand: the threshold is fitted to what the enrolled labels score against each other."""
    random = np.random.default_rng(5)

    def people(count: int) -> np.ndarray[Any, Any]:
        rows = random.standard_normal((count, 64))
        return (rows / np.linalg.norm(rows, axis=1, keepdims=True)).astype(np.float32)

    gallery = EmbeddedGallery(64, "nearest")
    gallery.replace({f"person {index}": row[None] for index, row in enumerate(people(60))})
    threshold = fit_threshold(gallery.impostors, None, labels=60, false_accept_rate=0.05)
    best = np.array([matches[0].score for matches in gallery.search(people(4000), 1)])
    # The gallery itself is a sample of 60, and cosines in 64 dimensions are only nearly normal.
    assert 0.02 < (best >= threshold).mean() < 0.09


def test_the_threshold_rises_with_what_a_stranger_may_match() -> None:
    thresholds = [fit_threshold(KNOWN, None, labels=n, false_accept_rate=0.01) for n in (1, 2, 10, 100, 10_000)]
    assert thresholds == sorted(set(thresholds), key=float)  # type: ignore[arg-type]
    strict = [fit_threshold(KNOWN, None, labels=5, false_accept_rate=r) for r in (0.5, 0.1, 0.01, 1e-6)]
    assert strict == sorted(set(strict), key=float)  # type: ignore[arg-type]
    nobody = fit_threshold(KNOWN, None, labels=0, false_accept_rate=0.01)
    assert nobody == fit_threshold(KNOWN, None, labels=1, false_accept_rate=0.01)


def test_one_source_alone_is_taken_as_it_is() -> None:
    expected = KNOWN.mean + NormalDist().inv_cdf(0.99) * KNOWN.std
    for enrolled, prior in [(KNOWN, None), (None, KNOWN)]:
        found = fit_threshold(enrolled, prior, labels=1, false_accept_rate=0.01)
        assert found == pytest.approx(expected, abs=1e-9)


def test_nothing_known_is_no_threshold() -> None:
    empty = Impostors(0.5, 0.1, 0)
    for enrolled, prior in [(None, None), (empty, None), (None, empty), (empty, empty)]:
        assert fit_threshold(enrolled, prior, labels=3, false_accept_rate=0.01) is None


def test_two_sources_are_one_mixture() -> None:
    """20 pairs of the build and 20 enrolled ones weigh the same: the moments of the mixture, drawn."""
    prior, enrolled = Impostors(0.1, 0.05, 5000), Impostors(0.4, 0.1, 20)
    random = np.random.default_rng(0)
    drawn = np.concatenate([random.normal(0.1, 0.05, 200_000), random.normal(0.4, 0.1, 200_000)])
    expected = drawn.mean() + NormalDist().inv_cdf(0.99) * drawn.std()
    found = fit_threshold(enrolled, prior, labels=1, false_accept_rate=0.01)
    assert found == pytest.approx(expected, abs=2e-3)


def test_the_more_is_enrolled_the_less_the_prior_weighs() -> None:
    prior = Impostors(0.1, 0.05, 5000)
    distance = [
        abs(fit_threshold(Impostors(0.4, 0.1, pairs), prior, labels=1, false_accept_rate=0.5) - 0.4)  # type: ignore[operator]
        for pairs in (2, 20, 200, 20_000)
    ]
    assert distance == sorted(distance, reverse=True)
    assert distance[0] > 0.25
    assert distance[-1] < 0.001


@pytest.mark.parametrize("rate", [5e-324, 1e-300, 1e-17, 1e-9, 1 - 1e-16])
@pytest.mark.parametrize("labels", [1, 10**6])
def test_extreme_rates_have_a_threshold(rate: float, labels: int) -> None:
    found = fit_threshold(KNOWN, None, labels=labels, false_accept_rate=rate)
    assert found is not None
    assert math.isfinite(found)
    if rate < 1e-8:
        assert found > fit_threshold(KNOWN, None, labels=labels, false_accept_rate=1e-8)  # type: ignore[operator]


def test_what_the_build_wrote_is_read() -> None:
    data = {"mean": 0.25, "std": 0.125, "pairs": 7, "source": "some pictures"}
    assert impostors_of({"impostor": data}) == Impostors(0.25, 0.125, 7, "some pictures")
    assert impostors_of({"impostor": {"mean": 1, "std": 0, "pairs": 0}}) == Impostors(1.0, 0.0, 0)
    assert impostors_of({"impostor": None}) is None
    assert impostors_of({}) is None
    assert false_accept_rate_of({"false_accept_rate": 0.2}) == 0.2
    assert false_accept_rate_of({}) == 0.01


@pytest.mark.parametrize(
    "data",
    [
        3,
        [],
        "x",
        {},
        {"mean": 0.1, "std": 0.1},
        {"mean": 0.1, "std": 0.1, "pairs": 1, "more": 1},
        {"mean": "0.1", "std": 0.1, "pairs": 1},
        {"mean": 0.1, "std": 0.1, "pairs": 1.5},
        {"mean": 1.1, "std": 0.1, "pairs": 1},
        {"mean": -1e200, "std": 0.1, "pairs": 1},
        {"mean": 10**400, "std": 0.1, "pairs": 1},
        {"mean": 0.1, "std": -0.1, "pairs": 1},
        {"mean": 0.1, "std": 1e200, "pairs": 1},
        {"mean": 0.1, "std": 0.1, "pairs": -1},
    ],
)
def test_impostor_scores_that_lie(data: Any) -> None:
    with pytest.raises(SchemaError, match=r"postprocess\.impostor"):
        impostors_of({"impostor": data})


@pytest.mark.parametrize("rate", [0.0, 1.0, -0.1, 2.0, 0, 1, True, None, "0.1", [], 10**400, float("nan")])
def test_false_accept_rates_that_lie(rate: Any) -> None:
    with pytest.raises(SchemaError, match=r"postprocess\.false_accept_rate is .*; allowed: 0\.\.1, exclusive"):
        false_accept_rate_of({"false_accept_rate": rate})
