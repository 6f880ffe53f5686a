"""Nothing phones home: no entrance leaves a file in HOME or opens a socket, unless the user asks for telemetry.

The recorder is the kernel: a seccomp filter, which needs no privilege and no tool, notes and refuses every call of
``socket``, whoever makes it, in whichever thread or child. Without a socket nothing can be looked up or sent.
"""

from __future__ import annotations

import ast
import importlib.metadata
import platform
import sys
from pathlib import Path

import pytest

import edgevis
import runtime
from runtime.common.discovery import names_in

from bundles import Tiny, TinyEngine, installed, needs_openvino, write_tiny_bundle
from guarded import SPOKE, assert_silent, guarded

# Not by looking for the module, which edgevis has blocked in this process.
_SPEAKS = any(True for _ in importlib.metadata.distributions(name="openvino-telemetry"))
needs_its_telemetry = pytest.mark.skipif(not _SPEAKS, reason="openvino-telemetry is not installed")

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="seccomp is Linux's")


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    engines = [TinyEngine(), *([TinyEngine("openvino")] if installed("openvino") else [])]
    return write_tiny_bundle(tmp_path_factory.mktemp("privacy") / "tiny.edgevis", Tiny(engines=engines))


_LOOKUP = """
import socket
socket.getaddrinfo("edgevis.invalid", 443)
"""


def test_the_recorder_sees_a_look_up(tmp_path: Path) -> None:
    assert platform.machine() in ("x86_64", "aarch64")
    assert guarded(tmp_path / "home", "-c", _LOOKUP).returncode == SPOKE
    assert guarded(tmp_path / "home", "-c", "print('alive')").stdout == "alive\n"


@needs_openvino
@needs_its_telemetry
def test_the_recorder_sees_an_engine_that_speaks(tmp_path: Path) -> None:
    # Were this to fail, the tests below would show nothing.
    process = guarded(tmp_path / "home", "-c", "import edgevis, openvino, time; time.sleep(5)", EDGEVIS_TELEMETRY="1")
    assert process.returncode == SPOKE


_PREDICT = """
import sys, time
import numpy as np
from edgevis import Predictor

image = np.random.default_rng(0).integers(0, 256, (64, 32, 3), np.uint8)
for backend in sys.argv[2:]:
    with Predictor(sys.argv[1], backend=backend) as predictor:
        predictor.enroll("a", image)
        for _ in range(10):
            predictor.predict(image)
time.sleep(3)  # ONNX Runtime 1.32 waits that long before it speaks
"""


def backends() -> list[str]:
    return ["onnxruntime", *(["openvino"] if installed("openvino") else [])]


def test_a_predictor_is_silent(bundle: Path, tmp_path: Path) -> None:
    home = tmp_path / "home"
    assert_silent(guarded(home, "-c", _PREDICT, bundle, *backends()), home)


def test_an_engine_that_is_imported_after_edgevis_is_silent(bundle: Path, tmp_path: Path) -> None:
    code = f"import edgevis, time, {', '.join(backends())}; time.sleep(3)"
    assert_silent(guarded(tmp_path / "home", "-c", code), tmp_path / "home")


_VERBS = """
import sys, time
from edgevis.cli import main

bundle, image, enrolment, *engines = sys.argv[1:]
for engine in engines:
    for verb in (
        ["info", bundle],
        ["verify", bundle],
        ["enroll", bundle, "a", image, "--enrolment", f"{enrolment}-{engine}"],
        ["predict", bundle, image, "--backend", engine, "--enrolment", f"{enrolment}-{engine}"],
        ["bench", bundle, "--seconds", "0.2"],
    ):
        assert main(verb) == 0, verb
time.sleep(3)
"""


def test_the_command_line_is_silent(bundle: Path, tmp_path: Path) -> None:
    import cv2
    import numpy as np

    cv2.imwrite(str(tmp_path / "image.png"), np.random.default_rng(0).integers(0, 256, (64, 32, 3), np.uint8))
    arguments = (bundle, tmp_path / "image.png", tmp_path / "lobby.enrolment", *backends())
    assert_silent(guarded(tmp_path / "home", "-c", _VERBS, *arguments), tmp_path / "home")


_STATE = """
import os, sys, importlib.util
import edgevis
print(os.environ.get("ORT_DISABLE_TELEMETRY"), "openvino_telemetry" in sys.modules)
"""


@pytest.mark.parametrize(("value", "state"), [("", "1 True"), ("0", "1 True"), ("yes", "1 True"), ("1", "None False")])
def test_only_the_value_1_leaves_the_engines_alone(tmp_path: Path, value: str, state: str) -> None:
    process = guarded(tmp_path / "home", "-c", _STATE, EDGEVIS_TELEMETRY=value)
    assert process.stdout.strip() == state


def test_children_inherit_the_silence(tmp_path: Path) -> None:
    code = "import edgevis, os; os.execlp('sh', 'sh', '-c', 'echo $ORT_DISABLE_TELEMETRY')"
    assert guarded(tmp_path / "home", "-c", code).stdout.strip() == "1"


_LATE_ONNXRUNTIME = """
import os
import onnxruntime  # silent, as the variable is set, which is then taken away
del os.environ["ORT_DISABLE_TELEMETRY"]
import edgevis
print(os.environ["ORT_DISABLE_TELEMETRY"])
"""
_LATE_OPENVINO = """
import os
import openvino  # silent, as on a build server
import edgevis, sys
from openvino.tools import ovc
print(getattr(ovc.telemetry, "consent", False), sys.modules["openvino_telemetry"])
"""


def test_an_engine_that_was_imported_before_is_told_and_the_log_says_so(tmp_path: Path) -> None:
    process = guarded(tmp_path / "home", "-c", _LATE_ONNXRUNTIME, ORT_DISABLE_TELEMETRY="1")
    assert process.stdout.strip() == "1"
    assert "onnxruntime was imported before edgevis: it may have reported" in process.stderr


@needs_openvino
@needs_its_telemetry
def test_openvino_that_was_imported_before_is_told_and_the_log_says_so(tmp_path: Path) -> None:
    process = guarded(tmp_path / "home", "-c", _LATE_OPENVINO, CI="true")
    assert process.stdout.strip() == "False None", process.stderr
    assert "openvino was imported before edgevis: it may have reported" in process.stderr


def test_engines_are_imported_in_one_place() -> None:
    roots = [Path(str(package.__file__)).parent for package in (runtime, edgevis)]
    roots += [place for name in ("export", "calibration", "benchmarks") if (place := roots[0].parent / name).is_dir()]
    found = {
        path.relative_to(roots[0].parent).as_posix()
        for root in roots
        for path in root.rglob("*.py")
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8")))
        if {"onnxruntime", "openvino", "nncf"} & set(_imported(node))
    }
    # A submodule of OpenVINO, of the package that was imported before.
    assert found - {"export/compilers/openvino.py"} == {"runtime/common/vendors.py"}
    assert "onnxruntime" in names_in("runtime.backends")


def _imported(node: ast.AST) -> list[str]:
    if isinstance(node, ast.Import):
        return [alias.name.partition(".")[0] for alias in node.names]
    if isinstance(node, ast.ImportFrom) and not node.level:
        return [str(node.module).partition(".")[0]]
    return []
