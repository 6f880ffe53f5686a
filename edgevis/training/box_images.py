"""Images with boxes as a training draws them: decoded once, in an order that depends on seed and epoch only."""

from __future__ import annotations

from collections.abc import Sequence

from edgevis.data.detection import BoxLabels, DetectionImages
from edgevis.data.rng import draw_at, shuffled
from edgevis.training.box_views import BoxView
from edgevis.training.images import ImageStore
from runtime.images.decode import Image


class DrawnPlaces:
    """Positions of images that train, in the order of each epoch.

    Args:
        places: The positions.
        draw: The first numbers of the random order, such as (seed, what is drawn).
    """

    def __init__(self, places: Sequence[int], *, draw: tuple[int, int]) -> None:
        self.places = tuple(places)
        self._draw = draw
        self._order: dict[tuple[int, int, int], list[int]] = {}

    def __len__(self) -> int:
        return len(self.places)

    def drawn(self, epoch: int, number: int, rank: int) -> int:
        """The position that is the ``number``-th of an epoch: all come before one comes again."""
        turn, position = divmod(number, len(self.places))
        key = (epoch, turn, rank)
        if key not in self._order:
            self._order = {key: shuffled(draw_at(*self._draw, *key), self.places)}
        return self._order[key][position]


class BoxImages(DrawnPlaces):
    """Some images of a data set that train, and any of its images by their position.

    Args:
        data: Images and boxes.
        places: Positions of those that train.
        draw: The first numbers of the random order, such as (seed, what is drawn).
    """

    def __init__(self, data: DetectionImages, places: Sequence[int], *, draw: tuple[int, int]) -> None:
        super().__init__(places, draw=draw)
        self.data = data
        self._labels: dict[int, BoxLabels] = {}
        self._images = ImageStore(self._read)

    def __getitem__(self, place: int) -> BoxView:
        """The image at a position of the data, as it was read, with its boxes.

        Raises:
            SourceError: It cannot be decoded, or its boxes are of another size.
        """
        image = self._images[place]
        return BoxView(image, self._labels[place])

    def _read(self, place: int) -> Image:
        image, self._labels[place] = self.data[place]
        return image
