"""Arguments and output that several verbs share."""

from __future__ import annotations

import argparse
import json
import logging
import math
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from edgevis import Predictor
from runtime.images.folders import image_files
from runtime.images.picture_files import is_drawing

_log = logging.getLogger("edgevis.cli")


def add_engine_arguments(parser: argparse.ArgumentParser) -> None:
    """``BUNDLE`` and the choice of its engine."""
    parser.add_argument("bundle", metavar="BUNDLE", help="a folder NAME.edgevis")
    parser.add_argument(
        "--backend", default="auto", help="auto, onnxruntime, openvino, tensorrt, tensorrt_rtx (default: auto)"
    )
    parser.add_argument("--device", default="auto", help="auto, cpu or cuda (default: auto)")
    parser.add_argument("--precision", help="fp32, fp16, bf16 or int8 (default: the fastest that decides like PyTorch)")
    parser.add_argument("--threads", type=int, help="CPU threads for the engine (default: the backend's choice)")


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
    return Predictor(
        arguments.bundle,
        backend=arguments.backend,
        device=arguments.device,
        precision=arguments.precision,
        threads=arguments.threads,
        false_accept_rate=getattr(arguments, "false_accept_rate", None),
    )


def image_paths(arguments: list[str], *, drawings: bool = False) -> list[Path]:
    """The files that are named, and the image files in the folders that are named, in order.

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


def print_json(data: Mapping[str, Any]) -> None:
    """One JSON object on standard output."""
    print(json_text(data, indent=2))


def json_text(data: Any, *, indent: int | None = None) -> str:
    """JSON text; NaN and infinity, which JSON does not have, become null."""
    return json.dumps(_without_nan(data), indent=indent, allow_nan=False)


def shown(name: object) -> str:
    """A file's name for a line of text: with escapes where it has line breaks, or bytes that are no text."""
    text = str(name)
    return text if text.isprintable() else ascii(text)


def _without_nan(data: Any) -> Any:
    if isinstance(data, float):
        return data if math.isfinite(data) else None
    if isinstance(data, Mapping):
        return {key: _without_nan(value) for key, value in data.items()}
    return [_without_nan(value) for value in data] if isinstance(data, (list, tuple)) else data
