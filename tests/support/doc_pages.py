"""Code blocks and commands of the README and the pages in docs/, and how tests run or parse them.

A fenced block runs as it stands unless an HTML comment on the line before it says why not:

    <!-- not run: needs a GPU -->

Then its commands are parsed by the real argument parsers and its Python is compiled and its imports are resolved. A
Python block has a namespace of its own; ``<!-- continues -->`` gives it that of the Python block before it. A block of
another language shows a file or an output and says of what: ``<!-- shows: a manifest -->``. A worked example that
another test reads from the page and runs names that test: ``<!-- tested by: tests/contracts/test_extensions.py -->``.
"""

from __future__ import annotations

import argparse
import contextlib
import glob
import importlib
import re
import shlex
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass

import pytest

from locations import ROOT

PAGES = tuple(
    path.relative_to(ROOT).as_posix()
    for path in (ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").rglob("*.md")))
)
"""The pages that are tested, relative to the repository."""

_FENCE = re.compile(r"^(?P<indent> *)```(?P<language>[\w.-]*)[^\n]*\n(?P<code>.*?)^(?P=indent)```$", re.M | re.S)
_MARK = re.compile(r"<!-- (?P<kind>not run|shows|continues|tested by)(?:: (?P<reason>[^>]+))? -->\s*\Z")
_COMMAND = re.compile(r"edgevis(-export)? [a-z-]|python -m [\w.]+|make [a-z]|pip install")
_SPAN = re.compile(r"(?<!`)`([^`]+)`(?!`)")


@dataclass(frozen=True)
class Block:
    """A fenced block.

    Attributes:
        page: Its file, relative to the repository.
        line: The line of its first line of code, from 1.
        language: The word after the fence; may be empty.
        mark: ``not run``, ``shows``, ``continues`` or ``tested by``; empty without a mark.
        reason: What the mark says after its colon.
        code: Without indentation.
    """

    page: str
    line: int
    language: str
    mark: str
    reason: str
    code: str

    @property
    def where(self) -> str:
        return f"{self.page}:{self.line}"

    @property
    def runs(self) -> bool:
        return self.language in {"python", "sh"} and self.mark in {"", "continues"}


def blocks(page: str) -> list[Block]:
    """The fenced blocks of a page, in order."""
    text = (ROOT / page).read_text()
    return [_block(page, text, match) for match in _FENCE.finditer(text)]


def _block(page: str, text: str, match: re.Match[str]) -> Block:
    mark = _MARK.search(text[: match.start()])
    return Block(
        page=page,
        line=text.count("\n", 0, match.start("code")) + 1,
        language=match["language"],
        mark=mark["kind"] if mark else "",
        reason=(mark["reason"] or "").strip() if mark else "",
        code="".join(line.removeprefix(match["indent"]) for line in match["code"].splitlines(keepends=True)),
    )


def inline_commands(page: str) -> list[str]:
    """Commands in code spans of a page's text: ``edgevis VERB …`` and ``python -m MODULE …`` with arguments."""
    text = _FENCE.sub("", (ROOT / page).read_text())
    spans = [" ".join(span.split()) for span in _SPAN.findall(text)]
    return [
        span for span in spans if re.match(r"(edgevis(-export)? [a-z-]|python -m [\w.]+|make [a-z]|pip install)", span)
    ]


def commands(code: str) -> list[str]:
    """The command lines of a shell block, continued lines joined, comments and blank lines left out."""
    lines = code.replace("\\\n", " ").splitlines()
    return [line for line in lines if shlex.split(line, comments=True)]


def words(command: str) -> list[str]:
    """The words of a command line, patterns expanded as a shell does, without comment and assignments before it."""
    split = shlex.split(command, comments=True)
    while re.match(r"[A-Z_]+=", split[0]):
        split.pop(0)
    return [word for given in split for word in (sorted(glob.glob(given)) if "*" in given else []) or [given]]


def run(command: str) -> int:
    """Run a command of ours in this process (importing PyTorch anew each time would take longer); the exit status."""
    name, *arguments = words(command)
    with warnings.catch_warnings():
        warnings.simplefilter("default")  # a command line prints them
        try:
            return main_of(name, arguments)(arguments) or 0
        except SystemExit as end:
            return end.code if isinstance(end.code, int) else 1


def main_of(name: str, arguments: list[str]) -> Callable[[Sequence[str]], int | None]:
    """The function that a command runs; takes ``-m MODULE`` off the arguments of ``python``."""
    if name == "python" and arguments[:1] == ["-m"]:
        module = arguments[1]
        del arguments[:2]
    else:
        scripts = {"edgevis": "edgevis.cli", "edgevis-export": "export.build"}
        if name not in scripts:
            raise LookupError(f"{name!r} is no command that the tests run; mark the block '<!-- not run: REASON -->'")
        module = scripts[name]
    if (ROOT.joinpath(*module.split(".")) / "__main__.py").is_file():
        module += ".__main__"
    main: Callable[[Sequence[str]], int | None] = importlib.import_module(module).main
    return main


class Parsed(BaseException):
    """Raised instead of running a command whose arguments were parsed."""

    def __init__(self, arguments: argparse.Namespace) -> None:
        super().__init__()
        self.arguments = arguments


def parsed(command: str, *, mention: bool = False) -> argparse.Namespace:
    """The arguments that the command's own parser makes of a command line; nothing is run.

    Args:
        command: A command line.
        mention: Text mentions the command: arguments that it requires may be absent.

    Raises:
        pytest.fail.Exception: The parser refuses them.
    """
    name, *arguments = words(command)
    main = main_of(name, arguments)
    original = argparse.ArgumentParser.parse_args

    def parse(parser: argparse.ArgumentParser, *given: object, **named: object) -> argparse.Namespace:
        if mention:
            _require_nothing(parser)
        raise Parsed(original(parser, *given, **named))  # type: ignore[arg-type]

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(argparse.ArgumentParser, "parse_args", parse)
        try:
            main(arguments)
        except Parsed as result:
            return result.arguments
        except SystemExit as end:
            if end.code != 0:  # --help and --version end with 0
                pytest.fail(f"the parser refuses {command!r}")
            return argparse.Namespace()
    raise AssertionError(f"{command!r} did not parse its arguments")


def _require_nothing(parser: argparse.ArgumentParser) -> None:
    for action in parser._actions:
        action.required = False
        if isinstance(action.choices, Mapping):  # the parsers of verbs
            for verb in action.choices.values():
                if (complete := getattr(verb, "complete", None)) is not None:  # its arguments come when it is chosen
                    verb.complete = None
                    complete(verb)
                _require_nothing(verb)


def run_python(block: Block, namespace: dict[str, object]) -> None:
    """Run a Python block; its file and line are those of the page in a traceback."""
    exec(compile("\n" * (block.line - 1) + block.code, block.page, "exec"), namespace)  # noqa: S102 - what is tested


@contextlib.contextmanager
def block_errors(block: Block) -> Iterator[None]:
    """Say which block of which page failed."""
    try:
        yield
    except Exception as error:
        error.args = (f"{block.where}: {error}",)
        raise


def run_page(page: str, read_output: Callable[[], str]) -> Mapping[int, str]:
    """Run all blocks of a page that are not marked, in order, in the current folder.

    Args:
        page: Relative to the repository.
        read_output: Returns what was printed since its last call.

    Returns:
        The line of each block to what it printed.
    """
    printed: dict[int, str] = {}
    namespace: dict[str, object] = {}
    read_output()
    for block in blocks(page):
        if not block.runs:
            continue
        if block.language == "python":
            namespace = namespace if block.mark == "continues" else {"__name__": "__main__"}
            with block_errors(block):
                run_python(block, namespace)
        else:
            for command in commands(block.code):
                status = run(command)
                if status != 0:
                    pytest.fail(f"{block.where}: {command!r} ended with status {status}\n{read_output()}")
        printed[block.line] = read_output()
    return printed
