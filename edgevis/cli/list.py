"""List the labels of an enrolment file, with the number of examples of each."""

from __future__ import annotations

import argparse

from edgevis.cli._common import add_enrolment_arguments, add_output_arguments, enrolment_of, print_json, shown
from runtime.common.text import text_table
from runtime.gallery.rows import counts_by_label


def add_arguments(parser: argparse.ArgumentParser) -> None:
    add_enrolment_arguments(parser)
    add_output_arguments(parser)


def run(arguments: argparse.Namespace) -> int:
    enrolment = enrolment_of(arguments)
    counts = counts_by_label(enrolment.rows)
    if arguments.json:
        strangers = 0 if enrolment.strangers is None else len(enrolment.strangers)
        print_json(
            {
                "enrolment": arguments.enrolment,
                "labels": counts,
                "threshold": enrolment.threshold,
                "false_accept_rate": enrolment.false_accept_rate,
                "strangers": strangers,
            }
        )
    elif counts:
        print(text_table(("label", "examples"), [(shown(label), str(count)) for label, count in counts.items()]))
    else:
        print(f"{arguments.enrolment}: nothing is enrolled")
    return 0
