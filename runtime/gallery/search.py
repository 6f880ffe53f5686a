"""Exact search. A first pass scores every row within a proven error; the rows that may still be among the best are
scored again, narrower, and those that remain in float64 from the float32 rows that were added.

So what is found is what float64 brute force finds, whatever the first pass read, and a score does not depend on the
other queries of a batch, on where a row lies or on how many threads searched.
"""

from __future__ import annotations

import functools
from collections.abc import Iterable, Iterator

import numpy as np

from runtime.common.arrays import Array
from runtime.gallery.blocks import PlainVectors, multiply
from runtime.gallery.candidates import Candidates
from runtime.gallery.packed import PackedVectors
from runtime.gallery.queries import Queries, Query
from runtime.gallery.state import GalleryState
from runtime.gallery.threads import cores, run_all
from runtime.results import Match

_SCORES = 8 << 20  # scores that stand in memory at once
_LANES = 32  # positions of which the first pass looks at the best alone
_FEW = 8  # candidates, beyond those asked for, for which a second pass does not pay
_SMALL = 1 << 20  # numbers of a gallery that one thread reads in less time than BLAS may wait for another
_FEW_ROWS = 256  # up to which they are ranked by a dict
# The bytes of a first pass that justify a thread: 1 ms. On a busy machine, waiting for a thread takes longer.
_THREAD_BYTES = 16 << 20


def search(state: GalleryState, queries: Queries, top_k: int) -> list[tuple[Match, ...]]:
    """The best labels of each query, best first; equal scores in the order of enrolment."""
    return named(state, best(state, queries, top_k)) if state.label_count else [()] * len(queries)


def named(state: GalleryState, rankings: Iterable[tuple[Array, Array]]) -> list[tuple[Match, ...]]:
    """Convert slots and scores to matches."""
    return [
        tuple(
            Match(state.epoch.names[slot], score) for slot, score in zip(slots.tolist(), scores.tolist(), strict=True)
        )
        for slots, scores in rankings
    ]


def best(state: GalleryState, queries: Queries, top_k: int) -> Iterator[tuple[Array, Array]]:
    """Slots and float32 scores of the best labels of each query, best first; the state has at least one label."""
    if state.scoring == "prototype" and state.prototypes is not None:
        yield from _by_prototypes(state, state.prototypes, queries, top_k)
        return
    for part, scores, errors in _first_passes(state, queries):
        peaks = _peaks(scores) if state.scoring == "nearest" else None
        for index, error in enumerate(errors):
            query = Query(part, index)
            if not np.isfinite(query.norm):  # such scores are NaN, and every label is as good as another
                slots = state.live_slots[:top_k]
                yield slots, np.full(len(slots), np.nan, np.float32)
                continue
            query_scores = scores[:, index]
            if peaks is not None:
                near = _near(state, query_scores, peaks[index], error, top_k)
            else:
                near = _near_labels(state, query_scores, error, top_k)
            yield ranked(state, query, Candidates.at(state, near), top_k)


def ranked(state: GalleryState, query: Query, candidates: Candidates, top_k: int) -> tuple[Array, Array]:
    """The best labels of the candidates, by their exact scores; where all rows of a label count, all are candidates."""
    if len(candidates.slots) > top_k + _FEW:
        candidates = candidates.only(_narrowed(state, query, candidates, top_k))
    return _ranked(state, query, candidates, top_k)


def likely_positions(state: GalleryState, queries: Queries, top_k: int) -> Iterator[Array]:
    """For each query, ascending positions of the rows that can be nearest of one of the ``top_k`` nearest labels."""
    for part, scores, errors in _first_passes(state, queries):
        peaks = _peaks(scores)
        for index, error in enumerate(errors):
            finite = np.isfinite(part.norms[index])
            near = _near(state, scores[:, index], peaks[index], error, top_k) if finite else np.empty(0, np.int64)
            yield near


