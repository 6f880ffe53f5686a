"""Say what images, a video or a camera show, by what is enrolled."""

from __future__ import annotations

import argparse
from pathlib import Path

import numpy as np

from edgevis import Detections, EngineError, Identification, InputError, Predictor, Segmentation, SourceError
from edgevis.cli._common import (
    add_engine_arguments,
    add_output_arguments,
    add_rate_argument,
    add_threshold_argument,
    image_paths,
    open_predictor,
    print_next,
    set_threshold,
    shown,
)
from edgevis.cli._formats import DETECTION_FORMATS, format_writer
from edgevis.cli._outputs import Outputs, places
from edgevis.cli._results import Results, results_for, settle_format
from edgevis.cli._streams import add_stream_arguments, check_stream_arguments, predict_stream, stream_of
from edgevis.cli._text import HEADERS, WIDEST, drawn, result_widths
from runtime import tasks
from runtime.common.console import report
from runtime.images.decode import Image, read_image

_OF_ONE_PICTURE = (SourceError, InputError, EngineError)
"""Errors after which the next picture may still be read."""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    add_engine_arguments(parser)
    add_rate_argument(parser)
    parser.add_argument(
        "images",
        metavar="IMAGE",
        nargs="+",
        help="image files, or folders of them; or one video file, camera index or address such as rtsp://…",
    )
    parser.add_argument("--enrolment", metavar="FILE", help="what `edgevis enroll` wrote")
    parser.add_argument("--top-k", type=int, default=5, help="how many labels to rank (default: 5)")
    parser.add_argument(
        "--masks", metavar="DIR", help="segmentation: write each label map as a grey PNG (0 background, 1 first label)"
    )
    parser.add_argument(
        "--output",
        "--plot",
        dest="plot",
        metavar="PATH",
        help="write annotated copies of the images into this folder; where a name is taken they get another. Of a "
        "video or camera: numbered frames into this folder, or one .mp4, .avi or .mkv file",
    )
    parser.add_argument(
        "--pictures",
        metavar="DIR",
        help="with --output: a folder with a picture of each label, LABEL.jpg or .png, drawn in a strip below it",
    )
    parser.add_argument(
        "--jsonl", action="store_true", help="print one JSON object for each image, on a line, as soon as it is known"
    )
    parser.add_argument(
        "--format",
        choices=("table", "json", "jsonl", *DETECTION_FORMATS),
        help="what is printed (default: table); of detections also csv, one row for each object, coco, a COCO data "
        "set, and mot, MOT-challenge text",
    )
    parser.add_argument(
        "--annotations",
        metavar="FILE",
        help="with --format coco: print COCO results for this annotation file, with its ids, in place of a data set",
    )
    parser.add_argument("--frames", metavar="N", type=int, help="of a video or camera: stop after so many frames")
    add_stream_arguments(parser)
    add_threshold_argument(parser, lifetime="for this run")
    add_output_arguments(parser)


def run(arguments: argparse.Namespace) -> int:
    if arguments.top_k < 1:
        raise InputError(f"--top-k is {arguments.top_k}; allowed: a whole number >= 1")
    if arguments.frames is not None and arguments.frames < 1:
        raise InputError(f"--frames is {arguments.frames}; allowed: a whole number >= 1")
    settle_format(arguments)
    stream = stream_of(arguments.images)
    if stream is not None:
        check_stream_arguments(arguments)
    paths = [] if stream is not None else image_paths(arguments.images)
    pictures = None
    if arguments.pictures:
        if arguments.plot is None:
            raise InputError("--pictures are drawn into what --output writes; give both")
        pictures = {path.stem: read_image(path) for path in image_paths([arguments.pictures])}
    plots = None if arguments.plot is None or stream is not None else Outputs(arguments.plot, ".jpg", paths)
    masks = None if arguments.masks is None else Outputs(arguments.masks, ".png", paths)
    with open_predictor(arguments) as predictor:
        result = tasks.load(predictor.info.task).TRAITS.result
        segments = issubclass(result, Segmentation)
        if arguments.format in DETECTION_FORMATS and not issubclass(result, Detections):
            raise InputError(
                f"--format {arguments.format} is for detections; this model's task is {predictor.info.task}"
            )
        if masks and not segments:
            raise InputError("--masks is for segmentation; this model's results have no label map")
        if pictures is not None and (segments or issubclass(result, Detections)):
            raise InputError("--pictures are for models that rank what is enrolled; this one's results are no ranking")
        if arguments.enrolment is not None:
            predictor.load(arguments.enrolment)
        set_threshold(predictor, arguments)
        if stream is not None:
            predict_stream(predictor, stream, arguments, pictures)
            return 0
        for outputs in (plots, masks):
            if outputs:
                outputs.prepare()
        head = {"threshold": predictor.threshold}
        writer = format_writer(arguments, predictor.labels) or results_for(
            arguments, head, HEADERS, lambda: _widths(paths, predictor)
        )
        with writer as results:
            failed = _predict(predictor, paths, arguments.top_k, results, plots, masks, pictures)
        told = arguments.format == "table" and failed < len(paths)
        if told and issubclass(result, Identification) and not predictor.labels:
            print("nothing is enrolled")
            print_next("edgevis", "enroll", arguments.bundle, "LABEL", "IMAGE", "--enrolment", "FILE")
    if failed and len(paths) > 1:
        report(f"{failed} of {len(paths)} images could not be read or used; the results of the others are complete")
    return 1 if failed else 0


def _predict(
    predictor: Predictor,
    paths: list[Path],
    top_k: int,
    results: Results,
    plots: Outputs | None,
    masks: Outputs | None,
    pictures: dict[str, Image] | None,
) -> int:
    """One by one: a folder of photographs need not fit into memory. Returns how many images have no result."""

    def predict_one(path: Path, place: Path) -> None:
        image = read_image(path)
        result = predictor.predict(image, top_k=top_k)
        entry = {"image": str(path), **result.to_dict()}
        try:
            if plots:
                entry["plot"] = plots.write(path, drawn(result, image, pictures))
            if masks and isinstance(result, Segmentation):
                entry["mask"] = masks.write(path, (result.label_map + 1).astype(np.uint8))
        finally:  # print the result even if the disk is full
            row = (shown(place), *result.cells(), f"{sum(result.speed_ms.values()):.1f}")
            results.add(entry, row, (image.shape[0], image.shape[1]))

    failed = 0
    where = places(paths)
    for path in paths:
        try:
            predict_one(path, where[path])  # a function, so that a picture is freed before the next one is read
        except _OF_ONE_PICTURE as error:
            results.add_failure(str(path), error)
            failed += 1
    return failed


def _widths(paths: list[Path], predictor: Predictor) -> tuple[int, ...]:
    """Widths of the table's columns, estimated before the rows are known."""
    names = max(len(shown(place)) for place in places(paths).values())
    return (min(names, WIDEST), *result_widths(predictor), -7)
