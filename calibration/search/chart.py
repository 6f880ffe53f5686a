"""A horizontal bar chart, drawn with Matplotlib."""

from __future__ import annotations

import io
from collections.abc import Sequence
from typing import TYPE_CHECKING

from runtime.errors import MissingDependencyError

if TYPE_CHECKING:
    from matplotlib.figure import Figure

# Inches.
_WIDTH, _ROW, _MARGIN = 9.0, 0.2, 0.9


def bar_chart(title: str, bars: Sequence[tuple[str, float, str]]) -> Figure:
    """Horizontal bars, the first at the top.

    Args:
        title: The text above the bars.
        bars: For each bar its label, its length (>= 0) and the text behind it.

    Raises:
        MissingDependencyError: Matplotlib is not installed.
    """
    try:
        from matplotlib.figure import Figure
    except ImportError as error:
        raise MissingDependencyError("the chart needs Matplotlib: pip install 'edgevis[export]'") from error
    figure = Figure(figsize=(_WIDTH, _MARGIN + _ROW * len(bars)), layout="constrained")
    axes = figure.subplots()
    rows = range(len(bars))
    drawn = axes.barh(rows, [length for _, length, _ in bars], color="#3b6ea5")
    axes.bar_label(drawn, labels=[text for _, _, text in bars], padding=3, fontsize=8)
    axes.set_yticks(rows, [label for label, _, _ in bars], fontsize=8, parse_math=False)
    axes.set_title(title, fontsize=10, parse_math=False)
    axes.invert_yaxis()
    axes.margins(x=0.1, y=0.01)
    axes.spines[["top", "right"]].set_visible(False)
    return figure


def svg_text(figure: Figure) -> str:
    """The figure as SVG; its texts stay text."""
    import matplotlib as mpl

    file = io.StringIO()
    with mpl.rc_context({"svg.fonttype": "none", "svg.hashsalt": "edgevis"}):
        figure.savefig(file, format="svg", metadata={"Date": None})
    return file.getvalue()