def _first_passes(state: GalleryState, queries: Queries) -> Iterator[tuple[Queries, Array, list[float]]]:
    """A few queries at a time: their scores by :func:`first_pass`, and how far each query's may be from the true."""
    rows = max(1, _SCORES // len(state))
    for begin in range(0, len(queries), rows):
        part = queries if rows >= len(queries) else Queries(queries.rows[begin : begin + rows])
        scores = first_pass(state, part)
        yield part, scores, np.max([block.vectors.bound(part) for block in state.blocks], axis=0).tolist()


def _by_prototypes(
    state: GalleryState, prototypes: Array, queries: Queries, top_k: int
) -> Iterator[tuple[Array, Array]]:
    """The best labels, when the prototypes of all labels are available."""
    for row in queries.rows:
        scores = np.einsum("ld,d->l", prototypes, row.astype(np.float64)).astype(np.float32)
        order = np.argsort(-scores, kind="stable")[:top_k]
        yield state.live_slots[order], scores[order]


def first_pass(state: GalleryState, queries: Queries) -> Array:
    """(positions, B) float32: the products within the bound of each block; -inf where a row was removed."""
    scores = np.empty((len(state), len(queries)), np.float32)
    spans = zip(state.blocks, state.starts.tolist(), strict=False)
    parts = [(block.vectors, scores[start : start + len(block)]) for block, start in spans]
    size = sum(vectors.coarse.size for vectors, _ in parts if isinstance(vectors, PackedVectors))
    if size or scores.shape[0] * queries.rows.shape[1] <= _SMALL:
        jobs = [
            functools.partial(multiply, queries.rows, vectors.rows, out)
            if isinstance(vectors, PlainVectors)
            else functools.partial(vectors.scores, queries, out)
            for vectors, out in reversed(parts)
        ]
        run_all(jobs, threads=min(cores(), size // _THREAD_BYTES))
    else:
        for vectors, out in parts:
            vectors.scores(queries, out)
    if len(state.removed):
        scores[state.removed] = -np.inf
    return scores


def _lanes(positions: int) -> int:
    return max(1, min(_LANES, positions // 512))


def _peaks(scores: Array) -> Array:
    """(B, W): the best score of the positions w, w + W, w + 2 W and so on; the last few positions are in none."""
    lanes = _lanes(len(scores))
    width = len(scores) // lanes
    return np.ascontiguousarray(scores[: lanes * width].reshape(lanes, width, -1).max(axis=0).T)


def _near(state: GalleryState, scores: Array, peaks: Array, error: float, top_k: int) -> Array:
    """Positions of all rows that may decide which labels are the best ``top_k``, ascending."""
    width, end = len(peaks), _lanes(len(scores)) * len(peaks)
    row_count = top_k
    while row_count < width:
        # At least ``row_count`` rows, one for each of as many peaks, score this.
        reached = float(np.partition(peaks, width - row_count)[width - row_count])
        least = reached - 2 * error
        columns = np.flatnonzero(peaks >= least)
        positions = (np.arange(0, end, width)[:, None] + columns).ravel()
        positions = positions[scores[positions] >= least]  # ascending: the columns are, within each lane
        if end < len(scores):
            positions = np.concatenate([positions, end + np.flatnonzero(scores[end:] >= least)])
        sure = positions[scores[positions] >= reached]
        if len(sure) >= top_k and len(set(state.slots_at(sure).tolist())) >= top_k:
            return positions
        row_count *= 4
    return _near_each(state, scores, error)


def _near_each(state: GalleryState, scores: Array, error: float) -> Array:
    """Positions of all rows that may be the best of their own label, ascending."""
    slots = state.slots
    label_scores = np.full(state.slot_count + 1, -np.inf, np.float32)
    np.maximum.at(label_scores, slots, scores)
    return np.flatnonzero((scores >= label_scores[slots] - 2 * error) & (slots >= 0))


def _near_labels(state: GalleryState, scores: Array, error: float, top_k: int) -> Array:
    """Positions of all rows of the labels that may be among the best ``top_k``, where all rows of a label count."""
    slots = state.slots
    known = np.where(slots >= 0, scores, 0) if len(state.removed) else scores
    sums = np.bincount(slots + 1, weights=known, minlength=state.slot_count + 1)[1:]
    near = _possible(state, state.live_slots, sums, _highest(state, slots, scores), error, top_k)
    selected = np.zeros(state.slot_count + 1, bool)
    selected[near] = True
    return np.flatnonzero(selected[slots])


def _highest(state: GalleryState, slots: Array, scores: Array) -> Array | None:
    """(slots,) float32: the highest score of each label's rows; None where it does not count."""
    if state.scoring != "blend":
        return None
    highest = np.full(state.slot_count + 1, -np.inf, np.float32)
    np.maximum.at(highest, slots, scores)  # -1, of removed rows, is the one behind the last
    return highest[:-1]


def _possible(state: GalleryState, slots: Array, sums: Array, highest: Array | None, error: float, top_k: int) -> Array:
    """The ``slots`` that may be among the best ``top_k``, from the sums and maxima of their rows' scores."""
    if len(slots) <= top_k:
        return slots
    index = slice(None) if len(slots) == state.slot_count else slots  # all labels: nothing to gather
    scores = sums[index] * state.inverse_norms[index]
    errors = state.spreads[index] * (error + 1e-6)
    if highest is not None:
        scores += highest[index]
        errors += error + 1e-6  # twice the score and twice its error
    reached = np.partition(scores - errors, len(slots) - top_k)[len(slots) - top_k]
    scores += errors
    return np.asarray(slots[scores >= reached])


def _narrowed(state: GalleryState, query: Query, candidates: Candidates, top_k: int) -> Array:
    """A mask of the candidates that may still decide, from a second pass over them alone."""
    scores, error = candidates.refined(query)
    slots, inverse = np.unique(candidates.slots, return_inverse=True)
    if state.scoring != "nearest":
        sums = np.zeros(state.slot_count)
        sums[slots] = np.bincount(inverse, weights=scores)
        return np.isin(
            candidates.slots, _possible(state, slots, sums, _highest(state, candidates.slots, scores), error, top_k)
        )
    label_scores = np.full(len(slots), -np.inf, np.float32)
    np.maximum.at(label_scores, inverse, scores)
    least = label_scores[inverse]  # of a label, its best row alone counts
    if len(slots) > top_k:
        least = np.maximum(least, np.partition(label_scores, len(slots) - top_k)[len(slots) - top_k])
    return np.asarray(scores >= least - 2 * error)


def _ranked(state: GalleryState, query: Query, candidates: Candidates, top_k: int) -> tuple[Array, Array]:
    """The labels of the candidates, by their exact scores."""
    wide = query.row.astype(np.float64)
    if state.scoring == "nearest" and len(candidates.slots) <= _FEW_ROWS:
        return _ranked_few(wide, candidates, top_k)
    slots, inverse = np.unique(candidates.slots, return_inverse=True)
    highest = np.full(len(slots), -np.inf)
    total = np.zeros(len(slots))
    sums = None if state.scoring == "nearest" else np.zeros((len(slots), len(wide)))
    for part, rows in candidates.rows():
        # Not a matrix product: equal rows get equal scores only if each is added up in the same order.
        products = np.einsum("nd,d->n", rows, wide)
        np.maximum.at(highest, inverse[part], products)
        if sums is not None:
            np.add.at(total, inverse[part], products)
            np.add.at(sums, inverse[part], rows)
    scores = highest
    if sums is not None:
        counts = np.bincount(inverse, minlength=len(slots))
        scores = total / np.maximum(np.sqrt(np.einsum("ld,ld->l", sums, sums)), counts * 1e-12)
        if state.scoring == "blend":
            scores = 0.5 * (scores + highest)
    rounded = scores.astype(np.float32)
    order = np.lexsort((slots, -rounded))[:top_k]
    return slots[order], rounded[order]


def _ranked_few(wide: Array, candidates: Candidates, top_k: int) -> tuple[Array, Array]:
    """Like :func:`_ranked`, for few rows, by the best row of each label."""
    rounded = np.concatenate([np.einsum("nd,d->n", rows, wide) for _, rows in candidates.rows()]).astype(np.float32)
    order = np.lexsort((candidates.slots, -rounded))
    first: dict[int, int] = {}
    for index, slot in zip(order.tolist(), candidates.slots[order].tolist(), strict=True):
        first.setdefault(slot, index)
    best_rows = list(first.values())[:top_k]
    return candidates.slots[best_rows], rounded[best_rows]
