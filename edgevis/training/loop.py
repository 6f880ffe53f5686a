"""Epochs: batches, steps, validation, checkpoints. Precision, devices and processes are Lightning Fabric's.

A training's folder::

    OUTPUT/
      last.safetensors      everything that it needs to go on, after each epoch and every few minutes within one
      best.safetensors      the weights that validated best, in float32, with their provenance
      data.csv              the SHA-256 of each file of the data
      log.csv               a row for each epoch
      events.out.*          the same for TensorBoard
"""

from __future__ import annotations

import enum
import math
import signal
import time
import zlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset

from edgevis.losses import NonFiniteError
from edgevis.models import load_weights
from edgevis.models.recipe import Recipe
from edgevis.provenance import Provenance
from edgevis.training.average import AveragedWeights
from edgevis.training.checkpoint import TrainingState, read_state, write_state, write_weights
from edgevis.training.finite import TrainingError, diverged, non_finite_state
from edgevis.training.freeze import train_but_frozen
from edgevis.training.int8 import begin_int8, end_int8
from edgevis.training.log import LOG, TensorBoard, write_log
from edgevis.training.memory import use_channels_last
from edgevis.training.optimizer import optimizer_of, set_rate
from edgevis.training.progress import ProgressListener, StepProgress
from edgevis.training.remaining import RemainingTime
from edgevis.training.resume import BEST, LAST
from edgevis.training.stop import StopRequest
from edgevis.training.task import (
    Batch,
    DataDependentStart,
    Evaluation,
    StartDependent,
    StepDependentModel,
    TrainingTask,
)
from runtime.errors import EdgevisError, WeightsError

_WAIT_FOR_END_S = 60.0


@dataclass(frozen=True, slots=True, eq=False)
class Run:
    """One training.

    Attributes:
        model: In any state of :meth:`~torch.nn.Module.train`; its frozen parameters stay frozen.
        task: The data, loss and metrics.
        recipe: The optimiser, schedule and lengths.
        provenance: The provenance of the weights to be written; its epoch does not matter.
        output: The folder.
        begun: The state to start or resume from, by :func:`edgevis.training.resume.begin`.
        workers: The number of processes that prepare batches ahead; 0 prepares them between the steps.
        average: The average of the weights that is validated and kept instead of them; :func:`fit` makes it.
        checkpoint_s: Seconds after a checkpoint within which there is a new one, also within an epoch.
    """

    model: nn.Module
    task: TrainingTask
    recipe: Recipe
    provenance: Provenance
    output: Path
    begun: TrainingState
    workers: int = 0
    average: AveragedWeights | None = None
    checkpoint_s: float = 300.0

    @property
    def evaluated_model(self) -> nn.Module:
        """The model that is validated and kept."""
        return self.model if self.average is None else self.average.model


def fit(run: Run, fabric: Any, listener: ProgressListener) -> TrainingState:
    """Train until the recipe's last epoch; afterwards the model has the weights that validated best.

    Args:
        run: The training.
        fabric: A launched ``lightning_fabric.Fabric``.
        listener: Receives each step and epoch.

    Raises:
        WeightsError: The folder's checkpoint is damaged, or of another model.
        TrainingError: The loss, the weights or the outputs are not finite. What was written before stays.
        OSError: The disk is full; the last checkpoint stays whole.
        KeyboardInterrupt: The training was asked to end; its checkpoint is written.
    """
    with StopRequest(leads=fabric.is_global_zero) as stop:
        loop = _Loop(run, fabric, listener, stop)
        state = loop.train()
    run = loop.run
    if fabric.is_global_zero and state.best is None:  # nothing was validated: the last is the best
        write_weights(run.output / BEST, run.evaluated_model, replace(run.provenance, epoch=state.epochs))
    fabric.barrier()
    end_int8(run.model)
    load_weights(run.model, run.output / BEST)
    return state


