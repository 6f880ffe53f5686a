"""Accuracy after training: a paper's model, its baselines, and what a user would do instead.

    python -m benchmarks.accuracy few-shot --data grocery_dev.zip --published mobilenetv2_100.safetensors
    python -m benchmarks.accuracy reid --data pku_reid_dev.zip --published osnet_x0_25_msmt17.safetensors
    python -m benchmarks.accuracy few-shot-segmentation --data ccp_dev.zip --published mobilenetv2_100.safetensors
    python -m benchmarks.accuracy boxes --data hippocampus_dev.zip
    python -m benchmarks.accuracy boxes --data hippocampus_dev.zip --seeds 0 1 2 --set epochs=200
    python -m benchmarks.accuracy borders --data ccp_dev.zip --published mobilenetv2_100.safetensors --seeds 0 1 2
    python -m benchmarks.accuracy borders-enet --data nuclei_dev.zip --published edgevis/weights/enet.safetensors
    python -m benchmarks.accuracy reid-pairs --data pku_reid_dev.zip --published osnet_x0_25_msmt17.safetensors
    python -m benchmarks.new_camera pku_reid_dev.zip --camera 2 --output cameras
    python -m benchmarks.accuracy new-camera --data cameras/labelled --unlabelled cameras/unlabelled --seeds 0 1 2
    python -m benchmarks.accuracy assignment --data ccp_dev.zip --published mobilenetv2_100.safetensors --seeds 0 1 2
    edgevis train regnet --recipe moco --option variant=regnetx_002 --option side=64 --data frames/ --output runs/moco
    python -m benchmarks.accuracy pre-training --data classes.zip --published runs/moco/best.safetensors

Each variant of a comparison is one training (``edgevis.train``) with the same data, seed, budget and evaluation, in its
own folder below ``--output``. A variant that is finished is not trained again, one that was interrupted goes on;
``--only VARIANT`` trains one variant, so that several processes or machines can share the work. The table gives each
figure with its 95 % interval, and the difference to the first variant with its interval: both saw the same episodes,
persons or volumes (see ``edgevis.metrics.jackknife``). With several ``--seeds`` each variant is trained once for each,
in a folder of its own, and the intervals are over trainings: Student's t of their figures, and of the differences to
the first variant with the same seed.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal

from benchmarks.figure import Figure, figure_text
from benchmarks.report import report
from edgevis import EdgevisError, InputError, models
from edgevis.precision import TRAINING_PRECISIONS, training_precision
from edgevis.settings import setting
from edgevis.training.progress import ConsoleProgress
from edgevis.training.request import TrainingRequest
from edgevis.training.resume import REPORT
from edgevis.training.run import SAMPLES, train
from runtime.common.command import run_command
from runtime.common.json_data import parse_json


@dataclass(frozen=True, slots=True)
class Variant:
    """One training of a comparison.

    Attributes:
        name: Short; also its folder.
        model: A name in :mod:`edgevis.models`.
        options: The model's.
        values: Of its recipe, besides the comparison's.
        published: What the published file (``--published``) is to it: its own weights to begin with, its backbone's, or
            its teacher's, an OSNet; None where it begins at random, or with the weights that ship.
        unlabelled: Whether it also answers the pictures of ``--unlabelled``.
    """

    name: str
    model: str
    options: Mapping[str, int | str] = field(default_factory=dict)
    values: Mapping[str, Any] = field(default_factory=dict)
    published: Literal["weights", "backbone", "teacher"] | None = None
    unlabelled: bool = False


@dataclass(frozen=True, slots=True)
class Comparison:
    """A comparison: variants that are trained and measured in the same way.

    Attributes:
        variants: The first is what the others are compared with.
        values: Of every variant's recipe.
        recipe: Its name.
    """

    variants: tuple[Variant, ...]
    values: Mapping[str, Any] = field(default_factory=dict)
    recipe: str = "small"


@dataclass(frozen=True, slots=True)
class VariantRow:
    """One figure of one variant.

    Attributes:
        value: With several seeds the mean of the trainings.
        difference: To the same figure of the first variant, on the same units; None for the first.
        seconds: The training's; of several the sum.
    """

    variant: str
    parameters: int
    figure: str
    value: Figure
    difference: Figure | None
    epochs: int
    seconds: float


_TEACHER = "osnet-x0-25"
# MobileNetV2 up to where AFL-Net's branches part: no variant moves it.
_STEM = ("conv_stem", "bn1", "blocks.0", "blocks.1", "blocks.2", "blocks.3")
_SMALL_REGNET: Mapping[str, int | str] = {"variant": "regnetx_002", "side": 64}

COMPARISONS: Mapping[str, Comparison] = {
    "few-shot": Comparison(
        (
            Variant("fusion", "afl-net", {"backbone": "mobilenetv2"}, {"frozen": ["stem"]}, published="backbone"),
            Variant(
                "fusion-no-attention",
                "afl-net-no-attention",
                {"backbone": "mobilenetv2"},
                {"frozen": ["stem"]},
                published="backbone",
            ),
            Variant("global", "mobilenetv2", values={"loss": "global", "frozen": _STEM}, published="weights"),
            Variant("local", "mobilenetv2", values={"loss": "local", "frozen": _STEM}, published="weights"),
            Variant("published", "mobilenetv2", values={"epochs": 0}, published="weights"),
        ),
        {
            "mixed": True,
            "epochs": 8,
            "steps_per_epoch": 30,
            "optimizer": "adamw",
            "learning_rate": 2e-4,
            "weight_decay": 1e-4,
            "clip_norm": 0,
            "query": 5,
            "episodes_per_step": 2,
        },
    ),
    "reid": Comparison(
        (
            Variant("epri-net", "epri-net", {"height": 192}, published="teacher"),
            Variant("epri-net-baseline", "epri-net-baseline", {"height": 192}, published="teacher"),
            Variant("osnet-fine-tuned", "osnet-x0-25", published="weights"),
            Variant("osnet-published", "osnet-x0-25", values={"epochs": 0}, published="weights"),
        ),
        # EfficientNet-b0 begins at random here: what it learns, it learns from the teacher.
        {"epochs": 20, "distill_embedding": 20.0},
    ),
    "few-shot-segmentation": Comparison(
        tuple(
            Variant(masking, f"hsnet-{masking}", {"backbone": "mobilenetv2", "side": 129}, published="backbone")
            for masking in ("hm", "fm", "im")
        ),
        {"epochs": 12, "steps_per_epoch": 80, "test_episodes": 1000},
    ),
    "boxes": Comparison(
        tuple(
            Variant(name, "enet", {"side": 64}, values)
            for name, values in (
                ("boxes", {"supervision": "boxes"}),
                ("boxes-quasimax", {"supervision": "boxes", "smooth_max": "quasimax"}),
                ("mil", {"supervision": "mil"}),
                ("masks", {"supervision": "masks"}),
            )
        ),
        {"epochs": 20},
    ),
    "borders": Comparison(
        tuple(
            Variant(
                name,
                "pointrend",
                {"backbone": "mobilenetv2", "side": 192, "points": points},
                {"frozen": ["backbone"]},
                published="backbone",
            )
            for name, points in (("upsampled", 0), ("pointrend", 1024))
        ),
        {"epochs": 2, "warm_up_epochs": 0, "validate_every": 0, "learning_rate": 1e-3, "flip": False},
    ),
    "borders-enet": Comparison(
        tuple(
            Variant(name, "enet", {"in_channels": 3, "side": 128, "points": points}, published="weights")
            for name, points in (("full", 0), ("pointrend", 512))
        ),
        {"supervision": "masks", "epochs": 5, "warm_up_epochs": 0, "validate_every": 0},
    ),
    "reid-pairs": Comparison(
        (
            Variant("triplets", "osnet-x0-25", published="weights"),
            Variant("circle", "osnet-x0-25", values={"triplet_weight": 0.0, "circle_weight": 1.0}, published="weights"),
            Variant("both", "osnet-x0-25", values={"circle_weight": 1.0}, published="weights"),
        ),
        {"validate_every": 0, "epochs": 15, "steps_per_epoch": 4, "triplet_epochs": 2},
    ),
    "new-camera": Comparison(
        (
            Variant("without", "osnet-x0-25", published="weights"),
            Variant("nuclear-norm", "osnet-x0-25", published="weights", unlabelled=True),
        ),
        # Of one camera no person can be validated. Identities count from the first step on: the term needs them.
        {
            "validate_every": 0,
            "epochs": 15,
            "steps_per_epoch": 4,
            "triplet_epochs": 0,
            "unlabelled_batch": 64,
            "unlabelled_reduction": "mean",
        },
    ),
    "assignment": Comparison(
        tuple(
            Variant(
                name,
                "efficientdet-d0",
                {"backbone": "mobilenetv2", "size": 128, "num_classes": 1},
                {"assignment": name},
                published="backbone",
            )
            for name in ("iou", "atss")
        ),
        # The last weights are measured: what validates would choose between epochs by the figure that is compared.
        {"classes": "person", "epochs": 8, "steps_per_epoch": 60, "learning_rate": 1e-3, "validate_every": 0},
        recipe="fine-tune",
    ),
    "pre-training": Comparison(
        (
            Variant("random", "regnet", _SMALL_REGNET),
            Variant("pre-trained", "regnet", _SMALL_REGNET, published="weights"),
        ),
        {"epochs": 8, "steps_per_epoch": 30, "learning_rate": 5e-4, "episodes_per_step": 1},
    ),
}


def main(argv: Sequence[str] | None = None) -> int:
    """Train the missing variants, and print the comparison; returns the process's exit status."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.accuracy", description=__doc__)
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.add_argument("comparison", choices=tuple(COMPARISONS))
    parser.add_argument("--data", metavar="PATH", type=Path, required=True, help="as of edgevis.train")
    parser.add_argument(
        "--published", metavar="FILE", type=Path, help="published weights: a backbone's, a whole model's or a teacher's"
    )
    parser.add_argument(
        "--unlabelled", metavar="PATH", type=Path, help="new-camera: pictures without labels, as of edgevis.train"
    )
    parser.add_argument("--output", metavar="DIR", type=Path, help="(default: runs/COMPARISON)")
    parser.add_argument("--only", metavar="VARIANT", help="train this variant alone and print no table")
    parser.add_argument(
        "--set", metavar="KEY=VALUE", action="append", type=setting, default=[], help="another value for every variant"
    )
    parser.add_argument(
        "--option", metavar="NAME=VALUE", action="append", type=setting, default=[], help="of every variant's model"
    )
    seeds = parser.add_mutually_exclusive_group()
    seeds.add_argument("--seed", type=int, default=0)
    seeds.add_argument("--seeds", metavar="N", type=int, nargs="+", help="a training for each, in OUTPUT/seedN")
    parser.add_argument(
        "--precision",
        metavar="P",
        type=training_precision,
        default="fp32",
        help=f"{', '.join(TRAINING_PRECISIONS)}: of the arithmetic (default: fp32)",
    )
    parser.add_argument("--json", action="store_true", help="print JSON instead of a table")
    arguments = parser.parse_args(argv)
    output = arguments.output or Path("runs", arguments.comparison)
    try:
        comparison = COMPARISONS[arguments.comparison]
        trainings = {seed: output / f"seed{seed}" for seed in arguments.seeds or ()} or {arguments.seed: output}
        for seed, folder in trainings.items():
            for variant in _chosen(comparison, arguments.only):
                _train(variant, comparison, arguments, seed, folder / variant.name)
        if arguments.only is not None:
            return 0
    except (EdgevisError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    return report(
        lambda: over_trainings([_rows(comparison, folder) for folder in trainings.values()]),
        headers=("variant", "parameters", "figure", "value", "to the first", "epochs", "minutes"),
        cells=_cells,
        as_json=arguments.json,
    )


def _chosen(comparison: Comparison, only: str | None) -> tuple[Variant, ...]:
    names = [variant.name for variant in comparison.variants]
    if only is not None and only not in names:
        raise InputError(f"there is no variant {only!r}; allowed: {', '.join(names)}")
    return tuple(variant for variant in comparison.variants if only in (None, variant.name))


def over_trainings(rows: Sequence[Sequence[VariantRow]]) -> list[VariantRow]:
    """The rows of each training, all of one comparison, as one: means with intervals over the trainings."""
    if len(rows) == 1:
        return list(rows[0])
    together = []
    for row in zip(*rows, strict=True):
        differences = [one.difference.value for one in row if one.difference is not None]
        together.append(
            replace(
                row[0],
                value=Figure.mean_of([one.value.value for one in row]),
                difference=Figure.mean_of(differences) if differences else None,
                seconds=sum(one.seconds for one in row),
            )
        )
    return together


def _train(variant: Variant, comparison: Comparison, arguments: argparse.Namespace, seed: int, output: Path) -> None:
    if (output / REPORT).exists():
        return
    if variant.published is not None and arguments.published is None:
        raise InputError(f"the variant {variant.name!r} begins with published weights: name them with --published FILE")
    if variant.unlabelled and arguments.unlabelled is None:
        raise InputError(f"the variant {variant.name!r} answers pictures without labels: name them with --unlabelled")
    print(f"-- {variant.name}, seed {seed}", file=sys.stderr)
    request = TrainingRequest(
        model=variant.model,
        data=arguments.data,
        output=output,
        recipe=comparison.recipe,
        values={**comparison.values, **dict(arguments.set), **variant.values},
        options={**variant.options, **dict(arguments.option)},
        weights=arguments.published if variant.published == "weights" else None,
        backbone=arguments.published if variant.published == "backbone" else None,
        teacher=arguments.published if variant.published == "teacher" else None,
        teacher_model=_TEACHER if variant.published == "teacher" else None,
        unlabelled=arguments.unlabelled if variant.unlabelled else None,
        resume=True,
        seed=seed,
        precision=arguments.precision,
    )
    train(request, ConsoleProgress(sys.stderr, quiet=False))


def _rows(comparison: Comparison, output: Path) -> list[VariantRow]:
    first = _read(output / comparison.variants[0].name / SAMPLES)
    rows = []
    for number, variant in enumerate(comparison.variants):
        record, samples = _read(output / variant.name / REPORT), _read(output / variant.name / SAMPLES)
        parameters = models.parameters(models.module_from(models.entry(variant.model), record["options"]))
        for name, figure in record["evaluation"]["figures"].items():
            rows.append(
                VariantRow(
                    variant.name,
                    parameters,
                    name,
                    Figure.of(figure["value"], samples[name]),
                    Figure.difference(samples[name], first[name]) if number else None,
                    record["epochs"],
                    record["seconds"],
                )
            )
    return rows


def _read(path: Path) -> Any:
    return parse_json(path.read_bytes())


def _cells(row: VariantRow) -> tuple[str, ...]:
    return (
        row.variant,
        f"{row.parameters:,}",
        row.figure,
        figure_text(row.value),
        figure_text(row.difference, sign="+"),
        str(row.epochs),
        f"{row.seconds / 60:.1f}",
    )


if __name__ == "__main__":
    sys.exit(run_command(main))
