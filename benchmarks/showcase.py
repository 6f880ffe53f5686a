"""A picture of the shipped weights' tasks besides Re-ID: ``python -m benchmarks.showcase`` (run by ``make demo``).

On photographs that wheels carry, with three bundles:

- few-shot classification learns eight classes from one picture each, and predicts other views of them;
- few-shot segmentation learns one object in one photograph, by a polygon, and finds it in another one;
- segmentation finds what looks like the cell nuclei whose boxes taught it: galaxies.

Writes ``showcase.jpg`` into the output folder. The photographs are nobody's training data, and none of this is a
measurement: see docs/accuracy.md for those.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import cast

import cv2
import numpy as np

from benchmarks.video_scenes import photograph
from edgevis import Classification, EdgevisError, Predictor, Segmentation, SourceError
from edgevis.training.visualize import GIVEN, RIGHT, WRONG, Colour, painted, tile
from runtime.common.arrays import Array
from runtime.images.decode import Image

_PHOTOGRAPHS = {
    "cat": ("skimage", "data/chelsea.png"),
    "coffee": ("skimage", "data/coffee.png"),
    "rocket": ("skimage", "data/rocket.jpg"),
    "coins": ("skimage", "data/coins.png"),
    "galaxies": ("skimage", "data/hubble_deep_field.jpg"),
    "eye": ("skimage", "data/retina.jpg"),
    "bricks": ("skimage", "data/brick.png"),
    "gravel": ("skimage", "data/gravel.png"),
}
_VIEWS = 4
_ASTRONAUT = ("skimage", "data/astronaut.png")
_ADMIRAL = ("matplotlib", "mpl-data/sample_data/grace_hopper.jpg")
_CUP = ("skimage", "data/coffee.png")
# Of the astronaut's 512 x 512 pixels, x and y.
_PERSON = (
    (25, 511), (20, 395), (45, 290), (75, 245), (108, 215), (120, 170), (150, 148), (185, 152), (178, 120), (158, 108),
    (155, 85), (165, 45), (205, 20), (250, 15), (290, 45), (302, 90), (275, 125), (262, 165), (295, 200), (303, 240),
    (345, 262), (362, 350), (300, 385), (280, 440), (276, 511),
)  # fmt: skip
_HAIR = (
    (155, 85), (165, 45), (205, 20), (250, 15), (290, 45), (300, 90), (280, 125), (268, 95), (250, 75), (195, 75),
    (180, 95), (178, 120), (160, 105),
)  # fmt: skip
# Cup and saucer, of 600 x 400 pixels.
_CUP_AND_SAUCER = (
    (75, 205), (85, 150), (110, 110), (172, 78), (174, 45), (215, 24), (290, 17), (360, 26), (412, 55), (419, 95),
    (414, 135), (455, 175), (475, 215), (470, 265), (440, 310), (390, 350), (320, 378), (250, 380), (180, 360),
    (120, 315), (85, 255),
)  # fmt: skip
_SKY = ("skimage", "data/hubble_deep_field.jpg")
_SIDE = 150


def main(argv: Sequence[str] | None = None) -> int:
    """Draw the picture; an EdgevisError becomes one line and exit status 1."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.showcase", description=__doc__)
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.add_argument("--classify", metavar="BUNDLE", required=True, help="few-shot classification")
    parser.add_argument("--find", metavar="BUNDLE", required=True, help="few-shot segmentation")
    parser.add_argument("--segment", metavar="BUNDLE", required=True, help="segmentation")
    parser.add_argument("--output", type=Path, default=Path("demo"), help="folder for the picture (default: demo)")
    arguments = parser.parse_args(argv)
    try:
        rows = [classified(arguments.classify), few_shot_segmented(arguments.find), segmented(arguments.segment)]
        path = arguments.output / "showcase.jpg"
        path.parent.mkdir(parents=True, exist_ok=True)
        if not cv2.imwrite(str(path), stacked(rows), [cv2.IMWRITE_JPEG_QUALITY, 90]):
            raise SourceError(f"{path} cannot be written")
    except EdgevisError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    print(f"Written: {path}")
    return 0


