"""Say what images show, by what is enrolled."""

from __future__ import annotations

import argparse
import os
from pathlib import Path

import cv2
import numpy as np
import numpy.typing as npt

from edgevis import InputError, Segmentation, SourceError
from edgevis.cli._common import add_engine_arguments, image_paths, open_predictor, print_json
from runtime.images import Image, read_image
from runtime.tasks import Result
from runtime.text import text_table


def add_arguments(parser: argparse.ArgumentParser) -> None:
    add_engine_arguments(parser)
    parser.add_argument("images", metavar="IMAGE", nargs="+", help="image files, or folders of them")
    parser.add_argument("--enrolment", metavar="FILE", help="what `edgevis enroll` wrote")
    parser.add_argument("--top-k", type=int, default=5, help="how many labels to rank (default: 5)")
    parser.add_argument(
        "--masks", metavar="DIR", help="segmentation: write each label map as a grey PNG (0 background, 1 first label)"
    )
    parser.add_argument("--plot", metavar="DIR", help="write annotated copies of the images into this folder")
    parser.add_argument(
        "--pictures",
        metavar="DIR",
        help="with --plot: a folder with a picture of each label, LABEL.jpg or .png, drawn as a strip below the image",
    )


def run(arguments: argparse.Namespace) -> int:
    paths = image_paths(arguments.images)
    pictures = None
    if arguments.pictures:
        if not arguments.plot:
            raise InputError("--pictures are drawn into what --plot writes; give both")
        pictures = {path.stem: read_image(path) for path in image_paths([arguments.pictures])}
    with open_predictor(arguments) as predictor:
        if arguments.enrolment:
            predictor.load(arguments.enrolment)
        # One by one: a folder of photographs need not fit into memory, and one result is shown per image anyway.
        results = []
        common = Path(os.path.commonpath([path.resolve().parent for path in paths]))
        for path in paths:
            image = read_image(path)
            result = predictor.predict(image, top_k=arguments.top_k)
            results.append(result)
            place = path.resolve().relative_to(common)
            if arguments.plot:
                _plot(Path(arguments.plot) / place, _drawn(result, image, pictures))
            if arguments.masks:
                _save_labels(Path(arguments.masks) / place, result)
        threshold = predictor.threshold
    if arguments.json:
        entries = [{"image": str(path), **result.to_dict()} for path, result in zip(paths, results, strict=True)]
        print_json({"threshold": threshold, "results": entries})
        return 0
    rows = [
        (path.name, *_cells(result), f"{sum(result.speed_ms.values()):.1f}")
        for path, result in zip(paths, results, strict=True)
    ]
    print(text_table(("image", "label", "score", "ms"), rows))
    return 0


def _drawn(result: Result, image: Image, pictures: dict[str, Image] | None) -> Image:
    if pictures is None:
        return result.plot(image)
    if isinstance(result, Segmentation):
        raise InputError("--pictures are for models that rank what is enrolled; this one segments")
    return result.plot(image, pictures)


def _cells(result: Result) -> tuple[str, str]:
    """What was found, and how sure that is: a cosine, or the shares of the image that labels cover."""
    if not isinstance(result, Segmentation):
        return result.label or "unknown", f"{result.score:.3f}"
    found = [(label, share) for label, share in zip(result.labels, result.shares, strict=True) if share > 0]
    return ", ".join(label for label, _ in found) or "nothing", ", ".join(f"{share:.1%}" for _, share in found) or "–"


def _save_labels(target: Path, result: Result) -> None:
    """The label map as a grey PNG: 0 is background, 1 the first label."""
    if not isinstance(result, Segmentation):
        raise InputError("--masks is for segmentation; this model's results have no masks")
    _write(target.with_name(f"{target.name}.png"), (result.label_map + 1).astype(np.uint8))


def _plot(target: Path, picture: Image) -> None:
    """Pictures keep their place below the folder that holds all of them: those of one name stay apart."""
    _write(target if target.suffix.lower() == ".jpg" else target.with_name(f"{target.name}.jpg"), picture)


def _write(target: Path, picture: npt.NDArray[np.uint8]) -> None:
    target.parent.mkdir(parents=True, exist_ok=True)
    if not cv2.imwrite(str(target), picture):
        raise SourceError(f"{target} cannot be written")
