"""The bar chart of :mod:`benchmarks.latency`."""

from __future__ import annotations

import io
from collections.abc import Sequence

from benchmarks.latency_row import LatencyRow
from edgevis import MissingDependencyError

_STAGES = (("preprocessing", "#8fb8de"), ("engine", "#2b6ca3"), ("postprocessing", "#f2a65a"))
_EAGER_COLOR = "#9a9a9a"


def draw(rows: Sequence[LatencyRow]) -> bytes:
    """Draw an SVG: one panel for each model and batch size, one bar for each engine, its stages in colours.

    Raises:
        MissingDependencyError: Matplotlib is not installed.
    """
    try:
        from matplotlib.figure import Figure
        from matplotlib.patches import Patch
    except ImportError as error:
        raise MissingDependencyError("the chart needs Matplotlib: pip install matplotlib") from error
    panels: dict[tuple[str, int], list[LatencyRow]] = {}
    for row in rows:
        panels.setdefault((row.model, row.batch), []).append(row)
    heights = [len(group) + 1.5 for group in panels.values()]
    figure = Figure(figsize=(8, 0.32 * sum(heights) + 0.6), layout="constrained")
    axes = figure.subplots(len(panels), 1, squeeze=False, gridspec_kw={"height_ratios": heights})[:, 0]
    for axis, ((model, batch), group) in zip(axes, panels.items(), strict=True):
        for place, row in enumerate(group):
            left = 0.0
            parts = zip(_STAGES, row.shares, strict=True) if row.shares else [(("", _EAGER_COLOR), 1.0)]
            for (_, color), share in parts:
                axis.barh(place, share * row.p50_ms, left=left, color=color)
                left += share * row.p50_ms
            axis.text(left, place, f" {row.p50_ms:.1f} ms, {row.predictor_times_eager:.1f}×", va="center", fontsize=8)
        axis.set_yticks(range(len(group)), [row.engine for row in group], fontsize=8)
        axis.invert_yaxis()
        axis.set_xlim(0, 1.25 * max(row.p50_ms for row in group))
        axis.set_title(f"{model}, batch {batch}: milliseconds, and how many times faster than PyTorch", fontsize=9)
        axis.spines[["top", "right"]].set_visible(False)
    figure.legend(
        handles=[Patch(color=color, label=name) for name, color in _STAGES], loc="outside lower right", ncols=3
    )
    buffer = io.BytesIO()
    figure.savefig(buffer, format="svg", metadata={"Date": None})
    return buffer.getvalue()
