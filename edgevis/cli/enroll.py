"""Add examples of a label to an enrolment file, making the file if there is none."""

from __future__ import annotations

import argparse
from pathlib import Path

from edgevis import (
    EdgevisError,
    EnrolmentRefusedError,
    EnrolmentReport,
    InputError,
    Judgement,
    Predictor,
    SourceError,
)
from edgevis.cli._common import (
    add_engine_arguments,
    add_output_arguments,
    add_threshold_argument,
    image_paths,
    open_predictor,
    print_json,
    print_next,
    set_threshold,
)
from edgevis.cli._streams import stream_of
from edgevis.cli._tracks import add_seconds_argument, track_of
from runtime.common.addresses import without_password
from runtime.common.console import report
from runtime.enrolment.file import check_enrolment_path, enrolment_exists

_OF_ONE_PICTURE = (SourceError, InputError)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    add_engine_arguments(parser)
    parser.add_argument("label", metavar="LABEL", help="who or what the images show")
    parser.add_argument(
        "images",
        metavar="IMAGE",
        nargs="+",
        help="image files, or folders of them; or one video, camera or address that shows one person (or thing) alone",
    )
    parser.add_argument(
        "--from-track",
        metavar="TRACK",
        help="of a video with several: the number of a track, or its name such as unknown-7, as `edgevis tracks` lists "
        "them with this enrolment",
    )
    parser.add_argument("--detect", metavar="BUNDLE", help="of a video: the detector (default: as for `watch`)")
    add_seconds_argument(parser)
    parser.add_argument(
        "--masks",
        metavar="MASK",
        nargs="+",
        help="for few-shot segmentation, one mask for each image in the same order: grey images, 0 is not the object; "
        "or folders of them, sorted like the images",
    )
    parser.add_argument("--enrolment", metavar="FILE", required=True, help="the file to extend or make")
    parser.add_argument(
        "--skip-bad",
        action="store_true",
        help="enrol the images that can be used and report the others; without it one that cannot be used stops all",
    )
    parser.add_argument(
        "--strict",
        action="store_true",
        help="take images that anything speaks against (blurred, too small, repeated, …) for ones that cannot be used; "
        "without it they are enrolled and reported",
    )
    add_threshold_argument(parser, lifetime="it is kept in the file until `auto` is given")
    add_output_arguments(parser)


def run(arguments: argparse.Namespace) -> int:
    check_enrolment_path(arguments.enrolment)
    if stream_of(arguments.images) is not None or arguments.from_track is not None:
        return _enroll_track(arguments)
    if arguments.detect is not None or arguments.seconds is not None:
        raise InputError("--detect and --seconds are for one video, camera or address; of images all is enrolled")
    paths = image_paths(arguments.images)
    masks = image_paths(arguments.masks, drawings=True) if arguments.masks else None
    if masks is not None:
        _check_masks(paths, masks)
    with open_predictor(arguments) as predictor:
        if enrolment_exists(arguments.enrolment):
            predictor.load(arguments.enrolment)
        failures, judgements = _enroll(predictor, arguments.label, paths, masks, strict=arguments.strict)
        _refuse(failures, len(paths), skip=arguments.skip_bad)
        set_threshold(predictor, arguments)
        predictor.update(arguments.enrolment)
        labels, threshold = predictor.labels, predictor.threshold
    added = len(paths) - len(failures)
    judged = EnrolmentReport(arguments.label, added, tuple(judgements))
    if arguments.json:
        print_json(
            {
                "enrolment": arguments.enrolment,
                "labels": list(labels),
                "added": added,
                "skipped": [{"image": str(path), "error": str(error)} for path, error in failures],
                "threshold": threshold,
                "report": judged.to_dict(),
            }
        )
        return 0
    text = f"{added} image{'s' if added != 1 else ''} added to {arguments.label!r}"
    print(f"{arguments.enrolment}: {text}; enrolled: {', '.join(labels)}")
    for line in judged.warnings:
        print(f"  {line}")
    print_next("edgevis", "predict", arguments.bundle, "IMAGE", "--enrolment", arguments.enrolment)
    return 0


