"""The part of the tasks that compares an image's embedding with enrolled ones."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeAlias

import numpy as np

from runtime.bundle.manifest import Decisions
from runtime.bundle.spec import MAX_LABELS, TensorSpec
from runtime.common.arrays import Array, unit_rows
from runtime.enrolment.quality import (
    EnrolmentReport,
    Finding,
    inspect,
    no_direction,
    repeated_pictures,
    report_on,
    thumbnails,
    without_direction,
)
from runtime.enrolment.quality_bounds import Bounds
from runtime.enrolment.quality_relations import relations
from runtime.errors import InputError, SchemaError
from runtime.gallery.adapted import AdaptedGallery
from runtime.gallery.embedded import EmbeddedGallery
from runtime.gallery.state import Scoring
from runtime.images.decode import Image
from runtime.images.masks import Mask
from runtime.open_set.bundled import statistics_of
from runtime.open_set.decision import DEFAULT_RATE, OpenSet, checked_rate
from runtime.open_set.space import FILE as OPEN_SET
from runtime.open_set.space import space_from
from runtime.open_set.statistics import OpenSetStatistics
from runtime.parity.compare import nearest_agreement
from runtime.results import Match
from runtime.tasks import Context, Result
from runtime.tasks._timing import StageTimer

MAX_DIMENSION = 1 << 16

ResultFrom: TypeAlias = Callable[[tuple[Match, ...], str | None, Mapping[str, float]], Result]
"""Makes a result of the ranking, the label above the threshold (or None) and the times of the stages."""


@dataclass(frozen=True, slots=True)
class EmbeddingSettings:
    """The settings of a task that compares embeddings.

    Attributes:
        false_accept_rate: The share of strangers, 0.0001..0.5, for whom any label may come back by default.
        open_set: The open-set statistics of the weights; None where there are none.
    """

    false_accept_rate: float = DEFAULT_RATE
    open_set: OpenSetStatistics | None = None

    @classmethod
    def read(cls, postprocess: Mapping[str, Any]) -> EmbeddingSettings:
        """Reads a manifest's ``postprocess``; SchemaError if a value is not allowed."""
        try:
            rate = checked_rate(postprocess.get("false_accept_rate", DEFAULT_RATE))
        except InputError as error:
            raise SchemaError(f"postprocess.{error}") from error
        return cls(rate, statistics_of(postprocess))


def embedding_agreement(output: str, reference: Mapping[str, Array], actual: Mapping[str, Array]) -> Decisions | None:
    """Rank-1 agreement of the embeddings under the key ``output``; None where ``actual`` has none."""
    return nearest_agreement(reference[output], actual[output]) if output in actual else None


