"""Open-set identification: ``python -m benchmarks.open_set --bundle B.edgevis --data pku_reid_dev.zip:query+gallery``.

Of labelled images some labels are enrolled, the others are strangers, many times over. For each engine of the bundle:

- ``raw cosine`` and ``possible``: TPIR where the threshold is set, with all strangers known, so that exactly the asked
  share of them is accepted; by the model's cosines, and by the scores that the predictor gives;
- ``estimated``: the predictor's own threshold with nothing but the enrolment;
- ``calibrated``: after ``calibrate`` on 100 images of some of the strangers, asked by the others; and with twice as
  many labels as were enrolled when it was calibrated.

With ``--strangers-by same`` the strangers are seen by the camera that the labels are enrolled from, not by another,
with ``any`` by all.

Data are FILE[:SPLIT[+SPLIT][:even|odd]], as ``python -m edgevis.open_set`` takes them. ``--output`` draws DET curves.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from benchmarks.det_curves import Curve, draw
from benchmarks.report import report
from edgevis import InputError, Predictor
from edgevis.open_set.embeddings import Part, in_batches, labelled_images
from edgevis.open_set.enrolments import Scene, Selection, add_strangers_by, selections
from runtime.bundle.bundle import Bundle
from runtime.common.arrays import Array
from runtime.common.files import atomic_write
from runtime.gallery.embedded import EmbeddedGallery
from runtime.gallery.state import Scoring
from runtime.open_set.bundled import space_of, statistics_of
from runtime.open_set.decision import DEFAULT_RATE, OpenSet
from runtime.open_set.enrolled import label_scores
from runtime.verification.timing import each_engine

RATES = (0.01, 0.05, DEFAULT_RATE, 0.1)
CALIBRATED_ON = 100
_OWN: dict[str, Scoring] = {"reid": "nearest", "classify": "prototype"}


@dataclass(frozen=True, slots=True)
class OpenSetRow:
    """The measured rates for one target rate, over many enrolments.

    Attributes:
        data, engine: The images and the engine.
        method: As the module says.
        labels, images, enrolments: How many labels with how many images each, and how often drawn.
        asked: The target FPIR.
        fpir, fpir_low, fpir_high: The measured FPIR: the mean over the enrolments with its 95 % interval.
        fpir_most: The highest of one enrolment.
        tpir, tpir_low, tpir_high: The measured TPIR in the same form.
    """

    data: str
    engine: str
    method: str
    labels: int
    images: int
    enrolments: int
    asked: float
    fpir: float
    fpir_low: float
    fpir_high: float
    fpir_most: float
    tpir: float
    tpir_low: float
    tpir_high: float


@dataclass(frozen=True, slots=True, eq=False)
class Scored:
    """The scores of one enrolment: the best of each query and whether it is right, and the best of each stranger."""

    known: Array
    right: Array
    strangers: Array

    def at(self, threshold: float) -> tuple[float, float]:
        """FPIR and TPIR at a threshold."""
        return float((self.strangers >= threshold).mean()), float(((self.known >= threshold) & self.right).mean())

    def possible(self, rate: float) -> tuple[float, float]:
        """FPIR and TPIR at the lowest threshold that accepts at most this share of strangers."""
        ordered = np.sort(self.strangers)[::-1]
        allowed = int(rate * len(ordered))
        return self.at(float(np.nextafter(ordered[allowed], np.inf)))


class SceneEvaluation:
    """Open-set identification of one scene by one engine.

    Args:
        bundle: Whose score space and statistics are taken.
        scene: With the rows that the engine made.
    """

    def __init__(self, bundle: Bundle, scene: Scene) -> None:
        deployment = bundle.manifest.deployment
        self.space = space_of(bundle, scene.rows.shape[1])
        self.statistics = statistics_of(deployment.postprocess)
        self.own_scoring = _OWN[deployment.task]
        self.scoring: Scoring = self.statistics.scoring if self.statistics else self.own_scoring
        self.raw = scene
        self.scene = scene.projected(self.space)
        rows = self.scene.rows
        self.offsets = np.zeros(len(rows), np.float32) if self.space is None else self.space.offsets(rows)

    def scored(self, chosen: Selection, *, raw: bool = False) -> Scored:
        """The scores of an enrolment: the predictor's, or raw cosines."""
        rows = self.raw.rows if raw else self.scene.rows
        taken = np.zeros_like(self.offsets) if raw else self.offsets
        scoring = self.own_scoring if raw else self.scoring
        enrolled = rows[chosen.positions]
        known, strangers = (
            label_scores(rows[part], enrolled, chosen.counts, scoring) for part in (chosen.queries, chosen.strangers)
        )
        return Scored(
            known.max(axis=1) - taken[chosen.queries],
            chosen.enrolled[known.argmax(axis=1)] == self.raw.labels[chosen.queries],
            strangers.max(axis=1) - taken[chosen.strangers],
        )

    def open_set(self) -> tuple[EmbeddedGallery, OpenSet]:
        """An empty gallery and its open-set decision, as a predictor has them."""
        gallery = EmbeddedGallery(self.scene.rows.shape[1], self.scoring)
        return gallery, OpenSet(gallery, self.space, self.statistics)

    def enroll(self, gallery: EmbeddedGallery, chosen: Selection, labels: slice) -> None:
        """Enrol some of the labels."""
        starts = np.cumsum([0, *chosen.counts])
        for index in range(len(chosen.enrolled))[labels]:
            rows = self.scene.rows[chosen.positions[starts[index] : starts[index + 1]]]
            gallery.add(str(chosen.enrolled[index]), rows)


