"""Whether box fit ranks the epochs of a training as Dice does: ``python -m benchmarks.box_fit --data nuclei_dev.zip``.

ENet learns from boxes. After each epoch the images set aside are measured twice: by box fit, which sees their boxes
alone and chooses the checkpoint, and by Dice, which sees their masks and decides nothing. Above the table is Spearman's
rank correlation of both over the epochs.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from benchmarks.report import report
from edgevis import InputError, models
from edgevis.settings import setting
from edgevis.training.progress import ConsoleProgress


@dataclass(frozen=True, slots=True)
class EpochFigures:
    """The figures of one epoch of the training.

    Attributes:
        epoch: From 1.
        box_fit, dice: Of the images set aside, 0 to 1.
        correlation: Spearman's, over all epochs, -1 to 1; None where one of them is the same in all.
    """

    epoch: int
    box_fit: float
    dice: float
    correlation: float | None = None


def measured(
    data: Path, *, values: Mapping[str, Any], options: Mapping[str, int | str], seed: int = 0, quiet: bool = False
) -> list[EpochFigures]:
    """Train, and return the figures of each epoch.

    Args:
        data: As of ``edgevis.train`` for the task ``segment``.
        values: Of ENet's recipe ``small``.
        options: Of ENet.
        seed: Of weights, batches and splits.
        quiet: Whether to print no line for each epoch to standard error.

    Raises:
        EdgevisError: The message says what is wrong.
    """
    import torch
    from lightning_fabric import Fabric

    from edgevis.provenance import Provenance
    from edgevis.training.checkpoint import TrainingState
    from edgevis.training.loop import Run, evaluated, fit
    from edgevis.training.task import TaskRequest
    from edgevis.training.tasks.segment import training_task
    from runtime.common.json_data import to_json

    entry = models.entry("enet")
    recipe = entry.recipes["small"].with_values({"supervision": "boxes", **values})
    torch.manual_seed(seed)
    model = models.module_from(entry, options)
    deployment = models.deployment_of(entry, model)
    boxes, masks = (
        training_task(TaskRequest(data, recipe.with_values(changed), deployment, options, seed))
        for changed in ({}, {"supervision": "masks"})  # the same images are set aside
    )
    epochs: list[EpochFigures] = []

    class Witness(ConsoleProgress):
        """Measures Dice after each epoch on masks, which a training from boxes does not see."""

        def epoch(self, row: Mapping[str, float], epochs_: int, seconds: float, left_s: float) -> None:
            evaluation = evaluated(model, masks.validate)
            if evaluation is None:
                raise InputError(f"no image of {data} is set aside; allowed: held_out above 0, and more images")
            dice = evaluation.figures["Dice"].value
            epochs.append(EpochFigures(int(row["epoch"]), row["validation box fit"], dice))
            super().epoch({**row, "Dice": dice}, epochs_, seconds, left_s)

    with tempfile.TemporaryDirectory() as output:
        provenance = Provenance(entry.name, options, to_json(recipe), dict(boxes.data), seed, 0, None)
        run = Run(model, boxes, recipe, provenance, Path(output), TrainingState({}, 0, 0.0, None, ()))
        fit(run, Fabric(accelerator="cpu", devices=1), Witness(sys.stderr, quiet=quiet))
    correlation = rank_correlation([item.box_fit for item in epochs], [item.dice for item in epochs])
    return [replace(item, correlation=correlation) for item in epochs]


def rank_correlation(one: ArrayLike, other: ArrayLike) -> float | None:
    """Spearman's rank correlation: Pearson's of the ranks, ties sharing their mean; None if all values are equal.

    Args:
        one, other: (n,) numbers.
    """
    ranks = [_ranks(np.asarray(values, np.float64)) for values in (one, other)]
    if any(len(set(part.tolist())) < 2 for part in ranks):
        return None
    return float(np.corrcoef(ranks[0], ranks[1])[0, 1])


def _ranks(values: NDArray[np.float64]) -> NDArray[np.float64]:
    below, equal = (relation(values, values[:, None]).sum(1) for relation in (np.less, np.equal))
    return np.asarray(below + (equal - 1) / 2, np.float64)


def main(argv: Sequence[str] | None = None) -> int:
    """Print a row for each epoch; an EdgevisError becomes one line and exit status 1."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.box_fit", description=(__doc__ or "").partition("\n")[0]
    )
    parser.add_argument("--data", metavar="PATH", type=Path, required=True, help="as of edgevis.train")
    parser.add_argument(
        "--option", metavar="KEY=VALUE", action="append", type=setting, default=[], help="of ENet, such as side=128"
    )
    parser.add_argument(
        "--set", metavar="KEY=VALUE", action="append", type=setting, default=[], help="another value of the recipe"
    )
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--json", action="store_true", help="print JSON instead of a table")
    arguments = parser.parse_args(argv)
    return report(
        lambda: measured(
            arguments.data,
            values=dict(arguments.set),
            options=dict(arguments.option),
            seed=arguments.seed,
            quiet=arguments.json,
        ),
        headers=("epoch", "box fit", "Dice"),
        cells=lambda row: (str(row.epoch), f"{row.box_fit:.3f}", f"{row.dice:.3f}"),
        as_json=arguments.json,
        title=_title,
    )


def _title(first: EpochFigures) -> str:
    if first.correlation is None:
        return "no rank correlation: one of both is the same in all epochs"
    return f"Spearman's rank correlation of box fit and Dice: {first.correlation:.3f}"


if __name__ == "__main__":
    sys.exit(main())
