"""Every measure against its definition written out, and against other libraries, on random tables with ties."""

from __future__ import annotations

import itertools
import math
from typing import Any

import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from benchmarks.box_fit import rank_correlation
from edgevis.metrics import (
    SegmentationScore,
    dice_per_volume,
    difference,
    episode_accuracy,
    grouped_mean,
    mean_of_ratios,
    reid_queries,
    reid_ranking,
)
from edgevis.metrics.interval import half_width
from runtime.errors import InputError

Table = NDArray[Any]
quick = settings(max_examples=100, deadline=None)


# --- retrieval


@st.composite
def searches(draw: st.DrawFn, *, gallery: int = 6, levels: int = 3) -> tuple[Table, Table, Table, Table, Table]:
    """Distances with many ties, and identities (-1 is junk) and cameras of few values, so that all cases occur."""
    random = np.random.default_rng(draw(st.integers(0, 1 << 30)))
    q, g = draw(st.integers(1, 4)), draw(st.integers(1, gallery))
    distances = random.integers(0, levels, (q, g)) / 2
    ids, cameras = (
        [random.integers(low, high, size) for size in (q, g)]
        for low, high in ((draw(st.sampled_from([-1, 0])), 3), (0, 2))
    )
    return distances, ids[0], ids[1], cameras[0], cameras[1]


def worst_of_all_orders(row: Table, wrong: Table) -> tuple[int, float] | None:
    """The latest first match and the least average precision of all orders that distances allow; None without match."""
    if wrong.all():
        return None
    found = []
    for order in itertools.permutations(range(len(row))):
        if all(row[a] <= row[b] for a, b in itertools.pairwise(order)):
            ranks = [place for place, item in enumerate(order, 1) if not wrong[item]]
            found.append((ranks[0] - 1, math.fsum(hits / rank for hits, rank in enumerate(ranks, 1)) / len(ranks)))
    return max(first for first, _ in found), min(precision for _, precision in found)


@quick
@given(searches())
def test_ranking_is_the_worst_of_all_orders_that_ties_allow(search: tuple[Table, ...]) -> None:
    distances, ids, gallery_ids, cameras, gallery_cameras = search
    expected = {}
    for number, (row, person, camera) in enumerate(zip(distances, ids, cameras, strict=True)):
        counts = [
            g != -1 and not (g == person and c == camera) for g, c in zip(gallery_ids, gallery_cameras, strict=True)
        ]
        found = worst_of_all_orders(row[counts], gallery_ids[counts] != person) if any(counts) else None
        if person != -1 and found is not None:
            expected[number] = found
    if not expected:
        with pytest.raises(InputError, match="no query has a gallery image"):
            reid_queries(*search)
        return
    found_ranks = reid_queries(*search)
    assert found_ranks.query.tolist() == list(expected)
    assert found_ranks.first.tolist() == [first for first, _ in expected.values()]
    np.testing.assert_allclose(found_ranks.precision, [precision for _, precision in expected.values()], rtol=1e-12)
    curve, mean_ap = reid_ranking(*search, max_rank=4)
    shares = [np.mean([first <= rank for first, _ in expected.values()]) for rank in range(min(4, len(gallery_ids)))]
    np.testing.assert_allclose(curve, shares)
    assert mean_ap == pytest.approx(np.mean([precision for _, precision in expected.values()]))


@quick
@given(searches(gallery=12), st.integers(0, 1 << 30))
def test_the_order_of_rows_decides_nothing(search: tuple[Table, ...], seed: int) -> None:
    distances, ids, gallery_ids, cameras, gallery_cameras = search
    order = np.random.default_rng(seed).permutation(len(gallery_ids))
    try:
        curve, mean_ap = reid_ranking(*search)
    except InputError:
        assume(False)
    shuffled = reid_ranking(distances[:, order], ids, gallery_ids[order], cameras, gallery_cameras[order])
    np.testing.assert_array_equal(shuffled[0], curve)
    assert shuffled[1] == pytest.approx(mean_ap, rel=1e-12)


def test_a_model_that_gives_everything_one_embedding_finds_nothing() -> None:
    ids = np.repeat(np.arange(5), 4)
    curve, mean_ap = reid_ranking(np.zeros((20, 20)), ids, ids, np.zeros(20), np.ones(20))
    assert curve[:16].tolist() == [0.0] * 16
    assert mean_ap == pytest.approx(np.mean([1 / 17, 2 / 18, 3 / 19, 4 / 20]))


