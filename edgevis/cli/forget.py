"""Remove labels and all their examples from an enrolment file."""

from __future__ import annotations

import argparse
from dataclasses import replace

from edgevis import UnknownLabelError
from edgevis.cli._common import add_enrolment_arguments, add_output_arguments, enrolment_of, print_json
from runtime.enrolment.file import update_enrolment


def add_arguments(parser: argparse.ArgumentParser) -> None:
    add_enrolment_arguments(parser)
    parser.add_argument("labels", metavar="LABEL", nargs="+", help="what to remove; `edgevis list` shows what there is")
    add_output_arguments(parser)


def run(arguments: argparse.Namespace) -> int:
    enrolment = enrolment_of(arguments)
    unknown = [label for label in arguments.labels if label not in enrolment.rows]
    if unknown:
        raise UnknownLabelError(
            f"{arguments.enrolment} has no label {unknown[0]!r}, so nothing was removed; it has "
            f"{', '.join(map(repr, enrolment.rows)) or 'none'}"
        )
    # Nothing is added: what other processes enrol meanwhile stays.
    changed = update_enrolment(
        arguments.enrolment, replace(enrolment, rows={}), known={}, forgotten=frozenset(arguments.labels)
    )
    if arguments.json:
        print_json(
            {"enrolment": arguments.enrolment, "forgotten": list(arguments.labels), "labels": list(changed.rows)}
        )
        return 0
    left = ", ".join(changed.rows) or "none"
    print(f"{arguments.enrolment}: {', '.join(map(repr, arguments.labels))} removed; enrolled: {left}")
    return 0
