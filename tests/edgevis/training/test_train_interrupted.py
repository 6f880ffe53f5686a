"""A training that is killed, interrupted or repeated, or whose disk is full, keeps its checkpoints and goes on."""

from __future__ import annotations

import functools
import io
import json
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from edgevis.models.lookup import file_name
from edgevis.settings import setting
from edgevis.train import main
from edgevis.training.checkpoint import TrainingState, read_training_state
from edgevis.training.progress import ConsoleProgress, StepProgress
from edgevis.training.request import TrainingRequest
from edgevis.training.run import train

from python_processes import python_environment
from training_data import write_boxes, write_classes, write_masks, write_persons
from training_runs import trained

pytestmark = pytest.mark.torch

ENET = ["enet", "--recipe", "small", "--option", "side=32", "--set", "batch=2", "--set", "ema_decay=0.9"]
LISTENING = (
    "import signal, sys; signal.signal(signal.SIGINT, signal.default_int_handler);"
    "from edgevis.train import main; sys.exit(main(sys.argv[1:]))"
)
"""As from a terminal: what a shell starts in the background inherits that SIGINT is ignored."""


@pytest.fixture(scope="module")
def masks(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_masks(tmp_path_factory.mktemp("masks"))


def process(*arguments: object, start: Sequence[str] = ("-m", "edgevis.train")) -> subprocess.Popen[str]:
    env = {**python_environment(), "OMP_NUM_THREADS": str(torch.get_num_threads()), "GLOO_SOCKET_IFNAME": "lo"}
    command = [sys.executable, *start, *map(str, arguments)]
    return subprocess.Popen(command, env=env, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def wait_for(training: subprocess.Popen[str], output: Path, reached: Callable[[TrainingState], bool]) -> None:
    """Until the checkpoint says so; every state in which it is seen is a whole one."""
    last = output / "last.safetensors"
    while training.poll() is None:
        if last.exists() and reached(read_training_state(last)):
            return
        time.sleep(0.02)
    raise AssertionError(f"it has ended: {training.communicate()[1]}")


def _is_past(place: tuple[int, int], state: TrainingState) -> bool:
    return (state.epochs, state.step) >= place


def require_same(first: Path, second: Path) -> None:
    """The same weights, moments and figures, bit by bit."""
    assert (first / "log.csv").read_bytes() == (second / "log.csv").read_bytes()
    for name in ("best.safetensors", "last.safetensors"):
        one, other = load_file(first / name), load_file(second / name)
        assert one.keys() == other.keys()
        assert all(torch.equal(tensor, other[key]) for key, tensor in one.items())


def test_a_training_that_is_killed_within_an_epoch_ends_as_an_unbroken_one(masks: Path, tmp_path: Path) -> None:
    """Dropout, batch norm, Adam's moments, the average, the means of an epoch: all go on in the middle of it."""
    arguments = [*ENET, "--data", masks, "--set", "steps_per_epoch=8", "--epochs", 2, "--output"]
    trained(*arguments, tmp_path / "whole")
    broken = [*arguments, tmp_path / "broken", "--resume", "--checkpoint-minutes", 0]
    with process(*broken) as training:
        wait_for(training, tmp_path / "broken", functools.partial(_is_past, (1, 3)))
        training.kill()
        training.communicate(timeout=30)
    assert 3 <= read_training_state(tmp_path / "broken" / "last.safetensors").step <= 8
    trained(*broken)
    require_same(tmp_path / "whole", tmp_path / "broken")


def test_ctrl_c_loses_no_step(masks: Path, tmp_path: Path) -> None:
    """A checkpoint is written, long before the next one would be due; the message says how to go on."""
    output = tmp_path / "run"
    arguments = [*ENET, "--data", masks, "--set", "steps_per_epoch=16", "--epochs", 2]
    with process(*arguments, "--output", output, start=("-c", LISTENING)) as training:
        wait_for(training, output, functools.partial(_is_past, (1, 0)))
        time.sleep(0.1)
        training.send_signal(signal.SIGINT)
        _, errors = training.communicate(timeout=180)
    assert training.returncode == 130
    lines = [line for line in errors.splitlines() if line]
    assert lines[0] == "finishes the step and writes a checkpoint; Ctrl-C again ends at once"
    assert lines[-1] == "interrupted: the same command with --resume goes on from the last checkpoint"
    state = read_training_state(output / "last.safetensors")
    assert (state.epochs, state.step > 0) == (1, True)
    trained(*arguments, "--output", output, "--resume")
    trained(*arguments, "--output", tmp_path / "whole")
    require_same(tmp_path / "whole", output)


def test_two_processes_stop_together_and_go_on(masks: Path, tmp_path: Path) -> None:
    arguments = [*ENET, "--data", masks, "--set", "steps_per_epoch=8", "--epochs", 1]
    arguments += ["--accelerator", "cpu", "--devices", 2]
    outputs = [tmp_path / "whole", tmp_path / "broken"]
    for output in outputs:
        with process(*arguments, "--output", output, "--checkpoint-minutes", 0, "--json") as training:
            if output is outputs[1]:
                wait_for(training, output, functools.partial(_is_past, (0, 3)))
                training.send_signal(signal.SIGTERM)
            told, errors = training.communicate(timeout=180)
        assert training.returncode == (143 if output is outputs[1] else 0), errors
        assert output is outputs[1] or json.loads(told)["epochs"] == 1
    assert len(read_training_state(outputs[1] / "last.safetensors").sums) == 2
    with process(*arguments, "--output", outputs[1], "--resume") as training:
        _, errors = training.communicate(timeout=180)
    assert training.returncode == 0, errors
    require_same(*outputs)


class StoppedError(Exception):
    pass


class StopsAt(ConsoleProgress):
    """Leaves a training after one of its steps, before that one's checkpoint, as a kill would."""

    def __init__(self, epoch: int, step: int) -> None:
        super().__init__(io.StringIO(), quiet=True)
        self._at = epoch, step

    def step(self, progress: StepProgress) -> None:
        if (progress.epoch, progress.step) == self._at:
            raise StoppedError


def _classes(folder: Path) -> Path:
    return write_classes(folder, classes=8, images=5)


TASKS: tuple[tuple[str, str, Sequence[str], Sequence[str], Callable[[Path], Path]], ...] = (
    (
        "regnet",
        "small",
        ("variant=regnetx_002", "side=64"),
        ("way=2", "query=2", "test_way=2", "test_query=2", "test_episodes=4", "test_shots=[1]", "held_out=0.3"),
        _classes,
    ),
    ("osnet-x0-25", "small", (), ("identities=2", "images=2", "held_out=0.3"), write_persons),
    ("yolox-nano", "fine-tune", ("height=64", "width=64"), ("batch=2",), write_boxes),
)


@pytest.mark.parametrize(("model", "recipe", "options", "values", "write"), TASKS, ids=[task[0] for task in TASKS])
def test_every_task_goes_on_in_the_middle_of_an_epoch(
    model: str,
    recipe: str,
    options: Sequence[str],
    values: Sequence[str],
    write: Callable[[Path], Path],
    tmp_path: Path,
) -> None:
    def request(output: str, *, resume: bool = False) -> TrainingRequest:
        return TrainingRequest(
            model,
            data,
            tmp_path / output,
            recipe=recipe,
            values=dict(map(setting, ("steps_per_epoch=3", "epochs=2", "warm_up_epochs=0", *values))),
            options=dict(map(setting, options)),
            resume=resume,
            checkpoint_minutes=0,
        )

    data = write(tmp_path / "data")
    quiet = ConsoleProgress(io.StringIO(), quiet=True)
    train(request("whole"), quiet)
    for epoch, step in ((1, 3), (2, 2)):
        with pytest.raises(StoppedError):
            train(request(file_name(model), resume=True), StopsAt(epoch, step))
        state = read_training_state(tmp_path / file_name(model) / "last.safetensors")
        assert (state.epochs + 1, state.step + 1) == (epoch, step)
    train(request(file_name(model), resume=True), quiet)
    require_same(tmp_path / "whole", tmp_path / file_name(model))


def test_ctrl_c_in_a_validation_keeps_the_epoch(masks: Path, tmp_path: Path) -> None:
    """In a process of its own: the signal must not reach the one that runs the tests."""
    interrupted = """
import signal, sys
signal.signal(signal.SIGINT, signal.default_int_handler)
from edgevis.train import main
from edgevis.training.tasks.segment import SegmentationTrainingTask
validate = SegmentationTrainingTask.validate
def interrupt(task, model):
    validate(task, model)
    signal.raise_signal(signal.SIGINT)
SegmentationTrainingTask.validate = interrupt
sys.exit(main(sys.argv[1:]))
"""
    arguments = [*ENET, "--data", masks, "--set", "steps_per_epoch=3", "--epochs", 2]
    trained(*arguments, "--output", tmp_path / "whole")
    with process(*arguments, "--output", tmp_path / "run", "--quiet", start=("-c", interrupted)) as training:
        _, errors = training.communicate(timeout=120)
    assert training.returncode == 130, errors
    state = read_training_state(tmp_path / "run" / "last.safetensors")
    assert (state.epochs, state.step) == (0, 3)
    trained(*arguments, "--output", tmp_path / "run", "--resume")
    require_same(tmp_path / "whole", tmp_path / "run")


def test_a_full_disk_within_an_epoch_does_not_end_the_training(masks: Path, tmp_path: Path) -> None:
    """The former checkpoint stays; at the end of the epoch the training ends, and goes on when there is room."""
    limited = (
        "import resource, sys; resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, 100_000));"
        "from edgevis.train import main; sys.exit(main(sys.argv[1:]))"
    )
    output = tmp_path / "run"
    arguments = [*ENET, "--data", masks, "--set", "steps_per_epoch=3", "--set", "validate_every=0", "--output", output]
    trained(*arguments, "--epochs", 1)
    whole = (output / "last.safetensors").read_bytes()
    more = ["--epochs", 2, "--resume", "--checkpoint-minutes", 0]
    with process(*arguments, *more, start=("-c", limited)) as training:
        told, errors = training.communicate(timeout=180)
    assert training.returncode == 1
    for step in (1, 2):
        assert f"the checkpoint of epoch 2, step {step} was not written: File too large; that of epoch 1 stays" in told
    assert (
        f"error: File too large: nothing more can be written in {output}; its checkpoint of epoch 1 is whole: free "
        "some space, then the same command with --resume goes on from there" in errors
    )
    assert (output / "last.safetensors").read_bytes() == whole
    assert not [path for path in output.iterdir() if path.name.startswith(".")]
    trained(*arguments, *more)
    assert json.loads((output / "report.json").read_text())["epochs"] == 2


def test_the_interval_is_checked(masks: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    arguments = [*ENET, "--data", str(masks), "--output", str(tmp_path / "run"), "--checkpoint-minutes", "-1"]
    assert main(arguments) == 1
    assert "checkpoint_minutes is -1; allowed: a number" in capsys.readouterr().err


def test_a_training_that_was_begun_is_not_overwritten(
    masks: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = [
        *ENET,
        "--set",
        "steps_per_epoch=3",
        "--data",
        str(masks),
        "--output",
        str(tmp_path / "run"),
        "--set",
        "epochs=1",
        "--quiet",
    ]
    assert main(arguments) == 0
    before = (tmp_path / "run" / "last.safetensors").read_bytes()
    assert main(arguments) == 1
    assert "go on with --resume, or name another --output" in capsys.readouterr().err
    assert main([*arguments, "--resume", "--seed", "1"]) == 1
    assert "is of another training: seed was 0, is 1" in capsys.readouterr().err
    assert main([*arguments, "--resume", "--set", "learning_rate=0.5"]) == 1
    assert "is of another training: recipe.learning_rate was" in capsys.readouterr().err
    assert (tmp_path / "run" / "last.safetensors").read_bytes() == before
