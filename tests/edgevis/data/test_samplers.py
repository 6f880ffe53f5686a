"""What samplers promise: class-major order, no image as its own query, the same draws everywhere."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from edgevis.data import EpisodeSampler, IdentitySampler, mixed_split
from edgevis.data.rng import below, draw_at, sample
from runtime.errors import InputError

CLASSES, IMAGES = 6, 9
LABELS = [f"class {index % CLASSES}" for index in range(CLASSES * IMAGES)]


def test_draws_are_the_same_everywhere() -> None:
    """Literal numbers: another Python, NumPy or platform must give them, and no change of ours may alter them."""
    sampler = EpisodeSampler(LABELS, way=2, shot=1, query=2, episodes=2, seed=5)
    assert list(sampler) == [[12, 0, 30, 50, 44, 32], [17, 11, 41, 32, 38, 8]]
    identities = IdentitySampler(LABELS, identities=2, images=2, batches=2, seed=5)
    assert list(identities) == [[33, 45, 48, 42], [4, 52, 37, 25]]


@given(st.integers(1, 40), st.data())
def test_a_sample_has_no_item_twice_and_comes_from_the_items(count: int, data: st.DataObject) -> None:
    items = [f"item {index}" for index in range(count)]
    size = data.draw(st.integers(0, count))
    drawn = sample(draw_at(data.draw(st.integers(0, 2**70))), items, size)
    assert len(drawn) == len(set(drawn)) == size
    assert set(drawn) <= set(items)


def test_draws_are_even() -> None:
    draw = draw_at(0)
    first = Counter(sample(draw, "abcd", 2)[0] for _ in range(4000))
    assert all(900 < first[letter] < 1100 for letter in "abcd"), first
    counts = Counter(below(draw, 3) for _ in range(3000))
    assert sorted(counts) == [0, 1, 2]
    assert all(900 < count < 1100 for count in counts.values()), counts


def test_episodes_hold_the_protocol() -> None:
    sampler = EpisodeSampler(LABELS, way=4, shot=2, query=5, episodes=20)
    for number in range(20):
        episode = sampler.episode(number)
        assert (episode.shots.shape, episode.queries.shape) == ((4, 2), (4, 5))
        used = [*episode.shots.ravel(), *episode.queries.ravel()]
        assert len(used) == len(set(used)) == 4 * 7, "no image twice"
        assert len(set(episode.classes)) == 4, "no class twice"
        for row, label in enumerate(episode.classes):
            assert {LABELS[index] for index in (*episode.shots[row], *episode.queries[row])} == {label}


def test_batches_are_class_major_shots_first_episode_after_episode() -> None:
    sampler = EpisodeSampler(LABELS, way=3, shot=2, query=1, episodes=4, per_batch=2)
    batches = list(sampler)
    assert len(batches) == len(sampler) == 2
    table = np.array(batches).reshape(4, 3, 3)
    for number, rows in enumerate(table):
        episode = sampler.episode(number)
        np.testing.assert_array_equal(rows[:, :2], episode.shots)
        np.testing.assert_array_equal(rows[:, 2:], episode.queries)


def test_an_episode_depends_on_seed_epoch_and_number_only() -> None:
    def drawn(**changed: int) -> list[list[int]]:
        arguments = {"way": 3, "shot": 2, "query": 1, "episodes": 3, "seed": 1, "epoch": 2} | changed
        return list(EpisodeSampler(LABELS, **arguments))

    assert drawn() == drawn()
    assert drawn(episodes=5)[:3] == drawn()
    assert drawn(seed=2) != drawn() != drawn(epoch=3)


def test_only_positions_among_those_given_are_drawn() -> None:
    among = [index for index in range(len(LABELS)) if index % CLASSES in (0, 2) and index > 20]
    sampler = EpisodeSampler(LABELS, way=2, shot=1, query=3, episodes=10, among=among)
    assert {index for batch in sampler for index in batch} <= set(among)


@pytest.mark.parametrize(
    ("labels", "changed", "message"),
    [
        (LABELS, {"query": 9}, "6 classes have fewer than 10 images, such as 'class 0' with 9; skip_small=True"),
        (LABELS, {"way": 7}, "6 classes have 2 images or more; 7 are needed for 7-way"),
        (LABELS, {"way": 0}, "way is 0"),
        (LABELS, {"shot": 1.5}, "shot is 1.5"),
        (LABELS, {"query": True}, "query is True"),
        (LABELS, {"seed": -1}, "seed is -1"),
        (LABELS, {"episodes": 3, "per_batch": 2}, "3 episodes are no multiple of 2"),
        (LABELS, {"among": []}, "no images to draw from"),
        (LABELS, {"among": [0, 54]}, r"(?s)0 to 54"),
        (LABELS, {"among": [3, 3]}, "named twice"),
        ([], {}, "no images to draw from"),
        ([0.5, math.nan], {}, "dtype float64"),
        ([["a"], ["b"]], {}, r"shape \(2, 1\)"),
    ],
)
def test_wrong_episodes(labels: object, changed: dict[str, object], message: str) -> None:
    arguments = {"way": 2, "shot": 1, "query": 1, "episodes": 2} | changed
    with pytest.raises(InputError, match=message):
        EpisodeSampler(labels, **arguments)  # type: ignore[arg-type]


def test_small_classes_are_left_out_when_asked() -> None:
    labels = [*LABELS, "small"]
    sampler = EpisodeSampler(labels, way=6, shot=1, query=1, episodes=5, skip_small=True)
    assert all("small" not in sampler.episode(number).classes for number in range(5))
    with pytest.raises(IndexError):
        sampler.episode(5)


def test_mixed_split_is_the_papers() -> None:
    """MiniImageNet's 64, 16 and 20 classes become 64, 32 and 40 of half as many images."""
    labels = np.repeat(np.arange(100), 12)
    base, validation, test = range(64), range(64, 80), range(80, 100)
    split = mixed_split(labels, base=base, validation=validation, test=test, images=6)
    assert Counter(labels[list(split.train)]) == dict.fromkeys(base, 6)
    for part, novel, old in (
        (split.validation, validation, split.validation_base),
        (split.test, test, split.test_base),
    ):
        assert len(old) == len(novel)
        assert set(old) <= set(base)
        assert Counter(labels[list(part)]) == dict.fromkeys([*novel, *old], 6)
    assert not set(split.validation_base) & set(split.test_base)
    drawn = [*split.train, *split.validation, *split.test]
    assert len(drawn) == len(set(drawn)), "no image in two parts"
    # Its episodes are of all compositions.
    sampler = EpisodeSampler(labels, way=5, shot=1, query=2, episodes=200, among=split.test)
    composition = Counter(sum(label in base for label in sampler.episode(number).classes) for number in range(200))
    assert {1, 2, 3, 4} <= set(composition)


