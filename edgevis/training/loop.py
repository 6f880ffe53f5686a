"""Epochs: batches, steps, validation, checkpoints. Precision, devices and processes are Lightning Fabric's.

A training's folder::

    OUTPUT/
      last.safetensors      everything that it needs to go on, after each epoch
      best.safetensors      the weights that validated best, in float32, with their provenance
      data.csv              the SHA-256 of each file of the data
      log.csv               a row for each epoch
      events.out.*          the same for TensorBoard
"""

from __future__ import annotations

import csv
import io
import math
import time
import zlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn, optim
from torch.utils.data import DataLoader, Dataset

from edgevis.models import load_weights
from edgevis.models.recipe import Recipe
from edgevis.provenance import Provenance
from edgevis.training.average import AveragedWeights
from edgevis.training.checkpoint import TrainingState, read_state, write_state, write_weights
from edgevis.training.finite import TrainingError, diverged, non_finite_state
from edgevis.training.freeze import train_but_frozen
from edgevis.training.memory import use_channels_last
from edgevis.training.progress import ProgressListener
from edgevis.training.resume import BEST, LAST
from edgevis.training.task import Batch, DataDependentStart, Evaluation, StartDependent, TrainingTask
from runtime.common.files import atomic_write
from runtime.errors import EdgevisError

LOG = "log.csv"


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
    """

    model: nn.Module
    task: TrainingTask
    recipe: Recipe
    provenance: Provenance
    output: Path
    begun: TrainingState
    workers: int = 0
    average: AveragedWeights | None = None

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
    """
    recipe, task = run.recipe, run.task
    step = _Step(run.model, task)
    use_channels_last(step)
    state = run.begun
    if state.epochs < recipe.epochs and isinstance(task, StartDependent):
        run.model.to(fabric.device)
        step.criterion.to(fabric.device)
        task.begin(run.model)
    optimizer = _optimizer(step, recipe)
    average = AveragedWeights(run.model, recipe.ema_decay) if recipe.ema_decay else None
    parts = {"model": run.model, "criterion": step.criterion, **({} if average is None else {"average": average.model})}
    if state.epochs:
        read_state(run.output / LAST, parts, optimizer)
    wrapped, prepared = fabric.setup(step, optimizer)
    if average is not None:
        average.model.to(fabric.device)
    if not state.epochs and recipe.epochs and isinstance(task, DataDependentStart):
        task.prepare(run.model)
        if average is not None:
            average.restart(run.model)
    run = run if average is None else replace(run, average=average)
    started = time.monotonic() - state.seconds
    with _TensorBoard(run.output, state, enabled=fabric.is_global_zero) as board:
        for epoch in range(state.epochs, recipe.epochs):
            # A model's own randomness, such as dropout, follows from seed and epoch, so that it need not be stored.
            torch.manual_seed(zlib.crc32(f"{run.provenance.seed} {epoch} {fabric.global_rank}".encode()))
            means = _epoch(run, epoch, wrapped, prepared, fabric, listener, parts)
            said = non_finite_state(parts, optimizer)
            if not _everywhere(fabric, not said):
                last_step = f"epoch {epoch + 1}, step {task.steps_per_epoch}"
                raise diverged(f"weights are not finite after {last_step}", said, epoch=epoch)
            row = {"epoch": float(epoch + 1), **means}
            state = replace(state, epochs=epoch + 1, history=(*state.history, row))
            state = validated(run, state, fabric, listener)
            state = replace(state, seconds=round(time.monotonic() - started, 3))
            if fabric.is_global_zero:
                write_state(run.output / LAST, parts, optimizer, state)
                _write_log(run.output / LOG, state.history)
                board.write(state.history[-1])
                listener.epoch(state.history[-1], recipe.epochs, state.seconds)
            fabric.barrier()
    if fabric.is_global_zero and state.best is None:  # nothing was validated: the last is the best
        write_weights(run.output / BEST, run.evaluated_model, replace(run.provenance, epoch=state.epochs))
    fabric.barrier()
    load_weights(run.model, run.output / BEST)
    return state


class _TensorBoard:
    """Writes each epoch's figures for TensorBoard; rows after the checkpoint that a crash left are hidden."""

    def __init__(self, folder: Path, state: TrainingState, *, enabled: bool) -> None:
        self._writer: Any = None
        if enabled:
            import tensorboardX  # half a second that --help need not wait for

            self._writer = tensorboardX.SummaryWriter(str(folder), purge_step=state.epochs + 1)

    def __enter__(self) -> _TensorBoard:
        return self

    def __exit__(self, *_: object) -> None:
        if self._writer is not None:
            self._writer.close()

    def write(self, row: Mapping[str, float]) -> None:
        if self._writer is not None:
            for name, value in row.items():
                if name != "epoch":
                    self._writer.add_scalar(name.replace(" ", "/", 1), value, int(row["epoch"]))
            self._writer.flush()


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


def _optimizer(step: nn.Module, recipe: Recipe) -> optim.Optimizer:
    trained: list[Any] = [parameter for parameter in step.parameters() if parameter.requires_grad]
    if not recipe.decay_vectors:
        matrices = [parameter for parameter in trained if parameter.ndim > 1]
        vectors = [parameter for parameter in trained if parameter.ndim <= 1]
        trained = [{"params": matrices}, {"params": vectors, "weight_decay": 0.0}]
    betas = (recipe.momentum, recipe.adam_beta2)
    if recipe.optimizer == "sgd":
        return optim.SGD(trained, recipe.learning_rate, momentum=recipe.momentum, weight_decay=recipe.weight_decay)
    kind = optim.Adam if recipe.optimizer == "adam" else optim.AdamW
    return kind(trained, recipe.learning_rate, betas=betas, weight_decay=recipe.weight_decay)


