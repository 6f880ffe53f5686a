"""The measurements of a build's engines as a text table, for the build and for ``edgevis info``."""

from __future__ import annotations

from collections.abc import Sequence

from runtime.bundle.manifest import Candidate, Int8Search, Manifest
from runtime.common.text import text_table


def measured_text(manifest: Manifest) -> str:
    """The table of the candidates and a line for each search; empty if nothing was searched or left out."""
    if manifest.calibration is None and all(item.in_bundle for item in manifest.candidates):
        return ""
    searches = () if manifest.calibration is None else manifest.calibration.searches
    return "\n".join([candidates_table(manifest.candidates), *(["", *map(search_text, searches)] if searches else [])])


def candidates_table(candidates: Sequence[Candidate]) -> str:
    """The candidates as a text table."""
    rows = [
        (
            item.engine,
            "–" if item.latency_ms is None else f"{item.latency_ms:.2f}",
            "–" if item.drop is None else f"{item.drop:.4f}",
            item.verdict,
            "yes" if item.in_bundle else "no",
        )
        for item in candidates
    ]
    return text_table(("candidate", "ms/image", "drop", "verdict", "in the bundle"), rows)


def search_text(search: Int8Search) -> str:
    """The result of the INT8 search for one backend, as one line."""
    speed = ""
    if search.latency_ms is not None and search.naive_latency_ms is not None:
        speed = f", {search.naive_latency_ms:.2f} -> {search.latency_ms:.2f} ms"
    return (
        f"{search.backend}: {len(search.float_layers)} of {search.layers} layers back in float, "
        f"drop {search.naive_drop:.4f} -> {search.drop:.4f}{speed} ({search.trials} trials)"
    )
