"""The arguments of ``python -m export.build``, and the build request made of them."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, get_args

from calibration.cache import default_folder
from calibration.quantize.ranges import Method
from edgevis.precision import PRECISIONS, precisions
from runtime.bundle.bundle import SUFFIX
from runtime.common.console import add_verbosity

if TYPE_CHECKING:
    from export.request import BuildRequest, OnnxSource

_DESCRIPTION = """\
Export a model to ONNX, compile it for a target, prove every engine against PyTorch on real images, write a bundle.

Each stage prints one line with its time and what it made. Nothing is written unless every stage succeeds; a bundle
that is already there is then replaced, and otherwise left as it is.
"""
_AUTO = "auto"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Give a parser the description and the arguments of a build."""
    parser.description, parser.formatter_class = _DESCRIPTION, argparse.RawDescriptionHelpFormatter
    parser.add_argument("--model", metavar="NAME", help="a model of edgevis.models, see --list; or package.module:NAME")
    parser.add_argument(
        "--onnx",
        metavar="FILE",
        type=Path,
        help="your own float32 ONNX file in place of --model: one image (N, 3 or 1, H, W), one output, open batch, "
        "weights inside. Its engines are proved against it, run by ONNX Runtime with nothing optimised",
    )
    parser.add_argument(
        "--task",
        metavar="TASK",
        help="what the ONNX file is for, such as reid, classify or segment; the output is an embedding (N, D), for "
        "segment logits (N, classes, height, width)",
    )
    parser.add_argument(
        "--preprocess",
        metavar="FIELDS",
        default="",
        help="how an image becomes the ONNX file's input: color=RGB,scale=1/255,mean=0.485:0.456:0.406,"
        "std=0.229:0.224:0.225, also fit, interpolation, pad_value and, where the graph leaves them open, height and "
        "width; or a .json file with these fields (default: RGB, 1/255, mean 0, std 1, stretched)",
    )
    parser.add_argument("--labels", metavar="A,B", default="", help="one name for each class, for --task segment")
    parser.add_argument("--target", metavar="NAME", default="cpu", help="where it shall run (default: cpu); see --list")
    parser.add_argument(
        "--precision",
        metavar="P",
        action="append",
        type=precisions(_AUTO),
        help=f"{', '.join(PRECISIONS)}; several with commas or by repeating (default for cpu: fp32,int8; for "
        "few-shot segmentation fp32; bf16 needs a processor that has it). INT8 without fp32 is possible; fp32 is what "
        "other precisions fall back to. auto: all that the target has are built and measured here; the fastest that "
        "loses no more than --max-drop is kept, and the fastest fp32 engine to fall back to",
    )
    parser.add_argument(
        "--checkpoint",
        metavar="FILE",
        type=Path,
        help=".safetensors or .pt weights (default: those that ship with edgevis; where none do, random ones)",
    )
    parser.add_argument(
        "--calibration-data",
        metavar="PATH",
        type=Path,
        help="a folder or zip of real images, one sub-folder per person or class, for a detector with boxes as "
        "it is trained on: they set INT8 scales and prove the engines. None of them goes into the bundle "
        "(default: crops of photographs in the wheels of scikit-image and Matplotlib)",
    )
    parser.add_argument(
        "--calibration",
        metavar="METHOD",
        choices=get_args(Method),
        help=f"how INT8's ranges follow from the values that were seen: {', '.join(get_args(Method))} (default: the "
        "target's, mse)",
    )
    parser.add_argument(
        "--max-drop",
        metavar="SHARE",
        type=_share,
        help="what INT8 may lose: the share of decisions that differ from the float model's, and 1 - mean cosine of "
        "what the graphs make. The most harmful layers go back to float until it holds; 1 leaves all in INT8, "
        "and keeps it where the images cannot show what it loses. Of a detector: average precision, with its own "
        "detections as the objects, and with the boxes of --calibration-data (default: 0.005, for detectors 0.01)",
    )
    parser.add_argument(
        "--cache",
        metavar="DIR",
        type=Path,
        default=default_folder(),
        help="where measured ranges are kept between builds (default: %(default)s; None keeps nothing)",
    )
    parser.add_argument("--no-cache", action="store_true", help="measure ranges anew and keep nothing")
    parser.add_argument(
        "--option",
        metavar="NAME=VALUE",
        action="append",
        type=_option,
        default=[],
        help="an option of the model, such as backbone=resnet101 or side=257; may be repeated",
    )
    for flag, what in (("min", "smallest"), ("opt", "usual"), ("max", "largest")):
        parser.add_argument(
            f"--{flag}-shapes",
            metavar="NAME:1x3x…",
            action="append",
            default=[],
            help=f"the {what} shape that an engine of jetson, datacenter or rtx is built for, such as image:"
            "8x3x256x128; inputs with the same open axis follow; several with commas or by repeating"
            + {
                "min": " (default: one image)",
                "opt": " (default: one image, for datacenter 8)",
                "max": " (default: the model's largest batch, which it sets, too)",
            }[flag],
        )
    parser.add_argument(
        "--workspace",
        metavar="MIB",
        type=_mebibytes,
        help="the most device memory that a layer of a TensorRT plan may take for scratch (default: jetson 2048, "
        "datacenter all)",
    )
    parser.add_argument(
        "--optimization-level",
        metavar="N",
        type=int,
        choices=range(6),
        help="0 to 5: how long TensorRT searches for fast kernels (default: TensorRT's own)",
    )
    parser.add_argument(
        "--version-compatible",
        action="store_true",
        help="later releases of TensorRT may load the plan of an earlier one; it may be slower",
    )
    parser.add_argument(
        "--hardware-compatible",
        action="store_true",
        help="one plan for all GPUs from Ampere on, for a cache that a mixed fleet shares; it may be slower. "
        "datacenter only",
    )
    parser.add_argument(
        "--golden-pictures",
        metavar="DIR",
        type=Path,
        help="a folder of 2 to 15 image files, one sub-folder for each thing they show, to prove the way from pixel to "
        "answer with. They are COPIED INTO THE BUNDLE, at most 1024 pixels a side: whoever gets the bundle gets them "
        "(default: pictures that the build draws)",
    )
    parser.add_argument(
        "--output",
        metavar="PATH",
        default="bundles/",
        help="the bundle, NAME.edgevis, or a folder for it (default: %(default)s)",
    )
    parser.add_argument("--seed", type=int, default=0, help="of random weights (default: 0)")
    parser.add_argument("--json", action="store_true", help="print one JSON object on standard output")
    add_verbosity(parser, progress=True)
    parser.add_argument("--list", action="store_true", help="list the models and targets, and stop")
    parser.set_defaults(usage_error=parser.error)


