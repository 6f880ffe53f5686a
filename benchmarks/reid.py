"""Rank-1 and mAP of a person re-identification model: ``python -m benchmarks.reid --weights FILE --data ZIP``.

The data is a zip with ``labels.csv`` (path, pid, camid, split) and images; every image of split ``query`` is looked
for among those of split ``gallery``. Images go through the runtime's preprocessing, embeddings are L2-normalised, the
distance is one minus the cosine.
"""

from __future__ import annotations

import argparse
import csv
import io
import json
import sys
import time
import zipfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import cv2
import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from edgevis import EdgevisError, SourceError, models
from edgevis.metrics import reid_ranking
from runtime.jsondata import to_json
from runtime.preprocess import Preprocessor
from runtime.text import text_table

HEADERS = ("weights", "rank-1", "rank-5", "rank-10", "mAP", "ms/image")
_BATCH = 32


@dataclass(frozen=True, slots=True)
class Scores:
    """What was measured.

    Attributes:
        weights: The weights file's name.
        queries, gallery: Numbers of images.
        rank_1, rank_5, rank_10: Share of queries with a match among that many nearest.
        mean_ap: Mean average precision.
        embed_ms: Time per image in PyTorch on this machine's CPU, preprocessing included.
    """

    weights: str
    queries: int
    gallery: int
    rank_1: float
    rank_5: float
    rank_10: float
    mean_ap: float
    embed_ms: float


@dataclass(frozen=True, slots=True, eq=False)
class Split:
    """One side of the search: N images (H, W, 3) uint8 BGR, their identities and cameras (N,) int64."""

    images: list[NDArray[np.uint8]]
    ids: NDArray[np.int64]
    cameras: NDArray[np.int64]


def read_split(path: Path, split: str) -> Split:
    """The images of one split of the zip, in the order of ``labels.csv``."""
    try:
        with zipfile.ZipFile(path) as archive:
            rows = list(csv.DictReader(io.TextIOWrapper(archive.open("labels.csv"), "utf-8")))
            rows = [row for row in rows if row["split"] == split]
            coded = [np.frombuffer(archive.read(row["path"]), np.uint8) for row in rows]
    except (OSError, KeyError, zipfile.BadZipFile) as error:
        raise SourceError(f"cannot read {path}: {error}") from error
    if not rows:
        raise SourceError(f"{path} has no images of split {split!r}")
    images = []
    for row, data in zip(rows, coded, strict=True):
        image = cv2.imdecode(data, cv2.IMREAD_COLOR)
        if image is None:
            raise SourceError(f"{path}: {row['path']} is not an image")
        images.append(np.asarray(image, np.uint8))
    return Split(
        images,
        np.array([int(row["pid"]) for row in rows], np.int64),
        np.array([int(row["camid"]) for row in rows], np.int64),
    )


def embed(model: nn.Module, preprocessor: Preprocessor, images: Sequence[NDArray[np.uint8]]) -> NDArray[np.float32]:
    """(N, D) float32, L2-normalised rows."""
    parts = []
    for start in range(0, len(images), _BATCH):
        batch = torch.from_numpy(preprocessor(images[start : start + _BATCH]))
        with torch.inference_mode():
            parts.append(model(batch).numpy())
    embeddings = np.concatenate(parts).astype(np.float32)
    normalised: NDArray[np.float32] = embeddings / np.linalg.norm(embeddings, axis=1, keepdims=True)
    return normalised


def score(model_name: str, weights: Path, query: Split, gallery: Split) -> Scores:
    """Load the weights and search every query in the gallery."""
    model = models.create(model_name)
    models.load_weights(model, weights)
    preprocessor = Preprocessor(models.entry(model_name).deployment.preprocess)
    started = time.perf_counter()
    embeddings = embed(model, preprocessor, [*query.images, *gallery.images])
    embed_ms = (time.perf_counter() - started) * 1000 / len(embeddings)
    count = len(query.images)
    distances = 1 - embeddings[:count] @ embeddings[count:].T
    curve, mean_ap = reid_ranking(distances, query.ids, gallery.ids, query.cameras, gallery.cameras)
    rank_1, rank_5, rank_10 = (float(curve[min(rank, len(curve)) - 1]) for rank in (1, 5, 10))
    return Scores(weights.name, count, len(gallery.images), rank_1, rank_5, rank_10, mean_ap, embed_ms)


def main(argv: Sequence[str] | None = None) -> int:
    """Print one row per weights file; an error of ours becomes one line and exit status 1."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.reid", description=__doc__.partition("\n")[0])
    parser.add_argument("--model", default="osnet-x0-25", help="the model that the weights are for")
    parser.add_argument("--weights", type=Path, nargs="+", help="default: the ones that ship with the model")
    parser.add_argument("--data", type=Path, required=True, help="zip with labels.csv and images")
    parser.add_argument("--json", action="store_true", help="print JSON")
    arguments = parser.parse_args(argv)
    try:
        weights = arguments.weights or [_shipped(arguments.model)]
        query, gallery = (read_split(arguments.data, split) for split in ("query", "gallery"))
        found = [score(arguments.model, path, query, gallery) for path in weights]
    except EdgevisError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    if arguments.json:
        print(json.dumps(to_json(found), indent=2))
        return 0
    print(f"{found[0].queries} queries, {found[0].gallery} gallery images")
    rows = [
        [
            row.weights,
            *(f"{value:.3f}" for value in (row.rank_1, row.rank_5, row.rank_10, row.mean_ap)),
            f"{row.embed_ms:.1f}",
        ]
        for row in found
    ]
    print(text_table(HEADERS, rows))
    return 0


def _shipped(model: str) -> Path:
    path = models.shipped_weights(model)
    if path is None:
        raise SourceError(f"no weights ship with {model!r}; name some with --weights")
    return path


if __name__ == "__main__":
    raise SystemExit(main())
