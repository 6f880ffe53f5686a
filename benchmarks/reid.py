"""Rank-1 and mAP of person re-identification: ``python -m benchmarks.reid --bundle B.edgevis --data pku_reid_dev.zip``.

The data is a folder or zip with ``labels.csv`` (path, pid, camid, split) and images; every image of split ``query`` is
looked for among those of split ``gallery`` by cosine. With ``--bundle`` every engine of the bundle embeds them through
``Predictor.embed``; with ``--weights`` PyTorch does, through the same preprocessing.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from benchmarks.report import report
from edgevis.data import read_pku_reid
from edgevis.metrics import reid_ranking
from runtime.bundle.bundle import Bundle
from runtime.common.arrays import Array, unit_rows
from runtime.images.decode import Image
from runtime.verification.timing import each_engine

RANKS = (1, 5, 10)
_BATCH = 32

Embed = Callable[[Sequence[Image]], Array]


@dataclass(frozen=True, slots=True)
class Scores:
    """The scores of one engine or checkpoint.

    Attributes:
        encoder: The engine's or the weights file's name.
        queries, gallery: Numbers of images.
        rank_1, rank_5, rank_10: Share of queries with a match among that many nearest.
        mean_ap: Mean average precision.
    """

    encoder: str
    queries: int
    gallery: int
    rank_1: float
    rank_5: float
    rank_10: float
    mean_ap: float


@dataclass(frozen=True, slots=True, eq=False)
class Split:
    """One side of the search: N images, their identities and cameras (N,) int64."""

    images: list[Image]
    ids: Array
    cameras: Array


def read_split(path: Path, split: str) -> Split:
    """The images of one split, in the order of ``labels.csv``.

    Raises:
        SourceError: As :func:`edgevis.data.read_pku_reid`, or an image cannot be decoded.
    """
    dataset = read_pku_reid(path, split)
    images = [dataset[index][0] for index in range(len(dataset))]
    return Split(images, np.array(dataset.ids, np.int64), np.array(dataset.cameras, np.int64))


def score(encoder: str, embed: Embed, query: Split, gallery: Split) -> Scores:
    """Search every query in the gallery. ``embed`` returns (N, D) unit rows."""
    distances = 1 - embed(query.images) @ embed(gallery.images).T
    curve, mean_ap = reid_ranking(distances, query.ids, gallery.ids, query.cameras, gallery.cameras)
    at = [float(curve[min(rank, len(curve)) - 1]) for rank in RANKS]
    return Scores(encoder, len(query.images), len(gallery.images), at[0], at[1], at[2], mean_ap)


def score_bundle(path: Path, query: Split, gallery: Split) -> Iterator[Scores]:
    """Score each engine of the bundle that opens here, through ``Predictor.embed``."""
    for name, predictor in each_engine(Bundle(path)):
        with predictor:
            yield score(name, predictor.embed, query, gallery)


def score_weights(path: Path, query: Split, gallery: Split, *, published: str) -> Scores:
    """Score one checkpoint in PyTorch; ``published`` is the model of one that names none."""
    import torch

    from benchmarks.trained_weights import open_trained

    model, preprocessor = open_trained(path, published=published)

    def embed(images: Sequence[Image]) -> Array:
        with torch.inference_mode():
            batches = [images[start : start + _BATCH] for start in range(0, len(images), _BATCH)]
            return unit_rows(
                np.concatenate([model(torch.from_numpy(preprocessor(batch))).numpy() for batch in batches])
            )

    return score(path.name, embed, query, gallery)


def main(argv: Sequence[str] | None = None) -> int:
    """Print one row per engine or weights file; an EdgevisError becomes one line and exit status 1."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.reid", description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--bundle", type=Path, help="measure every engine of this bundle")
    parser.add_argument("--model", default="osnet-x0-25", help="the model of --weights that name none")
    parser.add_argument("--weights", type=Path, nargs="+", help="measure these in PyTorch")
    parser.add_argument("--data", type=Path, required=True, help="folder or zip with labels.csv and images")
    parser.add_argument("--json", action="store_true", help="print JSON")
    arguments = parser.parse_args(argv)
    if not arguments.bundle and not arguments.weights:
        parser.error("give --bundle or --weights")
    return report(
        lambda: list(_measure(arguments)),
        headers=("encoder", "rank-1", "rank-5", "rank-10", "mAP"),
        cells=_cells,
        as_json=arguments.json,
        title=lambda first: f"{first.queries} queries, {first.gallery} gallery images",
    )


def _measure(arguments: argparse.Namespace) -> Iterator[Scores]:
    query, gallery = (read_split(arguments.data, split) for split in ("query", "gallery"))
    for path in arguments.weights or ():
        yield score_weights(path, query, gallery, published=arguments.model)
    if arguments.bundle:
        yield from score_bundle(arguments.bundle, query, gallery)


def _cells(row: Scores) -> tuple[str, ...]:
    return (row.encoder, *(f"{value:.3f}" for value in (row.rank_1, row.rank_5, row.rank_10, row.mean_ap)))


if __name__ == "__main__":
    sys.exit(main())