class _Loop:
    """The epochs of one process."""

    def __init__(self, run: Run, fabric: Any, listener: ProgressListener, stop: StopRequest) -> None:
        recipe, task = run.recipe, run.task
        step = _Step(run.model, task)
        use_channels_last(step)
        if run.begun.epochs < recipe.epochs and isinstance(task, StartDependent):
            run.model.to(fabric.device)
            step.criterion.to(fabric.device)
            with stop.at_once():
                task.begin(run.model)
        optimizer = optimizer_of(step, recipe)
        average = AveragedWeights(run.model, recipe.ema_decay) if recipe.ema_decay else None
        self.run = run if average is None else replace(run, average=average)
        self._parts: dict[str, nn.Module] = {"model": run.model, "criterion": step.criterion}
        if average is not None:
            self._parts["average"] = average.model
        if run.begun.begun:
            read_state(run.output / LAST, self._parts, optimizer)
        self._wrapped, self._optimizer = fabric.setup(step, optimizer)
        if average is not None:
            average.model.to(fabric.device)
        self._fabric, self._listener, self._stop = fabric, listener, stop
        self._leads: bool = fabric.is_global_zero
        self._started = time.monotonic() - run.begun.seconds
        self._remaining = RemainingTime(recipe, task.steps_per_epoch, task)
        self._written_at = time.monotonic()
        self._written = run.begun.place if run.begun.begun else ""

    def train(self) -> TrainingState:
        """Train the epochs that are left; returns the state after the last one."""
        run, state = self.run, self.run.begun
        if run.recipe.epochs > state.epochs and isinstance(run.task, DataDependentStart):
            with self._stop.at_once():
                self._prepare(run.task, new=not state.begun)
        validates = run.recipe.epochs and run.recipe.validate_every
        if run.recipe.BEGINS_TRAINED and validates and not state.begun:
            state = self._start_validated(state)
        with TensorBoard(run.output, state, enabled=self._leads) as board:
            while state.epochs < run.recipe.epochs:
                state = self._epoch(state)
                if self._leads:
                    self._write(state)
                    write_log(run.output / LOG, state.history)
                    board.write(state.history[-1])
                    left_s = self._remaining.left_s(state.epochs, 0)
                    self._listener.epoch(state.history[-1], run.recipe.epochs, state.seconds, left_s)
                self._fabric.barrier()
                self._stop.raise_if_asked()
        return state

    def _start_validated(self, state: TrainingState) -> TrainingState:
        """Validate what the training begins with, and keep it until an epoch is better."""
        if self._leads:
            self._listener.note("validates the weights that it begins with")
            with self._stop.at_once():
                begun = replace(state, history=({"epoch": 0.0},))
                state = replace(state, best=validated(self.run, begun, self._listener).best)
            if state.best is not None:
                self._listener.note(f"they reach {state.best:.4g}, and are kept unless an epoch is better")
        self._fabric.barrier()
        return state

    def _prepare(self, task: DataDependentStart, *, new: bool) -> None:
        def progress(done: int, total: int) -> None:
            if self._leads:
                self._listener.stage("prepares the data", done, total)

        task.prepare(self.run.model, new=new, progress=progress)
        if new and self.run.average is not None:
            self.run.average.restart(self.run.model)

    def _epoch(self, state: TrainingState) -> TrainingState:
        """Train what is left of an epoch, and validate."""
        run, epoch = self.run, state.epochs
        state = self._steps(self._rounding(state))
        said = non_finite_state(self._parts, self._optimizer)
        if not _everywhere(self._fabric, not said):
            last_step = f"epoch {epoch + 1}, step {run.task.steps_per_epoch}"
            raise diverged(f"weights are not finite after {last_step}", said, checkpoint=self._written)
        sums = state.sums[self._fabric.global_rank]
        means = {name: total / run.task.steps_per_epoch for name, total in sums.items()}
        if self._fabric.world_size > 1:
            reduced = self._fabric.all_reduce(means, reduce_op="mean")
            means = {name: float(value) for name, value in reduced.items()}
        row = {"epoch": float(epoch + 1), **means, "learning_rate": run.recipe.rate(float(epoch))}
        finished = replace(state, epochs=epoch + 1, step=0, sums=(), history=(*state.history, row))
        if self._leads and self._remaining.validates_after(epoch + 1):
            self._before_validation(state)
            begun = time.monotonic()
            try:
                with self._stop.at_once():
                    finished = validated(run, finished, self._listener)
            except KeyboardInterrupt:
                self._write_in_time(state)
                raise
            self._remaining.validated(time.monotonic() - begun)
        return replace(finished, seconds=self._seconds())

    def _rounding(self, state: TrainingState) -> TrainingState:
        """Begin the epochs in INT8 when it is their turn: what float weights reached before does not compete."""
        run, first = self.run, max(0, self.run.recipe.epochs - self.run.recipe.int8_epochs)
        if not run.recipe.int8_epochs or state.epochs < first:
            return state
        rounding = begin_int8(run.model)
        if run.average is not None:
            begin_int8(run.average.model)
        if state.epochs > first or state.step:
            return state
        if self._leads:
            self._listener.note(f"{rounding} layers compute as in INT8 from here on; the best weights are theirs")
        return replace(state, best=None)

    def _steps(self, state: TrainingState) -> TrainingState:
        """Train the steps of an epoch that are left; the state's sums are this epoch's."""
        run, fabric = self.run, self._fabric
        steps, rank = run.task.steps_per_epoch, fabric.global_rank
        train_but_frozen(self._wrapped)
        sums = dict(state.sums[rank]) if state.step else {}
        since = time.monotonic()
        for number, batch in enumerate(_loaded(run, state.epochs, rank, first=state.step), state.step):
            terms = self._step(state.epochs, number, batch)
            for name, value in terms.items():
                sums[name] = sums.get(name, 0.0) + value
            now = time.monotonic()
            self._remaining.stepped(now - since, _images(batch))
            since = now
            if self._leads:
                left_s = self._remaining.left_s(state.epochs, number + 1)
                self._listener.step(
                    StepProgress(
                        epoch=state.epochs + 1,
                        epochs=run.recipe.epochs,
                        step=number + 1,
                        steps=steps,
                        loss=terms["loss"],
                        seconds=self._seconds(),
                        left_s=left_s,
                    )
                )
            asked = self._asked()
            if asked is not _Asked.NOTHING and (asked is _Asked.STOP or number + 1 < steps):
                partial = replace(state, step=number + 1, sums=_gathered(fabric, sums), seconds=self._seconds())
                if self._leads:
                    self._write_in_time(partial)
                if asked is _Asked.STOP:
                    self._end()
        return replace(state, step=steps, sums=_gathered(fabric, sums), seconds=self._seconds())

    def _step(self, epoch: int, number: int, batch: Batch) -> dict[str, float]:
        """One step of the optimiser; returns the loss and, where there are several, its terms."""
        run, recipe, fabric, optimizer = self.run, self.run.recipe, self._fabric, self._optimizer
        steps = run.task.steps_per_epoch
        # A model's own randomness, such as dropout, follows from seed and step, so that it need not be stored.
        torch.manual_seed(zlib.crc32(f"{run.provenance.seed} {epoch} {number} {fabric.global_rank}".encode()))
        rate = recipe.rate(epoch + number / steps)
        set_rate(optimizer, rate)
        if isinstance(run.model, StepDependentModel):
            run.model.begin_step(epoch * steps + number, epochs=epoch + number / steps)
        where = f"epoch {epoch + 1}, step {number + 1}"
        try:
            moved = fabric.to_device({name: _packed(tensor) for name, tensor in batch.items()})
            terms = self._wrapped(moved, epoch)
        except EdgevisError as error:  # some losses refuse NaN in their own words
            said = non_finite_state(self._parts, optimizer)
            if said or isinstance(error, NonFiniteError):  # weights that are finite, and too large
                raise self._diverged(f"the loss cannot be computed in {where}: {error}", said) from error
            raise
        loss = torch.stack(list(terms.values())).sum()
        if not _everywhere(fabric, bool(torch.isfinite(loss))):
            shown = ", ".join(f"{name} {term.item():g}" for name, term in terms.items())
            raise self._diverged(f"the loss is not finite in {where}: {shown}")
        optimizer.zero_grad(set_to_none=True)
        fabric.backward(loss)
        if recipe.clip_norm:
            norm = fabric.clip_gradients(self._wrapped, optimizer, max_norm=recipe.clip_norm, error_if_nonfinite=False)
            # A scaler of float16 looks for gradients beyond its range, and skips their step.
            scaled = getattr(fabric.strategy.precision, "scaler", None) is not None
            if not scaled and not _everywhere(fabric, bool(torch.isfinite(norm))):
                raise self._diverged(f"the gradient is not finite in {where}")
        optimizer.step()
        if run.average is not None:
            run.average.update(run.model, steps=epoch * steps + number + 1)
        shown_terms = {"loss": loss, **(terms if len(terms) > 1 else {})}
        return {name: term.item() for name, term in shown_terms.items()}

    def _diverged(self, what: str, said: str | None = None) -> TrainingError:
        found = non_finite_state(self._parts, self._optimizer) if said is None else said
        return diverged(what, found, checkpoint=self._written)

    def _seconds(self) -> float:
        return round(time.monotonic() - self._started, 3)

    def _write(self, state: TrainingState) -> None:
        write_state(self.run.output / LAST, self._parts, self._optimizer, state)
        self._written, self._written_at = state.place, time.monotonic()

    def _write_in_time(self, state: TrainingState) -> None:
        """Write a checkpoint within an epoch. If that fails, the former one stays, and the training goes on."""
        try:
            self._write(state)
        except (OSError, WeightsError) as error:  # weights that are not finite end the training a step later
            left = f"that of {self._written} stays" if self._written else "there is none yet"
            reason = error.strerror if isinstance(error, OSError) else error
            self._listener.note(f"the checkpoint of {state.place} was not written: {reason}; {left}")
            self._written_at = time.monotonic()

    def _before_validation(self, state: TrainingState) -> None:
        """Write a checkpoint where the validation would end more than the interval after the last one."""
        expected = self._remaining.validation_s or state.seconds / max(1, state.epochs + 1)
        if time.monotonic() - self._written_at + expected >= self.run.checkpoint_s:
            self._write_in_time(state)

    def _asked(self) -> _Asked:
        """What is to be done after this step; all processes are told the same."""
        asked = _Asked.NOTHING
        if self._leads and self._stop.number is not None:
            asked = _Asked.STOP
        elif self._leads and time.monotonic() - self._written_at >= self.run.checkpoint_s:
            asked = _Asked.CHECKPOINT
        if self._fabric.world_size == 1:
            return asked
        told = torch.tensor(float(asked.value), device=self._fabric.device)
        return _Asked(int(self._fabric.all_reduce(told, reduce_op="sum")))

    def _end(self) -> None:
        """End this process; the first one ends the others, which must not end by themselves before."""
        self._stop.raise_if_asked()
        signal.signal(signal.SIGTERM, signal.SIG_DFL)
        time.sleep(_WAIT_FOR_END_S)
        raise SystemExit(1)


