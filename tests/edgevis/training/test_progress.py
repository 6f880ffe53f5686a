"""Progress of a training: live lines on a terminal, a line now and then elsewhere, and the remaining time."""

from __future__ import annotations

import io
import json
from collections.abc import Mapping
from pathlib import Path

import pytest

from edgevis.models.recipe import SegmentationRecipe
from edgevis.train import main
from edgevis.training.progress import ConsoleProgress, StepProgress, clock_text
from edgevis.training.remaining import RemainingTime
from edgevis.training.request import TrainingRequest
from edgevis.training.run import train

from training_data import write_masks
from training_runs import SMALL_ENET

pytestmark = pytest.mark.torch


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


class Clock:
    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        return self.now


def step(number: int, *, left_s: float = 4800.0) -> StepProgress:
    return StepProgress(epoch=1, epochs=3, step=number, steps=3600, loss=0.5, seconds=number, left_s=left_s)


def test_a_log_file_has_the_remaining_time_within_the_first_minute_of_an_hour_long_epoch() -> None:
    stream, clock = io.StringIO(), Clock()
    console = ConsoleProgress(stream, quiet=False, clock=clock)
    for number in range(1, 1201):
        clock.now = float(number)
        console.step(step(number))
    lines = stream.getvalue().splitlines()
    assert lines[0] == "epoch 1/3, step 10/3600  0:00:10, about 1:20:00 left  loss 0.5"
    # 10 s, 50 s later, then every 5 minutes.
    assert [int(line.split("step ")[1].split("/")[0]) for line in lines] == [10, 60, 360, 660, 960]
    # What else is written counts as a line.
    console.note("a note")
    clock.now += 299
    console.step(step(1500))
    assert stream.getvalue().splitlines()[-1] == "a note"


def test_a_terminal_has_one_live_line_that_fits(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "60")
    stream, clock = Terminal(), Clock()
    console = ConsoleProgress(stream, quiet=False, clock=clock)
    for number in range(1, 1001):
        clock.now = number / 100
        console.step(step(number))
    parts = stream.getvalue().split("\r\033[K")[1:]
    assert "\n" not in stream.getvalue()
    assert 90 <= len(parts) <= 110, "ten a second"
    assert all(len(part) < 60 and "about 1:20:00 left" in part for part in parts)
    console.epoch({"epoch": 1.0, "loss": 0.25}, 3, 3600.0, 7200.0)
    assert stream.getvalue().endswith("\r\033[Kepoch 1/3  1:00:00, about 2:00:00 left  loss 0.25\n")


def test_what_precedes_the_first_step_is_told_too() -> None:
    stream, clock = io.StringIO(), Clock()
    console = ConsoleProgress(stream, quiet=False, clock=clock)
    for done in range(0, 5001, 100):
        clock.now = done / 100
        console.stage("reads the data", done, 5000)
    assert stream.getvalue() == "reads the data: 1000 of 5000\n"
    live = Terminal()
    console = ConsoleProgress(live, quiet=False, clock=clock)
    console.stage("reads the data", 0, 10)
    console.stage("reads the data", 10, 10)
    assert live.getvalue() == f"\r\033[Kreads the data {'░' * 24} 0/10\r\033[K"


@pytest.mark.parametrize("stream", [io.StringIO(), Terminal()])
def test_quiet_is_silent(stream: io.StringIO) -> None:
    console = ConsoleProgress(stream, quiet=True, clock=Clock())
    console.stage("reads the data", 0, 10)
    console.step(step(1))
    console.epoch({"epoch": 1.0}, 3, 1.0, 2.0)
    console.note("a note")
    assert stream.getvalue() == ""


class Evaluates:
    evaluation_images = (60, 300)


def test_the_remaining_time_includes_evaluations_before_any_was_timed() -> None:
    recipe = SegmentationRecipe(supervision="masks", epochs=4, learning_rate=1.0, validate_every=2)
    remaining = RemainingTime(recipe, 10, Evaluates())
    remaining.stepped(9.0, 8)  # the first one of a session does not count, once there are others
    assert remaining.left_s(0, 1) >= 39 * 9
    for _ in range(3):
        remaining.stepped(2.0, 8)
    image = 2.0 / 8 / 3  # a forward pass is a third of a training step
    assert remaining.left_s(0, 4) == pytest.approx(36 * 2 + (2 * 60 + 300) * image)
    # Once a validation is timed, that counts.
    remaining.validated(30.0)
    assert remaining.left_s(2, 0) == pytest.approx(20 * 2 + 30 + 300 * 0.5)
    assert remaining.left_s(4, 0) == pytest.approx(300 * 0.5)
    # A task that does not say what it evaluates.
    silent = RemainingTime(recipe, 10, object())
    silent.stepped(1.0, 8)
    assert silent.left_s(0, 1) == 39


class Witness(ConsoleProgress):
    """Keeps every step's progress."""

    def __init__(self) -> None:
        super().__init__(io.StringIO(), quiet=True)
        self.seen: list[StepProgress] = []

    def step(self, progress: StepProgress) -> None:
        self.seen.append(progress)

    def epoch(self, row: Mapping[str, float], epochs: int, seconds: float, left_s: float) -> None:
        assert left_s > 0, "the evaluation comes after the last epoch"


def test_each_step_of_a_training_is_told_with_the_time_left(tmp_path: Path) -> None:
    data = write_masks(tmp_path / "masks")
    values = {"batch": 2, "steps_per_epoch": 4, "epochs": 2}
    witness = Witness()
    train(TrainingRequest("enet", data, tmp_path / "run", recipe="small", values=values, options={"side": 32}), witness)
    assert [(item.epoch, item.step) for item in witness.seen] == [(e, s) for e in (1, 2) for s in (1, 2, 3, 4)]
    assert all(item.left_s > 0 and item.steps == 4 and item.epochs == 2 for item in witness.seen)
    seconds = [item.seconds for item in witness.seen]
    assert seconds == sorted(seconds)


def test_json_on_standard_output_is_unspoilt(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    data = write_masks(tmp_path / "masks")
    command = [*SMALL_ENET, "--data", str(data), "--output", str(tmp_path / "run"), "--epochs", "1", "--json"]
    assert main(command) == 0
    out, err = capsys.readouterr()
    assert json.loads(out)["epochs"] == 1
    assert "epoch 1/1" in err


def test_times_as_text() -> None:
    assert [clock_text(value) for value in (0, 59.6, 3661)] == ["0:00:00", "0:01:00", "1:01:01"]
