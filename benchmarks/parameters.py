"""Every model's parameters beside what its paper prints, and its arithmetic: ``python -m benchmarks.parameters``.

Floating-point operations are PyTorch's count of the graph's convolutions and matrix products, a multiplication and an
addition being two; they are counted on shapes alone, so that nothing is computed.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch

from benchmarks.report import report
from edgevis import models
from edgevis.flops import graph_flops
from edgevis.layers.regnet import DESIGNS
from edgevis.models import ModelEntry
from edgevis.models.regnet import VARIANT
from runtime.common.text import markdown_table

# What a model's options offer besides its default build: other backbones and data sets.
VARIANTS: Mapping[str, Sequence[Mapping[str, int | str]]] = {
    "feat": ({"backbone": "resnet12"}, {"backbone": "mobilenetv2"}, {"backbone": "efficientnet-lite0"}),
    "afl-net": ({"backbone": "mobilenetv2"}, {"backbone": "efficientnet-lite0"}),
    "hsnet-hm": ({"backbone": "resnet101"},),
    "vat-hm": (
        {"backbone": "resnet101"},
        {"variant": "coco"},
        {"variant": "coco", "backbone": "resnet101"},
        {"variant": "fss"},
        {"variant": "fss", "backbone": "resnet101"},
    ),
    "asnet-hm": ({"backbone": "resnet101"},),
    "efficientdet-d0": (
        {"variant": "tf"},
        {"backbone": "efficientnet-lite0"},
        {"backbone": "mobilenetv2"},
        {"backbone": "ghostnet"},
        {"backbone": "regnetx_004"},
    ),
    "pointrend": ({"backbone": "mobilenetv2"},),
    "polarmask": ({"backbone": "regnetx_004"}, {"channels": 256, "tower": 4}),
    "regnet": tuple({"variant": name} for name in DESIGNS if name != VARIANT),
}
# The same model by another name.
ALIASES = frozenset({"hsnet"})
HEADERS = ("model", "total", "trainable", "without classifier", "paper prints", "difference", "GFLOPs")


@dataclass(frozen=True, slots=True)
class Count:
    """The parameters and arithmetic of one model: a row of the table.

    Attributes:
        model: The name, and options that are not the default ones.
        task: The task's name.
        total, trainable, without_classifier: Parameters; see :class:`edgevis.models.ParameterCounts`.
        printed: The paper's number; None where it prints none.
        printed_in: The place in the paper.
        difference: The count here less the printed number, of what the paper counts.
        gflops: Of one image, graph by graph; few-shot segmentation runs ``support`` when it enrols a shot and
            ``query`` on each frame, with one shot; ``adapt`` is run when labels change, here with one label.
        input: The image's shape.
    """

    model: str
    task: str
    total: int
    trainable: int
    without_classifier: int
    printed: str | None
    printed_in: str | None
    difference: int | None
    gflops: dict[str, float]
    input: tuple[int | str, ...]


def main(argv: Sequence[str] | None = None) -> int:
    """Count, print and, with ``--output``, save."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.parameters", description=__doc__)
    parser.add_argument("--model", metavar="NAME", action="append", help="only this one; may be repeated")
    parser.add_argument("--output", metavar="DIR", type=Path, help="also write parameters.md and parameters.json there")
    parser.add_argument("--json", action="store_true", help="print JSON instead of a table")
    arguments = parser.parse_args(argv)
    return report(
        lambda: counted(arguments.model or [name for name in models.names() if name not in ALIASES]),
        headers=HEADERS,
        cells=_cells,
        as_json=arguments.json,
        files=arguments.output and arguments.output / "parameters",
    )


def counted(names: Sequence[str]) -> list[Count]:
    """The rows of these models, each followed by its variants."""
    return [count_of(models.entry(name), options) for name in names for options in ({}, *VARIANTS.get(name, ()))]


def markdown(counts: Sequence[Count]) -> str:
    """The table as the README shows it."""
    return markdown_table(HEADERS, [_cells(count) for count in counts])


def count_of(entry: ModelEntry, options: Mapping[str, int | str]) -> Count:
    """The row of one model, built on PyTorch's ``meta`` device, which has shapes and no memory."""
    with torch.device("meta"):
        module = models.module_from(entry, options)
    module = module.to("meta")
    counts = models.parameter_counts(entry, module)
    deployment = models.deployment_of(entry, module)
    printed = entry.printed if not options else None
    ours = {
        "total": counts.total,
        "without classifier": counts.without_classifier,
        "trainable": counts.trainable,
    }
    return Count(
        model=" ".join([entry.name, *(f"{key}={value}" for key, value in options.items())]),
        task=deployment.task,
        total=counts.total,
        trainable=counts.trainable,
        without_classifier=counts.without_classifier,
        printed=printed.text if printed else None,
        printed_in=printed.source if printed else None,
        difference=ours[printed.counted] - printed.parameters if printed else None,
        gflops={graph.name: round(graph_flops(module, graph) / 1e9, 3) for graph in deployment.graphs},
        input=deployment.preprocess.input.shape,
    )


def _cells(count: Count) -> tuple[str, ...]:
    return (
        count.model,
        f"{count.total:,}",
        f"{count.trainable:,}",
        f"{count.without_classifier:,}",
        f"{count.printed} ({count.printed_in})" if count.printed else "–",
        "–" if count.difference is None else f"{count.difference:+,}",
        ", ".join(f"{graph} {value:.2f}" for graph, value in count.gflops.items()),
    )


if __name__ == "__main__":
    sys.exit(main())
