"""Arguments and output that several verbs share."""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

from edgevis import InputError, Predictor
from runtime.images import SUFFIXES


def add_engine_arguments(parser: argparse.ArgumentParser) -> None:
    """``BUNDLE`` and the choice of its engine."""
    parser.add_argument("bundle", metavar="BUNDLE", help="a folder NAME.edgevis")
    parser.add_argument(
        "--backend", default="auto", help="auto, onnxruntime, openvino, tensorrt, tensorrt_rtx (default: auto)"
    )
    parser.add_argument("--device", default="auto", help="auto, cpu or cuda (default: auto)")
    parser.add_argument("--precision", help="fp32, fp16, bf16 or int8 (default: the fastest that decides like PyTorch)")
    parser.add_argument("--threads", type=int, help="CPU threads for the engine (default: the backend's choice)")


def open_predictor(arguments: argparse.Namespace) -> Predictor:
    """The predictor that :func:`add_engine_arguments` describes."""
    return Predictor(
        arguments.bundle,
        backend=arguments.backend,
        device=arguments.device,
        precision=arguments.precision,
        threads=arguments.threads,
    )


def image_paths(arguments: list[str]) -> list[Path]:
    """The image files that are named, and those in the folders that are named, in order.

    Raises:
        InputError: A folder holds none.
    """
    paths: list[Path] = []
    for argument in map(Path, arguments):
        if not argument.is_dir():
            paths.append(argument)
            continue
        found = sorted(path for path in argument.rglob("*") if path.suffix.lower() in SUFFIXES)
        if not found:
            raise InputError(f"the folder {argument} holds no images ({', '.join(sorted(SUFFIXES))})")
        paths += found
    return paths


def print_json(data: dict[str, Any]) -> None:
    """One JSON object on standard output."""
    print(json.dumps(data, indent=2, allow_nan=False))
