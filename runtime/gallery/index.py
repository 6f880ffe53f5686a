"""An approximate index of a gallery's rows, for galleries that are too large for an exact search.

A graph (HNSW: Malkov and Yashunin, arXiv 1603.09320) by USearch proposes rows; whatever it proposes is scored exactly,
as are all rows that were added since it was made. So a score is always the exact one, and what is enrolled is found at
once; what may be missing is a row that the graph did not propose. How often that happens is measured on the rows
themselves whenever the index is made (:class:`IndexInfo`), and an index that misses too many, or that is not faster
than the exact search, is not used.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from runtime.common.arrays import Array, unit_rows
from runtime.gallery.candidates import Candidates
from runtime.gallery.queries import Queries, Query
from runtime.gallery.search import best, likely_positions, ranked
from runtime.gallery.state import GalleryState

MIN_RECALL = 0.99
_CONNECTIVITY, _EXPANSION_ADD = 16, 64  # of the graph; wider ones take longer to make and were not faster at 0.99
_WIDTHS = (32, 64, 128, 256, 512, 1024)  # rows that a search of the graph visits at least, narrowest first
_SLICE = 512  # rows added before the maker looks whether it is to stop
_TOP_K = 10
_QUERIES = 100
_LIKENESS = 0.7  # cosine of a query that measures the recall to the row that it is made of


@dataclass(frozen=True, slots=True)
class IndexInfo:
    """The speed and recall of an index, measured on this machine when it was made.

    Attributes:
        rows: Rows in the graph; newer ones are searched exactly.
        used: Whether searches go through it.
        why: Why, in one sentence.
        recall: recall@10: the share of the ten best labels that it finds; mean of :attr:`queries` queries, each an
            enrolled row mixed with another one to a cosine of 0.7.
        queries: The number of queries.
        width: Rows that a search visits at least.
        search_ms, exact_ms: Median milliseconds of one query, through the index and exactly.
        build_s: Seconds to make it.
    """

    rows: int
    used: bool
    why: str
    recall: float
    queries: int
    width: int
    search_ms: float
    exact_ms: float
    build_s: float


class StoppedError(Exception):
    """Raised when the index is no longer needed."""


class RowIndex:
    """An immutable graph over the rows of one state.

    Attributes:
        upto: Rows with smaller numbers are in it, but for those that were removed before.
        rows: The number of these rows.
        width: Rows that a search visits at least.
    """

    def __init__(self, graph: Any, upto: int, rows: int) -> None:
        self._graph = graph
        self.upto, self.rows = upto, rows
        self.width = _WIDTHS[0]

    @classmethod
    def of(cls, state: GalleryState, before: RowIndex | None, go_on: Callable[[], bool]) -> RowIndex:
        """Build the graph over all rows of a state; ``before``, the graph of an earlier state, is copied and extended.

        Raises:
            StoppedError: ``go_on`` said so.
        """
        graph = _empty(state.blocks[0].vectors.dimension) if before is None else before._graph.copy()
        first = 0 if before is None else before.upto
        for block in state.blocks:
            offsets = block.alive
            offsets = offsets[block.numbers[offsets] >= first]
            for begin in range(0, len(offsets), _SLICE):
                if not go_on():
                    raise StoppedError
                part = offsets[begin : begin + _SLICE]
                graph.add(block.numbers[part].astype(np.uint64), block.vectors.take(part), threads=1)
        return cls(graph, state.next_number, len(graph))

    def positions(self, state: GalleryState, query: Array, count: int) -> Array:
        """Ascending positions of about ``count`` nearest rows of one (D,) query, without removed rows."""
        self._graph.expansion_search = self.width
        numbers = np.sort(self._graph.search(query, count, threads=1).keys.astype(np.int64))
        return state.positions_of(numbers)

    def best(self, state: GalleryState, queries: Queries, top_k: int) -> Iterator[tuple[Array, Array]]:
        """Slots and float32 scores of the best labels of each query, best first, as the exact search returns them."""
        newer = state.behind(self.upto)
        start = len(state) - len(newer)
        fresh = [start + positions for positions in likely_positions(newer, queries, top_k)] if newer.blocks else None
        for index in range(len(queries)):
            query = Query(queries, index)
            yield self._best(state, query, None if fresh is None else fresh[index], top_k)

    def _best(self, state: GalleryState, query: Query, fresh: Array | None, top_k: int) -> tuple[Array, Array]:
        count = max(4 * top_k, self.width // 4)
        limit = min(top_k, state.label_count)
        while np.isfinite(query.norm) and count < max(self.rows // 4, 1):
            positions = self.positions(state, query.row, count)
            if fresh is not None:
                positions = np.union1d(positions, fresh)
            if state.scoring != "nearest":
                positions = state.positions_of_labels(state.slots_at(positions))
            slots, scores = ranked(state, query, Candidates.at(state, positions), top_k)
            if len(slots) == limit:
                return slots, scores
            count *= 4  # many rows of few labels
        return next(best(state, Queries(query.row[None]), top_k))


def measured(index: RowIndex, state: GalleryState, build_s: float, go_on: Callable[[], bool]) -> IndexInfo:
    """Set the search width that reaches :data:`MIN_RECALL`, and time the index against the exact search.

    Raises:
        StoppedError: ``go_on`` said so.
    """
    queries = [Queries(row[None]) for row in _queries(state)]
    exact, exact_ms = _timed(lambda query: next(best(state, query, _TOP_K)), queries, go_on)
    for width in _WIDTHS:
        index.width = width
        rankings, search_ms = _timed(lambda query: next(index.best(state, query, _TOP_K)), queries, go_on)
        pairs = zip(rankings, exact, strict=True)
        recall = statistics.mean(len(np.intersect1d(actual, expected)) / len(expected) for actual, expected in pairs)
        if recall >= MIN_RECALL:
            break
    result = IndexInfo(index.rows, False, "", recall, len(queries), width, search_ms, exact_ms, build_s)
    if recall < MIN_RECALL:
        return replace(result, why=f"it finds {recall:.3f} of the ten best labels; {MIN_RECALL} are needed")
    if search_ms >= exact_ms:
        return replace(result, why=f"a search takes {search_ms:.2f} ms through it, {exact_ms:.2f} ms exactly")
    return replace(result, used=True, why=f"{search_ms:.2f} ms a query instead of {exact_ms:.2f}")


def _timed(
    search: Callable[[Queries], tuple[Array, Array]], queries: list[Queries], go_on: Callable[[], bool]
) -> tuple[list[Array], float]:
    """The slots that each query finds, and the median time in milliseconds."""
    rankings, seconds = [], []
    for query in queries:
        if not go_on():
            raise StoppedError
        start = time.perf_counter()
        rankings.append(search(query)[0])
        seconds.append(time.perf_counter() - start)
    return rankings, statistics.median(seconds) * 1e3


def _queries(state: GalleryState) -> Array:
    """(Q, D) unit rows: enrolled rows, each mixed with the orthogonal part of another one."""
    random = np.random.default_rng(0)
    alive = np.flatnonzero(state.slots >= 0)
    drawn = np.sort(random.choice(alive, min(2 * _QUERIES, len(alive)), replace=False))
    rows = random.permutation(state.rows_at(drawn))
    rows, others = rows[: len(rows) // 2], rows[len(rows) // 2 :][: len(rows) // 2]
    others = unit_rows(others - np.einsum("qd,qd->q", others, rows)[:, None] * rows)
    return np.asarray(_LIKENESS * rows + (1 - _LIKENESS**2) ** 0.5 * others, np.float32)


def _empty(dimension: int) -> Any:
    from usearch.index import Index

    return Index(ndim=dimension, metric="ip", dtype="f16", connectivity=_CONNECTIVITY, expansion_add=_EXPANSION_ADD)
