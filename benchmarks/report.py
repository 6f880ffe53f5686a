"""The shared report of benchmarks: measure, then print a table or JSON, or an error in one line."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Sequence
from typing import TypeVar

from edgevis import EdgevisError
from runtime.common.json_data import to_json
from runtime.common.text import text_table

T = TypeVar("T")


def report(
    measure: Callable[[], Sequence[T]],
    *,
    headers: Sequence[str],
    cells: Callable[[T], Sequence[str]],
    as_json: bool,
    title: Callable[[T], str] | None = None,
) -> int:
    """Print what was measured; returns the process's exit status.

    Args:
        measure: Returns one dataclass per row.
        headers: Of the table.
        cells: A row's cells.
        as_json: Print the dataclasses as JSON instead.
        title: A line above the table, made of the first row.
    """
    try:
        rows = measure()
    except EdgevisError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    if as_json:
        print(json.dumps(to_json(rows), indent=2))
        return 0
    if title is not None and rows:
        print(title(rows[0]))
    print(text_table(headers, [cells(item) for item in rows]))
    return 0
