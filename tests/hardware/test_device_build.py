"""Engines that are built and measured where they run: at first load, by `edgevis build-engine`, and in selection.

ONNX Runtime on the CPU takes the place of a GPU's engine here, as a backend ``accelerator`` of its own: a file beside
the others, as any backend is. What only a real GPU shows is in ``test_tensorrt_gpu.py``.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from edgevis.cli import main
from runtime import backends
from runtime.bundle.bundle import Bundle
from runtime.bundle.manifest import EngineRecord
from runtime.common.discovery import names_in
from runtime.errors import EngineError, UnavailableError
from runtime.predictor import Predictor
from runtime.selection.device_build import build_on_device, needs_device_build, with_local_parity
from runtime.selection.info import Info

from bundles import ORT, Tiny, TinyEngine, edited_manifest, replace_file, write_tiny_bundle
from logs import logged_warnings
from python_processes import run_python, succeeded

_BACKEND = """
import os
from pathlib import Path
from runtime.backends import onnxruntime
from runtime.errors import UnavailableError

def devices():
    if "NO_ACCELERATOR" in os.environ:
        raise UnavailableError("there is no accelerator here")
    return ("cuda",)

def fingerprint(device):
    devices()
    return {"gpu": "Accelerator 3000", "driver": os.environ.get("ACCELERATOR_DRIVER", "1.0")}

class Made:
    built, seconds, reason, size_bytes = True, 61.0, "", 1234

def build_on_device(path):
    with open(os.environ["ACCELERATOR_LOG"], "a") as log:
        log.write(path.name + "\\n")
    return Made()

def open_engine(path, *, precision, device, threads):
    return onnxruntime.open_engine(path, precision="fp32", device="cpu", threads=threads)