def _bundle_path(output: str, name: str) -> Path:
    """The bundle's path: ``output``, or ``NAME.edgevis`` in it if it is a folder."""
    path = Path(output)
    is_folder = output.endswith("/") or (path.is_dir() and path.suffix != SUFFIX)
    return path / f"{name}{SUFFIX}" if is_folder else path


def _share(text: str) -> float:
    try:
        value = float(text)
    except ValueError:
        value = -1.0
    if not 0 <= value <= 1:
        raise argparse.ArgumentTypeError(f"{text!r} is not a share; allowed: 0 to 1")
    return value


def _mebibytes(text: str) -> int:
    if not (text.isascii() and text.isdecimal() and 1 <= int(text) <= 1 << 20):
        raise argparse.ArgumentTypeError(f"{text!r} is not a number of MiB; allowed: 1 to {1 << 20}")
    return int(text) << 20


def _option(text: str) -> tuple[str, str | int]:
    name, equals, value = text.partition("=")
    if not (name and equals and value):
        raise argparse.ArgumentTypeError(f"{text!r} is not NAME=VALUE")
    return name, int(value) if value.isdecimal() else value


def contradiction(arguments: argparse.Namespace) -> str:
    """The text of a missing or contradictory argument; empty if there is none."""
    if arguments.onnx is None:
        for name in ("task", "preprocess", "labels"):
            if getattr(arguments, name):
                return f"--{name} goes with --onnx"
        return "" if arguments.model else "--model or --onnx is needed; --list shows the models"
    for name in ("model", "checkpoint", "option"):
        if getattr(arguments, name):
            return f"--onnx takes no --{name}"
    return "" if arguments.task else "--onnx needs --task, such as reid, classify or segment"


def request_from(arguments: argparse.Namespace) -> BuildRequest:
    """The build request of parsed arguments.

    Raises:
        EdgevisError: There is no such model, or a shape is malformed.
    """
    from edgevis import models  # torch takes a second or two: --help need not wait for it
    from export.profiles import ShapeProfileRequest
    from export.request import BuildRequest
    from export.targets import PlanSettings

    entry = models.entry(arguments.model) if arguments.onnx is None else _onnx_source(arguments)
    named = tuple(name for names in arguments.precision or () for name in names)
    return BuildRequest(
        entry=entry,
        output=_bundle_path(arguments.output, models.file_name(entry.name)),
        target=arguments.target,
        # `auto` beside other names: these are the candidates.
        precisions=tuple(name for name in named if name != _AUTO) or None,
        checkpoint=arguments.checkpoint,
        calibration_data=arguments.calibration_data,
        options=dict(arguments.option),
        seed=arguments.seed,
        shapes=ShapeProfileRequest(
            _shapes(arguments.min_shapes), _shapes(arguments.opt_shapes), _shapes(arguments.max_shapes)
        ),
        calibration=arguments.calibration,
        max_drop=arguments.max_drop,
        cache=None if arguments.no_cache else arguments.cache,
        choose=_AUTO in named,
        golden_pictures=arguments.golden_pictures,
        settings=PlanSettings(
            workspace_bytes=arguments.workspace,
            optimization_level=arguments.optimization_level,
            version_compatible=arguments.version_compatible,
            hardware_compatible=arguments.hardware_compatible,
        ),
    )


def _onnx_source(arguments: argparse.Namespace) -> OnnxSource:
    from export.preprocess_option import parsed_preprocess
    from export.request import OnnxSource

    labels = tuple(label.strip() for label in arguments.labels.split(",") if label.strip())
    return OnnxSource(arguments.onnx, arguments.task, parsed_preprocess(arguments.preprocess), labels)


def _shapes(texts: Sequence[str]) -> dict[str, tuple[int, ...]]:
    from export.profiles import parsed_shapes

    return parsed_shapes(",".join(texts)) if texts else {}
