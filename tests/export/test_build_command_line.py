"""``edgevis-export``: its output, its errors and its exit status."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from edgevis import models
from edgevis.models import ModelEntry
from export import targets
from export.build import main
from export.request import UNTRAINED
from runtime.bundle.bundle import Bundle
from runtime.errors import UnknownModelError

from bundles import needs_openvino
from python_processes import python_environment
from tiny_models import pictures, tiny_entry, write_pictures

pytestmark = [pytest.mark.torch, needs_openvino]


@pytest.fixture(scope="module")
def folder_of_pictures(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_pictures(tmp_path_factory.mktemp("pictures") / "people", pictures(48))


@pytest.fixture
def tiny_by_name(monkeypatch: pytest.MonkeyPatch) -> None:
    """The command line finds the tiny model as it finds those in edgevis/models."""

    def entry(name: str) -> ModelEntry:
        if name != "tiny":
            raise UnknownModelError(f"no model {name!r}; known: tiny")
        return tiny_entry()

    monkeypatch.setattr(models, "entry", entry)


@pytest.mark.usefixtures("tiny_by_name")
def test_command_line(
    tmp_path: Path,
    folder_of_pictures: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.chdir(tmp_path)
    status = main(["--model", "tiny", "--precision", "fp32", "--calibration-data", str(folder_of_pictures)])
    output, errors = capsys.readouterr()
    assert status == 0
    assert Bundle(tmp_path / "bundles" / "tiny.edgevis").manifest.model == "tiny"
    lines = output.splitlines()
    stages = [line.split()[0] for line in lines if " s " in line]
    assert stages == ["start", "weights", "samples", "onnx", "reference", "compile", "parity", "answers", "bundle"]
    assert any(line.startswith("onnxruntime-fp32 ") and "rank-1 agreement 1.000 of 24" in line for line in lines)
    assert lines[-1] == "next: edgevis info bundles/tiny.edgevis"
    assert "RANDOM WEIGHTS" in errors
    assert "RANDOM WEIGHTS" in output
    assert "\033" not in output, "no terminal codes where there is no terminal"


@pytest.mark.usefixtures("tiny_by_name")
def test_command_line_json(tmp_path: Path, folder_of_pictures: Path, capsys: pytest.CaptureFixture[str]) -> None:
    output = tmp_path / "x.edgevis"
    arguments = ["--model", "tiny", "--precision", "int8", "--output", str(output), "--json", "--quiet", "--no-cache"]
    assert main([*arguments, "--calibration-data", str(folder_of_pictures)]) == 0
    text, errors = capsys.readouterr()
    data = json.loads(text)
    assert data["bundle"] == str(output)
    assert [engine["precision"] for engine in data["engines"]] == ["int8", "int8"]
    assert data["weights"]["trained"] is False
    assert data["size_bytes"] == sum(path.stat().st_size for path in output.rglob("*") if path.is_file())
    assert errors == f"warning: {UNTRAINED}\n"


@pytest.mark.usefixtures("tiny_by_name")
@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--model", "nothing"], "no model 'nothing'"),
        (["--model", "tiny", "--target", "toaster"], "no target 'toaster'"),
        (["--model", "tiny", "--calibration-data", "nowhere"], "nowhere does not exist"),
        (["--model", "tiny", "--checkpoint", "nowhere.pt"], "nowhere.pt"),
        (["--model", "tiny", "--output", "tiny"], "ends in .edgevis"),
    ],
)
def test_command_line_errors(
    arguments: list[str],
    message: str,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.chdir(tmp_path)
    assert main([*arguments, "--quiet"]) == 1
    output, errors = capsys.readouterr()
    assert output == ""
    assert message in errors
    assert errors.rstrip().endswith("no bundle was written")
    assert "Traceback" not in errors
    assert not list(tmp_path.rglob("*.edgevis"))


@pytest.mark.parametrize(
    "arguments", [[], ["--model", "tiny", "--precision", "fp33"], ["--model", "tiny", "--precision", ","]]
)
def test_command_line_misuse(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as caught:
        main(arguments)
    assert caught.value.code == 2
    assert "error: " in capsys.readouterr().err


def test_list(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--list"]) == 0
    text = capsys.readouterr().out
    assert all(name in text for name in (*models.names(), *targets.names()))
    assert main(["--list", "--json"]) == 0
    data = json.loads(capsys.readouterr().out)
    assert [model["name"] for model in data["models"]] == models.names()
    assert set(data["targets"]) == set(targets.names())


@pytest.mark.parametrize("module", ["export.build", "edgevis.train"])
def test_lists_are_printed_to_any_terminal_and_an_output_that_takes_nothing_is_one_line(module: str) -> None:
    def listed(after: str, *python: str) -> subprocess.CompletedProcess[str]:
        command = ["bash", "-c", f'"$@" {after}', "bash", sys.executable, *python, "-m", module, "--list"]
        env = {**python_environment(), "PYTHONIOENCODING": "ascii:strict"}
        return subprocess.run(command, env=env, capture_output=True, text=True, timeout=120, check=False)

    assert listed("", "-OO").returncode == 0
    for after, message in (("> /dev/full", "No space left"), (">&-", "standard output is closed")):
        done = listed(after)
        assert done.returncode == 1
        assert message in done.stderr
        assert done.stderr.startswith("error: ")
        assert done.stderr.count("\n") == 1
