"""``python -m export.sensitivity --model NAME``: the INT8 sensitivity of each layer, without building a bundle.

A table on standard output, and with ``--output PREFIX`` the same as ``PREFIX.json`` and as a bar chart, ``PREFIX.svg``.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import get_args

from calibration.quantize.ranges import Method
from calibration.search.chart import bar_chart, svg_text
from calibration.search.sensitivity import LayerSensitivity
from export.reporter import Reporter
from runtime.common.command import run_command
from runtime.common.console import add_verbosity, log_to_stderr
from runtime.common.json_data import to_json
from runtime.common.text import text_table

_HEADERS = ("layer", "operator", "weight", "macs", "1 - cosine", "SQNR dB", "back to float as no.")
_CHARTED = 40


def main(argv: Sequence[str] | None = None) -> int:
    """Measure one model; returns the process's exit status."""
    parser = argparse.ArgumentParser(
        prog="python -m export.sensitivity", description=(__doc__ or "").partition("\n")[0]
    )
    parser.add_argument("--model", metavar="NAME", required=True, help="a model of edgevis.models")
    parser.add_argument("--checkpoint", metavar="FILE", type=Path, help="weights (default: those that ship, or random)")
    parser.add_argument("--calibration-data", metavar="PATH", type=Path, help="a folder or zip of real images")
    parser.add_argument("--calibration", metavar="METHOD", choices=get_args(Method), help=", ".join(get_args(Method)))
    parser.add_argument("--output", metavar="PREFIX", type=Path, help="write PREFIX.json and PREFIX.svg")
    parser.add_argument("--top", metavar="N", type=int, default=20, help="rows of the table (default: %(default)s)")
    parser.add_argument("--json", action="store_true", help="print JSON instead of the table")
    add_verbosity(parser, progress=True)
    arguments = parser.parse_args(argv)
    with log_to_stderr(arguments):
        return run_command(lambda: _run(arguments))


def _run(arguments: argparse.Namespace) -> int:
    worst = sorted(_measure(arguments), key=lambda item: -item.cosine_loss)
    text = json.dumps(to_json(worst), indent=2) + "\n"
    if arguments.output:
        arguments.output.parent.mkdir(parents=True, exist_ok=True)
        Path(f"{arguments.output}.json").write_text(text, encoding="utf-8")
        Path(f"{arguments.output}.svg").write_text(sensitivity_chart(arguments.model, worst), encoding="utf-8")
    if arguments.json:
        sys.stdout.write(text)
    elif not arguments.quiet:
        sys.stdout.write(sensitivity_table(worst, top=arguments.top) + "\n")
    return 0


def sensitivity_table(worst: Sequence[LayerSensitivity], *, top: int) -> str:
    """The first ``top`` of all layers as text, in the order given."""
    order = sorted(worst, key=lambda item: -item.sensitivity_per_mac)
    rows = [
        (
            f"{item.graph}/{item.layer}",
            item.operator,
            item.weight or "–",
            f"{item.macs:,}",
            f"{item.cosine_loss:.6f}",
            f"{item.sqnr_db:.1f}",
            str(order.index(item) + 1),
        )
        for item in worst[:top]
    ]
    return text_table(_HEADERS, rows)


def sensitivity_chart(model: str, worst: Sequence[LayerSensitivity]) -> str:
    """The worst layers as an SVG bar chart of their cosine loss."""
    bars = [(item.weight or item.layer, item.cosine_loss, f"{item.cosine_loss:.2e}") for item in worst[:_CHARTED]]
    return svg_text(bar_chart(f"{model}: 1 - cosine of the output with this layer alone in INT8", bars))


def _measure(arguments: argparse.Namespace) -> tuple[LayerSensitivity, ...]:
    from edgevis import models
    from export.request import BuildRequest
    from export.stages import measure_layers

    request = BuildRequest(
        entry=models.entry(arguments.model),
        output=Path(),
        checkpoint=arguments.checkpoint,
        calibration_data=arguments.calibration_data,
        calibration=arguments.calibration,
    )
    return measure_layers(request, Reporter(sys.stderr, quiet=bool(arguments.quiet)))


if __name__ == "__main__":
    sys.exit(main())
