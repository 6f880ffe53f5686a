"""Exact search. A first pass scores every row within a proven error; the rows that may still be among the best are
scored again, narrower, and those that remain in float64 from the float32 rows that were added.

So what is found is what float64 brute force finds, whatever the first pass read, and a score does not depend on the
other queries of a batch, on where a row lies or on how many threads searched.
"""

from __future__ import annotations

import functools
from collections.abc import Iterator

import numpy as np

from runtime.arrays import Array
from runtime.gallery.blocks import PlainVectors, multiply
from runtime.gallery.candidates import Candidates
from runtime.gallery.packed import PackedVectors
from runtime.gallery.queries import Queries, Query
from runtime.gallery.state import State
from runtime.gallery.threads import cores, run_all
from runtime.results import Match

_SCORES = 8 << 20  # scores that stand in memory at once
_LANES = 32  # positions of which the first pass looks at the best alone
_FEW = 8  # candidates, beyond those asked for, for which a second pass does not pay
_THREAD_BYTES = 4 << 20  # of a first pass that are worth a thread: a thread takes 0.1 ms to start


def search(state: State, queries: Queries, top_k: int) -> list[tuple[Match, ...]]:
    """The best labels of each query, best first; equal scores in the order of enrolment."""
    if not state.label_count:
        return [()] * len(queries)
    return [
        tuple(
            Match(state.epoch.names[slot], score) for slot, score in zip(slots.tolist(), scores.tolist(), strict=True)
        )
        for slots, scores in best(state, queries, top_k)
    ]


