"""The shared report of benchmarks: measure, write files, print a table or JSON, or an error in one line."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TypeVar

from edgevis import EdgevisError
from runtime.common.files import atomic_write
from runtime.common.json_data import to_json
from runtime.common.text import markdown_table, text_table

T = TypeVar("T")


def report(
    measure: Callable[[], Sequence[T]],
    *,
    headers: Sequence[str],
    cells: Callable[[T], Sequence[str]],
    as_json: bool,
    title: Callable[[T], str] | None = None,
    files: Path | None = None,
    draw: Callable[[Sequence[T]], bytes] | None = None,
) -> int:
    """Print what was measured; returns the process's exit status.

    Args:
        measure: Returns one dataclass per row.
        headers: Of the table.
        cells: A row's cells.
        as_json: Print the dataclasses as JSON instead.
        title: A line above the table, made of the first row.
        files: Also write the table and the JSON, to this path with ``.md`` and ``.json``; its folder is made.
        draw: Draws the SVG that is written beside them.
    """
    try:
        rows = measure()
        above = title(rows[0]) if title is not None and rows else ""
        shown = [cells(item) for item in rows]
        data = json.dumps(to_json(rows), indent=2)
        if files is not None:
            table = f"{above}\n\n{markdown_table(headers, shown)}".strip()
            contents = {".md": f"{table}\n".encode(), ".json": f"{data}\n".encode()}
            _write(files, contents if draw is None else {**contents, ".svg": draw(rows)})
    except (EdgevisError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    if as_json:
        print(data)
        return 0
    if above:
        print(above)
    print(text_table(headers, shown))
    return 0


def _write(path: Path, contents: Mapping[str, bytes]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    for suffix, content in contents.items():
        with atomic_write(path.with_name(path.name + suffix)) as file:
            file.write(content)
