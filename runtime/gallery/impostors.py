"""How what is enrolled scores against labels that are not its own, on a bounded sample."""

from __future__ import annotations

import numpy as np

from runtime.arrays import unit_rows
from runtime.gallery.state import State
from runtime.threshold import Impostors

# Rows and labels that stand for the gallery: enough for a mean and a deviation, at a bounded cost.
_ROWS = 512
_LABELS = 128


def impostors_among(state: State) -> Impostors | None:
    """Scores of enrolled rows against labels but their own; None with fewer than two labels."""
    if state.label_count < 2:
        return None
    positions = np.flatnonzero(state.slots >= 0)
    picked = positions[_spread(len(positions), _ROWS)]
    slots = state.live_slots[_spread(state.label_count, _LABELS)]
    wanted = np.zeros(state.slot_count + 1, bool)
    wanted[slots] = True
    rows = np.flatnonzero(wanted[state.slots])
    order = np.argsort(state.slots[rows], kind="stable")
    starts = np.searchsorted(state.slots[rows[order]], slots)
    vectors = state.rows_at(rows)[order]
    queries = state.rows_at(picked)
    if state.scoring == "prototype":
        scores = queries @ unit_rows(np.add.reduceat(vectors, starts, axis=0, dtype=np.float64)).T
    else:
        scores = np.maximum.reduceat(queries @ vectors.T, starts, axis=1)
    others = state.slots[picked][:, None] != slots
    wide = scores[others].astype(np.float64)
    return Impostors(float(wide.mean()), float(wide.std()), int(wide.size), "the enrolled labels")


def _spread(count: int, most: int) -> np.ndarray[tuple[int], np.dtype[np.intp]]:
    return np.unique(np.linspace(0, count - 1, min(count, most)).astype(np.intp))
