"""Batches of P identities with K images each, as losses over triplets need them."""

from __future__ import annotations

import random
from collections.abc import Iterator

from numpy.typing import ArrayLike

from edgevis.data.checks import Label, at_least, positions_by_label
from edgevis.data.rng import below, draw_at, sample, shuffled
from runtime.errors import InputError


class IdentitySampler:
    """Lists of P x K positions, the K images of an identity next to each other: a PyTorch ``batch_sampler``.

    Identities come in random order, none again before all have come, and none twice in a batch. The K images of one
    are different ones; of an identity that has fewer, all of them come, and then some again.

    What an epoch draws depends on the seed and the epoch only, and is the same on every platform.
    """

    def __init__(
        self,
        labels: ArrayLike,
        *,
        identities: int,
        images: int,
        batches: int | None = None,
        seed: int = 0,
        epoch: int = 0,
    ) -> None:
        """Args are checked at once, nothing is drawn yet.

        Args:
            labels: (I,) strings or integers, one for each image.
            identities: P, identities in a batch.
            images: K, images of each.
            batches: How many there are in an epoch; None for as many as I images fill, at least one.
            seed, epoch: Others give other batches.

        Raises:
            InputError: A number is out of range, or there are fewer than P identities.
        """
        self.identities, self.images = at_least("identities", identities, 1), at_least("images", images, 1)
        self.seed, self.epoch = at_least("seed", seed, 0), at_least("epoch", epoch, 0)
        self._members = positions_by_label(labels)
        if len(self._members) < identities:
            raise InputError(f"there are {len(self._members)} identities; {identities} are needed for a batch")
        count = sum(len(members) for members in self._members.values())
        self.batches = max(1, count // (identities * images)) if batches is None else at_least("batches", batches, 1)

    def __len__(self) -> int:
        return self.batches

    def __iter__(self) -> Iterator[list[int]]:
        draw = draw_at(self.seed, self.epoch)
        waiting: list[Label] = []
        for _ in range(self.batches):
            if len(waiting) < self.identities:
                # The next round; those that still wait from the last one come first, and once in this batch.
                fresh = shuffled(draw, tuple(self._members))
                missing = self.identities - len(waiting)
                first = [label for label in fresh if label not in waiting][:missing]
                waiting += first + [label for label in fresh if label not in first]
            batch, waiting = waiting[: self.identities], waiting[self.identities :]
            yield [place for label in batch for place in self._some(draw, self._members[label])]

    def _some(self, draw: random.Random, members: list[int]) -> list[int]:
        if len(members) >= self.images:
            return sample(draw, members, self.images)
        again = [members[below(draw, len(members))] for _ in range(self.images - len(members))]
        return members + again
