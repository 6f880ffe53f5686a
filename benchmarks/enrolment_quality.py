"""The accuracy that enrolling blurred 22 × 28 crops costs, with and without the quality checks.

``python -m benchmarks.enrolment_quality --bundle B.edgevis --data pku_reid_dev.zip`` draws labels to enrol, strangers
to set the threshold by and other strangers to test it with. The threshold gives the asked FPIR (ISO/IEC 19795: the
share of strangers for whom any label comes back) with clean images enrolled; then some of each label's images are
damaged, and the same threshold is used again, without and with the gate: ``Predictor.enroll(..., strict=True)``, which
refuses them, and a second call with the images without findings. Scores are plain cosines of
``Predictor.embed``, so that the loss is the images' and not the threshold rule's. TPIR is the share of images of
enrolled labels that come back under their own label.

The data is a folder or zip with ``labels.csv`` (path, and pid and camid or class_name). With cameras, labels are
enrolled from one camera and everything is asked from the others.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import cv2
import numpy as np

from benchmarks.figure import Figure, figure_text
from benchmarks.report import report
from edgevis import EnrolmentRefusedError, InputError, Predictor
from edgevis.data.files import open_files
from runtime.common.arrays import Array
from runtime.gallery.embedded import EmbeddedGallery
from runtime.gallery.state import Scoring
from runtime.images.decode import Image
from runtime.results import Match

SIZE = (22, 28)  # pixels, width and height: of a person far from the camera, as a detector cuts it out
_BLUR_SIGMA = 0.7  # pixels of the small crop: a lens that is slightly out of focus
_SCORING: Mapping[str, Scoring] = {"reid": "nearest", "classify": "prototype"}
_BATCH = 64


@dataclass(frozen=True, slots=True)
class QualityRow:
    """The figures of one way of enrolling: means over draws, rates with their intervals.

    Attributes:
        data: The data's file name.
        damage: What was done to the damaged images.
        enrolled: Which images were enrolled.
        labels, images: Enrolled on average: labels, and images of each.
        fpir, tpir: At the threshold that gives the asked FPIR with clean images.
        fpir_damaged: The FPIR of strangers whose images are damaged in the same way, at that threshold.
        tpir_again: At a threshold that was set again, with what is enrolled now.
    """

    data: str
    damage: str
    enrolled: str
    labels: float
    images: float
    fpir: Figure
    tpir: Figure
    fpir_damaged: Figure
    tpir_again: Figure


@dataclass(frozen=True, slots=True)
class Protocol:
    """The numbers of the protocol: draws, labels, images.

    Attributes:
        shots: Images enrolled of each label.
        damaged: How many of them are damaged.
        known: The share of the labels that are enrolled; one half of the others sets the threshold.
        fpir: What the threshold is set to.
        draws: How often labels and images are drawn.
        seed: Of the draws.
    """

    shots: int
    damaged: int
    known: float
    fpir: float
    draws: int
    seed: int


@dataclass(frozen=True, slots=True, eq=False)
class Data:
    """N images, (N,) labels, and (N,) bool masks of those that may be enrolled and those that may be queries."""

    images: list[Image]
    labels: Array
    may_enrol: Array
    may_ask: Array


@dataclass(frozen=True, slots=True)
class _Draw:
    """The image indices of one draw: the clean shots of each label, queries and strangers."""

    shots: dict[str, list[int]]
    queries: list[int]
    calibration: list[int]
    strangers: list[int]


def small_crop(image: Image) -> Image:
    """The image as a blurred crop of 22 × 28 pixels."""
    return np.asarray(
        cv2.GaussianBlur(cv2.resize(image, SIZE, interpolation=cv2.INTER_AREA), (0, 0), _BLUR_SIGMA), np.uint8
    )


def enlarged_crop(image: Image) -> Image:
    """:func:`small_crop`, enlarged to the size that the image had."""
    return np.asarray(cv2.resize(small_crop(image), image.shape[1::-1], interpolation=cv2.INTER_CUBIC), np.uint8)


DAMAGES = {"22x28": small_crop, "22x28 enlarged": enlarged_crop}


def read_data(path: Path, limit: int) -> Data:
    """At most ``limit`` images of each label and camera.

    Raises:
        SourceError: The table or an image cannot be read.
    """
    files = open_files(path)
    rows = files.table("labels.csv", ("path",))
    cameras = "camid" in rows[0] and "pid" in rows[0]
    seen: dict[tuple[str, str], int] = {}
    selected = []
    for row in rows:
        key = (row["pid"], row["camid"]) if cameras else (row.get("class_name", ""), "")
        seen[key] = seen.get(key, 0) + 1
        if seen[key] <= limit:
            selected.append((row["path"], *key))
    labels, camera = np.array([item[1] for item in selected]), np.array([item[2] for item in selected])
    first = camera == min(camera.tolist())
    every = np.ones(len(selected), bool)
    return Data([files.image(item[0]) for item in selected], labels, first, ~first if cameras else every)


def measure(predictor: Predictor, name: str, data: Data, protocol: Protocol) -> Iterator[QualityRow]:
    """One row for each damage and way of enrolling.

    Raises:
        InputError: The bundle's task has no embeddings, or the data has too few labels or images.
    """
    if predictor.info.task not in _SCORING:
        raise InputError(f"the bundle's task is {predictor.info.task!r}; allowed: {', '.join(_SCORING)}")
    scoring = _SCORING[predictor.info.task]
    draws = [_draw(data, protocol, np.random.default_rng((protocol.seed, place))) for place in range(protocol.draws)]
    clean = _embed(predictor, data.images)
    for damage, apply in DAMAGES.items():
        images = [apply(image) for image in data.images]
        broken = _embed(predictor, images)
        values: dict[str, list[tuple[float, ...]]] = {}
        for draw in draws:
            reference = _gallery(scoring, {label: clean[shots] for label, shots in draw.shots.items()})
            threshold = _threshold(reference, clean[draw.calibration], protocol.fpir)
            truth = data.labels[draw.queries]
            for enrolled, rows in _enrolments(predictor, data.images, images, clean, broken, draw, protocol.damaged):
                gallery = _gallery(scoring, rows)
                again = _threshold(gallery, clean[draw.calibration], protocol.fpir)
                values.setdefault(enrolled, []).append(
                    (
                        len(rows),
                        sum(map(len, rows.values())) / max(len(rows), 1),
                        _accepted(gallery, clean[draw.strangers], threshold),
                        _recognised(gallery, clean[draw.queries], truth, threshold),
                        _accepted(gallery, broken[draw.strangers], threshold),
                        _recognised(gallery, clean[draw.queries], truth, again),
                    )
                )
        for enrolled, samples in values.items():
            columns = np.array(samples, np.float64).T
            rates = map(Figure.mean_of, columns[2:])
            yield QualityRow(name, damage, enrolled, float(columns[0].mean()), float(columns[1].mean()), *rates)


def pass_gate(predictor: Predictor, label: str, images: Sequence[Image]) -> list[int]:
    """Enrol the images without findings; returns their indices."""
    try:
        predictor.enroll(label, list(images), strict=True)
        return list(range(len(images)))
    except EnrolmentRefusedError as error:
        judged = error.report.judgements if error.report is not None else ()
    accepted = [place for place, item in enumerate(judged) if not item.findings]
    if accepted:
        predictor.enroll(label, [images[place] for place in accepted])
    return accepted


def _draw(data: Data, protocol: Protocol, random: np.random.Generator) -> _Draw:
    labels = random.permutation(np.unique(data.labels))
    known = round(len(labels) * protocol.known)
    half = known + (len(labels) - known) // 2
    if known < 2 or half == known or not 0 <= protocol.damaged <= protocol.shots:
        raise InputError(f"{len(labels)} labels, of which {protocol.known} would be enrolled; give more of them")
    shots, queries = {}, []
    for label in labels[:known].tolist():
        is_label = data.labels == label
        order = random.permutation(np.flatnonzero(is_label & data.may_enrol)).tolist()
        candidates = np.flatnonzero(is_label & data.may_ask).tolist()
        shots[label] = order[: protocol.shots]
        queries += [index for index in candidates if index not in shots[label]]
        if len(shots[label]) < protocol.shots:
            raise InputError(f"{label!r} has {len(order)} images to enrol; lower --shots to that")
    strangers = [
        np.flatnonzero(np.isin(data.labels, part) & data.may_ask).tolist()
        for part in (labels[known:half], labels[half:])
    ]
    return _Draw(shots, queries, *strangers)


def _enrolments(
    predictor: Predictor,
    clean_images: Sequence[Image],
    broken_images: Sequence[Image],
    clean: Array,
    broken: Array,
    draw: _Draw,
    count: int,
) -> Iterator[tuple[str, dict[str, Array]]]:
    """Yield ways of enrolling the same labels, each with its embeddings: label to (N, D)."""
    shots = len(next(iter(draw.shots.values())))
    mixed = {
        label: np.concatenate([broken[indices[:count]], clean[indices[count:]]])
        for label, indices in draw.shots.items()
    }
    for label in predictor.labels:
        predictor.forget(label)
    passed = {
        label: pass_gate(
            predictor,
            label,
            [(broken_images if place < count else clean_images)[index] for place, index in enumerate(indices)],
        )
        for label, indices in draw.shots.items()
    }
    yield f"{shots} clean", {label: clean[indices] for label, indices in draw.shots.items()}
    yield f"{shots}, {count} of them damaged", mixed
    yield (
        f"{shots}, {count} of them damaged, gate",
        {label: mixed[label][accepted] for label, accepted in passed.items() if accepted},
    )
    if count < shots:
        yield f"{shots - count} clean", {label: clean[indices[count:]] for label, indices in draw.shots.items()}


def _embed(predictor: Predictor, images: Sequence[Image]) -> Array:
    parts = [predictor.embed(list(images[start : start + _BATCH])) for start in range(0, len(images), _BATCH)]
    return np.concatenate(parts)


def _gallery(scoring: Scoring, rows: Mapping[str, Array]) -> EmbeddedGallery:
    gallery = EmbeddedGallery(next(iter(rows.values())).shape[1] if rows else 1, scoring)
    for label, label_rows in rows.items():
        gallery.add(label, label_rows)
    return gallery


def _threshold(gallery: EmbeddedGallery, strangers: Array, rate: float) -> float:
    """The score that the share ``rate`` of the strangers reaches."""
    return float(np.quantile([_best(ranking)[1] for ranking in gallery.search(strangers, 1)], 1 - rate))


def _accepted(gallery: EmbeddedGallery, strangers: Array, threshold: float) -> float:
    return float(np.mean([_best(ranking)[1] >= threshold for ranking in gallery.search(strangers, 1)]))


def _recognised(gallery: EmbeddedGallery, queries: Array, truth: Array, threshold: float) -> float:
    best = [_best(ranking) for ranking in gallery.search(queries, 1)]
    return float(
        np.mean(
            [
                label == expected and score >= threshold
                for (label, score), expected in zip(best, truth.tolist(), strict=True)
            ]
        )
    )


def _best(ranking: Sequence[Match]) -> tuple[str | None, float]:
    return (ranking[0].label, ranking[0].score) if ranking else (None, -1.0)


def main(argv: Sequence[str] | None = None) -> int:
    """Print one row for each data set, damage and way of enrolling."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.enrolment_quality", description=__doc__.partition("\n")[0]
    )
    parser.add_argument("--bundle", type=Path, required=True, help="a bundle of task 'reid' or 'classify'")
    parser.add_argument(
        "--data", type=Path, nargs="+", required=True, help="folders or zips with labels.csv and images"
    )
    parser.add_argument("--precision", help="the engine to measure (default: the automatic one)")
    parser.add_argument("--shots", type=int, default=5, help="images enrolled of each label")
    parser.add_argument("--damaged", type=int, default=2, help="how many of them are damaged")
    parser.add_argument("--known", type=float, default=0.4, help="the share of the labels that are enrolled")
    parser.add_argument("--fpir", type=float, default=0.05, help="what the threshold is set to with clean images")
    parser.add_argument("--limit", type=int, default=20, help="images read of each label and camera")
    parser.add_argument("--draws", type=int, default=20)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--json", action="store_true", help="print JSON")
    arguments = parser.parse_args(argv)
    if arguments.draws < 2 or not 0 < arguments.fpir < 1 or not 0 < arguments.known < 1:
        parser.error("--draws must be at least 2, --fpir and --known between 0 and 1")
    return report(
        lambda: list(_measure(arguments)),
        headers=(
            "data",
            "damage",
            "enrolled per label",
            "images",
            "FPIR",
            "TPIR",
            "FPIR damaged",
            "TPIR, threshold anew",
        ),
        cells=_cells,
        as_json=arguments.json,
        title=lambda _: (
            f"threshold: FPIR {arguments.fpir:.0%} with clean images; mean of {arguments.draws} draws ± 95 % interval"
        ),
    )


def _measure(arguments: argparse.Namespace) -> Iterator[QualityRow]:
    protocol = Protocol(
        arguments.shots, arguments.damaged, arguments.known, arguments.fpir, arguments.draws, arguments.seed
    )
    with Predictor(arguments.bundle, precision=arguments.precision) as predictor:
        for path in arguments.data:
            yield from measure(predictor, path.name, read_data(path, arguments.limit), protocol)


def _cells(row: QualityRow) -> tuple[str, ...]:
    return (
        row.data,
        row.damage,
        row.enrolled,
        f"{row.images:.2f}",
        *map(figure_text, (row.fpir, row.tpir, row.fpir_damaged, row.tpir_again)),
    )


if __name__ == "__main__":
    sys.exit(main())
