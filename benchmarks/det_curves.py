"""The detection error trade-off curves of :mod:`benchmarks.open_set`."""

from __future__ import annotations

import io
from collections.abc import Sequence
from dataclasses import dataclass

from edgevis import MissingDependencyError


@dataclass(frozen=True, slots=True)
class Curve:
    """One detection error trade-off curve.

    Attributes:
        data, engine: Of which images by which engine: those of one pair share a panel.
        name: What the scores are.
        points: FPIR and FNIR (1 - TPIR).
    """

    data: str
    engine: str
    name: str
    points: Sequence[tuple[float, float]]


def draw(curves: Sequence[Curve]) -> bytes:
    """Draw an SVG with a panel for each scene and engine; both axes are logarithmic.

    Raises:
        MissingDependencyError: Matplotlib is not installed.
    """
    try:
        from matplotlib.figure import Figure
    except ImportError as error:
        raise MissingDependencyError("the curves need Matplotlib: pip install matplotlib") from error
    panels: dict[tuple[str, str], list[Curve]] = {}
    for curve in curves:
        panels.setdefault((curve.data, curve.engine), []).append(curve)
    columns = min(3, len(panels))
    rows = -(-len(panels) // columns)
    figure = Figure(figsize=(4 * columns, 3.4 * rows), layout="constrained")
    axes = figure.subplots(rows, columns, squeeze=False).ravel()
    for axis, ((data, engine), panel_curves) in zip(axes, panels.items(), strict=False):
        for curve in panel_curves:
            axis.plot(*zip(*curve.points, strict=True), label=curve.name)
        axis.set_xscale("log")
        axis.set_yscale("log")
        axis.set_xlabel("FPIR: strangers accepted")
        axis.set_ylabel("FNIR: enrolled missed")
        axis.set_title(f"{data}\n{engine}", fontsize=8)
        axis.grid(visible=True, which="both", alpha=0.3)
        axis.legend(fontsize=8)
    for axis in axes[len(panels) :]:
        axis.set_visible(False)
    buffer = io.BytesIO()
    figure.savefig(buffer, format="svg", metadata={"Date": None})
    return buffer.getvalue()
