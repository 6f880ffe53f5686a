"""Prove a bundle here: every file's hash, every engine against PyTorch's outputs and against its own recorded ones."""

from __future__ import annotations

import argparse

from edgevis.cli._common import print_json
from runtime.bundle import Bundle
from runtime.jsondata import to_json
from runtime.parity import DISTANCE_HEADERS, distance_cells
from runtime.text import text_table
from runtime.verification import EngineCheck, verify_bundle


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("bundle", metavar="BUNDLE", help="a folder NAME.edgevis")


def run(arguments: argparse.Namespace) -> int:
    bundle = Bundle(arguments.bundle)
    checks = verify_bundle(bundle)
    passed = all(check.status != "failed" for check in checks) and any(check.status == "passed" for check in checks)
    if arguments.json:
        print_json({"bundle": str(bundle.path), "passed": passed, "engines": to_json(checks)})
    else:
        print(f"{len(bundle.manifest.files)} files are as the manifest says")
        print(
            text_table(
                ("engine", "status", *DISTANCE_HEADERS, "from recorded", "held to"), [_row(check) for check in checks]
            )
        )
        for check in checks:
            if check.reason:
                print(f"{check.engine} {check.status}: {check.reason}")
    return 0 if passed else 1


def _row(check: EngineCheck) -> tuple[str, ...]:
    apart = f"{max(item.difference for item in check.recorded):.1e}" if check.recorded else "–"
    return (check.engine, check.status, *distance_cells(check.graphs), apart, check.tolerance)
