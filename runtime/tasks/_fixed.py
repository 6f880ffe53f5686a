"""The shared part of the tasks whose labels were trained: their names, and the refusal to enrol more."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, ClassVar

import numpy as np

from runtime.bundle.spec import Graph, TensorSpec
from runtime.common.arrays import Array
from runtime.enrolment.quality import EnrolmentReport
from runtime.errors import EnrolmentError, InputError, SchemaError, UnknownLabelError
from runtime.images.decode import Image
from runtime.images.masks import Mask
from runtime.tasks import Context

FIXED = "this model finds the classes that it was trained for; nothing can be enrolled or forgotten"


class FixedLabels:
    """The labels of a model that was trained for them, where other tasks keep what was enrolled."""

    def __init__(self, labels: tuple[str, ...]) -> None:
        self.labels = labels

    def remove(self, label: str) -> None:
        if label not in self.labels:
            raise UnknownLabelError(f"no label {label!r}; known: {', '.join(self.labels)}")
        raise EnrolmentError(FIXED)

    def contents(self) -> dict[str, Array]:
        raise EnrolmentError(FIXED)

    def replace(self, rows: Mapping[str, Array]) -> None:
        raise EnrolmentError(FIXED)


class FixedLabelsTask(ABC):
    """A part of :class:`runtime.tasks.Task`: the checks of the graph, and the refusals. Subclasses predict.

    Args:
        context: The open model.
        labels: One name for each class.

    Attributes:
        GRAPH: The graph's name.
        MAKES: What it makes, in words.

    Raises:
        SchemaError: The graph is not of the task's form.
    """

    GRAPH: ClassVar[str]
    MAKES: ClassVar[str]

    open_set = None
    """The scores are those of trained classes; there are no strangers."""

    def __init__(self, context: Context, labels: tuple[str, ...]) -> None:
        spec, image = context.deployment.graph(self.GRAPH), context.deployment.preprocess.input
        expected, shapes = self.expected_outputs(spec, labels)
        if spec.inputs != (image,) or spec.outputs != expected:
            raise SchemaError(f"graph {self.GRAPH!r} maps {image} to {shapes}; the bundle has {spec}")
        self.gallery = FixedLabels(labels)
        self._session = context.sessions[self.GRAPH]
        self._preprocess = context.preprocess
        self._chunk = context.deployment.max_batch

    @abstractmethod
    def expected_outputs(self, spec: Graph, labels: tuple[str, ...]) -> tuple[tuple[TensorSpec, ...], str]:
        """The outputs of a graph like ``spec`` with these labels, and the same in words."""

    def enroll(
        self, label: str, images: Sequence[Image], masks: Sequence[Mask] | None, *, names: Sequence[str], strict: bool
    ) -> EnrolmentReport:
        raise EnrolmentError(FIXED)

    def embed(self, images: Sequence[Image]) -> Array:
        raise InputError(f"{self.MAKES}, not embeddings; there is nothing to embed")

    scored_rows = embed

    def batches(self, images: Sequence[Image]) -> Iterator[Sequence[Image]]:
        """The images in batches that the graph takes."""
        return (images[start : start + self._chunk] for start in range(0, len(images), self._chunk))


def checked_threshold(score: float) -> float:
    """A threshold that was asked for; InputError unless it is from 0 to 1."""
    number = isinstance(score, (int, float, np.number)) and not isinstance(score, bool)
    if not (number and 0 <= score <= 1):
        raise InputError(f"threshold is {score!r}; allowed: a score of a trained class, 0..1, or None for the bundle's")
    return float(score)


def labels_from(postprocess: Mapping[str, Any]) -> tuple[str, ...]:
    """The ``labels`` of a manifest's ``postprocess``; SchemaError unless they are distinct names."""
    labels = postprocess.get("labels")
    if (
        not isinstance(labels, Sequence)
        or isinstance(labels, str)
        or not labels
        or not all(isinstance(label, str) and label for label in labels)
        or len(set(labels)) != len(labels)
    ):
        raise SchemaError(f"postprocess: labels is {labels!r}; allowed: one name for each class, all different")
    return tuple(labels)


def share_from(postprocess: Mapping[str, Any], name: str, default: float) -> float:
    """A number from 0 to 1 of a manifest's ``postprocess``; SchemaError if it is anything else."""
    value = postprocess.get(name, default)
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not 0 <= value <= 1:
        raise SchemaError(f"postprocess: {name} is {value!r}; allowed: a number from 0 to 1")
    return float(value)


def count_from(postprocess: Mapping[str, Any], name: str, default: int) -> int:
    """A whole number from 1 of a manifest's ``postprocess``; SchemaError if it is anything else."""
    value = postprocess.get(name, default)
    if isinstance(value, bool) or not isinstance(value, int) or value < 1:
        raise SchemaError(f"postprocess: {name} is {value!r}; allowed: a whole number from 1")
    return value
