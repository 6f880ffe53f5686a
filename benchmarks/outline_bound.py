"""What outlines of 36 rays can reach: ``python -m benchmarks.outline_bound --data nuclei.zip --side 256 384 512``.

No network is asked. The true rays of every object of the images that :mod:`benchmarks.instances` measures, taken at the
size of PolarMask's input, are decoded and filled as the runtime does, and compared with its mask in the image itself:

- *IoU*: the rays from the centre of the object's contour, which a training places its points around;
- *without a point*: objects that no point of PolarMask's grid learns, at that size of the input; a smaller neighbour
  may have taken theirs;
- *mask AP*, *mask AP50*: COCO's, were each of the others found with the true rays of the nearest of its points, and
  nothing else found.

*rays* is what ends a ray, as the recipe's ``rays``: pixels of the contour or the edges between them. ± is half of the
95 % interval over images (jackknife).
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import get_args

import numpy as np
import torch
from numpy.typing import NDArray

from benchmarks.detection import figures_of
from benchmarks.figure import Figure, figure_text
from benchmarks.instances import evaluated_instances
from benchmarks.report import report
from edgevis import InputError
from edgevis.data.detection import box_labels
from edgevis.data.instances import Instances
from edgevis.data.polar_targets import RayEnds, contour_centre, outer_contour, polar_targets, ray_lengths
from edgevis.layers.polar_code import decode_polygons, polar_points
from edgevis.layers.pyramid_backbones import pyramid_preprocess
from edgevis.metrics.average_precision import InstanceMasks, average_precision, encoded_mask
from edgevis.metrics.jackknife import grouped_mean
from edgevis.models.polarmask import MULTIPLE, SIDE
from edgevis.training.box_views import Axis, Placement
from runtime.bundle.spec import MAX_SIDE
from runtime.detection.postprocess import placed
from runtime.images.polygons import polygon_mask
from runtime.images.preprocess import Preprocessor

_BACKBONE = "mobilenetv2"
"""Its preprocessing fits images into the input as that of every backbone does."""

HEADERS = ("rays", "side", "images", "objects", "without a point", "IoU", "mask AP", "mask AP50")

Mask = NDArray[np.bool_]


@dataclass(frozen=True, slots=True)
class BoundRow:
    """What outlines can reach at one size of the input.

    Attributes:
        rays: What ends them.
        side: Of the square input in pixels.
        images, objects: How many were measured.
        without_point: Objects that no point learns.
        iou: The mean IoU of objects' masks and their rays from the centre, 0 to 1.
        mask_ap, mask_ap_50: COCO's, of the true rays at points.
    """

    rays: RayEnds
    side: int
    images: int
    objects: int
    without_point: int
    iou: Figure
    mask_ap: Figure
    mask_ap_50: Figure

    def cells(self) -> tuple[str, ...]:
        """The row's cells under :data:`HEADERS`."""
        return (
            self.rays,
            str(self.side),
            str(self.images),
            str(self.objects),
            str(self.without_point),
            *(figure_text(figure) for figure in (self.iou, self.mask_ap, self.mask_ap_50)),
        )


@dataclass(frozen=True, slots=True, eq=False)
class TrueOutlines:
    """The outlines of the objects of one image, in the image's pixels.

    Attributes:
        masks: (G, H, W) bool: the objects, ignored ones left out.
        from_centre: (G, H, W) bool: the filled rays from the centre; empty where the object has no pixel in the input.
        at_point: (G, H, W) bool: those from the nearest point that learns the object; empty where none does.
        learned: (G,) bool: whether any point does.
    """

    masks: Mask
    from_centre: Mask
    at_point: Mask
    learned: Mask

    def ious(self) -> NDArray[np.float64]:
        """(G,): of the rays from the centre with the objects."""
        shared, either = self.masks & self.from_centre, self.masks | self.from_centre
        return np.asarray(shared.sum((1, 2)) / either.sum((1, 2)), np.float64)