@quick
@given(st.integers(0, 1 << 30))
def test_ranking_without_ties_is_torchmetrics(seed: int) -> None:
    torch = pytest.importorskip("torch")
    retrieval = pytest.importorskip("torchmetrics.functional.retrieval")
    random = np.random.default_rng(seed)
    distances = random.permutation(3 * 9).reshape(3, 9) / 27
    ids, gallery_ids = random.integers(0, 3, 3), random.integers(0, 3, 9)
    assume(set(ids) <= set(gallery_ids))
    found = reid_queries(distances, ids, gallery_ids, np.zeros(3), np.ones(9))
    for row, person, precision, first in zip(distances, ids, found.precision, found.first, strict=True):
        scores, target = torch.from_numpy(2 - row), torch.from_numpy(gallery_ids == person)
        assert precision == pytest.approx(float(retrieval.retrieval_average_precision(scores, target)), abs=1e-6)
        for rank in (1, 3):
            assert (first < rank) == bool(retrieval.retrieval_hit_rate(scores, target, top_k=rank))


# --- overlap


@st.composite
def segmentations(draw: st.DrawFn) -> tuple[list[int], list[tuple[Table, Table, int, Table]]]:
    """Classes of a fold, and predictions, targets, classes and ignored pixels; some classes may never be drawn."""
    random = np.random.default_rng(draw(st.integers(0, 1 << 30)))
    classes = list(range(draw(st.integers(1, 4))))
    shares = draw(st.tuples(*[st.sampled_from([0.0, 0.3, 1.0])] * 2))
    items = []
    for _ in range(draw(st.integers(1, 6))):
        size = tuple(random.integers(1, 5, 2))
        prediction, target = (random.random(size) < share for share in shares)
        items.append((prediction, target, int(random.choice(classes)), random.random(size) < 0.2))
    return classes, items


@quick
@given(segmentations())
def test_iou_is_that_of_sets_of_pixels(drawn: tuple[list[int], list[tuple[Table, Table, int, Table]]]) -> None:
    classes, items = drawn
    score = SegmentationScore(classes)
    found: dict[int, list[tuple[Any, ...]]] = {}  # of each class the pixels: item, place, predicted, true
    for number, (prediction, target, class_id, ignore) in enumerate(items):
        score.add(prediction, target, class_id, ignore)
        pixels = [(number, *place, p, t) for (place, p), t, i in zip(
            np.ndenumerate(prediction), target.flat, ignore.flat, strict=True) if not i]  # fmt: skip
        found.setdefault(class_id, []).extend(pixels)

    def iou(pixels: list[tuple[Any, ...]], value: bool) -> float | None:
        predicted, true = ({item[:-2] for item in pixels if item[side] == value} for side in (-2, -1))
        return len(predicted & true) / len(predicted | true) if predicted | true else None

    class_iou = {class_id: iou(found.get(class_id, []), True) for class_id in classes}
    expected = {class_id: value for class_id, value in class_iou.items() if value is not None}
    assert score.class_iou == pytest.approx(expected)
    everything = [pixel for pixels in found.values() for pixel in pixels]
    sides = [value for value in (iou(everything, False), iou(everything, True)) if value is not None]
    for values, name in ((list(expected.values()), "mean_iou"), (sides, "fb_iou")):
        if values:
            assert getattr(score, name) == pytest.approx(np.mean(values))
        else:
            with pytest.raises(InputError, match="denominators are 0"):
                getattr(score, name)


def test_of_classes_never_drawn_nothing_is_known() -> None:
    mask = np.eye(8, dtype=bool)
    score = SegmentationScore(range(8))
    for class_id in (0, 1, 2):
        score.add(mask, mask, class_id)
    assert (score.mean_iou, score.fb_iou) == (1.0, 1.0)
    assert score.class_iou == {0: 1.0, 1: 1.0, 2: 1.0}
    samples = score.samples()
    assert samples["mIoU"].tolist() == [1.0] * 3
    with pytest.raises(InputError, match="n, k >= 1"):
        _ = SegmentationScore([1]).mean_iou


@quick
@given(st.integers(0, 1 << 30))
def test_iou_is_torchmetrics(seed: int) -> None:
    torch = pytest.importorskip("torch")
    classification = pytest.importorskip("torchmetrics.functional.classification")
    random = np.random.default_rng(seed)
    score = SegmentationScore([5])
    parts: list[list[Table]] = [[], []]
    for _ in range(3):
        prediction, target, ignore = (random.random((4, 6)) < share for share in (0.5, 0.4, 0.2))
        score.add(prediction, target, 5, ignore)
        parts[0].append(prediction.ravel())
        parts[1].append(np.where(ignore, 9, target).ravel())
    pair = [torch.from_numpy(np.concatenate(part).astype(np.int64)) for part in parts]
    known = classification.multiclass_jaccard_index(*pair, num_classes=2, average=None, ignore_index=9)
    assert score.mean_iou == pytest.approx(float(known[1]), abs=1e-6)
    assert score.fb_iou == pytest.approx(float(known.mean()), abs=1e-6)


