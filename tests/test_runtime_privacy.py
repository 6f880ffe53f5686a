"""Nothing phones home: no entrance leaves a file in HOME or opens a socket, unless the user asks for telemetry.

The recorder is the kernel: a seccomp filter, which needs no privilege and no tool, notes and refuses every call of
``socket``, whoever makes it, in whichever thread or child. Without a socket nothing can be looked up or sent.
"""

from __future__ import annotations

import ast
import importlib.metadata
import os
import platform
import subprocess
import sys
from pathlib import Path

import pytest

import edgevis
import runtime
from runtime.discovery import names_in

from bundles import Tiny, TinyEngine, installed, needs_openvino, python_environment, write_tiny_bundle

# Not by looking for the module, which edgevis has blocked in this process.
_SPEAKS = any(True for _ in importlib.metadata.distributions(name="openvino-telemetry"))
needs_its_telemetry = pytest.mark.skipif(not _SPEAKS, reason="openvino-telemetry is not installed")

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="seccomp is Linux's")

# A child sets the filter, hands its listener to the parent and becomes the command. The filter stays through exec and
# reaches every process that the command starts; each call waits for the parent, which notes it and refuses it.
_GUARD = """
import ctypes, fcntl, os, platform, select, socket, struct, sys

SOCKET, SECCOMP = {"x86_64": (41, 317), "aarch64": (198, 277)}[platform.machine()]
NOTIFY, ALLOW = 0x7FC00000, 0x7FFF0000  # SECCOMP_RET_USER_NOTIF, SECCOMP_RET_ALLOW
RECEIVE, SEND = 0xC0502100, 0xC0182101  # SECCOMP_IOCTL_NOTIF_RECV and _SEND
LOAD, EQUAL, RETURN = 0x20, 0x15, 0x06

class Program(ctypes.Structure):
    _fields_ = [("length", ctypes.c_ushort), ("code", ctypes.c_void_p)]

def become_the_command(parent):
    steps = [(LOAD, 0, 0, 0), (EQUAL, 0, 1, SOCKET), (RETURN, 0, 0, NOTIFY), (RETURN, 0, 0, ALLOW)]
    code = ctypes.create_string_buffer(b"".join(struct.pack("HBBI", *step) for step in steps))
    program = Program(len(steps), ctypes.addressof(code))
    libc = ctypes.CDLL(None, use_errno=True)
    libc.prctl(38, 1, 0, 0, 0)  # PR_SET_NO_NEW_PRIVS
    listener = libc.syscall(SECCOMP, 1, 8, ctypes.byref(program))  # SET_MODE_FILTER, FLAG_NEW_LISTENER
    if listener < 0:
        sys.exit(f"the kernel refuses a seccomp filter: {os.strerror(ctypes.get_errno())}")
    socket.send_fds(parent, [b"1"], [listener])
    os.close(listener)
    os.execv(sys.argv[1], sys.argv[1:])

here, there = socket.socketpair()
process = os.fork()
if process == 0:
    here.close()
    become_the_command(there)
there.close()
listeners = socket.recv_fds(here, 1, 1)[1]
families, status = [], None
poll = select.poll()
for listener in listeners:
    poll.register(listener, select.POLLIN)
while listeners and status is None:
    for _, event in poll.poll(50):
        if event & select.POLLIN:
            note = bytearray(80)
            try:
                fcntl.ioctl(listeners[0], RECEIVE, note)
                families.append(struct.unpack_from("Q", note, 32)[0])
                fcntl.ioctl(listeners[0], SEND, struct.pack("QqiI", struct.unpack_from("Q", note)[0], 0, -13, 0))
            except FileNotFoundError:  # the caller has ended
                pass
    ended, found = os.waitpid(process, os.WNOHANG)
    status = found if ended else None
if status is None:
    status = os.waitpid(process, 0)[1]
if families:
    print("SOCKETS of the families", sorted(set(families)), file=sys.stderr)
    sys.exit(99)
sys.exit(os.waitstatus_to_exitcode(status))
"""
SPOKE = 99


def guarded(
    home: Path, *arguments: object, cwd: Path | None = None, **variables: str
) -> subprocess.CompletedProcess[str]:
    """Run Python in an empty HOME, without what marks a build server; status SPOKE where it wanted a socket."""
    home.mkdir(exist_ok=True)
    kept = ("PATH", "LD_LIBRARY_PATH", "TMPDIR", "LANG", "VIRTUAL_ENV")
    environment = {name: os.environ[name] for name in kept if name in os.environ}
    # With a name nobody asks the name service who the user is.
    environment |= {
        "HOME": str(home),
        "LOGNAME": "somebody",
        "PYTHONPATH": python_environment()["PYTHONPATH"],
        "OMP_NUM_THREADS": "1",
    }
    command = [sys.executable, "-c", _GUARD, sys.executable, *map(str, arguments)]
    return subprocess.run(
        command,
        env=environment | variables,
        cwd=cwd or home.parent,
        capture_output=True,
        text=True,
        timeout=600,
        check=False,
    )


def assert_silent(process: subprocess.CompletedProcess[str], home: Path) -> None:
    assert process.returncode != SPOKE, process.stderr
    assert process.returncode == 0, process.stderr
    assert sorted(path.relative_to(home).as_posix() for path in home.rglob("*")) == []


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
    assert found - {"export/compilers/openvino.py"} == {"runtime/vendors.py"}
    assert "onnxruntime" in names_in("runtime.backends")


def _imported(node: ast.AST) -> list[str]:
    if isinstance(node, ast.Import):
        return [alias.name.partition(".")[0] for alias in node.names]
    if isinstance(node, ast.ImportFrom) and not node.level:
        return [str(node.module).partition(".")[0]]
    return []
