"""The description of an open predictor."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from runtime.bundle.bundle import Bundle
from runtime.bundle.manifest import ParityReport
from runtime.common.json_data import to_json
from runtime.gallery.embedded import EmbeddedGallery
from runtime.gallery.index import IndexInfo
from runtime.open_set.decision import OpenSetInfo
from runtime.selection.choose import SelectedEngine
from runtime.tasks import Task, threshold_of


@dataclass(frozen=True, slots=True)
class Info:
    """The running engine and its measurements.

    Attributes:
        bundle: The bundle's folder.
        model, task: The model's name and what it does.
        trained: False when the model's weights are random.
        weights: The origin of the weights.
        backend, device, precision: The engine that runs.
        threads: CPU threads it was given; None leaves the choice to the backend.
        why: Why this engine, in one sentence.
        skipped: The better engines that cannot be used here, with the reasons.
        digest: The digest of the bundle's manifest, which was found right; empty for a bundle that an earlier edgevis
            built: that a value of its manifest was changed would not be noticed.
        encoder_identity: The identity of the encoder, see :mod:`runtime.bundle.identity`.
        parity: The engine's measured distance from the PyTorch model; None when it has not been measured.
        labels: The enrolled labels.
        threshold: The open-set threshold, or that of a model with trained classes; None when nothing is known of
            strangers yet.
        open_set: The open-set operating point, its rates and how they are known; None for a task without scores
            between labels.
        search_index: The measurement of the approximate index of the enrolled rows; None while searches are exact
            and none is made.
    """

    bundle: str
    model: str
    task: str
    trained: bool
    weights: str
    backend: str
    device: str
    precision: str
    threads: int | None
    why: str
    skipped: tuple[str, ...]
    digest: str
    encoder_identity: str
    parity: ParityReport | None
    labels: tuple[str, ...]
    threshold: float | None
    open_set: OpenSetInfo | None
    search_index: IndexInfo | None

    def to_dict(self) -> dict[str, Any]:
        """Plain data for JSON."""
        return dict(to_json(self))


def info_of(bundle: Bundle, opened: SelectedEngine, task: Task, *, threads: int | None) -> Info:
    """The description of a predictor with this bundle, engine and task."""
    manifest, record, gallery, open_set = bundle.manifest, opened.record, task.gallery, task.open_set
    return Info(
        bundle=str(bundle.path),
        model=manifest.model,
        task=manifest.deployment.task,
        trained=manifest.weights.trained,
        weights=manifest.weights.source,
        backend=record.backend,
        device=record.device,
        precision=record.precision,
        threads=threads,
        why=opened.why,
        skipped=opened.skipped,
        digest=manifest.digest,
        encoder_identity=manifest.encoder_identity,
        parity=record.parity,
        labels=gallery.labels,
        threshold=threshold_of(task),
        open_set=None if open_set is None else open_set.info,
        search_index=gallery.index if isinstance(gallery, EmbeddedGallery) else None,
    )
