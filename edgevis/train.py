"""``python -m edgevis.train``: a model learns from images. Arguments and output; the work is in ``training/``."""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from edgevis.precision import TRAINING_PRECISIONS, training_precision
from edgevis.settings import setting, setting_value
from edgevis.training.progress import ConsoleProgress
from runtime.common.command import run_command
from runtime.common.console import add_verbosity, log_to_stderr
from runtime.common.extras import install_command, missing_modules, require_extra
from runtime.common.json_data import parse_json
from runtime.errors import InputError

_DESCRIPTION = """\
Train a model on images, evaluate it by its task's measure, and write weights that export.build takes.

The folder OUTPUT holds last.safetensors (to go on from with --resume), best.safetensors (the weights), log.csv, files
for TensorBoard, report.json and pictures. Ctrl-C writes a checkpoint; a training that is killed, or whose power fails,
loses at most --checkpoint-minutes.
"""


def main(argv: Sequence[str] | None = None) -> int:
    """Train; returns the process's exit status."""
    parser = argparse.ArgumentParser(prog="python -m edgevis.train")

    def parse_and_run() -> int:
        add_arguments(parser)
        arguments = parser.parse_args(argv)
        with log_to_stderr(arguments):
            return run(arguments)

    return run_command(parse_and_run)


def run(arguments: argparse.Namespace) -> int:
    """Train what :func:`add_arguments` describes, or list the models; returns the process's exit status."""

    def work() -> int:
        require_extra("train", what="a training")
        return _list(arguments) if arguments.list else _train(arguments)

    return run_command(work, interrupted="the same command with --resume goes on from the last checkpoint")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Give a parser the description and the arguments of a training."""
    parser.description, parser.formatter_class = _DESCRIPTION, argparse.RawDescriptionHelpFormatter
    if missing := missing_modules("train"):
        parser.epilog = f"{', '.join(missing)} not installed: {install_command('train')}"
    parser.add_argument(
        "model", metavar="MODEL", nargs="?", help="a model of edgevis.models, see --list; or package.module:NAME"
    )
    parser.add_argument("--data", metavar="PATH", type=Path, help="a folder or zip of images, see docs/training.md")
    parser.add_argument("--recipe", metavar="NAME", default="paper", help="see --list (default: paper)")
    parser.add_argument("--config", metavar="FILE", type=Path, help="JSON: values of the recipe that are other ones")
    parser.add_argument(
        "--set", metavar="KEY=VALUE", action="append", type=setting, default=[], help="likewise, one by one"
    )
    parser.add_argument(
        "--option", metavar="NAME=VALUE", action="append", type=setting, default=[], help="an option of the model"
    )
    parser.add_argument(
        "--weights", metavar="FILE", type=Path, help="begin with these weights; heads of another size begin anew"
    )
    parser.add_argument(
        "--backbone", metavar="FILE", type=Path, help="begin with these published weights of the model's backbone"
    )
    parser.add_argument(
        "--teacher", metavar="FILE", type=Path, help="learn also from the model of these weights, see docs/training.md"
    )
    parser.add_argument(
        "--teacher-model",
        metavar="NAME",
        help="the teacher's model where its weights do not say it; without --teacher, the weights that ship with it",
    )
    parser.add_argument(
        "--pseudo-labels",
        metavar="PATH",
        type=Path,
        help="learn also from these pictures, which a teacher labelled, see docs/training.md",
    )
    parser.add_argument(
        "--unlabelled",
        metavar="PATH",
        type=Path,
        help="adapt also to these pictures without labels, of a new camera, see docs/training.md",
    )
    parser.add_argument(
        "--epochs", metavar="N", type=int, help="as --set epochs=N; with --resume it may be more than before"
    )
    parser.add_argument("--output", metavar="DIR", type=Path, help="(default: runs/MODEL)")
    parser.add_argument("--resume", action="store_true", help="go on from OUTPUT's checkpoint if there is one")
    parser.add_argument(
        "--checkpoint-minutes",
        metavar="M",
        type=setting_value,
        default=5,
        help="write a checkpoint every M minutes, also within an epoch; 0: after each step (default: %(default)s)",
    )
    parser.add_argument(
        "--allow-leakage",
        action="store_true",
        help="train also where the sides of the split share images, persons, volumes or classes; the report says so",
    )
    parser.add_argument(
        "--split-by",
        metavar="GROUP",
        default="",
        help="divide images whose data state no split: by folder, by a column of index.csv, or by image where every "
        "image shows something else",
    )
    parser.add_argument(
        "--seed", metavar="N", type=setting_value, default=0, help="of weights, batches and splits (default: 0)"
    )
    parser.add_argument(
        "--devices",
        metavar="N",
        type=setting_value,
        default=1,
        help="how many GPUs, or processes on a CPU (default: 1)",
    )
    parser.add_argument("--accelerator", choices=("auto", "cpu", "cuda"), default="auto")
    parser.add_argument(
        "--precision",
        metavar="P",
        type=training_precision,
        default="fp32",
        help=f"{', '.join(TRAINING_PRECISIONS)}: of the arithmetic; weights stay in float32 (default: %(default)s)",
    )
    parser.add_argument(
        "--workers", metavar="N", type=setting_value, default=0, help="processes that make batches ahead (default: 0)"
    )
    parser.add_argument("--json", action="store_true", help="print the report as JSON on standard output")
    add_verbosity(parser, progress=True)
    parser.add_argument("--list", action="store_true", help="list the models that can be trained, and stop")
    parser.set_defaults(usage_error=parser.error)


def _train(arguments: argparse.Namespace) -> int:
    if not arguments.model or arguments.data is None:
        arguments.usage_error("MODEL and --data are needed; --list shows the models and their recipes")
    from edgevis.models import entry, file_name
    from edgevis.training.request import TrainingRequest
    from edgevis.training.run import train  # torch takes a second or two: --help need not wait for it

    listener = ConsoleProgress(sys.stderr if arguments.json else sys.stdout, quiet=bool(arguments.quiet))
    model = entry(arguments.model).name  # one spelling, wherever it is recorded
    report = train(
        TrainingRequest(
            model=model,
            data=arguments.data,
            output=arguments.output or Path("runs", file_name(model)),
            recipe=arguments.recipe,
            values={
                **_config(arguments.config),
                **dict(arguments.set),
                **({} if arguments.epochs is None else {"epochs": arguments.epochs}),
            },
            options=dict(arguments.option),
            weights=arguments.weights,
            backbone=arguments.backbone,
            teacher=arguments.teacher,
            teacher_model=arguments.teacher_model,
            pseudo_labels=arguments.pseudo_labels,
            unlabelled=arguments.unlabelled,
            resume=arguments.resume,
            seed=arguments.seed,
            devices=arguments.devices,
            accelerator=arguments.accelerator,
            precision=arguments.precision,
            workers=arguments.workers,
            allow_leakage=arguments.allow_leakage,
            split_by=arguments.split_by,
            checkpoint_minutes=arguments.checkpoint_minutes,
        ),
        listener,
    )
    if report is None:  # not the first of several processes
        return 0
    if arguments.json:
        sys.stdout.write(json.dumps(report, indent=2, allow_nan=False) + "\n")
    return 0


def _config(path: Path | None) -> Mapping[str, Any]:
    if path is None:
        return {}
    try:
        values = parse_json(path.read_bytes())
    except OSError as error:
        raise InputError(f"cannot read {path}: {error.strerror}") from error
    if not isinstance(values, dict):
        raise InputError(f"{path} is not a JSON object of the recipe's values")
    return values


def _list(arguments: argparse.Namespace) -> int:
    from edgevis import models
    from edgevis.models.recipe_moco import recipes_of
    from runtime.common.json_data import to_json
    from runtime.common.text import text_table

    found = [(entry, recipes_of(entry)) for entry in models.declared_entries()]
    if arguments.json:
        listed = {
            entry.name: {name: to_json(recipe) for name, recipe in recipes.items()}
            for entry, recipes in found
            if recipes
        }
        sys.stdout.write(json.dumps(listed, indent=2) + "\n")
        return 0
    rows = [(entry.name, entry.deployment.task, ", ".join(recipes)) for entry, recipes in found if recipes]
    sys.stdout.write(text_table(("model", "task", "recipes"), rows) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
