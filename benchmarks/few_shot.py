"""Few-shot accuracy of a bundle: ``python -m benchmarks.few_shot --bundle B.edgevis --data grocery_dev.zip``.

An episode draws ``way`` classes, enrols ``shot`` images of each and asks for ``query`` other images of each. Every
image is embedded once by the predictor; an episode then enrols and searches these embeddings in the gallery that
``Predictor.enroll`` and ``Predictor.predict`` use, which gives the same answers as calling them with the images
(``--images`` does that, some hundred times slower). Data are FILE[:SPLIT[+SPLIT][:even|odd]]; the last takes every
second class.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from benchmarks.figure import Figure, figure_text
from benchmarks.report import report
from edgevis import Classification, InputError, Predictor
from edgevis.data import Episode, EpisodeSampler
from edgevis.metrics import episode_accuracy
from edgevis.open_set.embeddings import Part, labelled_images
from runtime.bundle.bundle import Bundle
from runtime.common.arrays import Array, unit_rows
from runtime.gallery.adapted import AdaptedGallery
from runtime.gallery.embedded import EmbeddedGallery
from runtime.images.decode import Image
from runtime.open_set.bundled import space_of
from runtime.tasks._embedding import EmbeddingTask

Rows = Array


@dataclass(frozen=True, slots=True)
class Accuracy:
    """Mean accuracy over episodes."""

    data: str
    engine: str
    way: int
    shot: int
    episodes: int
    accuracy: Figure


def episodes(
    labels: Sequence[str] | Array, *, way: int, shot: int, query: int, count: int, seed: int
) -> Iterator[Episode]:
    """``count`` random episodes over images with these labels; classes with too few images are left out."""
    sampler = EpisodeSampler(labels, way=way, shot=shot, query=query, episodes=count, skip_small=True, seed=seed)
    return (sampler.episode(number) for number in range(count))


def from_embeddings(embeddings: Rows) -> Callable[[Episode], float]:
    """A function of an episode's accuracy over (N, D) unit rows, as :func:`scored_rows` returns them."""

    def run(episode: Episode) -> float:
        gallery = EmbeddedGallery(embeddings.shape[1], "prototype")
        for label, shots in enumerate(episode.shots):
            gallery.add(str(label), embeddings[shots])
        rankings = gallery.search(embeddings[episode.queries.ravel()], 1)
        truth = [str(label) for label, queries in enumerate(episode.queries) for _ in queries]
        return float(np.mean([ranking[0].label == label for ranking, label in zip(rankings, truth, strict=True)]))

    return run


def from_adapted(gallery: AdaptedGallery, embeddings: Rows) -> Callable[[Episode], float]:
    """A function of an episode's accuracy over (N, D) embeddings, not normalised, by adapted prototypes."""
    units = unit_rows(embeddings)

    def run(episode: Episode) -> float:
        gallery.replace({str(label): embeddings[shots] for label, shots in enumerate(episode.shots)})
        rankings = gallery.search(units[episode.queries.ravel()], 1)
        truth = [str(label) for label, queries in enumerate(episode.queries) for _ in queries]
        return float(np.mean([ranking[0].label == label for ranking, label in zip(rankings, truth, strict=True)]))

    return run


def scored_rows(bundle: Path, embeddings: Rows) -> Rows:
    """(N, D) float32 embeddings in the space in which the bundle's predictor scores them."""
    space = space_of(Bundle(bundle), embeddings.shape[1])
    return embeddings if space is None else space.project(embeddings)


def from_images(predictor: Predictor, images: Sequence[Image]) -> Callable[[Episode], float]:
    """A function of an episode's accuracy by ``enroll`` and ``predict`` on the images themselves."""

    def run(episode: Episode) -> float:
        for label in predictor.labels:
            predictor.forget(label)
        right = []
        for number, shots in enumerate(episode.shots):
            predictor.enroll(str(number), [images[index] for index in shots])
        for number, queries in enumerate(episode.queries):
            for result in predictor.predict([images[index] for index in queries], top_k=1):
                if not isinstance(result, Classification):
                    raise InputError("the bundle's task is not 'classify'")
                # The best class, whatever its score: the protocol knows no strangers.
                right.append(result.labels[0] == str(number))
        return float(np.mean(right))

    return run


def summary(data: str, engine: str, way: int, shot: int, values: Sequence[float]) -> Accuracy:
    """Mean over episodes."""
    accuracy = episode_accuracy(values)
    return Accuracy(data, engine, way, shot, accuracy.episodes, Figure(accuracy.mean, accuracy.half_width95))


def main(argv: Sequence[str] | None = None) -> int:
    """Print one row per engine and number of shots."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.few_shot", description=(__doc__ or "").partition("\n")[0]
    )
    parser.add_argument("--bundle", type=Path, required=True, help="a bundle of task 'classify'")
    parser.add_argument("--data", type=Part.parse, nargs="+", required=True, help="FILE[:SPLIT[+SPLIT][:even|odd]]")
    parser.add_argument(
        "--precision", nargs="*", default=[None], help="engines to measure (default: the automatic one)"
    )
    parser.add_argument("--way", type=int, default=5)
    parser.add_argument("--shot", type=int, nargs="*", default=[1, 5])
    parser.add_argument("--query", type=int, default=10)
    parser.add_argument("--episodes", type=int, default=1000)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument(
        "--images", action="store_true", help="call enroll and predict with the images of every episode"
    )
    parser.add_argument("--json", action="store_true", help="print JSON")
    arguments = parser.parse_args(argv)
    return report(
        lambda: list(_measure(arguments)),
        headers=("data", "engine", "way", "shot", "episodes", "accuracy"),
        cells=_cells,
        as_json=arguments.json,
    )


def _cells(item: Accuracy) -> tuple[str, ...]:
    numbers = (str(number) for number in (item.way, item.shot, item.episodes))
    return (item.data, item.engine, *numbers, figure_text(item.accuracy))


def _measure(arguments: argparse.Namespace) -> Iterator[Accuracy]:
    for part in arguments.data:
        drawn_from, labels, _ = labelled_images(part, "classify")
        images = list(drawn_from)
        for precision in arguments.precision:
            with Predictor(arguments.bundle, precision=precision) as predictor:
                engine = f"{predictor.info.backend}-{predictor.info.precision}"
                task = predictor.task
                if arguments.images:
                    run = from_images(predictor, images)
                elif isinstance(task, EmbeddingTask) and isinstance(task.gallery, AdaptedGallery):
                    run = from_adapted(task.gallery, task.embeddings(images))
                else:
                    run = from_embeddings(scored_rows(arguments.bundle, predictor.embed(images)))
                for shot in arguments.shot:
                    drawn = episodes(
                        labels,
                        way=arguments.way,
                        shot=shot,
                        query=arguments.query,
                        count=arguments.episodes,
                        seed=arguments.seed,
                    )
                    values = [run(episode) for episode in drawn]
                    yield summary(str(part), engine, arguments.way, shot, values)


if __name__ == "__main__":
    sys.exit(main())
