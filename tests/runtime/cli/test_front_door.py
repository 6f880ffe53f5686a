"""The command's verbs as a whole: what each of them takes, and what the two say that need PyTorch where it is not."""

from __future__ import annotations

import argparse
import json
import logging
import re
import subprocess
import sys
import warnings
from importlib import metadata
from pathlib import Path

import pytest

from edgevis.cli import main
from runtime.backends import onnxruntime
from runtime.common.console import add_verbosity, log_to_stderr
from runtime.common.discovery import names_in
from runtime.common.extras import EXTRAS, install_command
from runtime.errors import UnavailableError

from python_processes import python_environment

VERBS = tuple(name.replace("_", "-") for name in names_in("edgevis.cli"))
NEED_TORCH = ("build", "train")
WITHOUT = """
import sys
for name in ("torch", "onnx", "onnxscript", "safetensors", "lightning_fabric", "torchmetrics"):
    sys.modules[name] = None  # an import of it fails, as where it is not installed
"""


def run_without_torch(code: str, *arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-c", WITHOUT + code, *arguments],
        capture_output=True,
        text=True,
        env=python_environment(),
        timeout=60,
        check=False,
    )


def test_the_verbs() -> None:
    assert set(VERBS) == {
        *("bench", "build", "build-engine", "calibrate", "enroll", "forget", "info", "list", "predict", "train"),
        *("tracks", "verify", "watch"),
    }


def test_help_imports_neither_torch_nor_an_engine() -> None:
    code = """
from edgevis.cli import main
try:
    main(["--help"])
finally:
    loaded = {"torch", "onnx", "onnxruntime", "openvino", "export", "calibration"} & {
        name for name, module in sys.modules.items() if module is not None
    }
    print(sorted(loaded), file=sys.stderr)
"""
    done = run_without_torch(code)
    assert done.returncode == 0
    assert done.stderr == "[]\n"
    assert all(f"    {verb}" in done.stdout for verb in VERBS)