def thresholds(open_set: OpenSet) -> list[float]:
    """The thresholds at each of :data:`RATES`."""
    values = []
    for rate in RATES:
        open_set.set_rate(rate)
        values.append(-1.0 if open_set.threshold is None else open_set.threshold)
    return values


def measure(
    measured: SceneEvaluation, *, data: str, engine: str, labels: int, images: int, enrolments: int, seed: int
) -> tuple[list[OpenSetRow], list[Curve]]:
    """All rows of one scene and engine, and the curves of raw and of normalised scores."""
    chosen_all = list(selections(measured.raw, labels=labels, images=images, count=enrolments, seed=seed))
    if not chosen_all:
        raise InputError(f"{data} has too few labels to enrol {labels} of them and have four strangers")
    rates: dict[tuple[str, float], list[tuple[float, float]]] = {}
    scores: dict[str, list[Scored]] = {"raw cosine": [], "edgevis": []}
    for number, chosen in enumerate(chosen_all):
        plain, normalised = measured.scored(chosen, raw=True), measured.scored(chosen)
        scores["raw cosine"].append(plain)
        scores["edgevis"].append(normalised)
        gallery, open_set = measured.open_set()
        measured.enroll(gallery, chosen, slice(None))
        for rate, threshold in zip(RATES, thresholds(open_set), strict=True):
            rates.setdefault(("raw cosine", rate), []).append(plain.possible(rate))
            rates.setdefault(("possible", rate), []).append(normalised.possible(rate))
            rates.setdefault(("estimated", rate), []).append(normalised.at(threshold))
        for method, pairs in _calibrated(measured, chosen, seed + number).items():
            for rate, pair in zip(RATES, pairs, strict=True):
                rates.setdefault((method, rate), []).append(pair)
    rows = [
        OpenSetRow(data, engine, method, labels, images, len(pairs), rate, *_summary(pairs))
        for (method, rate), pairs in rates.items()
    ]
    curves = [Curve(data, engine, name, _det(items)) for name, items in scores.items()]
    return rows, curves


