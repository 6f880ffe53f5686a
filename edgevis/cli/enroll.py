"""Add examples of a label to an enrolment file, making the file if there is none."""

from __future__ import annotations

import argparse
from pathlib import Path

from edgevis.cli._common import add_engine_arguments, image_paths, open_predictor, print_json


def add_arguments(parser: argparse.ArgumentParser) -> None:
    add_engine_arguments(parser)
    parser.add_argument("label", metavar="LABEL", help="who or what the images show")
    parser.add_argument("images", metavar="IMAGE", nargs="+", help="image files, or folders of them")
    parser.add_argument(
        "--masks",
        metavar="MASK",
        nargs="+",
        help="for few-shot segmentation, one mask for each image in the same order: grey images, 0 is not the object; "
        "or folders of them, sorted like the images",
    )
    parser.add_argument("--enrolment", metavar="FILE", required=True, help="the file to extend or make")


def run(arguments: argparse.Namespace) -> int:
    paths = image_paths(arguments.images)
    masks = list(image_paths(arguments.masks)) if arguments.masks else None
    with open_predictor(arguments) as predictor:
        if Path(arguments.enrolment).exists():
            predictor.load(arguments.enrolment)
        predictor.enroll(arguments.label, list(paths), masks=masks)
        predictor.save(arguments.enrolment)
        labels, threshold = predictor.labels, predictor.threshold
    if arguments.json:
        print_json(
            {"enrolment": arguments.enrolment, "labels": list(labels), "added": len(paths), "threshold": threshold}
        )
        return 0
    print(f"{arguments.enrolment}: {len(paths)} images added to {arguments.label!r}; enrolled: {', '.join(labels)}")
    print(f"next: edgevis predict {arguments.bundle} IMAGE --enrolment {arguments.enrolment}")
    return 0
