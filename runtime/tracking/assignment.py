"""The assignment of least cost, in NumPy: SciPy is no dependency of the runtime."""

from __future__ import annotations

import numpy as np

from runtime.common.arrays import Array


def assign(costs: Array, max_cost: float) -> list[tuple[int, int]]:
    """Pair rows with columns so that the sum of costs is least, where an unpaired row or column costs ``max_cost``.

    Shortest augmenting paths with potentials (Jonker and Volgenant, Computing 38, 1987), O(n² m) for n <= m: under a
    millisecond for the objects of one frame.

    Args:
        costs: (N, M) floating point; infinity forbids a pair.
        max_cost: Pairs of this cost or more are left out.

    Returns:
        (row, column) pairs, by row.
    """
    if 0 in costs.shape:
        return []
    limited = np.minimum(np.asarray(costs, np.float64), max_cost)
    turned = limited.shape[0] > limited.shape[1]
    owner = _owners(limited.T if turned else limited)
    pairs = [(int(row), column) for column, row in enumerate(owner) if row >= 0]
    if turned:
        pairs = [(column, row) for row, column in pairs]
    return sorted((row, column) for row, column in pairs if limited[row, column] < max_cost)


def _owners(costs: Array) -> Array:
    """(M,) int64: the row of each column, -1 for none; (N, M) costs with N <= M."""
    rows, columns = costs.shape
    row_potential, column_potential = np.zeros(rows), np.zeros(columns)
    owner = np.full(columns, -1, np.int64)
    for row in range(rows):
        distance = np.full(columns, np.inf)
        before = np.full(columns, -1, np.int64)  # the column before each one on its shortest path
        visited = np.zeros(columns, bool)
        column, at = -1, row
        while True:
            reduced = costs[at] - row_potential[at] - column_potential
            shorter = ~visited & (reduced < distance)
            distance[shorter], before[shorter] = reduced[shorter], column
            column = int(np.where(visited, np.inf, distance).argmin())
            step = distance[column]
            row_potential[row] += step
            row_potential[owner[visited]] += step
            column_potential[visited] -= step
            distance[~visited] -= step
            visited[column] = True
            if owner[column] < 0:
                break
            at = int(owner[column])
        while column >= 0:
            previous = int(before[column])
            owner[column] = row if previous < 0 else owner[previous]
            column = previous
    return owner