def _calibrated(measured: SceneEvaluation, chosen: Selection, seed: int) -> dict[str, list[tuple[float, float]]]:
    """The rates after a calibration on half of the strangers' labels, measured on the other half."""
    random = np.random.default_rng(seed)
    owners = measured.raw.labels[chosen.strangers]
    labels = random.permutation(np.unique(owners))
    calibrating = np.isin(owners, labels[: len(labels) // 2])
    rows = measured.scene.rows[random.permutation(chosen.strangers[calibrating])[:CALIBRATED_ON]]
    rest = chosen.strangers[~calibrating]
    half = len(chosen.enrolled) // 2
    gallery, open_set = measured.open_set()
    rates = {}
    for method, part in (("calibrated", slice(0, half)), ("calibrated, labels doubled", slice(half, 2 * half))):
        measured.enroll(gallery, chosen, part)
        if method == "calibrated":
            open_set.calibrate(rows)
        now = part.stop
        of_enrolled = np.isin(measured.raw.labels[chosen.queries], chosen.enrolled[:now])
        scored = measured.scored(
            replace(
                chosen,
                enrolled=chosen.enrolled[:now],
                positions=chosen.positions[: int(chosen.counts[:now].sum())],
                counts=chosen.counts[:now],
                queries=chosen.queries[of_enrolled],
                strangers=rest,
            )
        )
        rates[method] = [scored.at(threshold) for threshold in thresholds(open_set)]
    return rates


def _summary(pairs: Sequence[tuple[float, float]]) -> tuple[float, ...]:
    fpir, tpir = np.array(pairs).T
    spread = 1.96 / np.sqrt(len(pairs))
    return (
        *(
            float(value)
            for value in (fpir.mean(), fpir.mean() - spread * fpir.std(), fpir.mean() + spread * fpir.std())
        ),
        float(fpir.max()),
        *(
            float(value)
            for value in (tpir.mean(), tpir.mean() - spread * tpir.std(), tpir.mean() + spread * tpir.std())
        ),
    )


def _det(items: Sequence[Scored]) -> list[tuple[float, float]]:
    """The points FPIR and FNIR (1 - TPIR), the mean over enrolments at the same FPIR."""
    return [
        (float(rate), 1 - float(np.mean([item.possible(rate)[1] for item in items])))
        for rate in np.geomspace(0.003, 0.5, 40)
    ]


def scene_by(predictor: Predictor, part: Part, task: str) -> Scene:
    """Embed a scene with an engine."""
    images, labels, cameras = labelled_images(part, task)
    return Scene(str(part), in_batches(predictor.embed, images), labels, cameras)


def main(argv: Sequence[str] | None = None) -> int:
    """Print one row per scene, engine, method and rate; an EdgevisError becomes one line and exit status 1."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.open_set", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--bundle", type=Path, required=True, help="of task 'reid' or 'classify'")
    parser.add_argument("--data", type=Part.parse, nargs="+", required=True, help="FILE[:SPLIT[+SPLIT][:even|odd]]")
    parser.add_argument("--labels", type=int, help="how many to enrol (default: 10 for Re-ID, 5 for classes)")
    parser.add_argument("--images", type=int, help="how many of each (default: 8 and 5)")
    parser.add_argument("--enrolments", type=int, default=30, help="how often to draw (default: 30)")
    parser.add_argument("--seed", type=int, default=0)
    add_strangers_by(parser)
    parser.add_argument("--output", type=Path, help="a folder for det.svg")
    parser.add_argument("--json", action="store_true", help="print JSON")
    arguments = parser.parse_args(argv)
    curves: list[Curve] = []
    status = report(
        lambda: list(_measure(arguments, curves)),
        headers=("data", "engine", "method", "asked", "FPIR", "most", "TPIR"),
        cells=_cells,
        as_json=arguments.json,
        title=lambda first: f"{first.labels} labels with {first.images} images each, {first.enrolments} enrolments",
    )
    if status == 0 and arguments.output:
        arguments.output.mkdir(parents=True, exist_ok=True)
        with atomic_write(arguments.output / "det.svg") as file:
            file.write(draw(curves))
    return status


def _measure(arguments: argparse.Namespace, curves: list[Curve]) -> Iterator[OpenSetRow]:
    bundle = Bundle(arguments.bundle)
    task = bundle.manifest.deployment.task
    if task not in _OWN:
        raise InputError(f"the bundle's task is {task!r}; allowed: {', '.join(_OWN)}")
    labels = arguments.labels or (10 if task == "reid" else 5)
    images = arguments.images or (8 if task == "reid" else 5)
    for name, predictor in each_engine(bundle):
        with predictor:
            for part in arguments.data:
                scene = replace(scene_by(predictor, part, task), strangers_by=arguments.strangers_by)
                rows, scene_curves = measure(
                    SceneEvaluation(bundle, scene),
                    data=str(part),
                    engine=name,
                    labels=labels,
                    images=images,
                    enrolments=arguments.enrolments,
                    seed=arguments.seed,
                )
                curves += scene_curves
                yield from rows


def _cells(row: OpenSetRow) -> tuple[str, ...]:
    return (
        row.data,
        row.engine,
        row.method,
        f"{row.asked:.0%}",
        f"{row.fpir:.3f} ({row.fpir_low:.3f} to {row.fpir_high:.3f})",
        f"{row.fpir_most:.3f}",
        f"{row.tpir:.3f} ({row.tpir_low:.3f} to {row.tpir_high:.3f})",
    )


if __name__ == "__main__":
    sys.exit(main())
