"""N-way K-shot episodes: support and query images by class."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray

from edgevis.data.checks import Label, at_least, positions_by_label
from edgevis.data.rng import draw_at, sample
from runtime.errors import InputError


@dataclass(frozen=True, slots=True, eq=False)
class Episode:
    """One task.

    Attributes:
        classes: N labels.
        shots: (N, K) int64, positions of the images that each class is learned from.
        queries: (N, Q) int64, positions of other images of it that are asked for.
    """

    classes: tuple[Label, ...]
    shots: NDArray[np.int64]
    queries: NDArray[np.int64]


class EpisodeSampler:
    """Random episodes over labelled images; every class and every image of a class is equally likely.

    As an iterable it may serve as ``batch_sampler`` of a PyTorch ``DataLoader``: it yields lists of positions in
    class-major order – the K shots of the first class, its Q queries, those of the second class, and so on, episode
    after episode – so that a batch of embeddings becomes (episodes, N, K + Q, D) by a reshape.

    An episode depends on the seed, the epoch and its number only, not on what was drawn before, and is the same on
    every platform.
    """

    def __init__(
        self,
        labels: ArrayLike,
        *,
        way: int,
        shot: int,
        query: int,
        episodes: int,
        per_batch: int = 1,
        among: Iterable[int] | None = None,
        skip_small: bool = False,
        seed: int = 0,
        epoch: int = 0,
    ) -> None:
        """Args are checked at once, nothing is drawn yet.

        Args:
            labels: (I,) strings or integers, one for each image.
            way: N, classes in an episode.
            shot: K, images of each class to learn from.
            query: Q, further images of each class to ask for.
            episodes: How many there are in an epoch.
            per_batch: Episodes in each list that iterating yields.
            among: Positions of the images that may be drawn, such as one part of :func:`edgevis.data.mixed_split`.
            skip_small: Leave out classes with fewer than K + Q images, which is otherwise an error.
            seed, epoch: Others give other episodes.

        Raises:
            InputError: A number is out of range, or too few classes have images enough.
        """
        self.way, self.shot, self.query = (
            at_least("way", way, 1),
            at_least("shot", shot, 1),
            at_least("query", query, 1),
        )
        self.episodes, self.per_batch = at_least("episodes", episodes, 1), at_least("per_batch", per_batch, 1)
        self.seed, self.epoch = at_least("seed", seed, 0), at_least("epoch", epoch, 0)
        if episodes % per_batch:
            raise InputError(f"{episodes} episodes are no multiple of {per_batch} per batch")
        by_label = positions_by_label(labels, among)
        small = [label for label, members in by_label.items() if len(members) < shot + query]
        if small and not skip_small:
            raise InputError(
                f"{len(small)} classes have fewer than {shot + query} images, such as {small[0]!r} with "
                f"{len(by_label[small[0]])}; skip_small=True leaves them out"
            )
        self._members = {label: members for label, members in by_label.items() if len(members) >= shot + query}
        if len(self._members) < way:
            raise InputError(
                f"{len(self._members)} classes have {shot + query} images or more; {way} are needed for {way}-way"
            )

    def __len__(self) -> int:
        """The number of batches in an epoch."""
        return self.episodes // self.per_batch

    def __iter__(self) -> Iterator[list[int]]:
        """The positions of one batch after another."""
        for start in range(0, self.episodes, self.per_batch):
            drawn = [self.episode(number) for number in range(start, start + self.per_batch)]
            yield [place for item in drawn for place in np.hstack([item.shots, item.queries]).ravel().tolist()]

    def episode(self, number: int) -> Episode:
        """One episode by its number in the epoch, from 0.

        Raises:
            IndexError: There are fewer.
        """
        if not 0 <= number < self.episodes:
            raise IndexError(f"episode {number} of {self.episodes}")
        draw = draw_at(self.seed, self.epoch, number)
        classes = sample(draw, tuple(self._members), self.way)
        drawn = np.array([sample(draw, self._members[label], self.shot + self.query) for label in classes], np.int64)
        return Episode(tuple(classes), drawn[:, : self.shot], drawn[:, self.shot :])
