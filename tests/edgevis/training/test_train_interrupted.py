"""A training that is killed, interrupted or repeated keeps its checkpoints and goes on with ``--resume``."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from edgevis.train import main
from edgevis.training.checkpoint import read_training_state

from python_processes import python_environment
from training_data import write_masks
from training_runs import SMALL_ENET, rows, trained

pytestmark = pytest.mark.torch


@pytest.fixture(scope="module")
def masks(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_masks(tmp_path_factory.mktemp("masks"))


def test_a_resumed_training_is_an_unbroken_one(masks: Path, tmp_path: Path) -> None:
    """Batch norm, dropout, Adam's moments, the schedule, the batches: all go on where they were."""
    arguments = [*SMALL_ENET, "--data", str(masks), "--set", "epochs=4"]
    trained(*arguments, "--output", tmp_path / "whole")
    command = [sys.executable, "-m", "edgevis.train", *arguments, "--output", str(tmp_path / "broken"), "--resume"]
    for epochs in (1, 3):
        with started(command) as process:
            wait_for_epoch(process, tmp_path / "broken", epochs)
            process.kill()
            process.communicate(timeout=30)
    done = subprocess.run(command, env=environment(), capture_output=True, text=True, timeout=300, check=False)
    assert done.returncode == 0, done.stderr
    assert "goes on after epoch" in done.stdout
    assert (tmp_path / "broken" / "log.csv").read_bytes() == (tmp_path / "whole" / "log.csv").read_bytes()
    for name in ("best.safetensors", "last.safetensors"):
        whole, broken = load_file(tmp_path / "whole" / name), load_file(tmp_path / "broken" / name)
        assert whole.keys() == broken.keys()
        assert all(torch.equal(tensor, broken[key]) for key, tensor in whole.items())


def environment() -> dict[str, str]:
    # The same order of sums as in this process; processes of one machine meet on its loopback, whatever its name.
    return {**python_environment(), "OMP_NUM_THREADS": str(torch.get_num_threads()), "GLOO_SOCKET_IFNAME": "lo"}


def started(command: list[str]) -> subprocess.Popen[str]:
    return subprocess.Popen(command, env=environment(), stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def wait_for_epoch(process: subprocess.Popen[str], output: Path, epochs: int) -> None:
    """Until that many epochs are in the checkpoint; every state in which it is seen is a whole one."""
    while process.poll() is None:
        if (output / "last.safetensors").exists() and read_training_state(output / "last.safetensors").epochs >= epochs:
            return
        time.sleep(0.01)
    assert process.returncode == 0, process.communicate()[1]


def test_ctrl_c_keeps_the_last_epoch(masks: Path, tmp_path: Path) -> None:
    # As from a terminal: what a shell starts in the background inherits that SIGINT is ignored.
    listening = (
        "import signal, sys; signal.signal(signal.SIGINT, signal.default_int_handler);"
        "from edgevis.train import main; sys.exit(main(sys.argv[1:]))"
    )
    command = [sys.executable, "-c", listening, *SMALL_ENET, "--data", str(masks), "--set", "epochs=1000"]
    command += ["--output", str(tmp_path / "run")]
    with started(command) as process:
        wait_for_epoch(process, tmp_path / "run", 1)
        process.send_signal(signal.SIGINT)
        _, errors = process.communicate(timeout=60)
    assert process.returncode == 130
    assert errors.splitlines()[-1] == "interrupted: the same command with --resume goes on after the last whole epoch"
    assert read_training_state(tmp_path / "run" / "last.safetensors").epochs >= 1


def test_a_full_disk_keeps_the_last_checkpoint(masks: Path, tmp_path: Path) -> None:
    arguments = [*SMALL_ENET, "--data", str(masks), "--output", str(tmp_path / "run"), "--set", "epochs=3"]
    trained(*arguments[:-1], "epochs=3", "--set", "validate_every=0")
    whole = (tmp_path / "run" / "last.safetensors").read_bytes()
    limited = (
        "import resource, sys; resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, 100_000));"
        "from edgevis.train import main; sys.exit(main(sys.argv[1:]))"
    )
    command = [
        sys.executable,
        "-c",
        limited,
        *arguments,
        "--set",
        "validate_every=0",
        "--output",
        str(tmp_path / "full"),
    ]
    done = subprocess.run(command, env=environment(), capture_output=True, text=True, timeout=300, check=False)
    assert done.returncode == 1
    assert "error: " in done.stderr
    assert "File too large" in done.stderr
    assert not list((tmp_path / "full").glob("*.safetensors"))
    assert not [name for name in os.listdir(tmp_path / "full") if name.startswith(".")]
    assert (tmp_path / "run" / "last.safetensors").read_bytes() == whole


def test_a_training_that_was_begun_is_not_overwritten(
    masks: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = [*SMALL_ENET, "--data", str(masks), "--output", str(tmp_path / "run"), "--set", "epochs=1", "--quiet"]
    assert main(arguments) == 0
    before = (tmp_path / "run" / "last.safetensors").read_bytes()
    assert main(arguments) == 1
    assert "go on with --resume, or name another --output" in capsys.readouterr().err
    assert main([*arguments, "--resume", "--seed", "1"]) == 1
    assert "is of another training: seed was 0, is 1" in capsys.readouterr().err
    assert main([*arguments, "--resume", "--set", "learning_rate=0.5"]) == 1
    assert "is of another training: recipe.learning_rate was" in capsys.readouterr().err
    assert (tmp_path / "run" / "last.safetensors").read_bytes() == before


def test_two_processes_train_one_model(masks: Path, tmp_path: Path) -> None:
    command = [sys.executable, "-m", "edgevis.train", *SMALL_ENET, "--data", str(masks), "--set", "epochs=2"]
    command += ["--output", str(tmp_path / "run"), "--accelerator", "cpu", "--devices", "2", "--json"]
    done = subprocess.run(command, env=environment(), capture_output=True, text=True, timeout=300, check=False)
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["epochs"] == 2
    assert len(rows(tmp_path / "run")) == 2
