"""Arguments and output that several verbs share."""

from __future__ import annotations

import argparse
import json
import logging
import math
import os
import shlex
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from edgevis import InputError, Predictor
from edgevis.precision import PRECISIONS, precision
from runtime.bundle.bundle import Bundle
from runtime.common.console import add_verbosity
from runtime.common.json_data import without_nan
from runtime.enrolment.file import Enrolment, check_encoder, load_enrolment
from runtime.images.folders import image_files
from runtime.images.picture_files import is_drawing

_log = logging.getLogger("edgevis.cli")

AUTO = "auto"


def add_engine_arguments(parser: argparse.ArgumentParser) -> None:
    """``BUNDLE`` and the choice of its engine."""
    parser.add_argument(
        "bundle", metavar="BUNDLE", help="a folder NAME.edgevis, or the name of a ready bundle, such as osnet-x0-25"
    )
    add_engine_options(parser)


def add_engine_options(parser: argparse.ArgumentParser) -> None:
    """``--backend``, ``--device``, ``--precision`` and ``--threads``."""
    parser.add_argument(
        "--backend", default="auto", help="auto, onnxruntime, openvino, tensorrt, tensorrt_rtx (default: auto)"
    )
    parser.add_argument("--device", default="auto", help="auto, cpu or cuda (default: auto)")
    add_precision_argument(parser, default="the fastest that decides like PyTorch")
    parser.add_argument("--threads", type=int, help="CPU threads for the engine (default: the backend's choice)")


def add_precision_argument(parser: argparse.ArgumentParser, *, default: str) -> None:
    """``--precision``, one of them; ``default`` says what happens without."""
    parser.add_argument(
        "--precision", metavar="P", type=precision, help=f"{', '.join(PRECISIONS)} (default: {default})"
    )


def add_enrolment_arguments(parser: argparse.ArgumentParser) -> None:
    """``BUNDLE`` and ``ENROLMENT``, for verbs that run no engine."""
    parser.add_argument("bundle", metavar="BUNDLE", help="the folder NAME.edgevis whose model the file was made with")
    parser.add_argument("enrolment", metavar="ENROLMENT", help="what `edgevis enroll` wrote")


def enrolment_of(arguments: argparse.Namespace) -> Enrolment:
    """What the file of :func:`add_enrolment_arguments` holds.

    Raises:
        EnrolmentError: It is missing or damaged.
        EnrolmentMismatchError: Another encoder than the bundle's made it.
    """
    manifest = Bundle(arguments.bundle).manifest
    enrolment = load_enrolment(arguments.enrolment)
    # Labels and counts do not depend on the engine, nor on the space that the rows lie in.
    running = replace(enrolment.encoder, identity=manifest.encoder_identity, model=manifest.model)
    check_encoder(enrolment.encoder, running, arguments.enrolment)
    return enrolment


def add_threshold_argument(parser: argparse.ArgumentParser, *, lifetime: str) -> None:
    """Add ``--threshold``; ``lifetime`` is the part of its help on how long the value applies."""
    parser.add_argument(
        "--threshold",
        metavar="SCORE",
        type=_threshold,
        help=f"the score, -1 to 1, from which a label comes back, in place of the fitted one; {lifetime}",
    )


def set_threshold(predictor: Predictor, arguments: argparse.Namespace) -> None:
    """Set what ``--threshold`` says, if it is given.

    Raises:
        InputError: The rate is given, too, or the task has no scores between labels.
    """
    if arguments.threshold is None:
        return
    if getattr(arguments, "false_accept_rate", None) is not None:
        raise InputError("--threshold is the score itself, --false-accept-rate what it is fitted to; give one of them")
    predictor.threshold = None if arguments.threshold == AUTO else arguments.threshold


def _threshold(text: str) -> float | str:
    if text == AUTO:
        return text
    try:
        value = float(text)
    except ValueError:
        value = math.nan
    if not -1 <= value <= 1:
        raise argparse.ArgumentTypeError(f"{text!r} is no threshold; allowed: -1 to 1, or {AUTO} for the fitted one")
    return value


def add_output_arguments(parser: argparse.ArgumentParser, *, progress: bool = False) -> None:
    """``--json``, ``-v`` and ``-q``; ``progress`` as for :func:`runtime.common.console.add_verbosity`."""
    parser.add_argument("--json", action="store_true", help="print one JSON object instead of text")
    add_verbosity(parser, progress=progress)


def add_rate_argument(parser: argparse.ArgumentParser) -> None:
    """``--false-accept-rate``."""
    parser.add_argument(
        "--false-accept-rate",
        metavar="SHARE",
        type=float,
        help="the share of strangers for whom any label may come back, such as 0.01 (default: the enrolment's, or the "
        "model's)",
    )


def open_predictor(arguments: argparse.Namespace) -> Predictor:
    """The predictor that :func:`add_engine_arguments` describes."""
    return open_bundle(arguments.bundle, arguments, false_accept_rate=getattr(arguments, "false_accept_rate", None))


def open_bundle(bundle: str, arguments: argparse.Namespace, *, false_accept_rate: float | None = None) -> Predictor:
    """The predictor of a bundle with the engine that :func:`add_engine_options` describes."""
    return Predictor(
        bundle,
        backend=arguments.backend,
        device=arguments.device,
        precision=arguments.precision,
        threads=arguments.threads,
        false_accept_rate=false_accept_rate,
    )


def image_paths(arguments: list[str], *, drawings: bool = False) -> list[Path]:
    """The named files and the image files in the named folders, in order.

    Args:
        arguments: Files and folders.
        drawings: Take what edgevis drew, too. Otherwise it is left out: of a folder without a word, and with a warning
            where it is named, as by ``*.jpg``. Where nothing else is named it is taken.

    Raises:
        SourceError: A folder holds none, or cannot be listed.
    """
    paths: list[Path] = []
    drawn: list[Path] = []
    for argument in map(Path, arguments):
        if os.path.isdir(argument):
            paths += image_files(argument, drawings=drawings)
        else:
            (drawn if not drawings and is_drawing(argument) else paths).append(argument)
    if drawn and paths:
        more = f" and {len(drawn) - 1} more" if len(drawn) > 1 else ""
        _log.warning("%s%s left out: edgevis drew it", shown(drawn[0]), more)
    return paths or drawn


def print_next(*words: object) -> None:
    """Print the command that comes next, so that a shell takes it as it stands."""
    print(f"next: {shlex.join(map(str, words))}")


def print_json(data: Mapping[str, Any]) -> None:
    """One JSON object on standard output."""
    print(json_text(data, indent=2))


def json_text(data: Any, *, indent: int | None = None) -> str:
    """JSON text; NaN and infinity, which JSON does not have, become null."""
    return json.dumps(without_nan(data), indent=indent, allow_nan=False)


def shown(name: object) -> str:
    """A file's name for a line of text: with escapes where it has line breaks, or bytes that are no text."""
    text = str(name)
    return text if text.isprintable() else ascii(text)
