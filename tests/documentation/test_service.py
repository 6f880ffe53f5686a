"""docs/service.md as it is: systemd reads the unit, its command survives kills, the image installs what it says."""

from __future__ import annotations

import configparser
import json
import re
import shlex
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import cv2
import pytest

from edgevis.cli import main
from runtime.pipeline import IDENTIFIER

import doc_pages
from camera_server import CameraServer, numbered
from locations import ROOT
from people import photographs
from python_processes import python_environment

UNIT = ROOT / "docs" / "service" / "edgevis@.service"
DOCKERFILE = ROOT / "docker" / "Dockerfile.cpu"
EDGEVIS = "/opt/edgevis/bin/edgevis"
STATE = "/var/lib/edgevis"
PAGE = "docs/service.md"
# The installed command, with this checkout's packages.
COMMAND = (sys.executable, "-c", "import sys; from edgevis.cli import main; sys.exit(main())")


class _Unit(configparser.RawConfigParser):
    def optionxform(self, optionstr: str) -> str:
        return optionstr


def service() -> dict[str, str]:
    """The settings of the unit's section ``[Service]``; of one that is set twice, the last."""
    unit = _Unit(strict=False)
    unit.read(UNIT)
    return dict(unit["Service"])


def environment_file() -> dict[str, str]:
    """The variables of the page's example."""
    block = next(block for block in doc_pages.blocks(PAGE) if block.reason == "/etc/edgevis/door.env")
    return dict(line.split("=", 1) for line in block.code.splitlines())


def command(variables: dict[str, str], state: Path) -> list[str]:
    """The command that systemd runs for the camera ``door``, its state in another folder."""
    line = service()["ExecStart"].replace("%i", "door").replace(STATE, str(state))
    for name, value in variables.items():
        line = line.replace(f"${{{name}}}", value)
    assert "$" not in line, "a variable that the example does not set"
    return shlex.split(line)


@pytest.mark.parametrize("path", [UNIT, DOCKERFILE], ids=lambda path: path.name)
def test_the_page_shows_the_files_as_they_are(path: Path) -> None:
    name = path.relative_to(ROOT).as_posix()
    assert [block.code for block in doc_pages.blocks(PAGE) if block.reason == name] == [path.read_text()]


def test_systemd_takes_the_unit(tmp_path: Path) -> None:
    if shutil.which("systemd-analyze") is None:
        pytest.skip("systemd-analyze is not installed here")
    unit = tmp_path / "edgevis@door.service"
    unit.write_text(UNIT.read_text().replace(EDGEVIS, sys.executable))
    run = subprocess.run(["systemd-analyze", "verify", unit], capture_output=True, text=True, timeout=30, check=False)
    assert (run.returncode, [line for line in run.stderr.splitlines() if "edgevis" in line]) == (0, [])


def test_the_unit_runs_edgevis_within_limits() -> None:
    words = command(environment_file(), Path(STATE))
    assert words[0] == EDGEVIS
    arguments = doc_pages.parsed(shlex.join(["edgevis", *words[1:]]))
    assert (arguments.verb, arguments.detect, arguments.identify) == ("watch", None, None)
    assert arguments.events == ["jsonl"]
    assert arguments.enrolment == f"{STATE}/door.enrolment"
    settings = service()
    assert settings["CPUQuota"] == f"{arguments.threads * 100}%"
    assert settings["Restart"] == "always"
    assert settings["SuccessExitStatus"] == str(128 + signal.SIGTERM)
    assert (settings["UMask"], settings["StateDirectoryMode"]) == ("0077", "0700")
    assert f"/var/lib/{settings['StateDirectory']}" == STATE


@pytest.fixture
def camera() -> Iterator[CameraServer]:
    with CameraServer() as server:
        yield server


class CameraProcess:
    """The unit's command as a process, as systemd would start it; a context manager that kills what has not ended."""

    def __init__(self, words: list[str]) -> None:
        self.process = subprocess.Popen(
            [*COMMAND, *words[1:]],
            env=python_environment(),
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )

    def __enter__(self) -> CameraProcess:
        return self

    def __exit__(self, *_: object) -> None:
        self.process.kill()
        self.process.communicate()

    def event(self) -> tuple[str, str]:
        """The kind and the identity of the next event, a line of its log."""
        assert self.process.stdout is not None
        line = self.process.stdout.readline()
        if not line:
            pytest.fail(f"the service ended: {self.process.communicate()[1]}")
        event = json.loads(line)
        return event["type"], event["identity"]

    def end(self, number: signal.Signals) -> int:
        """Its exit status after a signal."""
        self.process.send_signal(number)
        self.process.communicate(timeout=60)
        return self.process.returncode


def test_the_command_survives_kills_and_its_camera(tmp_path: Path, camera: CameraServer) -> None:
    hopper = photographs()[1]
    shown, enrolment = tmp_path / "shown.png", tmp_path / "door.enrolment"
    file = ["--enrolment", str(enrolment)]
    words = command({"SOURCE": camera.address(f"show={shown}&fps=10")}, tmp_path)
    for name, picture in (("number", numbered(0b101010101010)), ("hopper", hopper), ("shown", hopper)):
        cv2.imwrite(str(tmp_path / f"{name}.png"), picture)
    assert main(["enroll", IDENTIFIER, "a number", str(tmp_path / "number.png"), *file]) == 0

    with CameraProcess(words) as running:
        assert running.event() == ("appeared", "unknown-1")
        # Enrolled while the service runs, which is killed: the next one knows her.
        assert main(["enroll", IDENTIFIER, "Grace Hopper", str(tmp_path / "hopper.png"), *file]) == 0
        assert running.end(signal.SIGKILL) == -signal.SIGKILL

    with CameraProcess(words) as running:
        assert [running.event() for _ in range(2)] == [("appeared", "Grace Hopper"), ("identified", "Grace Hopper")]
        camera.kill()
        shutil.copy(tmp_path / "number.png", shown)
        camera.start()
        assert running.event() == ("left", "Grace Hopper"), "told by frames of the camera that came back"
        assert running.end(signal.SIGTERM) == 128 + signal.SIGTERM
    assert enrolment.stat().st_mode & 0o777 == 0o600