def classified(bundle: str) -> Image:
    """Each class's enrolled picture, then other views of it, framed by whether they were recognised."""
    photographs = {label: photograph(*place) for label, place in _PHOTOGRAPHS.items()}
    right, columns = 0, []
    with Predictor(bundle) as predictor:
        for label, picture in photographs.items():
            predictor.enroll(label, [_middle(picture)])
        for number, (label, picture) in enumerate(photographs.items()):
            views = [view_of(picture, np.random.default_rng((number, view))) for view in range(_VIEWS)]
            results = cast(list[Classification], predictor.predict(views))
            correct = [result.labels[0] == label for result in results]
            right += sum(correct)
            shown = [_tile(view, RIGHT if good else WRONG) for view, good in zip(views, correct, strict=True)]
            columns.append(np.vstack([_tile(_middle(picture), GIVEN), np.full((8, _SIDE, 3), 255, np.uint8), *shown]))
    print(f"Few-shot classification: {right} of {_VIEWS * len(columns)} views recognised, one picture of each enrolled")
    return np.hstack(columns)


def few_shot_segmented(bundle: str) -> Image:
    """Each example with its mask, then what was found in another photograph, or in another view of it."""
    admiral = photograph(*_ADMIRAL)
    turned = view_of(photograph(*_CUP)[:, ::-1], np.random.default_rng(4))
    tiles: list[Image] = []
    with Predictor(bundle) as predictor:
        for label, place, polygon, image in (
            ("person", _ASTRONAUT, _PERSON, admiral),
            ("hair", _ASTRONAUT, _HAIR, admiral),
            ("cup", _CUP, _CUP_AND_SAUCER, turned),
        ):
            example = photograph(*place)
            mask = _filled(polygon, example.shape)
            predictor.enroll(label, [example], masks=[mask])
            result = cast(Segmentation, predictor.predict(image))
            predictor.forget(label)
            tiles.append(_tile(painted(example, mask, (60, 160, 240)), GIVEN, 2 * _SIDE))
            tiles.append(_tile(painted(image, result.mask_of(label), RIGHT), RIGHT, 2 * _SIDE))
            print(f"Few-shot segmentation: {label}, shown once, covers {result.mask_of(label).mean():.1%}")
    return np.hstack(tiles)


def segmented(bundle: str) -> Image:
    """Parts of the night sky, plain and with what was found."""
    picture = photograph(*_SKY)
    tiles = []
    with Predictor(bundle) as predictor:
        for left, top in ((0, 0), (560, 60), (250, 420)):
            part = np.ascontiguousarray(picture[top : top + 256, left : left + 256])
            result = cast(Segmentation, predictor.predict(part))
            tiles += [_tile(part, GIVEN, 7 * _SIDE // 4), _tile(result.plot(part), RIGHT, 7 * _SIDE // 4)]
            print(f"Segmentation: {result.mask.mean():.0%} of a part of the sky")
    return np.hstack(tiles)


def stacked(rows: Sequence[Image]) -> Image:
    """Stack rows of any width on white."""
    width = max(row.shape[1] for row in rows)
    padded = [
        cv2.copyMakeBorder(row, 8, 8, 0, width - row.shape[1], cv2.BORDER_CONSTANT, value=(255,) * 3) for row in rows
    ]
    return np.vstack(padded).astype(np.uint8)


def view_of(image: Image, rng: np.random.Generator) -> Image:
    """A random view of the middle: rotated, scaled, moved, with other light and noise."""
    rows, columns = image.shape[:2]
    side = min(rows, columns)
    middle = (columns / 2 + side * rng.uniform(-0.08, 0.08), rows / 2 + side * rng.uniform(-0.08, 0.08))
    turn = cv2.getRotationMatrix2D(middle, rng.uniform(-25, 25), rng.uniform(0.9, 1.5))
    turn[:, 2] += np.array((side / 2, side / 2)) - middle
    seen = cv2.warpAffine(image, turn, (side, side), flags=cv2.INTER_AREA, borderMode=cv2.BORDER_REFLECT)
    light = seen * rng.uniform(0.6, 1.3, (1, 1, 3)) + rng.normal(0, 8, seen.shape)
    return np.asarray(np.clip(light, 0, 255), np.uint8)


def _middle(image: Image) -> Image:
    rows, columns = image.shape[:2]
    side = min(rows, columns)
    top, left = (rows - side) // 2, (columns - side) // 2
    return np.ascontiguousarray(image[top : top + side, left : left + side])


def _filled(polygon: Sequence[tuple[int, int]], shape: tuple[int, ...]) -> Array:
    mask = np.zeros(shape[:2], np.uint8)
    cv2.fillPoly(mask, [np.array(polygon, np.int32)], (1,))
    return mask > 0


def _tile(image: Image, colour: Colour, side: int = _SIDE) -> Image:
    height = side - 8
    return tile(image, colour, height=height, width=round(height * image.shape[1] / image.shape[0]))


if __name__ == "__main__":
    sys.exit(main())
