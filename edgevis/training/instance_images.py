"""Images with the pixels of their objects as a training draws them, and random views of them at the input's size.

Draws are the same on every platform. Images are resized by the predictor's own preprocessing, numbers of objects to
the nearest pixel's.
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import replace

import numpy as np
from numpy.typing import NDArray

from edgevis.data.instances import Instances, LabelledInstances
from edgevis.training.box_images import DrawnPlaces
from edgevis.training.box_views import random_placement
from edgevis.training.images import ImageStore
from runtime.bundle.spec import Preprocess


class InstanceStore(DrawnPlaces):
    """Some images of a data set that train, and any of its images by their position.

    Args:
        data: Images and the pixels of their objects.
        places: Positions of those that train.
        draw: The first numbers of the random order, such as (seed, what is drawn).
    """

    def __init__(self, data: LabelledInstances, places: Sequence[int], *, draw: tuple[int, int]) -> None:
        super().__init__(places, draw=draw)
        self._data = data
        self._kinds: dict[int, tuple[NDArray[np.int64], NDArray[np.bool_]]] = {}
        self._last: tuple[int, Instances] | None = None
        self._images = ImageStore(lambda place: self._read(place).image)
        self._ids = ImageStore(lambda place: self._read(place).ids)

    def __getitem__(self, place: int) -> Instances:
        """The image at a position of the data, as it was read; SourceError as of :class:`LabelledInstances`."""
        image, ids = self._images[place], self._ids[place]
        return Instances(image, ids, *self._kinds[place])

    def _read(self, place: int) -> Instances:
        """What both stores ask for one after the other, read once."""
        if self._last is None or self._last[0] != place:
            read = self._data[place]
            self._kinds[place] = (read.classes, read.ignored)
            self._last = (place, read)
        return self._last[1]


def random_view(
    view: Instances, draw: random.Random, spec: Preprocess, *, scale: Sequence[float], visible: float, flip: bool
) -> Instances:
    """The image scaled and cropped or padded at random, see :func:`edgevis.training.box_views.random_scale_crop`.

    Args:
        view: Of any size.
        draw: The random numbers.
        spec: Size of the input, interpolation and padding.
        scale: The least and the largest factor beyond fitting the image into the input.
        visible: The least share of an object's pixels that must stay; one of which less is left is ignored.
        flip: Whether left and right are exchanged in half of the cases.
    """
    placement = random_placement(view.image, draw, spec, scale=scale)
    image, ids = placement.placed(view.image), placement.placed_ids(view.ids)
    if flip and draw.random() < 0.5:
        image, ids = np.ascontiguousarray(image[:, ::-1]), np.ascontiguousarray(ids[:, ::-1])
    count = len(view.classes) + 1
    enlarged = (placement.x.size / placement.x.seen) * (placement.y.size / placement.y.seen)
    before = np.bincount(view.ids.ravel(), minlength=count)[1:] * enlarged
    after = np.bincount(ids.ravel(), minlength=count)[1:]
    return replace(view, image=image, ids=ids, ignored=view.ignored | (after < visible * before))