# --- the image


def instructions(file: Path = DOCKERFILE) -> list[tuple[str, str]]:
    """The instructions of the Dockerfile: name and arguments, continued lines joined."""
    text = re.sub(r"\\\n", " ", "\n".join(x for x in file.read_text().splitlines() if not x.startswith("#")))
    parts = [line.partition(" ") for line in text.splitlines() if line.strip()]
    return [(name, " ".join(words.split())) for name, _, words in parts]


def test_the_image_is_made_of_what_exists() -> None:
    given = instructions()
    known = {"ARG", "FROM", "WORKDIR", "COPY", "RUN", "USER", "VOLUME", "STOPSIGNAL", "ENTRYPOINT", "CMD"}
    assert {name for name, _ in given} <= known
    stages = [words for name, words in given if name == "FROM"]
    assert [words.split()[0] for words in stages] == ["python:${PYTHON_VERSION}-slim"] * 2
    ignored = (DOCKERFILE.parent / f"{DOCKERFILE.name}.dockerignore").read_text().splitlines()
    copied = [words.split()[:-1] for name, words in given if name == "COPY" and not words.startswith("--from=")]
    sources = [source for words in copied for source in words]
    assert [source for source in sources if not (ROOT / source).exists()] == []
    assert [source for source in sources if f"!{source}" not in ignored] == [], "left out of the build's context"
    packages = re.search(r"^include = \[(.*)\]", (ROOT / "pyproject.toml").read_text(), re.MULTILINE)
    assert packages is not None
    assert {name.strip('" *') for name in packages[1].split(",")} <= set(sources)


def test_the_image_for_a_jetson_differs_in_its_base_and_packages() -> None:
    jetson = DOCKERFILE.with_suffix(".jetson")
    ignored, of_cpu = (file.with_name(f"{file.name}.dockerignore").read_text() for file in (jetson, DOCKERFILE))
    assert ignored == of_cpu
    ours, theirs = instructions(jetson), instructions()
    differ = {"ARG", "FROM"}
    assert [item for item in theirs if item not in ours and item[0] not in differ] == [
        ("RUN", 'pip install --no-cache-dir "$(echo /dist/edgevis-*.whl)[openvino]"')
    ]
    assert [words for name, words in ours if name == "FROM"] == ["python:3.10-slim AS wheel", "${BASE}"]
    assert not any("tensorrt" in words for _, words in ours), "JetPack's own is used"


def test_the_image_for_triton_differs_in_its_base_and_what_it_starts() -> None:
    """The server's arguments are those that the benchmark starts one with; its Python finds the packages."""
    triton = DOCKERFILE.with_suffix(".triton")
    ignored, of_cpu = (file.with_name(f"{file.name}.dockerignore").read_text() for file in (triton, DOCKERFILE))
    assert ignored == of_cpu
    ours = instructions(triton)
    differ = {"ARG", "FROM", "RUN", "STOPSIGNAL", "ENTRYPOINT", "CMD"}
    assert [item for item in instructions() if item not in ours and item[0] not in differ] == []
    assert [words for name, words in ours if name == "FROM"] == ["python:3.12-slim AS wheel", "${BASE}"]
    installed = next(words for name, words in ours if name == "RUN" and "pip install" in words)
    assert '"$(echo /dist/edgevis-*.whl)[${EXTRA}]"' in installed
    linked = next(words for name, words in ours if name == "RUN" and words.startswith("ln -s "))
    assert dict(ours)["ENV"] == f"PYTHONPATH={linked.split()[-1]}"
    server, repository, *options = json.loads(dict(ours)["CMD"])
    assert (server, repository) == ("tritonserver", "--model-repository=/models")
    assert set(options) <= set(re.findall(r'"(--[^"]*)"', (ROOT / "benchmarks" / "triton_server.py").read_text()))


def test_the_image_runs_as_nobody_and_starts_edgevis() -> None:
    last = dict(instructions())
    assert last["USER"] == "edgevis"
    assert json.loads(last["ENTRYPOINT"]) == ["edgevis"]
    assert last["STOPSIGNAL"] == "SIGTERM"
    assert doc_pages.parsed(shlex.join(["edgevis", *json.loads(last["CMD"])])).bundle == "osnet-x0-25"
    made = [words for name, words in instructions() if name == "RUN"]
    assert any(words.startswith("useradd ") and words.endswith(" edgevis") for words in made)


def test_ci_installs_by_the_line_of_the_image() -> None:
    lines = [words for name, words in instructions() if name == "RUN" and words.startswith("pip install")]
    assert lines == ['pip install --no-cache-dir "$(echo /dist/edgevis-*.whl)[openvino]"']
    script = (ROOT / ".ci" / "run").read_text()
    assert "docker/Dockerfile.cpu" in script
