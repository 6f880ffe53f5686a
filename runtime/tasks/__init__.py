"""What a bundle is for: each file here runs one kind of model behind the same verbs.

The file's name is the task's name in the manifest. A task gets the open sessions of the model's graphs and turns
images into results; it knows nothing of backends.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol, TypeAlias, cast

from runtime.bundle.spec import Deployment
from runtime.common.arrays import Array
from runtime.common.discovery import load_from, names_in
from runtime.enrolment.quality import EnrolmentReport
from runtime.errors import SchemaError
from runtime.gallery import Enrolled
from runtime.images.decode import Image
from runtime.images.masks import Mask
from runtime.images.preprocess import Preprocessor
from runtime.open_set.decision import OpenSet
from runtime.results import Classification, Identification, Segmentation
from runtime.sessions.session import Session

Result: TypeAlias = Classification | Identification | Segmentation


@dataclass(frozen=True, slots=True)
class Context:
    """What a task works with.

    Attributes:
        deployment: What the model declares.
        sessions: An open session for each graph.
        preprocess: From images to the input of a graph.
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
        """What is enrolled."""
        ...

    @property
    def open_set(self) -> OpenSet | None:
        """From which score a match counts; None for a task without scores between labels."""
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


class TaskModule(Protocol):
    """What a module in this package offers."""

    def open_task(self, context: Context) -> Task: ...


def names() -> tuple[str, ...]:
    """The names of all tasks."""
    return names_in(__name__)


def load(name: str) -> TaskModule:
    """The task of that name; SchemaError when a manifest names one that this version does not have."""
    hint = ": a newer edgevis built this bundle"
    return cast(TaskModule, load_from(__name__, name, what="task", error=SchemaError, hint=hint))