def _enroll_track(arguments: argparse.Namespace) -> int:
    if len(arguments.images) != 1 or arguments.masks:
        raise InputError("a track is of one video, and takes no masks; name nothing else beside it")
    (source,) = arguments.images
    with open_predictor(arguments) as predictor:
        if enrolment_exists(arguments.enrolment):
            predictor.load(arguments.enrolment)
        track = track_of(arguments.detect, predictor, source, arguments)
        judged = predictor.enroll(arguments.label, track.crops(predictor), strict=arguments.strict)
        set_threshold(predictor, arguments)
        predictor.update(arguments.enrolment)
        labels, threshold = predictor.labels, predictor.threshold
    if arguments.json:
        data = {"enrolment": arguments.enrolment, "labels": list(labels), "added": judged.enrolled, "skipped": []}
        print_json({**data, "threshold": threshold, "track": track.to_dict(), "report": judged.to_dict()})
        return 0
    text = f"{judged.enrolled} view{'s' if judged.enrolled != 1 else ''} of {track} added to {arguments.label!r}"
    print(f"{arguments.enrolment}: {text}; enrolled: {', '.join(labels)}")
    for line in judged.warnings:
        print(f"  {line}")
    command = ("edgevis", "watch", without_password(source), "--identify", arguments.bundle)
    print_next(*command, "--enrolment", arguments.enrolment)
    return 0


def _check_masks(paths: list[Path], masks: list[Path]) -> None:
    """Refuse masks that are too few or too many, or out of step: one that is named as another image than its own."""
    if len(masks) != len(paths):
        raise InputError(f"{len(masks)} masks for {len(paths)} images; give one mask for each image")
    images = {name: path for path in paths for name in (path.stem, path.name)}
    for path, mask in zip(paths, masks, strict=True):
        if mask.stem in images and mask.stem not in (path.stem, path.name):
            raise InputError(
                f"masks are taken in the order of the images, and the mask of {path} would be {mask}, which is named "
                f"as {images[mask.stem]}; give one mask for each image, in the same order"
            )


def _enroll(
    predictor: Predictor, label: str, paths: list[Path], masks: list[Path] | None, *, strict: bool
) -> tuple[list[tuple[Path, EdgevisError]], list[Judgement]]:
    """One by one: a folder of photographs need not fit into memory.

    Returns:
        The images that cannot be used, and why; and what was found of all that could be read.
    """
    failures: list[tuple[Path, EdgevisError]] = []
    judgements: list[Judgement] = []
    for index, path in enumerate(paths):
        try:
            judged = predictor.enroll(label, path, masks=None if masks is None else masks[index], strict=strict)
            judgements += judged.judgements
        except _OF_ONE_PICTURE as error:
            failures.append((path, error))
            if isinstance(error, EnrolmentRefusedError) and error.report is not None:
                judgements += error.report.judgements
    return failures, judgements


def _refuse(failures: list[tuple[Path, EdgevisError]], count: int, *, skip: bool) -> None:
    """Raise one error for all images that cannot be used, unless the others are to be enrolled."""
    if not failures:
        return
    of_all = isinstance(failures[0][1], InputError) and not isinstance(failures[0][1], EnrolmentRefusedError)
    if len(failures) == count and (count == 1 or of_all):
        raise failures[0][1]  # the label, or what the model takes: not this image
    told = [line for path, error in failures for line in _told(path, error)]
    if skip and len(failures) < count:
        for text in told:
            report(f"left out: {text}")
        return
    advice = "" if len(failures) == count else "; mend or remove them, or leave them out with --skip-bad"
    raise SourceError(
        f"{len(failures)} of {count} images cannot be used, so nothing was enrolled: {'; '.join(told)}{advice}"
    )


def _told(path: Path, error: EdgevisError) -> tuple[str, ...]:
    """The error message for an image, with the image's name."""
    if isinstance(error, EnrolmentRefusedError) and error.report is not None:
        return tuple(error.report.warnings)
    return (str(error) if str(path) in str(error) else f"{path}: {error}",)