@quick
@given(st.integers(0, 1 << 30), st.integers(1, 6), st.sampled_from([0.0, 0.5, 1.0]))
def test_dice_is_that_of_sets_of_pixels(seed: int, slices: int, share: float) -> None:
    random = np.random.default_rng(seed)
    masks = [tuple((random.random((3, 4)) < share).astype(np.uint8) * 2 for _ in range(2)) for _ in range(slices)]
    names = [str(name) for name in random.integers(0, 3, slices)]
    found = dice_per_volume([p for p, _ in masks], [t for _, t in masks], names, class_id=2)
    assert list(found) == list(dict.fromkeys(names))
    for name, value in found.items():
        sets: list[set[tuple[int, ...]]] = [set(), set()]
        for number, (pair, volume) in enumerate(zip(masks, names, strict=True)):
            if volume == name:
                for pixels, mask in zip(sets, pair, strict=True):
                    pixels |= {(number, *place) for place, shown in np.ndenumerate(mask) if shown == 2}
        total = len(sets[0]) + len(sets[1])
        assert value == pytest.approx(2 * len(sets[0] & sets[1]) / total if total else 1.0)


# --- how sure a figure is

accuracies = st.lists(st.sampled_from([0.0, 0.25, 0.5, 1.0]) | st.floats(0, 1), min_size=2, max_size=40)


@quick
@given(accuracies)
def test_interval_is_students(values: list[float]) -> None:
    stats = pytest.importorskip("scipy.stats")
    found = episode_accuracy(values)
    error = np.std(values, ddof=1) / np.sqrt(len(values))
    assert found.mean == pytest.approx(np.mean(values))
    assert found.half_width95 == pytest.approx(stats.t.ppf(0.975, len(values) - 1) * error, rel=1e-9, abs=1e-15)
    other = np.roll(values, 1)
    by, width = difference(values, other)
    assert by == pytest.approx(0, abs=1e-12)
    assert width == pytest.approx(half_width(np.array(values) - other), abs=1e-15)


@quick
@given(st.integers(0, 1 << 30), st.integers(2, 8), st.integers(1, 4))
def test_pseudo_values_leave_each_unit_out(seed: int, units: int, columns: int) -> None:
    random = np.random.default_rng(seed)
    below = random.integers(0, 3, (units, columns)) * random.integers(0, 2, (units, columns))
    above = np.minimum(random.integers(0, 3, (units, columns)), below)
    if not below.any():
        with pytest.raises(InputError, match="denominators are 0"):
            mean_of_ratios(above, below)
        return

    def figure(kept: list[int]) -> float | None:
        ratios = [
            sum(above[unit, column] for unit in kept) / total
            for column in range(columns)
            if (total := sum(below[unit, column] for unit in kept))
        ]
        return sum(ratios) / len(ratios) if ratios else None

    value, samples = mean_of_ratios(above, below)
    assert value == pytest.approx(figure(list(range(units))))
    for unit in range(units):
        others = figure([other for other in range(units) if other != unit])
        assert samples[unit] == pytest.approx(units * value - (units - 1) * (value if others is None else others))


@quick
@given(st.lists(st.tuples(st.sampled_from("abc"), st.sampled_from([0.0, 0.5, 1.0])), min_size=1, max_size=12))
def test_grouped_mean_is_the_mean(pairs: list[tuple[str, float]]) -> None:
    groups, values = zip(*pairs, strict=True)
    value, samples = grouped_mean(values, groups)
    assert value == pytest.approx(np.mean(values))
    assert samples.shape == (len(set(groups)),)
    count = len(samples)
    for name, sample in zip(sorted(set(groups)), samples, strict=True):
        others = [number for group, number in pairs if group != name]
        assert sample == pytest.approx(count * value - (count - 1) * np.mean(others) if others else value)


@quick
@given(st.lists(st.tuples(st.integers(0, 4), st.integers(0, 4)), min_size=2, max_size=12))
def test_rank_correlation_is_spearmans(pairs: list[tuple[int, int]]) -> None:
    stats = pytest.importorskip("scipy.stats")
    one, other = zip(*pairs, strict=True)
    found = rank_correlation(one, other)
    if len(set(one)) < 2 or len(set(other)) < 2:
        assert found is None
    else:
        assert found == pytest.approx(stats.spearmanr(one, other)[0], abs=1e-12)
