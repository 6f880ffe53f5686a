"""The kinds of model that a bundle can hold: each file here runs one of them behind the same verbs.

The file's name is the task's name in the manifest. A task gets the open sessions of the model's graphs and turns
images into results; it knows nothing of backends. It also declares what other packages must know of it without
opening it: see :class:`TaskModule`. A package outside edgevis adds a task as an entry point of the group
``edgevis.tasks``, named as the task, that points to such a module.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, Protocol, TypeAlias, cast, runtime_checkable

from runtime.bundle.manifest import Decisions
from runtime.bundle.spec import Deployment
from runtime.common.arrays import Array
from runtime.common.discovery import known_names, load_from
from runtime.enrolment.quality import EnrolmentReport
from runtime.errors import SchemaError
from runtime.gallery import Enrolled
from runtime.images.decode import Image
from runtime.images.masks import Mask
from runtime.images.preprocess import Preprocessor
from runtime.open_set.decision import OpenSet
from runtime.results import Result
from runtime.sessions.session import Session

__all__ = [
    "Context",
    "EnrolmentKind",
    "LayerKind",
    "Result",
    "SingleGraph",
    "Task",
    "TaskModule",
    "TaskTraits",
    "TrainedScores",
    "load",
    "names",
    "settings_of",
    "threshold_of",
]

EnrolmentKind: TypeAlias = Literal["images", "images and masks", "nothing"]

LayerKind: TypeAlias = Literal["depthwise", "last"]
"""Convolutions with one channel in each group, and layers from which outputs that stay float32 follow without another
layer between."""

GROUP = "edgevis.tasks"
"""The entry points of tasks from other packages."""


@dataclass(frozen=True, slots=True)
class Context:
    """The open model that a task runs.

    Attributes:
        deployment: The model's declaration.
        sessions: An open session for each graph.
        preprocess: Makes a graph's input of images.
        open_set: The arrays of the bundle's score space, see :mod:`runtime.open_set.space`; None where there is none.
        index_from: From how many enrolled rows on searches go through an approximate index; None for never.
    """

    deployment: Deployment
    sessions: Mapping[str, Session]
    preprocess: Preprocessor
    open_set: Mapping[str, Array] | None = None
    index_from: int | None = None


class Task(Protocol):
    """One open model. Threads may call it at once."""

    @property
    def gallery(self) -> Enrolled:
        """The enrolled rows by label."""
        ...

    @property
    def open_set(self) -> OpenSet | None:
        """The open-set decision; None for a task without scores between labels."""
        ...

    def enroll(
        self, label: str, images: Sequence[Image], masks: Sequence[Mask] | None, *, names: Sequence[str], strict: bool
    ) -> EnrolmentReport:
        """Judge examples of a label and add those that can work; ``names`` are the images', for the report.

        InputError, and nothing is enrolled, when the task needs masks or takes none, when no image can be used, or
        when ``strict`` and anything speaks against one of them.
        """
        ...

    def embed(self, images: Sequence[Image]) -> Array:
        """(N, D) float32 unit rows; InputError for a task without embeddings."""
        ...

    def scored_rows(self, images: Sequence[Image]) -> Array:
        """(N, D) float32 unit rows as the gallery holds them; InputError for a task without embeddings."""
        ...

    def predict(self, images: Sequence[Image], *, top_k: int) -> list[Result]:
        """One result for each image."""
        ...


@runtime_checkable
class TrainedScores(Protocol):
    """A task whose labels were trained: what reaches a threshold is in its results. Threads may call it at once."""

    @property
    def threshold(self) -> float:
        """The score, 0..1, from which something counts."""
        ...

    def set_threshold(self, score: float | None) -> None:
        """Set the threshold; None is the bundle's own. InputError unless it is from 0 to 1."""
        ...


@dataclass(frozen=True, slots=True)
class SingleGraph:
    """The graph of a task whose models are one graph from ``image`` to one float32 output.

    Attributes:
        name: The graph's name.
        output: The output's name.
        axes: The names of the output's axes after the batch, such as ``("D",)``.
    """

    name: str
    output: str
    axes: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class TaskTraits:
    """The facts about a task that other packages use without opening it.

    Attributes:
        result: The class of its results.
        enrolment: The kind of an example of a label: images, images with a mask each, or nothing where the labels were
            trained.
        embedding: ``GRAPH/OUTPUT`` of the output that holds embeddings, (N, D) float32; None for a task without.
        single_graph: The one graph of its models; None for a task of several graphs.
        max_drop: What INT8 may lose, unless a build is told: by default one decision of two hundred may change, and
            embeddings may turn by a mean cosine of 0.995.
        float_first: The kinds of layers that an INT8 search puts back to float before it looks for others.
    """

    result: type
    enrolment: EnrolmentKind = "images"
    embedding: str | None = None
    single_graph: SingleGraph | None = None
    max_drop: float = 0.005
    float_first: tuple[LayerKind, ...] = ("last",)


def threshold_of(task: Task) -> float | None:
    """The score from which a label comes back, or something counts; None when nothing is known of strangers yet."""
    if isinstance(task, TrainedScores):
        return task.threshold
    return None if task.open_set is None else task.open_set.threshold


class TaskModule(Protocol):
    """The members of a module in this package."""

    TRAITS: TaskTraits

    def open_task(self, context: Context) -> Task:
        """The task of an open model; SchemaError if its graphs or settings are not the task's."""
        ...

    def settings_from(self, postprocess: Mapping[str, Any]) -> Any:
        """The task's settings, a frozen dataclass, from a manifest's ``postprocess``; SchemaError if they are wrong."""
        ...

    def agreement(self, reference: Mapping[str, Array], actual: Mapping[str, Array]) -> Decisions | None:
        """The agreement of an engine's decisions with the reference model's.

        Args:
            reference: ``GRAPH/OUTPUT`` to the reference model's outputs in float32, one row for each image.
            actual: The same by the engine; it may hold only some of the graphs.

        Returns:
            None where ``actual`` lacks the output that decides.
        """
        ...


def names() -> tuple[str, ...]:
    """The names of all tasks."""
    return known_names(__name__, GROUP)


def load(name: str) -> TaskModule:
    """The task of that name; SchemaError when a manifest names one that this version does not have."""
    hint = ": a newer edgevis built this bundle"
    return cast(TaskModule, load_from(__name__, name, what="task", error=SchemaError, hint=hint, group=GROUP))


def settings_of(deployment: Deployment) -> Any:
    """The typed settings of a deployment's task; SchemaError if ``postprocess`` is not as the task allows."""
    return load(deployment.task).settings_from(deployment.postprocess)
