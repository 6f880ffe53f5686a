"""The request of a build, and the protocol of its progress."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from calibration.quantize.ranges import Method
from export.profiles import ShapeProfileRequest
from export.targets import DEFAULT_SETTINGS, PlanSettings
from runtime.bundle.spec import Precision

if TYPE_CHECKING:
    from edgevis.models.entry import ModelEntry  # imports torch, which takes a second or two

UNTRAINED = (
    "RANDOM WEIGHTS: this model has not been trained. Its engines are proved to compute what the reference "
    "model computes, and that means nothing. Give trained weights with --checkpoint."
)


class BuildProgress(Protocol):
    """Receives the progress of a build, stage by stage."""

    def begin(self, stage: str) -> None: ...

    def advance(self, done: int, total: int) -> None: ...

    def end(self, detail: str, *, size_bytes: int | None = None) -> None: ...

    def warn(self, message: str) -> None: ...


@dataclass(frozen=True, slots=True)
class OnnxSource:
    """A user's ONNX file in place of a model of :mod:`edgevis.models`.

    Attributes:
        path: The file: one float32 image (N, 3 or 1, H, W) to one output, weights inside.
        task: ``reid`` or ``classify`` with an embedding (N, D) as output, ``segment`` with logits (N, classes, h, w).
        preprocess: Fields of :class:`runtime.bundle.spec.Preprocess` as JSON data; height and width only where the
            graph leaves them open.
        labels: One name for each class of ``segment``.
        precisions: None: what the target makes.
    """

    path: Path
    task: str
    preprocess: Mapping[str, Any] = field(default_factory=dict)
    labels: tuple[str, ...] = ()
    precisions: tuple[Precision, ...] | None = None

    @property
    def name(self) -> str:
        """The model's name: the file's stem, with a hyphen for each character that a name cannot have."""
        name = re.sub("[^A-Za-z0-9_.-]", "-", self.path.stem)[:64]
        return name if name[:1].isalpha() else f"model-{name}"[:64]


@dataclass(frozen=True, slots=True)
class BuildRequest:
    """The arguments of a build.

    Attributes:
        entry: The model, or an ONNX file.
        output: The bundle's path, ending in ``.edgevis``.
        target: A name in :mod:`export.targets`.
        precisions: None for the model's default ones, or the target's.
        checkpoint: Weights to load; None for those that ship with edgevis or, without any, random ones.
        calibration_data: A folder or zip of images; None for the photographs in the wheels of dependencies.
        options: Of the model, such as ``{"backbone": "resnet101"}``.
        seed: Of random weights.
        shapes: What engines shall be built for, where a target's engines have a range of shapes.
        calibration: How INT8's ranges follow from values; None for the target's way.
        max_drop: What INT8 may lose, see :func:`calibration.search.accuracy_drop.drop_of`; 1 excludes no layer.
            None for the task's :attr:`runtime.tasks.TaskTraits.max_drop`.
        cache: Where measured ranges are kept between builds; None for nowhere.
        choose: Build ``precisions``, or all that the target has and this machine can run, and keep the fastest
            engine that loses no more than ``max_drop`` and, to fall back to, the fastest FP32 engine.
        settings: Of plans, where the target has them.
        golden_pictures: A folder of pictures that go into the bundle, to prove the way from pixel to answer; None for
            drawn ones.
    """

    entry: ModelEntry | OnnxSource
    output: Path
    target: str = "cpu"
    precisions: tuple[Precision, ...] | None = None
    checkpoint: Path | None = None
    calibration_data: Path | None = None
    options: Mapping[str, str | int] = field(default_factory=dict)
    seed: int = 0
    shapes: ShapeProfileRequest = ShapeProfileRequest()  # noqa: RUF009  # frozen
    calibration: Method | None = None
    max_drop: float | None = None
    cache: Path | None = None
    choose: bool = False
    settings: PlanSettings = DEFAULT_SETTINGS
    golden_pictures: Path | None = None

    @property
    def name(self) -> str:
        """The model's name."""
        return self.entry.name