def best(state: State, queries: Queries, top_k: int) -> Iterator[tuple[Array, Array]]:
    """Slots and float32 scores of the best labels of each query, best first; the state has at least one label."""
    if top_k >= state.label_count:
        everything = Candidates.at(state, np.flatnonzero(state.slots >= 0))
        for index in range(len(queries)):
            yield _ranked(state, Query(queries, index), everything, top_k)
        return
    rows = max(1, _SCORES // int(state.starts[-1]))
    for begin in range(0, len(queries), rows):
        part = queries if rows >= len(queries) else Queries(queries.rows[begin : begin + rows])
        scores = first_pass(state, part)
        errors = np.max([block.vectors.bound(part) for block in state.blocks], axis=0)
        for index, (row, error) in enumerate(zip(scores, errors.tolist(), strict=True)):
            yield _best(state, Query(part, index), row, error, top_k)


def first_pass(state: State, queries: Queries) -> Array:
    """(B, positions) float32: the products within the bound of each block; -inf where a row was removed."""
    scores = np.empty((len(queries), int(state.starts[-1])), np.float32)
    ends = state.starts.tolist()
    parts = [
        (block.vectors, scores[:, start:end]) for block, start, end in zip(state.blocks, ends, ends[1:], strict=False)
    ]
    size = sum(vectors.coarse.size for vectors, _ in parts if isinstance(vectors, PackedVectors))
    if size:
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
        scores[:, state.removed] = -np.inf
    return scores


def _best(state: State, query: Query, scores: Array, error: float, top_k: int) -> tuple[Array, Array]:
    if not np.isfinite(query.norm):  # such scores are NaN, and every label is as good as another
        slots = state.live_slots[:top_k]
        return slots, np.full(len(slots), np.nan, np.float32)
    near = _near if state.scoring == "nearest" else _near_labels
    found = Candidates.at(state, near(state, scores, error, top_k))
    if len(found.slots) > top_k + _FEW:
        found = found.only(_narrowed(state, query, found, top_k))
    return _ranked(state, query, found, top_k)


def _near(state: State, scores: Array, error: float, top_k: int) -> Array:
    """Positions of all rows that may decide which labels are the best ``top_k``, ascending."""
    lanes = max(1, min(_LANES, len(scores) // 512))
    width = len(scores) // lanes
    body, rest = scores[: lanes * width].reshape(lanes, width), scores[lanes * width :]
    peaks = body.max(axis=0)
    wanted = top_k
    while True:
        # ``wanted`` rows, in columns of their own, score at least this.
        reached = np.partition(peaks, width - wanted)[width - wanted] if wanted < width else np.float32(-np.inf)
        columns = np.flatnonzero(peaks >= reached - 2 * error)
        lane, column = np.nonzero(body[:, columns] >= reached - 2 * error)
        positions = np.concatenate(
            [lane * width + columns[column], lanes * width + np.flatnonzero(rest >= reached - 2 * error)]
        )
        if reached == -np.inf:
            return np.flatnonzero(state.slots >= 0)
        sure = positions[scores[positions] >= reached]
        if len(sure) >= top_k and len(np.unique(state.slots_at(sure))) >= top_k:
            return np.sort(positions)
        wanted *= 4


def _near_labels(state: State, scores: Array, error: float, top_k: int) -> Array:
    """Positions of all rows of the labels that may be among the best ``top_k``, where all rows of a label count."""
    slots = state.slots
    known = np.where(slots >= 0, scores, 0) if len(state.removed) else scores
    sums = np.bincount(slots + 1, weights=known, minlength=state.slot_count + 1)[1:]
    near = _possible(state, state.live_slots, sums, _highest(state, slots, scores), error, top_k)
    wanted = np.zeros(state.slot_count + 1, bool)
    wanted[near] = True
    return np.flatnonzero(wanted[slots])


def _highest(state: State, slots: Array, scores: Array) -> Array | None:
    """(slots,) float32: the highest score of each label's rows; None where it does not count."""
    if state.scoring != "blend":
        return None
    highest = np.full(state.slot_count + 1, -np.inf, np.float32)
    np.maximum.at(highest, slots, scores)  # -1, of removed rows, is the one behind the last
    return highest[:-1]


def _possible(state: State, slots: Array, sums: Array, highest: Array | None, error: float, top_k: int) -> Array:
    """Which of ``slots`` may be among the best ``top_k``, from the sums and the highest of their rows' scores."""
    counts = state.counts[slots]
    lengths = np.maximum(state.norms[slots], counts * 1e-12)
    scores, errors = sums[slots] / lengths, counts * (error + 1e-6) / lengths
    if highest is not None:
        scores, errors = 0.5 * (scores + highest[slots]), 0.5 * (errors + error + 1e-6)
    if len(slots) <= top_k:
        return slots
    reached = np.partition(scores - errors, len(slots) - top_k)[len(slots) - top_k]
    return np.asarray(slots[scores + errors >= reached])


def _narrowed(state: State, query: Query, found: Candidates, top_k: int) -> Array:
    """Which candidates may still decide, by a second pass over them alone: a mask."""
    scores, error = found.refined(query)
    slots, inverse = np.unique(found.slots, return_inverse=True)
    if len(slots) <= top_k:
        return np.ones(len(found.slots), bool)
    if state.scoring != "nearest":
        sums = np.zeros(state.slot_count)
        sums[slots] = np.bincount(inverse, weights=scores)
        return np.isin(found.slots, _possible(state, slots, sums, _highest(state, found.slots, scores), error, top_k))
    label_scores = np.full(len(slots), -np.inf, np.float32)
    np.maximum.at(label_scores, inverse, scores)
    reached = np.partition(label_scores, len(slots) - top_k)[len(slots) - top_k]
    return np.asarray(scores >= reached - 2 * error)


def _ranked(state: State, query: Query, found: Candidates, top_k: int) -> tuple[Array, Array]:
    """The labels of the candidates, by their exact scores."""
    wide = query.row.astype(np.float64)
    slots, inverse = np.unique(found.slots, return_inverse=True)
    highest = np.full(len(slots), -np.inf)
    total = np.zeros(len(slots))
    sums = None if state.scoring == "nearest" else np.zeros((len(slots), len(wide)))
    for part, rows in found.rows():
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
