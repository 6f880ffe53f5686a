"""The figures of each epoch: ``log.csv``, and the same for TensorBoard."""

from __future__ import annotations

import csv
import io
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from edgevis.training.checkpoint import TrainingState
from runtime.common.files import atomic_write

LOG = "log.csv"


class TensorBoard:
    """Writes each epoch's figures for TensorBoard; rows after the checkpoint that a crash left are hidden."""

    def __init__(self, folder: Path, state: TrainingState, *, enabled: bool) -> None:
        self._writer: Any = None
        if enabled:
            import tensorboardX  # half a second that --help need not wait for

            self._writer = tensorboardX.SummaryWriter(str(folder), purge_step=state.epochs + 1)

    def __enter__(self) -> TensorBoard:
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


def write_log(path: Path, history: Sequence[Mapping[str, float]]) -> None:
    """Rewrite all rows, so that after a crash none is duplicated or newer than the checkpoint."""
    names = list(dict.fromkeys(name for row in history for name in row))
    text = io.StringIO()
    writer = csv.DictWriter(text, names, restval="", lineterminator="\n")
    writer.writeheader()
    writer.writerows({name: f"{value:.9g}" for name, value in row.items()} for row in history)
    with atomic_write(path) as file:
        file.write(text.getvalue().encode())