def true_outlines(view: Instances, side: int, *, ends: RayEnds) -> TrueOutlines:
    """The outlines of an image's objects by their true rays.

    Args:
        view: The image and the pixels of its objects.
        side: Of the square input that the image is fitted into, as PolarMask's preprocessing does.
        ends: Of the rays.
    """
    spec = pyramid_preprocess(_BACKBONE, height=side, width=side)
    size = (view.image.shape[0], view.image.shape[1])
    geometry = Preprocessor(spec).geometry(size)
    x, y = (
        Axis(part.start, part.stop - part.start, place, length)
        for part, place, length in (
            (geometry.columns, geometry.left, geometry.width),
            (geometry.rows, geometry.top, geometry.height),
        )
    )
    ids = Placement(x, y, spec).placed_ids(view.ids)
    labels, numbers = view.labels()
    numbers = numbers[~labels.ignored]
    masks = np.array([view.ids == number for number in numbers], np.bool_).reshape(-1, *size)
    contours = [outer_contour((ids == number).astype(np.uint8)) for number in numbers]
    there = [place for place, contour in enumerate(contours) if len(contour)]
    contours = [contours[place] for place in there]
    grid, strides = polar_points((side, side))
    points = grid.numpy()
    # An object's class is its number here: points say which object they learn.
    targets = polar_targets(points, strides.numpy(), contours, np.arange(len(contours)), ends=ends)
    from_centre, at_point = np.zeros_like(masks), np.zeros_like(masks)
    learned = np.zeros(len(masks), np.bool_)

    def filled(point: NDArray[np.float32], rays: NDArray[np.float32]) -> Mask:
        polygon = decode_polygons(torch.from_numpy(point[None]), torch.from_numpy(rays[None]), size=(side, side))
        return polygon_mask(placed(polygon[0].numpy(), geometry=geometry, size=size), size)

    for number, (place, contour) in enumerate(zip(there, contours, strict=True)):
        centre = np.array(contour_centre(contour), np.float32)
        from_centre[place] = filled(centre, ray_lengths(contour, centre[None], ends=ends)[0])
        own = np.flatnonzero(targets[:, 0] == number)
        if len(own):
            nearest = own[np.hypot(*(points[own] - centre).T).argmin()]
            at_point[place], learned[place] = filled(points[nearest], targets[nearest, 5:]), True
    return TrueOutlines(masks, from_centre, at_point, learned)


def measure(path: Path, sides: Sequence[int], rays: Sequence[RayEnds] = get_args(RayEnds)) -> list[BoundRow]:
    """A row for each kind of ray and size of the input.

    Args:
        path: Images with the pixels of their objects.
        sides: Of the square input in pixels, multiples of 128.
        rays: What ends them.

    Raises:
        InputError: A side is not as described, or fewer than two images with objects are measured.
        EdgevisError: The data cannot be read.
    """
    for side in sides:
        if side % MULTIPLE or not 0 < side <= MAX_SIDE:
            raise InputError(f"--side {side}; allowed: multiples of {MULTIPLE} up to {MAX_SIDE}")
    instances, places = evaluated_instances(path)
    return [
        _row(ends, side, [true_outlines(instances[place], side, ends=ends) for place in places])
        for ends in rays
        for side in sides
    ]


def _row(ends: RayEnds, side: int, images: Sequence[TrueOutlines]) -> BoundRow:
    ious = [item.ious() for item in images]
    if sum(len(values) > 0 for values in ious) < 2:
        raise InputError("fewer than two images have objects; allowed: two or more")
    groups = [number for number, values in enumerate(ious) for _ in values]
    iou, samples = grouped_mean(np.concatenate(ious), groups)
    encoded = [[encoded_mask(mask) for mask in item.masks] for item in images]
    found = [[encoded_mask(mask) for mask in item.at_point[item.learned]] for item in images]
    by_masks = average_precision(
        [box_labels(np.zeros((len(masks), 4)), np.zeros(len(masks))) for masks in encoded],
        [(np.zeros((len(masks), 4)), np.ones(len(masks)), np.zeros(len(masks), np.int64)) for masks in found],
        classes=1,
        masks=InstanceMasks(encoded, found),
    )
    learned = np.concatenate([item.learned for item in images])
    figures = (Figure.of(iou, samples), *figures_of(by_masks))
    return BoundRow(ends, side, len(images), len(learned), int((~learned).sum()), *figures)


def main(argv: Sequence[str] | None = None) -> int:
    """Print one row per size; an EdgevisError becomes one line and exit status 1."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.outline_bound", description=(__doc__ or "").partition("\n")[0]
    )
    parser.add_argument("--data", type=Path, required=True, help="folder or zip of images with the pixels of objects")
    parser.add_argument(
        "--side", type=int, nargs="+", default=[SIDE], help=f"of the square input in pixels (default: {SIDE})"
    )
    parser.add_argument(
        "--rays", choices=get_args(RayEnds), nargs="+", default=get_args(RayEnds), help="what ends them (default: both)"
    )
    parser.add_argument("--json", action="store_true", help="print JSON")
    arguments = parser.parse_args(argv)
    return report(
        lambda: measure(arguments.data, arguments.side, arguments.rays),
        headers=HEADERS,
        cells=BoundRow.cells,
        as_json=arguments.json,
    )


if __name__ == "__main__":
    sys.exit(main())
