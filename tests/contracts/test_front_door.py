"""``edgevis build`` and ``edgevis train`` are ``python -m export.build`` and ``python -m edgevis.train``."""

from __future__ import annotations

import argparse
from collections.abc import Callable
from pathlib import Path

import pytest

import edgevis.train
import export.build
from edgevis import cli
from edgevis.cli import build, train
from export.arguments import request_from

pytestmark = [pytest.mark.torch]


def described(add_arguments: Callable[[argparse.ArgumentParser], None], line: str) -> tuple[str, dict[str, object]]:
    """The help of a parser, and what it makes of a command line."""
    parser = argparse.ArgumentParser(prog="the same")
    add_arguments(parser)
    arguments = vars(parser.parse_args(line.split()))
    return parser.format_help(), {name: value for name, value in arguments.items() if not callable(value)}


def test_they_are_the_same_parsers() -> None:
    line = "--model tiny"
    assert described(build.add_arguments, line) == described(export.build.add_arguments, line)
    line = "tiny --data here --output there"
    assert described(train.add_arguments, line) == described(edgevis.train.add_arguments, line)


@pytest.mark.parametrize("main", [cli.main, export.build.main])
def test_a_build_says_what_it_needs(main: Callable[[list[str]], int], capsys: pytest.CaptureFixture[str]) -> None:
    verb = ["build"] if main is cli.main else []
    for more, message in (
        ([], "--model or --onnx is needed; --list shows the models"),
        (["--precision", "fp8"], "there is no precision 'fp8'; known: fp32, fp16, bf16, int8, auto"),
    ):
        with pytest.raises(SystemExit) as ended:
            main([*verb, *more])
        assert ended.value.code == 2
        assert message in capsys.readouterr().err
    assert main([*verb, "--model", "nothing"]) == 1
    assert "no model 'nothing'; known: " in capsys.readouterr().err


def test_a_training_takes_the_same_names_of_precisions(capsys: pytest.CaptureFixture[str]) -> None:
    parser = argparse.ArgumentParser()
    edgevis.train.add_arguments(parser)
    for text, name in (("fp32", "32-true"), ("bf16", "bf16-mixed"), ("fp16", "16-mixed"), ("16-mixed", "16-mixed")):
        assert parser.parse_args(["--precision", text]).precision == name
    assert parser.parse_args([]).precision == "32-true"
    with pytest.raises(SystemExit):
        parser.parse_args(["--precision", "int8"])
    assert "there is no precision 'int8'; known: fp32, bf16, fp16" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("output", "path"),
    [
        ([], "bundles/enet.edgevis"),
        (["--output", "mine/"], "mine/enet.edgevis"),
        (["--output", "there"], "there/enet.edgevis"),
        (["--output", "x/other.edgevis"], "x/other.edgevis"),
        (["--output", "old.edgevis"], "old.edgevis"),
        (["--output", "nowhere"], "nowhere"),  # refused later: a bundle's name ends in .edgevis
    ],
)
def test_where_a_bundle_goes(output: list[str], path: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "there").mkdir()
    (tmp_path / "old.edgevis").mkdir()
    parser = argparse.ArgumentParser()
    export.build.add_arguments(parser)
    assert request_from(parser.parse_args(["--model", "enet", *output])).output == Path(path)
