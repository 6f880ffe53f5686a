"""The command ``edgevis``. Each file here is one verb and its name is the verb's.

Only ``build`` and ``train`` need PyTorch. A verb's module is imported for its help line; what it needs besides is
imported when the verb is run.
"""

from __future__ import annotations

import argparse
import importlib
import sys
from collections.abc import Callable, Sequence
from typing import Protocol, cast

from edgevis import __version__
from runtime.common.command import run_command
from runtime.common.console import abandon_output, log_to_stderr
from runtime.common.discovery import names_in


class Verb(Protocol):
    """The members of a module in this package."""

    __doc__: str | None

    def add_arguments(self, parser: argparse.ArgumentParser) -> None: ...

    def run(self, arguments: argparse.Namespace) -> int:
        """Run the verb; returns the process's exit status."""
        ...


class _VerbParser(argparse.ArgumentParser):
    """The parser of one verb, which is given its arguments when the verb has been chosen."""

    complete: Callable[[argparse.ArgumentParser], None] | None = None

    def parse_known_args(self, args=None, namespace=None):  # type: ignore[no-untyped-def]  # overloaded by typeshed
        complete, self.complete = self.complete, None
        if complete is not None:
            complete(self)
        return super().parse_known_args(args, namespace)


def main(argv: Sequence[str] | None = None) -> int:
    """Run one verb; an error of ours becomes one line on standard error and exit status 1."""

    def run() -> int:
        words = [*(sys.argv[1:] if argv is None else argv)]  # `list` is a verb here
        parser, modules = _parser()
        if empty := _empty_argument(words):
            parser.error(f"{empty}; a shell makes one of a variable that is not set")
        if words and (spoken := words[0].replace("_", "-")) in modules:
            words[0] = spoken
        arguments = parser.parse_args(words)
        try:
            with log_to_stderr(arguments):
                return modules[arguments.verb].run(arguments)
        except BrokenPipeError:  # the reader, such as `head`, has gone
            abandon_output()
            return 0

    return run_command(run)  # the imports, too: Ctrl-C in the middle of one is no traceback


def _empty_argument(words: Sequence[str]) -> str:
    """The complaint about an argument that is an empty text; empty where all say something.

    No verb has a use for one, and where an option may be left out it would pass for that: `--enrolment "$FILE"`.
    """
    for number, word in enumerate(words):
        if word == "":
            before = words[number - 1] if number else "edgevis"
            return f"the argument after {before} is an empty text"
        if word.startswith("--") and word.endswith("=") and word.count("=") == 1:
            return f"{word[:-1]} is given an empty text"
    return ""


def _parser() -> tuple[argparse.ArgumentParser, dict[str, Verb]]:
    """The parser of the command, and the verbs."""
    parser = argparse.ArgumentParser(
        prog="edgevis", description="Build, train, run, enrol, inspect and verify edgevis bundles on this machine."
    )
    parser.add_argument("--version", action="version", version=f"edgevis {__version__}")
    verbs = parser.add_subparsers(dest="verb", required=True, metavar="VERB", parser_class=_VerbParser)
    modules: dict[str, Verb] = {}
    for name in names_in(__name__):
        verb = cast(Verb, importlib.import_module(f"{__name__}.{name}"))
        text = verb.__doc__ or ""  # python -OO has none
        spoken = name.replace("_", "-")  # a module's name cannot have a hyphen
        sub = verbs.add_parser(spoken, help=text.partition("\n")[0], description=text)
        sub.complete = verb.add_arguments
        modules[spoken] = verb
    return parser, modules
