"""Identities of tracks before one camera: ``python -m benchmarks.camera_identities --data pku_reid_dev.zip:query``.

Some persons of a labelled Re-ID set are enrolled from one camera, the others are strangers. Everybody walks past one
camera – another than that of the enrolment, and the same – twice, in random order; each time is a track whose views
decide at once, by the pipeline's own :class:`runtime.tracking.identifier.Identifier`. What it is worth that a label is
one individual (``PipelineSettings.holder_margin``) shows beside the same without it.

FPIR is the share of strangers' tracks with a label, TPIR that of the enrolled persons' tracks with their own.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import cast

import numpy as np

from benchmarks.figure import Figure, figure_text
from benchmarks.open_set import scene_by
from benchmarks.report import report
from edgevis import InputError, PipelineSettings, Predictor
from edgevis.open_set.embeddings import Part
from edgevis.open_set.enrolments import Scene
from runtime.common.arrays import Array
from runtime.pipeline import IDENTIFIER
from runtime.tasks._embedding import EmbeddingTask
from runtime.tracking.evidence import MAX_VIEWS
from runtime.tracking.identifier import Identifier
from runtime.tracking.identities import Unknowns
from runtime.tracking.records import TrackRecord
from runtime.tracking.settings import ANY_MARGIN
from runtime.tracking.views import GOOD

_WALKS = 2


@dataclass(frozen=True, slots=True)
class IdentityRow:
    """The rates of one setting, over many enrolments.

    Attributes:
        data: The images.
        camera: ``other`` than that of the enrolment, or the ``same``.
        labels: How many persons are enrolled.
        holder_margin: As of :class:`edgevis.PipelineSettings`; 2 switches the rule off.
        enrolments: How often drawn.
        fpir, tpir: The mean over the enrolments.
    """

    data: str
    camera: str
    labels: int
    holder_margin: float
    enrolments: int
    fpir: Figure
    tpir: Figure


@dataclass(frozen=True, slots=True, eq=False)
class Walks:
    """One enrolment and what a camera then sees.

    Attributes:
        enrolled: For each enrolled label (M, D) float32 rows of the model.
        tracks: The label and the (V, D) rows of each track, in the order of their time.
    """

    enrolled: dict[int, Array]
    tracks: list[tuple[int, Array]]


def walks(scene: Scene, *, labels: int, same: bool, random: np.random.Generator, camera: int) -> Walks:
    """A random enrolment by a camera, and everybody before that camera, or before the others.

    Args:
        scene: With cameras.
        labels: How many to enrol, with up to eight images each; by the same camera half of what there is.
        same: Whether the camera of the enrolment watches.
        random: Draws.
        camera: The camera of the enrolment.
    """
    cameras = cameras_of(scene)
    known = random.permutation(np.unique(scene.labels))
    watching = cameras == camera if same else cameras != camera
    enrolled: dict[int, Array] = {}
    tracks: list[tuple[int, Array]] = []
    for place, label in enumerate(known.tolist()):
        seen = random.permutation(np.flatnonzero((scene.labels == label) & watching))
        if place < labels:
            here = random.permutation(np.flatnonzero((scene.labels == label) & (cameras == camera)))
            taken = here[: len(here) // 2] if same else here[:MAX_VIEWS]
            enrolled[label] = scene.rows[taken]
            seen = np.setdiff1d(seen, taken)
        tracks += [(label, scene.rows[part]) for part in np.array_split(random.permutation(seen), _WALKS) if len(part)]
    return Walks(enrolled, [tracks[index] for index in random.permutation(len(tracks)).tolist()])


def cameras_of(scene: Scene) -> Array:
    """(N,) the camera of each image; InputError where they are not known."""
    if scene.cameras is None:
        raise InputError(f"{scene.name} does not say by which camera its images are")
    return scene.cameras


def rates(predictor: Predictor, drawn: Walks, holder_margin: float) -> tuple[float, float]:
    """FPIR and TPIR of the tracks of one enrolment."""
    task = cast(EmbeddingTask, predictor.task)
    for label in predictor.labels:
        predictor.forget(label)
    for name, rows in drawn.enrolled.items():
        predictor.enroll_rows(str(name), task.open_set.project(rows))
    settings = PipelineSettings(holder_margin=holder_margin)
    unknowns = Unknowns(task.with_nothing_enrolled(), limit=settings.max_unknowns, forget_after_s=np.inf)
    identifier = Identifier(task, unknowns, settings, unique=True)
    right: list[bool] = []
    wrong: list[bool] = []
    for number, (person, rows) in enumerate(drawn.tracks):
        record = TrackRecord(number, source=0, camera=0, detection_label="person", first_s=0.0, seen_s=np.inf)
        for row in task.open_set.project(rows):
            record.evidence.add(row, GOOD)
        identifier.decide([record], [record], {}, now=float(number))
        if person in drawn.enrolled:
            right.append(record.label == str(person))
        else:
            wrong.append(record.label is not None)
    return float(np.mean(wrong)), float(np.mean(right))


def main(argv: Sequence[str] | None = None) -> int:
    """Print one row per camera, number of labels and margin; an EdgevisError becomes one line and exit status 1."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.camera_identities",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--bundle", default=IDENTIFIER, help=f"of task 'reid' (default: {IDENTIFIER})")
    parser.add_argument("--data", type=Part.parse, nargs="+", required=True, help="FILE[:SPLIT[+SPLIT][:even|odd]]")
    parser.add_argument("--labels", type=int, nargs="+", default=[1, 3, 10], help="how many to enrol (default: 1 3 10)")
    parser.add_argument("--margins", type=float, nargs="+", default=[ANY_MARGIN, PipelineSettings().holder_margin])
    parser.add_argument("--enrolments", type=int, default=40, help="how often to draw (default: 40)")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--json", action="store_true", help="print JSON")
    arguments = parser.parse_args(argv)
    return report(
        lambda: list(_measure(arguments)),
        headers=("data", "camera", "labels", "margin", "FPIR", "TPIR"),
        cells=_cells,
        as_json=arguments.json,
        title=lambda first: f"{first.enrolments} enrolments; ± is over them",
    )


def _measure(arguments: argparse.Namespace) -> Iterator[IdentityRow]:
    with Predictor(arguments.bundle) as predictor:
        if predictor.info.task != "reid":
            raise InputError(f"the bundle's task is {predictor.info.task!r}; allowed: reid")
        for part in arguments.data:
            scene = scene_by(predictor, part, "reid")
            most = len(np.unique(scene.labels)) - 1
            cameras = np.unique(cameras_of(scene))
            for same, labels in ((same, labels) for same in (False, True) for labels in arguments.labels):
                if not 1 <= labels <= most:
                    raise InputError(f"labels is {labels}; allowed: 1 to {most}, so that {part} has strangers, too")
                random = np.random.default_rng(arguments.seed)
                drawn = [
                    walks(scene, labels=labels, same=same, random=random, camera=int(cameras[number % len(cameras)]))
                    for number in range(arguments.enrolments)
                ]
                for margin in arguments.margins:
                    fpir, tpir = np.array([rates(predictor, item, margin) for item in drawn]).T
                    yield IdentityRow(
                        str(part),
                        "same" if same else "other",
                        labels,
                        margin,
                        len(drawn),
                        Figure.mean_of(fpir),
                        Figure.mean_of(tpir),
                    )


def _cells(row: IdentityRow) -> tuple[str, ...]:
    return (
        row.data,
        row.camera,
        str(row.labels),
        f"{row.holder_margin:g}",
        figure_text(row.fpir),
        figure_text(row.tpir),
    )


if __name__ == "__main__":
    sys.exit(main())
