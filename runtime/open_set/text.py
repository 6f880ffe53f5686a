"""The open-set operating point as text."""

from __future__ import annotations

from runtime.open_set.decision import OpenSetInfo
from runtime.open_set.strangers import Rate


def open_set_lines(info: OpenSetInfo) -> list[str]:
    """The open-set operating point in a few lines of text."""

    def rate(value: Rate | None) -> str:
        return "unknown" if value is None else f"{value.value:.1%} (95 %: {value.low:.1%} to {value.high:.1%})"

    threshold = "none" if info.threshold is None else f"{info.threshold:.3f}"
    target = f"{info.false_accept_rate:.2%} of strangers accepted"
    return [
        f"open set    threshold {threshold}, {info.method}; asked: {target}",
        f"            strangers accepted (FPIR), to be expected: {rate(info.expected_fpir)}",
        f"            enrolled recognised (TPIR), to be expected: {rate(info.expected_tpir)}",
        f"            {info.note}",
    ]