class _Asked(enum.Enum):
    """What the first process asks all of them to do after a step."""

    NOTHING, CHECKPOINT, STOP = range(3)


def _gathered(fabric: Any, sums: Mapping[str, float]) -> tuple[Mapping[str, float], ...]:
    """The sums of each process."""
    if fabric.world_size == 1:
        return (dict(sums),)
    names = list(sums)
    table = torch.tensor([sums[name] for name in names], dtype=torch.float64, device=fabric.device)
    rows = fabric.all_gather(table).tolist()
    return tuple(dict(zip(names, row, strict=True)) for row in rows)


class _Step(nn.Module):
    """From a batch to the loss: one module with all that is trained, so that gradients of processes are averaged."""

    def __init__(self, model: nn.Module, task: TrainingTask) -> None:
        super().__init__()
        self.model = model
        self.criterion = task.criterion()
        self._task = task

    def forward(self, batch: Batch, epoch: int) -> dict[str, Tensor]:
        return self._task.loss(self.model, self.criterion, batch, epoch)


class _Batches(Dataset[Batch]):
    """The batches of one epoch by the number of their step."""

    def __init__(self, task: TrainingTask, epoch: int, rank: int) -> None:
        self._task, self._epoch, self._rank = task, epoch, rank

    def __len__(self) -> int:
        return self._task.steps_per_epoch

    def __getitem__(self, step: int) -> Batch:
        return self._task.batch(self._epoch, step, self._rank)