@pytest.mark.parametrize("verb", [verb for verb in VERBS if verb not in NEED_TORCH])
def test_every_verb_takes_the_same_switches(verb: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        main([verb, "--help"])
    assert ended.value.code == 0
    text = capsys.readouterr().out
    assert all(switch in text for switch in ("--json", "-v, --verbose", "-q, --quiet"))


@pytest.mark.parametrize("words", [["predict", "bundle", "image", "--enrolment", ""], ["info", "x", "--enrolment="]])
def test_an_empty_argument_does_not_pass_for_none(words: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        main(words)
    assert ended.value.code == 2
    error = capsys.readouterr().err
    assert "--enrolment is" in error
    assert "an empty text" in error


@pytest.mark.parametrize(
    ("code", "extra"),
    [
        ("from edgevis.cli import main; sys.exit(main(['build', '--model', 'x']))", "export"),
        ("from edgevis.cli import main; sys.exit(main(['build', '--help']))", "export"),
        ("from export.build import main; sys.exit(main(['--help']))", "export"),
        ("from edgevis.cli import main; sys.exit(main(['train', 'x', '--data', 'y']))", "train"),
        ("from edgevis.train import main; sys.exit(main(['--list']))", "train"),
    ],
)
def test_what_needs_torch_names_the_extra_in_one_line(code: str, extra: str) -> None:
    done = run_without_torch(code)
    assert done.returncode == 1
    assert done.stdout == ""
    assert done.stderr.count("\n") == 1
    assert done.stderr.startswith("error: ")
    assert "needs torch, " in done.stderr
    assert done.stderr.endswith(f": {install_command(extra)}\n")


def test_help_of_a_training_needs_no_torch() -> None:
    done = run_without_torch("from edgevis.cli import main; main(['train', '--help'])")
    assert done.returncode == 0
    assert "--data" in done.stdout
    assert "torch, safetensors" in done.stdout


@pytest.mark.parametrize("verb", ["predict", "enroll", "info", "bench", "verify", "calibrate"])
def test_precision_means_the_same_everywhere(verb: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        main([verb, "x.edgevis", "--precision", "fp8"])
    assert ended.value.code == 2
    assert "there is no precision 'fp8'; known: fp32, fp16, bf16, int8\n" in capsys.readouterr().err


# The command that installs an extra


class Distribution:
    def __init__(self, url: str | None, **more: object) -> None:
        self._text = None if url is None else json.dumps({"url": url, **more})

    def read_text(self, name: str) -> str | None:
        assert name == "direct_url.json"
        return self._text


def test_how_an_extra_is_installed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    checkout = tmp_path / "my checkout"
    checkout.mkdir()
    (tmp_path / "edgevis-1-py3-none-any.whl").write_bytes(b"")

    def command(distribution: Distribution) -> str:
        monkeypatch.setattr("runtime.common.extras.metadata.distribution", lambda name: distribution)
        return install_command("export")

    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path / "elsewhere")
    assert command(Distribution(None)) == "pip install 'edgevis[export]'"
    editable = Distribution(f"file://{tmp_path}/my%20checkout", dir_info={"editable": True})
    assert command(editable) == f"pip install -e '{checkout}[export]'"
    assert command(Distribution(f"file://{tmp_path}/my%20checkout")) == f"pip install '{checkout}[export]'"
    wheel = Distribution(f"file://{tmp_path}/edgevis-1-py3-none-any.whl", archive_info={})
    assert command(wheel) == f"pip install '{tmp_path}/edgevis-1-py3-none-any.whl[export]'"
    assert command(Distribution("file:///gone")) == "pip install 'edgevis[export]'"
    assert command(Distribution("https://host/edgevis.whl")) == "pip install 'edgevis[export]'"
    monkeypatch.chdir(checkout)
    assert command(editable) == "pip install -e '.[export]'"
    monkeypatch.chdir(tmp_path)
    assert command(editable) == "pip install -e './my checkout[export]'"


def test_the_extras_are_named_as_the_project_names_them() -> None:
    assert set(EXTRAS) <= set(metadata.distribution("edgevis").metadata.get_all("Provides-Extra") or ())


# The log


def logged(capsys: pytest.CaptureFixture[str], *switches: str, progress: bool = False) -> list[str]:
    parser = argparse.ArgumentParser()
    add_verbosity(parser, progress=progress)
    log = logging.getLogger("edgevis.cli")
    with log_to_stderr(parser.parse_args(switches)):
        for level in (logging.DEBUG, logging.INFO, logging.WARNING, logging.WARNING, logging.ERROR):
            log.log(level, "of %s", logging.getLevelName(level))
    return capsys.readouterr().err.splitlines()


def test_what_is_logged_comes_to_standard_error_once(
    capsys: pytest.CaptureFixture[str], caplog: pytest.LogCaptureFixture
) -> None:
    every = ["debug: of DEBUG", "info: of INFO", "warning: of WARNING", "error: of ERROR"]
    assert logged(capsys) == every[2:]
    assert logged(capsys, "-v") == every[1:]
    assert logged(capsys, "-vv") == every
    assert logged(capsys, "-q") == every[3:]
    assert logged(capsys, "-q", progress=True) == every[2:]
    assert logged(capsys, "-qq", progress=True) == every[3:]
    assert logging.getLogger("edgevis").level == logging.NOTSET


def test_a_python_warning_is_pythons(monkeypatch: pytest.MonkeyPatch) -> None:
    before = warnings.showwarning
    with pytest.raises(SystemExit):
        main(["--version"])
    assert warnings.showwarning is before


# Both packages of ONNX Runtime


def test_both_packages_of_onnxruntime_are_named_with_what_mends_them(
    tiny_bundle: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    installed = {"onnxruntime": "1.32.0", "onnxruntime-gpu": "1.32.0"}

    def version(name: str) -> str:
        try:
            return installed[name]
        except KeyError:
            raise metadata.PackageNotFoundError(name) from None

    monkeypatch.setattr("runtime.common.vendors.metadata.version", version)
    mended = "pip uninstall --yes onnxruntime onnxruntime-gpu && pip install onnxruntime-gpu"
    text = f"onnxruntime 1.32.0 and onnxruntime-gpu 1.32.0 are installed beside each other, .*: {mended}"
    assert main(["info", str(tiny_bundle)]) == 0
    assert re.search(f"^conflict +{text}$", capsys.readouterr().out, re.M)
    assert main(["info", str(tiny_bundle), "--json"]) == 0
    assert re.fullmatch(text, json.loads(capsys.readouterr().out)["conflict"])
    with pytest.raises(UnavailableError, match=text):
        onnxruntime.fingerprint("cuda")
    del installed["onnxruntime-gpu"]
    assert main(["info", str(tiny_bundle)]) == 0
    assert "conflict" not in capsys.readouterr().out
    with pytest.raises(UnavailableError, match="pip uninstall --yes onnxruntime && pip install onnxruntime-gpu"):
        onnxruntime.fingerprint("cuda")
