"""Gives tracks their identities: one batch of embeddings for all crops that are due, then evidence, then decisions."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from typing import Protocol

import numpy as np

from runtime.common.arrays import Array
from runtime.enrolment.quality import Finding, without_direction
from runtime.images.decode import Image
from runtime.results import Match
from runtime.tracking.drift import DriftMonitor
from runtime.tracking.evidence import decided_label
from runtime.tracking.holders import Holders
from runtime.tracking.identities import RowSpace, Unknowns
from runtime.tracking.objects import UNKNOWN
from runtime.tracking.records import TrackRecord, ViewRequest
from runtime.tracking.settings import PipelineSettings
from runtime.tracking.views import GOOD, POOR

_TOP_K = 5
_CONTRADICTIONS = 3  # views in a row that speak against an unknown identity before it is given up
_APART = 0.1  # below the threshold: a view that speaks against it


class EmbeddingModel(RowSpace, Protocol):
    """An open task with embeddings and what is enrolled in it."""

    def embed(self, images: Sequence[Image]) -> Array: ...

    def pixel_findings(self, image: Image) -> list[Finding]: ...

    def with_nothing_enrolled(self) -> RowSpace: ...


class Identifier:
    """Decides whom tracks show.

    Args:
        model: The task, with what is enrolled.
        unknowns: The identities of all others.
        settings: The pipeline's.
        unique: Whether a label is one individual, which is not in two places of one frame, and of which
            :mod:`runtime.tracking.holders` knows the best views.
    """

    def __init__(self, model: EmbeddingModel, unknowns: Unknowns, settings: PipelineSettings, *, unique: bool) -> None:
        self._model, self._settings, self._unique = model, settings, unique
        self.unknowns = unknowns
        self.drift = DriftMonitor(model)
        self._holders = Holders(
            model,
            margin=settings.holder_margin,
            limit=settings.max_unknowns,
            forget_after_s=settings.forget_unknown_after_s,
        )
        self.embedded = 0

    def clear(self) -> None:
        """Forget all that was seen."""
        self.unknowns.clear()
        self.drift.clear()
        self._holders.clear()

    def expire(self, now: float, *, present: Collection[str]) -> None:
        """Forget who was not seen for long, see :meth:`runtime.tracking.identities.Unknowns.expire`."""
        self.unknowns.expire(now, present=present)
        self._holders.expire(now)

    def identify(
        self, requests: Sequence[ViewRequest], present: Sequence[TrackRecord], *, now: float
    ) -> list[TrackRecord]:
        """Embed the requested views and decide for their tracks, and for tracks that waited too long.

        Args:
            requests: The crops that are due, of any source.
            present: All tracks that are in a frame now.
            now: Seconds of a clock that all sources share.

        Returns:
            The tracks whose identity has changed.
        """
        before = {id(record): record.identity for record in present}
        newest: dict[int, Array] = {}
        views = self._usable(requests)
        if views:
            embeddings = self._model.embed([crop for _, crop, _ in views])
            rows = self._model.open_set.project(embeddings)
            self.embedded += len(views)
            for (request, _, weight), row, broken in zip(views, rows, without_direction(embeddings), strict=True):
                if not broken:
                    request.record.evidence.add(row, weight)
                    newest[id(request.record)] = row
                    self.drift.add(request.record.number, row)
        seen = {id(request.record): request.record for request, _, _ in views if id(request.record) in newest}
        for record in present:
            if record.identity == UNKNOWN and self._waited(record):
                seen.setdefault(id(record), record)
        self.decide(list(seen.values()), present, newest, now=now)
        for record in present:
            if record.unknown is not None and record.label is None:
                self.unknowns.seen(record.unknown, now)
            elif record.label is None and self._waited(record):
                record.unknown = self._new_unknown(now)
        return [record for record in present if record.identity != before[id(record)]]

    def decide(
        self,
        changed: Sequence[TrackRecord],
        present: Sequence[TrackRecord],
        newest: Mapping[int, Array],
        *,
        now: float,
    ) -> None:
        """Decide for tracks whose views, or whose possible labels, have changed.

        Args:
            changed: The tracks.
            present: All tracks that are in a frame now.
            newest: The row of the view that came last, by the ``id`` of its record.
            now: As in :meth:`identify`.
        """
        with_views = [record for record in changed if len(record.evidence)]
        for record, ranking in zip(with_views, self._mean_rankings(with_views), strict=True):
            record.matches = ranking
            others = self._others(record, present)
            self._decide_label(record, others, now)
            beaten = [other for other in others if record.label is not None and other.label == record.label]
            for undecided in (record, *beaten):
                if undecided is not record:
                    self._decide_label(undecided, self._others(undecided, present), now)
                if undecided.label is None:
                    self._decide_unknown(undecided, present, newest.get(id(undecided)), now)

    def _decide_label(self, record: TrackRecord, others: Sequence[TrackRecord], now: float) -> None:
        """Decide for one of the labels to which nobody else has a better claim: in the frame, or before the camera."""
        claims = {other.label: dict(other.matches).get(other.label, 1.0) for other in others if other.label is not None}
        free = tuple(match for match in record.matches if match.score > claims.get(match.label, -np.inf))
        threshold, views = self._model.open_set.threshold, len(record.evidence.rows)
        if record.label is None and views < self._settings.first_views and not self._waited(record):
            return
        record.label = decided_label(record.label, self._not_held(record, free), threshold, views=views)
        if self._unique and record.label is not None:
            self._holders.learn(record, now)

    def _not_held(self, record: TrackRecord, matches: tuple[Match, ...]) -> tuple[Match, ...]:
        """The matches but those with labels that belong to another object."""
        if not self._unique:
            return matches
        return tuple(match for match in matches if not self._holders.refuses(match, record))

    def _usable(self, requests: Sequence[ViewRequest]) -> list[tuple[ViewRequest, Image, float]]:
        """The requests with their crops and weights, but those whose crop shows nothing."""
        views = []
        for request in requests:
            x0, y0, x1, y1 = request.box
            crop = request.frame.image[y0:y1, x0:x1]
            findings = self._model.pixel_findings(crop)
            weight = min(request.weight, POOR) if findings else request.weight
            record = request.record
            refused = any(finding.severity == "refuse" for finding in findings)
            if refused or (weight < GOOD and (record.evidence.has_good_view or not self._waited(record))):
                continue
            views.append((request, crop, weight))
        return views

    def _decide_unknown(
        self, record: TrackRecord, present: Sequence[TrackRecord], row: Array | None, now: float
    ) -> None:
        """Find or make the unknown identity of a track that no label fits."""
        taken = {other.identity for other in self._others(record, present)}
        rows = record.evidence.rows
        if record.unknown is not None and self.unknowns.has_views(record.unknown):
            if row is None:
                return
            surplus = self.unknowns.surplus(record.unknown, record.camera, row)
            if surplus >= -_APART:
                record.contradicted = 0
                if surplus >= 0.0:
                    self.unknowns.learn(record.unknown, record.camera, row[None], now)
                return
            record.contradicted += 1
            if record.contradicted < _CONTRADICTIONS:
                return
            newest = record.evidence.newest(_CONTRADICTIONS)
            other = self.unknowns.find(newest, record.camera, excluded={*taken, record.unknown})
            if other is not None:  # the tracker has gone over to another object
                record.evidence, record.unknown, record.contradicted = newest, other, 0
            self.unknowns.learn(record.unknown, record.camera, newest.rows, now)  # otherwise it looks different now
            return
        if len(rows) < self._settings.first_views and not self._waited(record):
            return
        found = self.unknowns.find(record.evidence, record.camera, excluded=taken)
        if found is not None and record.unknown is not None:
            self.unknowns.forget(record.unknown)  # a name that was given for want of views
        record.contradicted = 0
        record.unknown = found or record.unknown or self._new_unknown(now)
        self.unknowns.learn(record.unknown, record.camera, rows, now)

    def _new_unknown(self, now: float) -> str:
        return self.unknowns.new(now, taken=self._model.gallery.labels)

    def _waited(self, record: TrackRecord) -> bool:
        return record.seen_s - record.first_s >= self._settings.patience_s

    def _mean_rankings(self, records: Sequence[TrackRecord]) -> list[tuple[Match, ...]]:
        """The mean ranking of each track, by one search for all their views."""
        if not records or not self._model.gallery.label_count:
            return [()] * len(records)
        rows = [record.evidence.rows for record in records]
        rankings = iter(self._model.rank(np.concatenate(rows), top_k=2 * _TOP_K))
        return [
            record.evidence.mean_ranking([next(rankings) for _ in own])
            for record, own in zip(records, rows, strict=True)
        ]

    def _others(self, record: TrackRecord, present: Sequence[TrackRecord]) -> list[TrackRecord]:
        """The other tracks that are in the same frame, where a label is one individual."""
        if not self._unique:
            return []
        return [other for other in present if other is not record and other.source == record.source and other.present]
