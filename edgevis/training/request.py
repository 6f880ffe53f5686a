"""What a training is asked for, and the command that asks for it."""

from __future__ import annotations

import json
import shlex
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from runtime.common.json_data import to_json

Precision = Literal["32-true", "bf16-mixed", "16-mixed"]


@dataclass(frozen=True, slots=True)
class TrainingRequest:
    """The arguments of one training.

    Attributes:
        model: A name in :mod:`edgevis.models`.
        data: A folder or zip.
        output: The training's folder.
        recipe: One of the model's recipes by name.
        values: Values of the recipe that are other ones.
        options: Of the model; those that the data decide need not be given.
        weights: To begin with.
        backbone: Published weights of the model's backbone to begin with.
        teacher: Weights of a trained model to learn from; None for those that ship with ``teacher_model``.
        pseudo_labels: Pictures that a teacher labelled, to learn from beside the data.
        unlabelled: Pictures without labels, whose answers are to be sure and diverse.
        teacher_model: Its name in :mod:`edgevis.models`; None where ``teacher`` says it, or there is no teacher.
        resume: Whether to go on from the folder's checkpoint.
        seed: Of weights, batches and splits.
        devices, accelerator, precision: Lightning Fabric's.
        workers: Processes that make batches ahead.
        allow_leakage: Whether to train on data whose sides share images, persons, volumes or classes.
        split_by: How images without a stated split are divided, see :mod:`edgevis.data.image_split`.
        checkpoint_minutes: An interrupted training loses at most about so many minutes.
    """

    model: str
    data: Path
    output: Path
    recipe: str = "paper"
    values: Mapping[str, Any] = field(default_factory=dict)
    options: Mapping[str, int | str] = field(default_factory=dict)
    weights: Path | None = None
    backbone: Path | None = None
    teacher: Path | None = None
    teacher_model: str | None = None
    pseudo_labels: Path | None = None
    unlabelled: Path | None = None
    resume: bool = False
    seed: int = 0
    devices: int = 1
    accelerator: str = "auto"
    precision: Precision = "32-true"
    workers: int = 0
    allow_leakage: bool = False
    split_by: str = ""
    checkpoint_minutes: float = 5.0


def command_of(request: TrainingRequest) -> str:
    """The command that asks for this training, with the names of files alone and without its output folder."""
    parts = [request.model, "--data", request.data.name, "--recipe", request.recipe]
    for flag, pairs in (("--option", request.options), ("--set", request.values)):
        for name, value in pairs.items():
            text = value if isinstance(value, str) else json.dumps(to_json(value))
            parts += [flag, f"{name}={text}"]
    files = (
        ("--weights", request.weights),
        ("--backbone", request.backbone),
        ("--teacher", request.teacher),
        ("--pseudo-labels", request.pseudo_labels),
        ("--unlabelled", request.unlabelled),
    )
    for flag, path in files:
        parts += [] if path is None else [flag, path.name]
    parts += [] if request.teacher_model is None else ["--teacher-model", request.teacher_model]
    for flag, value in (("--seed", request.seed), ("--devices", request.devices), ("--precision", request.precision)):
        parts += [flag, str(value)]
    parts += ["--split-by", request.split_by] if request.split_by else []
    parts += ["--allow-leakage"] if request.allow_leakage else []
    return shlex.join(("python", "-m", "edgevis.train", *parts))