def _images(batch: Batch) -> int:
    """How many images a batch holds."""
    return sum(len(tensor) for tensor in batch.values() if tensor.ndim == 4 and tensor.shape[1] == 3)


def _everywhere(fabric: Any, holds: bool) -> bool:
    """Whether a condition holds in every process, so that no process ends alone while others wait for it."""
    if fabric.world_size == 1:
        return holds
    failed = fabric.all_reduce(torch.tensor(float(not holds), device=fabric.device), reduce_op="sum")
    return bool(failed == 0)


def _packed(tensor: Tensor) -> Tensor:
    """Maps with the channels of a pixel side by side, as convolutions want them; other tensors as they are."""
    return tensor.contiguous(memory_format=torch.channels_last) if tensor.ndim == 4 else tensor


def _loaded(run: Run, epoch: int, rank: int, *, first: int) -> Iterator[Batch]:
    batches = _Batches(run.task, epoch, rank)
    # batch_size=None: an item is a batch already. Workers are forked anew each epoch, so they hold no state.
    numbers = range(first, len(batches))
    return iter(DataLoader(batches, batch_size=None, sampler=numbers, num_workers=run.workers)) if numbers else iter(())


def validated(run: Run, state: TrainingState, listener: ProgressListener) -> TrainingState:
    """The state with validation figures in its last row; the weights are stored if they are the best.

    A figure that is no number is in no row, and is never the best.
    """
    epochs = state.epochs
    try:
        evaluation = evaluated(run.evaluated_model, run.task.validate)
    except TrainingError as error:
        raise TrainingError(f"in the validation after epoch {epochs}: {error}") from error
    if evaluation is None:
        return state
    values = {f"validation {name}": figure.value for name, figure in evaluation.figures.items()}
    figures = {name: value for name, value in values.items() if math.isfinite(value)}
    first, value = next(iter(values.items()))
    if first not in figures:
        listener.note(f"the {first} of epoch {epochs} is {value}: it cannot be the best")
    elif state.best is None or value > state.best:
        write_weights(run.output / BEST, run.evaluated_model, replace(run.provenance, epoch=epochs))
        state = replace(state, best=value)
    return replace(state, history=(*state.history[:-1], {**state.history[-1], **figures}))


def evaluated(model: nn.Module, evaluate: Any) -> Evaluation | None:
    """The result of ``evaluate`` on the model in evaluation mode, without gradients."""
    was_training = model.training
    model.eval()
    try:
        with torch.inference_mode():
            evaluation: Evaluation | None = evaluate(model)
    finally:
        model.train(was_training)
    return evaluation
