"""Text tables and units, shared by the command line, the exporter and the benchmarks."""

from __future__ import annotations

from collections.abc import Callable, Sequence

_BAR = 24
_LEFT = frozenset("abcdefghijklmnopqrstuvwxyz")


def text_table(headers: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """Columns aligned by spaces, numbers to the right, a rule under the headers."""
    return "\n".join(_aligned(headers, rows, gap="  ", rule="-"))


def row_format(headers: Sequence[str], widths: Sequence[int]) -> Callable[[Sequence[str] | None], str]:
    """A function that formats rows of a table whose rows are not known yet; None gives the rule under the headers.

    Args:
        headers: They widen a column that is narrower.
        widths: Of the columns; a negative one is of numbers, to the right. A longer cell is not cut.
    """
    sizes = [max(abs(width), len(header)) for header, width in zip(headers, widths, strict=True)]

    def line(row: Sequence[str] | None) -> str:
        cells = ["-" * size for size in sizes] if row is None else row
        aligned = [
            cell.rjust(size) if width < 0 else cell.ljust(size)
            for cell, size, width in zip(cells, sizes, widths, strict=True)
        ]
        return "  ".join(aligned).rstrip()

    return line


def markdown_table(headers: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A GitHub-flavoured Markdown table, numbers to the right."""
    lines = _aligned(headers, rows, gap=" | ", rule="-")
    right = _right_columns(headers, rows)
    widths = _widths(headers, rows)
    rule = " | ".join(
        "-" * (width - 1) + (":" if is_right else "-") for width, is_right in zip(widths, right, strict=True)
    )
    return "\n".join(f"| {line} |" for line in (lines[0], rule, *lines[2:]))


def size_text(size_bytes: int) -> str:
    """A size as text in powers of 1000, such as ``1.5 MB``."""
    value = float(size_bytes)
    for unit in ("B", "kB", "MB"):
        if value < 1000:
            return f"{value:.0f} {unit}" if unit == "B" else f"{value:.1f} {unit}"
        value /= 1000
    return f"{value:.1f} GB"


def progress_bar(done: int, total: int) -> str:
    """A progress bar as text: ``████░░░░ 12/24``."""
    filled = _BAR * done // max(total, 1)
    return f"{'█' * filled}{'░' * (_BAR - filled)} {done}/{total}"


def _aligned(headers: Sequence[str], rows: Sequence[Sequence[str]], *, gap: str, rule: str) -> list[str]:
    widths, right = _widths(headers, rows), _right_columns(headers, rows)
    lines = []
    for row in (headers, [rule * width for width in widths], *rows):
        cells = [
            cell.rjust(width) if is_right else cell.ljust(width)
            for cell, width, is_right in zip(row, widths, right, strict=True)
        ]
        lines.append(gap.join(cells) if "|" in gap else gap.join(cells).rstrip())
    return lines


def _widths(headers: Sequence[str], rows: Sequence[Sequence[str]]) -> list[int]:
    return [max(3, *(len(row[column]) for row in (headers, *rows))) for column in range(len(headers))]


def _right_columns(headers: Sequence[str], rows: Sequence[Sequence[str]]) -> list[bool]:
    """Which columns hold numbers and are aligned right: those in which no cell starts with a letter."""
    return [
        bool(rows) and all(not row[column] or row[column][0].lower() not in _LEFT for row in rows)
        for column in range(len(headers))
    ]