def test_mixed_split_without_limit_halves_base_classes_only() -> None:
    labels = ["cat"] * 5 + ["dog"] * 4 + ["newt"] * 3
    split = mixed_split(labels, base=["cat", "dog"], validation=[], test=["newt"], seed=3)
    counts = Counter(labels[index] for index in split.train)
    assert counts == {"cat": 3, "dog": 2}
    assert split.validation == ()
    (old,) = split.test_base
    assert Counter(labels[index] for index in split.test) == {"newt": 3, old: 2}
    assert mixed_split(labels, base=["cat", "dog"], validation=[], test=["newt"], seed=3) == split


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"test": ["a"]}, "'a' is named twice"),
        ({"test": ["x"]}, "no image has the label 'x'"),
        ({"test": []}, "2 base classes for 1 \\+ 0 novel ones"),
        ({"base": ["a"]}, "1 base classes for 1 \\+ 1 novel ones"),
        ({"base": ["a", "e"]}, "base class 'e' has one image"),
        ({"images": 0}, "images is 0"),
        ({"seed": -1}, "seed is -1"),
    ],
)
def test_wrong_mixed_splits(changed: dict[str, object], message: str) -> None:
    arguments = {"base": ["a", "b"], "validation": ["c"], "test": ["d"]} | changed
    with pytest.raises(InputError, match=message):
        mixed_split(list("aabbccdde"), **arguments)  # type: ignore[arg-type]


@given(st.lists(st.integers(1, 7), min_size=1, max_size=12), st.integers(1, 5), st.integers(1, 20), st.data())
def test_identity_batches(sizes: list[int], images: int, batches: int, data: st.DataObject) -> None:
    labels = [identity for identity, size in enumerate(sizes) for _ in range(size)]
    identities = data.draw(st.integers(1, len(sizes)))
    sampler = IdentitySampler(labels, identities=identities, images=images, batches=batches)
    drawn = list(sampler)
    assert len(drawn) == len(sampler) == batches
    order = []
    for batch in drawn:
        rows = np.array(batch).reshape(identities, images)
        owners = [{labels[index] for index in row} for row in rows]
        assert all(len(owner) == 1 for owner in owners), "images of an identity lie next to each other"
        order += [owner.pop() for owner in owners]
        assert len(set(order[-identities:])) == identities, "no identity twice"
        for row in rows:
            assert len(set(row.tolist())) == min(images, sizes[labels[row[0]]]), "all images before any comes again"
    seen = Counter(order)
    assert max(seen.values()) - min(seen[identity] for identity in range(len(sizes))) <= 1, "all before any again"


def test_identity_epochs_differ_and_are_as_long_as_the_images() -> None:
    def drawn(**changed: int) -> list[list[int]]:
        return list(IdentitySampler(LABELS, **{"identities": 2, "images": 3, "seed": 0} | changed))

    assert len(drawn()) == CLASSES * IMAGES // 6
    assert drawn() == drawn()
    assert drawn(seed=1) != drawn() != drawn(epoch=1)
    assert len(list(IdentitySampler(["a", "b"], identities=2, images=4))) == 1


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: IdentitySampler(LABELS, identities=7, images=2), "there are 6 identities; 7 are needed"),
        (lambda: IdentitySampler(LABELS, identities=2, images=0), "images is 0"),
        (lambda: IdentitySampler(LABELS, identities=2, images=2, batches=0), "batches is 0"),
        (lambda: IdentitySampler([], identities=2, images=2), "no images"),
    ],
)
def test_wrong_identities(make: Callable[[], object], message: str) -> None:
    with pytest.raises(InputError, match=message):
        make()


def test_samplers_serve_a_dataloader() -> None:
    torch = pytest.importorskip("torch")
    sampler = EpisodeSampler(LABELS, way=2, shot=1, query=2, episodes=3)
    loader = torch.utils.data.DataLoader(range(len(LABELS)), batch_sampler=sampler)
    assert [batch.tolist() for batch in loader] == list(sampler)
    assert len(loader) == 3