"""


@pytest.fixture(autouse=True)
def log(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """The backend ``accelerator``, and the file in which it notes what it built."""
    folder = tmp_path / "backends"
    folder.mkdir()
    (folder / "accelerator.py").write_text(_BACKEND)
    monkeypatch.setattr(backends, "__path__", [*backends.__path__, str(folder)])
    names_in.cache_clear()
    monkeypatch.setenv("ACCELERATOR_LOG", str(tmp_path / "log"))
    monkeypatch.setenv("EDGEVIS_CACHE", str(tmp_path / "cache"))
    (tmp_path / "log").touch()
    yield tmp_path / "log"
    names_in.cache_clear()
    sys.modules.pop("runtime.backends.accelerator", None)


def add_accelerator(bundle: Path, *, precision: str = "fp16") -> None:
    with edited_manifest(bundle) as data:
        data["engines"].append(
            {
                **data["engines"][0],
                "backend": "accelerator",
                "device": "cuda",
                "precision": precision,
                "parity": None,
                "latency_ms": None,
                "shares_enrolments": False,
            }
        )


def only_accelerator(bundle: Path) -> None:
    with edited_manifest(bundle) as data:
        del data["engines"][0]


@pytest.fixture
def mixed(tmp_path: Path) -> Path:
    """A bundle with a measured engine for the CPU, slow, and an FP16 engine for the accelerator."""
    bundle = write_tiny_bundle(tmp_path / "mixed.edgevis", Tiny(engines=[replace(ORT, latency_ms=500.0)]))
    add_accelerator(bundle)
    return bundle


@pytest.fixture
def device_only(mixed: Path) -> Path:
    only_accelerator(mixed)
    return mixed


def info(bundle: Path, **arguments: Any) -> Info:
    with Predictor(bundle, **arguments) as predictor:
        predictor.warmup()
        return predictor.info


def record_of(bundle: Path, name: str = "accelerator-fp16") -> EngineRecord:
    return next(record for record in Bundle(bundle).manifest.engines if record.name == name)


def local(bundle: Path) -> EngineRecord:
    return with_local_parity(Bundle(bundle), record_of(bundle))


def test_which_engines_are_finished_where_they_run(mixed: Path) -> None:
    assert needs_device_build(record_of(mixed))
    assert not needs_device_build(record_of(mixed, "onnxruntime-fp32"))
    # What the CPU runs needs no device build, measured or not.
    assert not needs_device_build(replace(record_of(mixed, "onnxruntime-fp32"), parity=None))


def test_the_first_load_builds_and_proves(device_only: Path, log: Path) -> None:
    found = info(device_only)
    assert (found.backend, found.device, found.precision) == ("accelerator", "cuda", "fp16")
    assert found.why == "the only engine that was asked for; parity held"
    assert found.parity is not None
    assert (found.parity.passed, found.parity.machine) == (True, "Accelerator 3000")
    assert found.parity.graphs[0].max_relative_error < 1e-5
    assert log.read_text().split() == ["embed.onnx"]
    assert info(device_only).parity == found.parity
    assert log.read_text().split() == ["embed.onnx"], "a known measurement was repeated"


def test_the_bundle_stays_as_it_was(device_only: Path) -> None:
    before = {path: path.read_bytes() for path in device_only.rglob("*") if path.is_file()}
    info(device_only)
    assert {path: path.read_bytes() for path in device_only.rglob("*") if path.is_file()} == before


def test_a_measured_engine_runs_until_the_other_is_built(mixed: Path, log: Path) -> None:
    before = info(mixed)
    assert (before.backend, log.read_text()) == ("onnxruntime", "")
    assert before.why.endswith("; `edgevis build-engine` has not built accelerator-fp16 here")
    assert main(["build-engine", str(mixed)]) == 0
    after = info(mixed)
    assert (after.backend, after.precision) == ("accelerator", "fp16")
    assert after.why.startswith("the fastest of 2 by this machine's")
    assert "build-engine" not in after.why


def test_nothing_changes_where_there_is_no_accelerator(mixed: Path, log: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("NO_ACCELERATOR", "1")
    found = info(mixed)
    assert (found.backend, found.skipped) == ("onnxruntime", ())
    assert found.why == "the only engine that was asked for; parity held"
    with pytest.raises(UnavailableError, match="there is no accelerator here"):
        Predictor(mixed, backend="accelerator")
    assert log.read_text() == ""


def test_a_backend_of_a_newer_version_is_passed_over(mixed: Path) -> None:
    with edited_manifest(mixed) as data:
        data["engines"][1] |= {"backend": "next_years", "precision": "fp32"}
        data["engines"][0] |= {"latency_ms": None, "parity": None}
    found = info(mixed)
    assert found.backend == "onnxruntime"


@pytest.mark.parametrize("change", ["driver", "graph", "golden", "tolerance", "unreadable"])
def test_a_measurement_counts_for_what_it_was_measured_on(
    device_only: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, change: str
) -> None:
    bundle = device_only
    info(bundle)
    assert local(bundle).holds_parity
    (report,) = (tmp_path / "cache" / "parity").iterdir()
    if change == "driver":
        monkeypatch.setenv("ACCELERATOR_DRIVER", "2.0")
    elif change == "graph":
        name = record_of(bundle).files["embed"]
        replace_file(bundle, name, (bundle / name).read_bytes() + b"\x72\x00")  # an empty field: the same model
    elif change == "golden":
        replace_file(bundle, "golden.npz", (bundle / "golden.npz").read_bytes() + b"\0")
    elif change == "tolerance":
        report.write_text(report.read_text().replace("cosine >=", "cosine >"))
    else:
        report.write_text(report.read_text()[:-10])
    assert local(bundle).parity is None


def spoil_golden(bundle: Path) -> None:
    """The PyTorch outputs in the bundle are those of another model."""
    import numpy as np

    golden = Bundle(bundle).golden()
    golden["embed/embedding"] = np.ascontiguousarray(golden["embed/embedding"][:, ::-1])
    np.savez(bundle / "other.npz", **golden)  # type: ignore[arg-type]
    content = (bundle / "other.npz").read_bytes()
    (bundle / "other.npz").unlink()
    replace_file(bundle, "golden.npz", content)


def test_an_engine_beyond_its_tolerance_is_passed_over_with_a_warning(mixed: Path) -> None:
    with edited_manifest(mixed) as data:
        data["engines"][0] |= {"parity": None, "latency_ms": None, "shares_enrolments": False}
        data["engines"].reverse()
        data["engines"][0]["precision"] = "fp32"
    spoil_golden(mixed)
    with logged_warnings(match="accelerator-fp32 did not open: it does not compute what was trained"):
        found = info(mixed)
    assert found.backend == "onnxruntime"
    # The failed parity is known now: the engine comes last, without a warning.
    assert info(mixed).backend == "onnxruntime"


def test_the_only_engine_runs_even_if_its_parity_fails_and_says_so(device_only: Path) -> None:
    spoil_golden(device_only)
    found = info(device_only)
    assert "PARITY FAILED" in found.why
    assert found.parity is not None
    assert not found.parity.passed


def test_an_engine_that_does_not_open_has_no_parity(device_only: Path) -> None:
    replace_file(device_only, record_of(device_only).files["embed"], b"this is no model")
    with pytest.raises(EngineError, match=r"cannot open embed\.onnx"):
        build_on_device(Bundle(device_only), record_of(device_only))
    assert local(device_only).parity is None


def test_build_engine_says_what_it_does(mixed: Path, capsys: pytest.CaptureFixture[str], log: Path) -> None:
    assert main(["build-engine", str(mixed)]) == 0
    out, err = capsys.readouterr()
    assert "accelerator-fp16 embed: built in 61 s, 1.2 kB" in err
    row = next(line for line in out.splitlines() if line.startswith("accelerator-fp16"))
    assert "passed" in row
    assert "rank-1 agreement" in row
    assert f"next: edgevis info {mixed}" in out
    assert log.read_text().split() == ["embed.onnx"]


def test_build_engine_as_json(mixed: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["build-engine", str(mixed), "--json"]) == 0
    data = json.loads(capsys.readouterr().out)
    (engine,) = data["engines"]
    assert (data["passed"], engine["engine"], engine["status"]) == (True, "accelerator-fp16", "passed")
    assert engine["parity"]["machine"] == "Accelerator 3000"
    assert engine["latency_ms"] > 0


def test_build_engine_fails_when_parity_does(mixed: Path, capsys: pytest.CaptureFixture[str]) -> None:
    spoil_golden(mixed)
    assert main(["build-engine", str(mixed)]) == 1
    assert "accelerator-fp16 failed: beyond its tolerance" in capsys.readouterr().out


def test_build_engine_without_what_it_needs(
    mixed: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("NO_ACCELERATOR", "1")
    assert main(["build-engine", str(mixed)]) == 1
    err = capsys.readouterr().err
    assert "error: no engine of this bundle can be built on this machine" in err
    assert "accelerator-fp16: there is no accelerator here" in err


def test_build_engine_on_a_bundle_that_is_finished(tiny_bundle: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["build-engine", str(tiny_bundle)]) == 0
    assert "there is nothing to do" in capsys.readouterr().out
    assert main(["build-engine", str(tiny_bundle), "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["engines"] == []


def test_info_shows_what_was_measured_here(mixed: Path, capsys: pytest.CaptureFixture[str]) -> None:
    main(["info", str(mixed)])
    assert "accelerator-fp16 (parity not measured yet)" in capsys.readouterr().out
    main(["build-engine", str(mixed)])
    capsys.readouterr()
    main(["info", str(mixed)])
    out = capsys.readouterr().out
    assert "parity not measured" not in out
    assert "runs here   accelerator fp16" in out


def test_a_cache_that_cannot_be_written_costs_the_measurement_only(
    device_only: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / "file").write_text("no folder")
    monkeypatch.setenv("EDGEVIS_CACHE", str(tmp_path / "file"))
    assert info(device_only).parity is not None
    assert "the parity of accelerator-fp16 cannot be cached" in caplog.text


_NO_GPU = """
import sys
from edgevis.cli import main
sys.exit(main(["build-engine", sys.argv[1]]))
"""


def test_build_engine_for_tensorrt_names_what_is_missing(tmp_path: Path) -> None:
    """On a machine without TensorRT or without a GPU; where there are both, it builds."""
    bundle = write_tiny_bundle(
        tmp_path / "jetson.edgevis", Tiny(engines=[TinyEngine(latency_ms=None, with_parity=False)])
    )
    with edited_manifest(bundle) as data:
        data["engines"][0] |= {"backend": "tensorrt", "device": "cuda"}
    try:
        backends.load("tensorrt").devices()
    except Exception as error:  # whatever it is, the command must say it
        reason = str(error)
    else:
        pytest.skip("there is a GPU with TensorRT here")
    done = run_python(_NO_GPU, bundle)
    assert done.returncode == 1
    assert f"error: no engine of this bundle can be built on this machine:\n  tensorrt-fp32: {reason}" in done.stderr


def test_the_command_is_spoken_with_a_hyphen() -> None:
    text = succeeded(run_python("from edgevis.cli import main; main(['--help'])"))
    assert "build-engine" in text
    assert "build_engine" not in text
