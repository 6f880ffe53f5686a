"""``python -m export.debug BUNDLE --engine A --against B``: the first layer at which two engines leave each other.

Both run real inputs, those of the bundle's golden.npz. Where an output is further off than the tolerance, every inner
tensor is compared, the part of the graph at fault is reduced to the smallest one that still fails, and both halves of
it are written with their inputs and the command that repeats it. BUNDLE may also be the folder NAME.failed that a
failed build kept, or what an earlier run wrote, which is then repeated.

The exit status is 0 where the engines agree, 1 where they do not.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from export.failed import GRAPH, is_failed_build, open_failed
from export.reporter import Reporter
from runtime.bundle.bundle import Bundle
from runtime.bundle.spec import Graph
from runtime.common.arrays import Array
from runtime.common.command import run_command
from runtime.common.console import add_verbosity, log_to_stderr
from runtime.common.extras import require_extra
from runtime.common.json_data import to_json, without_nan
from runtime.common.text import text_table
from runtime.errors import InputError
from runtime.parity.compare import golden_feeds

_SHOWN = 12


def main(argv: Sequence[str] | None = None) -> int:
    """Compare two engines, or repeat a comparison; returns the process's exit status."""
    parser = argparse.ArgumentParser(
        prog="python -m export.debug", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("bundle", metavar="BUNDLE", help="or NAME.failed, or the OUTPUT of an earlier run")
    parser.add_argument("--engine", metavar="A", help="an engine of the bundle, such as openvino-int8")
    parser.add_argument(
        "--against",
        metavar="B",
        default=GRAPH,
        help="another engine, or graph: what the engine was compiled from where a failed build kept that, else the "
        "float32 graph, node by node (default: %(default)s)",
    )
    parser.add_argument("--graph", metavar="NAME", help="one graph of the model (default: the first that disagrees)")
    parser.add_argument("--rows", metavar="N", type=int, default=1, help="golden images (default: %(default)s)")
    parser.add_argument("--tolerance", metavar="X", type=float, help="relative (default: by the engines' precisions)")
    parser.add_argument("--output", metavar="DIR", type=Path, help="(default: debug-ENGINE)")
    parser.add_argument("--json", action="store_true", help="print JSON instead of the table")
    add_verbosity(parser, progress=True)
    arguments = parser.parse_args(argv)
    with log_to_stderr(arguments):
        return run_command(lambda: _run(arguments), interrupted="what was written so far stays")


def _run(arguments: argparse.Namespace) -> int:
    require_extra("export", what="comparing engines")
    from export.debug.reduced import is_reduced

    if is_reduced(Path(arguments.bundle)):
        return _repeat(arguments)
    if arguments.engine is None:
        raise InputError(f"--engine is missing: one of {', '.join(_engines(_open(arguments.bundle)))}")
    if arguments.rows < 1 or (arguments.tolerance is not None and not 0 <= arguments.tolerance < float("inf")):
        raise InputError(f"--rows {arguments.rows}, --tolerance {arguments.tolerance}; allowed: >= 1, and 0 or more")
    return _compare(arguments)


def _compare(arguments: argparse.Namespace) -> int:
    from export.debug.reduced import command_of, write_reduced, write_table
    from export.debug.search import compare, model_errors
    from export.debug.sides import TOLERANCES, engine_side, reference_side, tolerance_of

    bundle = _open(arguments.bundle)
    golden = bundle.golden()
    folder: Path = arguments.output or Path(f"debug-{arguments.engine}")
    reporter = Reporter(sys.stderr, quiet=bool(arguments.quiet))
    reports: list[dict[str, Any]] = []
    for graph in _graphs(bundle, arguments.graph):
        engine = engine_side(bundle, arguments.engine, graph.name)
        reference = reference_side(bundle, arguments.against, engine, graph.name)
        tolerance = tolerance_of(engine, reference) if arguments.tolerance is None else arguments.tolerance
        feeds, expected = _first_rows(graph, golden, arguments.rows)
        found = compare(
            engine, reference, feeds, tolerance=tolerance, progress=lambda text: reporter.write(f"{text} …\n")
        )
        report: dict[str, Any] = {
            "graph": graph.name,
            "engine": engine.name,
            "against": f"{reference.name} ({reference.precision})",
            "tolerance": tolerance,
            "outputs": dict(found.outputs),
        }
        reports.append(report)
        if found.culprit is None:
            if arguments.against != GRAPH:
                continue
            apart = model_errors(reference, feeds, expected)
            if any(error > TOLERANCES[reference.precision] for error in apart.values()):
                report["model"] = apart
                break
            continue
        write_table(folder, found)
        part = write_reduced(folder, found.culprit, engine, reference, tolerance=tolerance)
        report["culprit"] = {
            "tensor": part.tensor,
            "error": part.error,
            "how": found.culprit.how,
            "inputs": list(found.culprit.feeds),
            "layers": [to_json(layer) for layer in found.culprit.layers],
            "weights": list(found.culprit.weights),
            "folder": str(folder),
            "repeat": command_of(folder),
        }
        if not arguments.json and not arguments.quiet:
            sys.stdout.write(_table(found.tensors, part.tensor))
        break
    _print(reports, arguments)
    return 1 if {"culprit", "model"} & reports[-1].keys() else 0


def _repeat(arguments: argparse.Namespace) -> int:
    from export.debug.reduced import repeat

    record, error = repeat(Path(arguments.bundle))
    fails = not error <= record.tolerance
    if arguments.json:
        report = {**to_json(record), "error_now": error, "fails": fails}
        sys.stdout.write(json.dumps(without_nan(report), indent=2) + "\n")
    else:
        sys.stdout.write(
            f"{record.tensor}: {record.engine.name} is {error:.2e} from {record.reference.name} "
            f"(when it was written: {record.error:.2e}; allowed: {record.tolerance:.0e}): "
            f"{'still wrong' if fails else 'right'}\n"
        )
    return int(fails)


def _open(name: str) -> Bundle:
    folder = Path(name)
    return open_failed(folder) if is_failed_build(folder) else Bundle(name)


def _engines(bundle: Bundle) -> list[str]:
    return [record.name for record in bundle.manifest.engines]


def _graphs(bundle: Bundle, name: str | None) -> list[Graph]:
    graphs = bundle.manifest.deployment.graphs
    chosen = [graph for graph in graphs if name in (None, graph.name)]
    if not chosen:
        raise InputError(f"--graph {name}: allowed: {', '.join(graph.name for graph in graphs)}")
    return chosen


def _first_rows(graph: Graph, golden: Mapping[str, Array], rows: int) -> tuple[dict[str, Array], dict[str, Array]]:
    """The first golden inputs of a graph, and the trained model's outputs for them."""
    both = golden_feeds(golden, graph)
    inputs, outputs = (
        {item.name: arrays[item.name][:rows] if item.batched else arrays[item.name] for item in specs}
        for arrays, specs in zip(both, (graph.inputs, graph.outputs), strict=True)
    )
    return inputs, outputs


def _table(tensors: Sequence[Any], culprit: str) -> str:
    """The tensors around the one at fault, as text."""
    at = next(number for number, item in enumerate(tensors) if item.tensor == culprit)
    first = max(0, at - _SHOWN // 2)
    rows = [
        (
            "→" if item.tensor == culprit else "",
            item.tensor,
            item.kind,
            f"{item.error:.2e}",
            f"{item.alone:.2e}",
            "" if item.channel is None else str(item.channel),
        )
        for item in tensors[first : first + _SHOWN]
    ]
    return text_table(("", "tensor", "operator", "error", "alone", "channel"), rows) + "\n"


def _print(reports: Sequence[Mapping[str, Any]], arguments: argparse.Namespace) -> None:
    if arguments.json:
        sys.stdout.write(json.dumps(without_nan(list(reports)), indent=2) + "\n")
        return
    if arguments.quiet:
        return
    for report in reports:
        errors = ", ".join(f"{name} {error:.2e}" for name, error in report["outputs"].items())
        verdict = "leaves" if "culprit" in report else "agrees with"
        sys.stdout.write(
            f"graph {report['graph']}: {report['engine']} {verdict} {report['against']}: {errors} "
            f"(tolerance {report['tolerance']:.0e})\n"
        )
        if model := report.get("model"):
            errors = ", ".join(f"{name} {error:.2e}" for name, error in model.items())
            sys.stdout.write(
                f"but the graph itself leaves the trained model: {errors}. No engine is at fault: the export to ONNX "
                "is, or the model computes something else each time\n"
            )
        if culprit := report.get("culprit"):
            layers = culprit["layers"]
            shown = " → ".join(layer["kind"] for layer in layers[:_SHOWN])
            sys.stdout.write(
                f"the smallest part that fails computes {culprit['tensor']} ({culprit['error']:.2e}) from "
                f"{', '.join(culprit['inputs'])} in {len(layers)} layers: {shown}\n"
                + (f"weights: {', '.join(culprit['weights'][:_SHOWN])}\n" if culprit["weights"] else "")
                + f"{culprit['how']}\nwritten to {culprit['folder']}; repeat: {culprit['repeat']}\n"
            )


if __name__ == "__main__":
    sys.exit(main())
