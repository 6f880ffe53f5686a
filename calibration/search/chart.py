"""A bar chart as SVG, drawn by ourselves: forty rectangles need no plotting library."""

from __future__ import annotations

from collections.abc import Sequence
from xml.sax.saxutils import escape

_ROW, _LABEL, _BAR, _VALUE, _TOP = 16, 330, 420, 110, 40
_FONT = 'font-family="sans-serif" font-size="11"'


def bar_chart(title: str, bars: Sequence[tuple[str, float, str]]) -> str:
    """The SVG text of horizontal bars.

    Args:
        title: Above the bars.
        bars: Of each the label, its length (>= 0; the longest fills the width) and the text behind it.
    """
    longest = max((value for _, value, _ in bars), default=0.0) or 1.0
    width, height = _LABEL + _BAR + _VALUE, _TOP + _ROW * len(bars) + 10
    lines = [
        f'<svg xmlns="http://www.w3.org/2000/svg" width="{width}" height="{height}" viewBox="0 0 {width} {height}">',
        f'<rect width="{width}" height="{height}" fill="white"/>',
        f'<text x="8" y="22" font-family="sans-serif" font-size="14">{escape(title)}</text>',
    ]
    for index, (label, value, text) in enumerate(bars):
        y, length = _TOP + _ROW * index, _BAR * value / longest
        lines += [
            f'<text x="{_LABEL - 6}" y="{y + 11}" text-anchor="end" {_FONT}>{escape(label)}</text>',
            f'<rect x="{_LABEL}" y="{y + 2}" width="{length:.1f}" height="{_ROW - 4}" fill="#3b6ea5"/>',
            f'<text x="{_LABEL + length + 5:.1f}" y="{y + 11}" {_FONT}>{escape(text)}</text>',
        ]
    return "\n".join([*lines, "</svg>", ""])
