"""Check a bundle on this machine: its files, its preprocessing, and every engine's outputs.

Outputs are held to those of the PyTorch model and to the engine's own as the build recorded them.

Files are compared by their hashes, the manifest by the digest that it carries. Both tell accidents and edits, not a
bundle that somebody made anew: against that, note the digest down where the bundle is built, and give it to --digest.
"""

from __future__ import annotations

import argparse

from edgevis.cli._common import add_output_arguments, add_precision_argument, print_json
from runtime.bundle.bundle import Bundle
from runtime.bundle.identity import NOT_COVERED
from runtime.common.json_data import to_json
from runtime.common.text import text_table
from runtime.parity.compare import DISTANCE_HEADERS, distance_cells
from runtime.verification.answers.compare import PreprocessingCheck, check_preprocessing, read_answers
from runtime.verification.verify import EngineCheck, verify_bundle


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("bundle", metavar="BUNDLE", help="a folder NAME.edgevis")
    parser.add_argument(
        "--digest", metavar="HEX", help="of the manifest, as `edgevis info` shows it: no other is taken"
    )
    add_precision_argument(parser, default="all")
    add_output_arguments(parser)


def run(arguments: argparse.Namespace) -> int:
    bundle = Bundle(arguments.bundle, digest=arguments.digest)
    preprocessing = check_preprocessing(bundle, read_answers(bundle))
    checks = verify_bundle(bundle, precision=arguments.precision)
    passed = all(check.status != "failed" for check in checks) and any(check.status == "passed" for check in checks)
    if arguments.json:
        data = {
            "bundle": str(bundle.path),
            "passed": passed,
            "digest": bundle.manifest.digest or None,
            "preprocessing": to_json(preprocessing),
            "engines": to_json(checks),
        }
        print_json(data)
    else:
        print(f"{len(bundle.manifest.files)} files are as the manifest says")
        print(f"manifest: {_covered(bundle.manifest.digest)}")
        print(f"preprocessing: {_preprocessed(preprocessing)}")
        print(
            text_table(
                ("engine", "status", *DISTANCE_HEADERS, "from recorded", "held to", "pixel to answer"),
                [_row(check) for check in checks],
            )
        )
        for check in checks:
            if check.reason:
                print(f"{check.engine} {check.status}: {check.reason}")
    return 0 if passed else 1


def _covered(digest: str) -> str:
    return f"as it was written, digest {digest}" if digest else f"not covered: {NOT_COVERED}"


def _preprocessed(check: PreprocessingCheck) -> str:
    if check.status != "passed":
        return f"{check.status}: {check.reason}"
    how = "exactly" if check.exact else f"within {check.max_steps:.2g} steps of 0..255"
    return f"{check.pictures} pictures become the build's input tensors {how}"


def _row(check: EngineCheck) -> tuple[str, ...]:
    recorded = f"{max(item.difference for item in check.recorded):.1e}" if check.recorded else "–"
    answered = check.answers
    pixels = "–" if answered is None else "beyond" if answered.beyond else "holds"
    return (check.engine, check.status, *distance_cells(check.graphs), recorded, check.tolerance, pixels)
