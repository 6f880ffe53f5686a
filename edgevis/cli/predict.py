"""Say what images show, by what is enrolled."""

from __future__ import annotations

import argparse
import os
from pathlib import Path

import cv2

from edgevis import SourceError
from edgevis.cli._common import add_engine_arguments, image_paths, open_predictor, print_json
from runtime.images import Image, read_image
from runtime.text import text_table


def add_arguments(parser: argparse.ArgumentParser) -> None:
    add_engine_arguments(parser)
    parser.add_argument("images", metavar="IMAGE", nargs="+", help="image files, or folders of them")
    parser.add_argument("--enrolment", metavar="FILE", help="what `edgevis enroll` wrote")
    parser.add_argument("--top-k", type=int, default=5, help="how many labels to rank (default: 5)")
    parser.add_argument("--plot", metavar="DIR", help="write annotated copies of the images into this folder")


def run(arguments: argparse.Namespace) -> int:
    paths = image_paths(arguments.images)
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
            if arguments.plot:
                _write(Path(arguments.plot) / path.resolve().relative_to(common), result.plot(image))
        threshold = predictor.threshold
    if arguments.json:
        entries = [{"image": str(path), **result.to_dict()} for path, result in zip(paths, results, strict=True)]
        print_json({"threshold": threshold, "results": entries})
        return 0
    rows = [
        (path.name, result.label or "unknown", f"{result.score:.3f}", f"{sum(result.speed_ms.values()):.1f}")
        for path, result in zip(paths, results, strict=True)
    ]
    print(text_table(("image", "label", "score", "ms"), rows))
    return 0


def _write(target: Path, picture: Image) -> None:
    """Pictures keep their place below the folder that holds all of them: those of one name stay apart."""
    if target.suffix.lower() != ".jpg":
        target = target.with_name(f"{target.name}.jpg")
    target.parent.mkdir(parents=True, exist_ok=True)
    if not cv2.imwrite(str(target), picture):
        raise SourceError(f"{target} cannot be written")
