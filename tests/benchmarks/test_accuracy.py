"""``python -m benchmarks.accuracy``: variants trained alike, measured on the same images, and compared."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch

from benchmarks.accuracy import COMPARISONS, main
from edgevis import models

from training_data import write_masks

pytestmark = pytest.mark.torch


def test_arms_are_trained_once_and_compared_on_the_same_images(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    data, output = write_masks(tmp_path / "data"), tmp_path / "variants"
    arguments = ["boxes", "--data", str(data), "--output", str(output), "--json"]
    arguments += ["--set", "epochs=1", "--set", "steps_per_epoch=1", "--set", "batch=2"]
    assert main([*arguments, "--only", "mil"]) == 0
    assert [folder.name for folder in output.iterdir()] == ["mil"]
    written = (output / "mil" / "report.json").stat().st_mtime_ns
    capsys.readouterr()
    assert main(arguments) == 0
    assert (output / "mil" / "report.json").stat().st_mtime_ns == written
    figures = json.loads(capsys.readouterr().out)
    assert [row["figure"] for row in figures[:3]] == ["Dice", "IoU", "boundary IoU"]
    rows = [row for row in figures if row["figure"] == "Dice"]
    assert [row["variant"] for row in rows] == [variant.name for variant in COMPARISONS["boxes"].variants]
    assert rows[0]["difference"] is None
    samples = [json.loads((output / row["variant"] / "samples.json").read_text())["Dice"] for row in rows]
    for row, own in zip(rows[1:], samples[1:], strict=True):
        assert row["difference"][0] == pytest.approx(np.mean(own) - np.mean(samples[0]), abs=1e-9)
        assert row["parameters"] == models.parameters(models.create("enet"))
        assert row["value"][0] == pytest.approx(np.mean(own))


def test_several_trainings_have_intervals_over_themselves(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    data, output = write_masks(tmp_path / "data"), tmp_path / "variants"
    arguments = ["boxes", "--data", str(data), "--output", str(output), "--json", "--seeds", "3", "4"]
    assert main([*arguments, "--set", "epochs=1", "--set", "steps_per_epoch=1", "--set", "batch=2"]) == 0
    rows = {row["variant"]: row for row in json.loads(capsys.readouterr().out) if row["figure"] == "Dice"}

    def dice(seed: int, variant: str) -> float:
        report = json.loads((output / f"seed{seed}" / variant / "report.json").read_text())
        assert report["seed"] == seed
        value: float = report["evaluation"]["figures"]["Dice"]["value"]
        return value

    values = [dice(seed, "mil") for seed in (3, 4)]
    differences = [value - dice(seed, "boxes") for seed, value in zip((3, 4), values, strict=True)]
    quantile = 12.706  # of Student's t with one degree of freedom
    for name, expected in (("value", values), ("difference", differences)):
        half_width = quantile * abs(expected[0] - expected[1]) / 2
        assert rows["mil"][name] == pytest.approx([np.mean(expected), half_width], rel=1e-3)
    assert rows["boxes"]["difference"] is None


@pytest.mark.parametrize("name", COMPARISONS)
def test_every_variant_can_be_trained(name: str) -> None:
    comparison = COMPARISONS[name]
    for variant in comparison.variants:
        entry = models.entry(variant.model)
        recipe = entry.recipes[comparison.recipe].with_values({**comparison.values, **variant.values})
        assert recipe.epochs == {**comparison.values, **variant.values}["epochs"]
        with torch.device("meta"):
            assert models.parameters(models.module_from(entry, variant.options)) > 0


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["boxes", "--only", "best"], "there is no variant 'best'; allowed: boxes, boxes-quasimax, mil, masks"),
        (
            ["few-shot", "--only", "global"],
            "the variant 'global' begins with published weights: name them with --published",
        ),
    ],
)
def test_what_is_missing_is_said(
    arguments: list[str], message: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main([*arguments, "--data", str(tmp_path), "--output", str(tmp_path / "variants")]) == 1
    assert message in capsys.readouterr().err