class EmbeddingTask:
    """Image to embedding to enrolled labels.

    Args:
        context: The open model.
        graph: The graph that makes embeddings: input ``image`` (N, C, H, W), output ``embedding`` (N, D).
        scoring: The score of an embedding against a label.
        bounds: The bounds of the quality checks.
        result_from: Makes the task's result of a ranking.
        adapted: Whether a graph over the set of labels, where the model has one, adapts their prototypes.
    """

    def __init__(
        self,
        context: Context,
        *,
        graph: str,
        scoring: Scoring,
        bounds: Bounds,
        result_from: ResultFrom,
        adapted: bool = True,
    ) -> None:
        spec = context.deployment.graph(graph)
        dimension = spec.outputs[0].shape[-1]
        image = context.preprocess.spec.input
        embedding = TensorSpec("embedding", "float32", ("N", dimension))
        if spec.inputs != (image,) or spec.outputs != (embedding,) or not isinstance(dimension, int):
            raise SchemaError(
                f"graph {graph!r} of this task maps {image} to 'embedding', float32 (N, D); the bundle has {spec}"
            )
        if dimension > MAX_DIMENSION:
            raise SchemaError(f"graph {graph!r} has embeddings of {dimension} numbers; allowed: 1 to {MAX_DIMENSION}")
        space = None if context.open_set is None else space_from(context.open_set, dimension, OPEN_SET)
        settings = EmbeddingSettings.read(context.deployment.postprocess)
        measured = settings.open_set
        self.gallery: EmbeddedGallery
        if adapted and context.deployment.set_graphs:
            self.gallery = _adapted_gallery(context, graph, dimension)
        else:
            self.gallery = EmbeddedGallery(
                dimension, measured.scoring if measured else scoring, index_from=context.index_from
            )
        self.open_set = OpenSet(self.gallery, space, measured, rate=settings.false_accept_rate)
        self._dimension = dimension
        self._made_of = (context, graph, scoring, bounds, result_from)
        self._session = context.sessions[graph]
        self._preprocess = context.preprocess
        self._chunk = context.deployment.max_batch
        self._bounds = bounds
        self._result_from = result_from

    def enroll(
        self, label: str, images: Sequence[Image], masks: Sequence[Mask] | None, *, names: Sequence[str], strict: bool
    ) -> EnrolmentReport:
        if masks is not None:
            raise InputError("this model looks at whole images and takes no masks; cut out the object instead")
        outputs = self.embeddings(images)
        embeddings = unit_rows(outputs)
        rows = self.open_set.project(embeddings)
        report = report_on(label, names, self._findings(label, images, embeddings, rows, names), strict=strict)
        enrolled = [item.enrolled for item in report.judgements]
        if isinstance(self.gallery, AdaptedGallery):
            self.gallery.add_embeddings(label, outputs[enrolled])
        else:
            self.gallery.add(label, rows[enrolled])
        return report

    def embed(self, images: Sequence[Image]) -> Array:
        return unit_rows(self.embeddings(images))

    def embeddings(self, images: Sequence[Image]) -> Array:
        """(N, D) float32 as the model makes them, rows not normalised."""
        return self._outputs(images, StageTimer())

    def scored_rows(self, images: Sequence[Image]) -> Array:
        return self.open_set.project(self.embed(images))

    def predict(self, images: Sequence[Image], *, top_k: int) -> list[Result]:
        timer = StageTimer()
        embeddings = unit_rows(self._outputs(images, timer))
        threshold = self.open_set.threshold
        rankings = self.rank(self.open_set.project(embeddings), top_k=top_k)
        timer.end("postprocess")
        speed_ms = timer.speed_ms(len(images))
        return [self._result_from(ranking, _accepted(ranking, threshold), speed_ms) for ranking in rankings]

    def rank(self, rows: Array, *, top_k: int) -> list[tuple[Match, ...]]:
        """The best labels of each of (N, D) float32 rows of the gallery's space, as :meth:`predict` ranks them."""
        offsets = self.open_set.offsets(rows).tolist()
        return [
            _normalised(ranking, offset)
            for ranking, offset in zip(self.gallery.search(rows, top_k), offsets, strict=True)
        ]

    def pixel_findings(self, image: Image) -> list[Finding]:
        """The findings for an image from its pixels alone: size, sharpness, exposure."""
        return inspect(image, self._preprocess.spec, self._bounds)

    def with_nothing_enrolled(self) -> EmbeddingTask:
        """The same model with a gallery and an open-set decision of its own, both empty, without adapted prototypes."""
        context, graph, scoring, bounds, result_from = self._made_of
        return EmbeddingTask(
            context, graph=graph, scoring=scoring, bounds=bounds, result_from=result_from, adapted=False
        )

    def _findings(
        self, label: str, images: Sequence[Image], embeddings: Array, rows: Array, names: Sequence[str]
    ) -> list[list[Finding]]:
        """The findings for each image; images that cannot be used are not compared with others."""
        bounds = self._bounds
        findings = [self.pixel_findings(image) for image in images]
        for place in np.flatnonzero(without_direction(embeddings)).tolist():
            findings[place].append(no_direction())
        usable = [place for place, item in enumerate(findings) if all(finding.severity == "warn" for finding in item)]
        if not usable:
            return findings
        called = [names[place] for place in usable]
        pictures = repeated_pictures(thumbnails([images[place] for place in usable]), called, bounds)
        related = relations(label, rows[usable], called, self.gallery, bounds)
        for place, picture, more in zip(usable, pictures, related, strict=True):
            known = any(finding.reason == "duplicate" for finding in more)
            findings[place] += more if known else picture + more
        return findings

    def _outputs(self, images: Sequence[Image], timer: StageTimer) -> Array:
        """(N, D) float32, as the model makes them; ``timer`` counts preprocessing and the engine.

        In chunks, so that a thousand crops never stand in memory as a thousand input tensors.
        """
        rows = [np.empty((0, self._dimension), np.float32)]
        for start in range(0, len(images), self._chunk):
            tensor = self._preprocess(images[start : start + self._chunk])
            timer.end("preprocess")
            rows.append(self._session.run({"image": tensor})["embedding"])
            timer.end("inference")
        return np.concatenate(rows)


def _adapted_gallery(context: Context, graph: str, dimension: int) -> AdaptedGallery:
    """The gallery of a model with a graph over the set of labels."""
    found = context.deployment.set_graphs
    spec, *others = found
    embeddings = f"{graph}/embedding"
    if others or spec.set_of != embeddings or spec.outputs[0].shape[2] != dimension:
        raise SchemaError(
            f"a graph over the set of labels is one from {embeddings!r} to itself; the bundle has {found}"
        )
    if context.open_set is not None:
        raise SchemaError("a model that adapts prototypes has no score space; build the bundle again without one")
    if context.index_from is not None:
        raise InputError(
            f"index_from: this model adapts at most {MAX_LABELS} labels, which need no index; leave it out"
        )
    session, taken, made = context.sessions[spec.name], spec.inputs[0].name, spec.outputs[0].name
    return AdaptedGallery(dimension, lambda prototypes: session.run({taken: prototypes[None]})[made][0])


def _normalised(ranking: tuple[Match, ...], offset: float) -> tuple[Match, ...]:
    """The ranking with the query's offset taken off its cosines, within -1..1."""
    if offset == 0.0:
        return ranking
    return tuple(Match(label, min(max(score - offset, -1.0), 1.0)) for label, score in ranking)


def _accepted(ranking: tuple[Match, ...], threshold: float | None) -> str | None:
    # Written so that NaN, which compares false with everything, is nobody.
    accepted = bool(ranking) and ranking[0].score >= (-math.inf if threshold is None else threshold)
    return ranking[0].label if accepted else None
