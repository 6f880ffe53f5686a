"""Measures of retrieval, in NumPy.

Of gallery images at the same distance those of another identity come first: the pessimistic of all orders. A model that
gives everything the same embedding then finds nothing, and the order of a gallery's rows decides nothing.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray

from runtime.errors import InputError

__all__ = ["JUNK", "QueryRanks", "reid_queries", "reid_ranking"]

JUNK = -1
"""Market-1501's identity of images that count neither as right nor as wrong: a detector's poor boxes of somebody."""


@dataclass(frozen=True, slots=True, eq=False)
class QueryRanks:
    """Ranks of each query that has a match and is not junk.

    Attributes:
        query: (V,) int64: its number.
        first: (V,) int64: the place of its first match, from 0.
        precision: (V,) float64: its average precision, 0 to 1.
    """

    query: NDArray[np.int64]
    first: NDArray[np.int64]
    precision: NDArray[np.float64]


def reid_ranking(
    distances: ArrayLike,
    query_ids: ArrayLike,
    gallery_ids: ArrayLike,
    query_cameras: ArrayLike,
    gallery_cameras: ArrayLike,
    max_rank: int = 50,
) -> tuple[NDArray[np.float64], float]:
    """Cumulative matching characteristic and mean average precision, by the protocol of Market-1501.

    For each query, gallery images of the same identity from the same camera are dropped, and so is junk: images of
    identity -1. A query that is junk or has no match left is skipped.

    Args:
        distances: (Q, G), smaller is nearer; at the same distance a match comes last.
        query_ids, query_cameras: (Q,) integers.
        gallery_ids, gallery_cameras: (G,) integers.
        max_rank: Length of the curve; at most G ranks are returned.

    Returns:
        The curve, (min(max_rank, G),) float64: entry r is the share of queries with a match among the r + 1 nearest;
        and the mean over queries of the precision at each match.

    Raises:
        InputError: Shapes do not fit together, a distance is not a number, or no query has a match.
    """
    if max_rank < 1:
        raise InputError(f"max_rank is {max_rank}; allowed: 1 or more")
    queries = reid_queries(distances, query_ids, gallery_ids, query_cameras, gallery_cameras)
    ranks = min(max_rank, np.shape(distances)[1])
    curve = np.bincount(queries.first[queries.first < ranks], minlength=ranks).cumsum() / len(queries.first)
    return curve, float(queries.precision.mean())


def reid_queries(
    distances: ArrayLike,
    query_ids: ArrayLike,
    gallery_ids: ArrayLike,
    query_cameras: ArrayLike,
    gallery_cameras: ArrayLike,
) -> QueryRanks:
    """The per-query values that :func:`reid_ranking` averages; the arguments and errors are the same."""
    table = np.asarray(distances, np.float64)
    ids = np.asarray(query_ids), np.asarray(gallery_ids)
    cameras = np.asarray(query_cameras), np.asarray(gallery_cameras)
    if table.ndim != 2 or any(
        (len(side[0]), len(side[1])) != table.shape if side[0].ndim == side[1].ndim == 1 else True
        for side in (ids, cameras)
    ):
        shapes = [array.shape for array in (*ids, *cameras)]
        raise InputError(
            f"distances {table.shape} do not fit identities and cameras {shapes}; allowed: (Q, G), (Q,), (G,)"
        )
    if np.isnan(table).any():
        raise InputError("distances hold NaN")

    first: list[int] = []
    precisions: list[float] = []
    counted: list[int] = []
    for number, (row, identity, camera) in enumerate(zip(table, ids[0], cameras[0], strict=True)):
        valid = (ids[1] != JUNK) & ((ids[1] != identity) | (cameras[1] != camera))
        matches = ids[1][valid] == identity
        places = np.flatnonzero(matches[np.lexsort((matches, row[valid]))])
        if identity == JUNK or len(places) == 0:
            continue
        counted.append(number)
        first.append(int(places[0]))
        precisions.append(float(np.mean(np.arange(1, len(places) + 1) / (places + 1))))
    if not counted:
        raise InputError("no query has a gallery image of its identity from another camera")
    return QueryRanks(np.array(counted), np.array(first), np.array(precisions))
