"""Few-shot segmentation episodes: a query image and K support images of one class."""

from __future__ import annotations

import bisect
import itertools
from dataclasses import dataclass
from typing import Literal

from edgevis.data.checks import at_least
from edgevis.data.few_shot_masks import ClassMask, ClassMasks
from edgevis.data.rng import below, draw_at, sample
from runtime.errors import InputError

Queries = Literal["by class", "in turn"]


@dataclass(frozen=True, slots=True, eq=False)
class SegmentationEpisode:
    """One task, each image of its own size.

    Attributes:
        class_id: What is looked for.
        query: Where it is looked for; its ``ignore`` is for the measures.
        supports: K examples, each another image than the query.
    """

    class_id: int
    query: ClassMask
    supports: tuple[ClassMask, ...]


class SegmentationEpisodes:
    """Random episodes; images are decoded when an episode is asked for. May serve as a PyTorch data set.

    An episode depends on the seed, the epoch and its number only, and is the same on every platform. The K supports
    are different images. (HSNet's code, and so published numbers, may draw one image twice among five.)
    """

    def __init__(
        self,
        data: ClassMasks,
        *,
        shot: int,
        episodes: int = 1000,
        queries: Queries = "by class",
        seed: int = 0,
        epoch: int = 0,
        class_power: float = 0.0,
    ) -> None:
        """Args are checked at once, nothing is read yet.

        Args:
            data: Images by class.
            shot: K.
            episodes: How many there are in an epoch; 1000 is the benchmarks' number.
            queries: ``by class`` draws a class, then a query of it (COCO-20i); ``in turn`` takes each image with each
                of its classes one after another, and again from the first (PASCAL-5i, FSS-1000): the first image of
                every class, then the second, so that fewer episodes than images ask for all classes alike.
            seed, epoch: Others give other episodes.
            class_power: ``by class`` draws a class of n images with a probability in proportion to n to this power: 0
                draws all classes alike, 1 all pairs of an image and a class.

        Raises:
            InputError: A number is out of range, there are no classes, or a class has fewer than K + 1 images.
        """
        self.data, self.shot = data, at_least("shot", shot, 1)
        self.episodes, self.queries = at_least("episodes", episodes, 1), queries
        self.seed, self.epoch = at_least("seed", seed, 0), at_least("epoch", epoch, 0)
        if queries not in ("by class", "in turn"):
            raise InputError(f"queries is {queries!r}; allowed: 'by class', 'in turn'")
        if not data.members:
            raise InputError("there are no classes to draw from")
        small = [class_id for class_id, members in data.members.items() if len(members) <= shot]
        if small:
            raise InputError(
                f"class {small[0]} has {len(data.members[small[0]])} images; a query and {shot} supports are needed"
            )
        weights = [len(members) ** class_power for members in data.members.values()]
        self._until = [total / sum(weights) for total in itertools.accumulate(weights)]
        self._pairs = [
            (class_id, members[nth])
            for nth in range(max(map(len, data.members.values())))
            for class_id, members in data.members.items()
            if nth < len(members)
        ]

    def __len__(self) -> int:
        return self.episodes

    def __getitem__(self, number: int) -> SegmentationEpisode:
        """One episode by its number, from 0.

        Raises:
            IndexError: There are fewer.
            SourceError: An image or mask cannot be decoded, or they are not equally large.
        """
        class_id, query, supports = self.draw(number)
        return SegmentationEpisode(
            class_id,
            self.data.read(query, class_id),
            tuple(self.data.read(position, class_id) for position in supports),
        )

    def draw(self, number: int) -> tuple[int, int, tuple[int, ...]]:
        """The class and the positions of the query and of the supports of one episode; nothing is decoded."""
        if not 0 <= number < self.episodes:
            raise IndexError(f"episode {number} of {self.episodes}")
        draw = draw_at(self.seed, self.epoch, number)
        if self.queries == "in turn":
            class_id, query = self._pairs[number % len(self._pairs)]
        else:
            place = bisect.bisect(self._until, draw.random(), hi=len(self._until) - 1)
            class_id = tuple(self.data.members)[place]
            members = self.data.members[class_id]
            query = members[below(draw, len(members))]
        others = [position for position in self.data.members[class_id] if position != query]
        return class_id, query, tuple(sample(draw, others, self.shot))