def _epoch(
    run: Run,
    epoch: int,
    wrapped: Any,
    optimizer: Any,
    fabric: Any,
    listener: ProgressListener,
    parts: Mapping[str, nn.Module],
) -> dict[str, float]:
    """Train one epoch; returns the means of the loss's terms."""
    recipe, steps = run.recipe, run.task.steps_per_epoch
    train_but_frozen(wrapped)
    sums: dict[str, float] = {}
    for number, batch in enumerate(_loaded(run, epoch, fabric.global_rank)):
        rate = recipe.rate(epoch + number / steps)
        for group in optimizer.param_groups:
            group["lr"] = rate
        where = f"epoch {epoch + 1}, step {number + 1}"
        try:
            terms = wrapped(fabric.to_device({name: _packed(tensor) for name, tensor in batch.items()}), epoch)
        except EdgevisError as error:  # some losses refuse NaN in their own words
            if said := non_finite_state(parts, optimizer):
                raise diverged(f"the loss cannot be computed in {where}: {error}", said, epoch=epoch) from error
            raise
        loss = torch.stack(list(terms.values())).sum()
        if not _everywhere(fabric, bool(torch.isfinite(loss))):
            shown = ", ".join(f"{name} {term.item():g}" for name, term in terms.items())
            said = non_finite_state(parts, optimizer)
            raise diverged(f"the loss is not finite in {where}: {shown}", said, epoch=epoch)
        optimizer.zero_grad(set_to_none=True)
        fabric.backward(loss)
        if recipe.clip_norm:
            norm = fabric.clip_gradients(wrapped, optimizer, max_norm=recipe.clip_norm, error_if_nonfinite=False)
            # A scaler of float16 looks for gradients beyond its range, and skips their step.
            scaled = getattr(fabric.strategy.precision, "scaler", None) is not None
            if not scaled and not _everywhere(fabric, bool(torch.isfinite(norm))):
                said = non_finite_state(parts, optimizer)
                raise diverged(f"the gradient is not finite in {where}", said, epoch=epoch)
        optimizer.step()
        if run.average is not None:
            run.average.update(run.model, steps=epoch * steps + number + 1)
        for name, term in {"loss": loss, **(terms if len(terms) > 1 else {})}.items():
            sums[name] = sums.get(name, 0.0) + term.item()
        if fabric.is_global_zero:
            listener.step(epoch, number + 1, steps, loss.item())
    means = {name: total / steps for name, total in sums.items()}
    if fabric.world_size > 1:
        means = {name: float(value) for name, value in fabric.all_reduce(means, reduce_op="mean").items()}
    return {**means, "learning_rate": recipe.rate(float(epoch))}


def _everywhere(fabric: Any, holds: bool) -> bool:
    """Whether a condition holds in every process, so that no process ends alone while others wait for it."""
    if fabric.world_size == 1:
        return holds
    failed = fabric.all_reduce(torch.tensor(float(not holds), device=fabric.device), reduce_op="sum")
    return bool(failed == 0)


def _packed(tensor: Tensor) -> Tensor:
    """Maps with the channels of a pixel side by side, as convolutions want them; other tensors as they are."""
    return tensor.contiguous(memory_format=torch.channels_last) if tensor.ndim == 4 else tensor


def _loaded(run: Run, epoch: int, rank: int) -> Iterator[Batch]:
    batches = _Batches(run.task, epoch, rank)
    # batch_size=None: an item is a batch already. Workers are forked anew each epoch, so they hold no state.
    return iter(DataLoader(batches, batch_size=None, num_workers=run.workers))


def validated(run: Run, state: TrainingState, fabric: Any, listener: ProgressListener) -> TrainingState:
    """The state with validation figures in its last row; the weights are stored if they are the best.

    A figure that is no number is in no row, and is never the best.
    """
    every, epochs = run.recipe.validate_every, state.epochs
    if not every or not (epochs % every == 0 or epochs == run.recipe.epochs):
        return state
    if fabric.is_global_zero:
        try:
            evaluation = evaluated(run.evaluated_model, run.task.validate)
        except TrainingError as error:
            raise TrainingError(f"in the validation after epoch {epochs}: {error}") from error
        if evaluation is not None:
            values = {f"validation {name}": figure.value for name, figure in evaluation.figures.items()}
            figures = {name: value for name, value in values.items() if math.isfinite(value)}
            first, value = next(iter(values.items()))
            if first not in figures:
                listener.note(f"the {first} of epoch {epochs} is {value}: it cannot be the best")
            elif state.best is None or value > state.best:
                write_weights(run.output / BEST, run.evaluated_model, replace(run.provenance, epoch=epochs))
                state = replace(state, best=value)
            state = replace(state, history=(*state.history[:-1], {**state.history[-1], **figures}))
    return state


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


def _write_log(path: Path, history: Sequence[Mapping[str, float]]) -> None:
    """Rewrite all rows, so that after a crash none is duplicated or newer than the checkpoint."""
    names = list(dict.fromkeys(name for row in history for name in row))
    text = io.StringIO()
    writer = csv.DictWriter(text, names, restval="", lineterminator="\n")
    writer.writeheader()
    writer.writerows({name: f"{value:.9g}" for name, value in row.items()} for row in history)
    with atomic_write(path) as file:
        file.write(text.getvalue().encode())
