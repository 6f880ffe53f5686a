"""Measuring weights for open-set identification, and what a benchmark makes of it."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest

from benchmarks import open_set as benchmark
from edgevis import InputError, Predictor, WeightsError, models
from edgevis.open_set.__main__ import main
from edgevis.open_set.embeddings import Part
from edgevis.open_set.enrolments import Drawn, Scene, StrangersBy, draws, selections
from edgevis.open_set.fit import RATES, fit, same_cosine
from edgevis.open_set.sidecar import SHIPPED, read_sidecar, sidecar_of, weights_digest, write_sidecar
from edgevis.open_set.space import space_of, whitening_of
from edgevis.provenance import Provenance
from edgevis.training.checkpoint import write_weights
from runtime.common.arrays import unit_rows, write_arrays
from runtime.open_set.space import space_from

from bundles import Tiny, picture, write_tiny_bundle

pytestmark = pytest.mark.torch

DIMENSION = 24


def scene(labels: int = 24, images: int = 8, *, cameras: int = 1, noise: float = 0.7, seed: int = 0) -> Scene:
    """Persons as directions; a camera adds one of its own to all, and its images vary most along another."""
    random = np.random.default_rng(seed)
    centres = random.standard_normal((labels, DIMENSION))
    nuisance = random.standard_normal((4, DIMENSION))
    rows, owners, seen = [], [], []
    for label in range(labels):
        for camera in range(cameras):
            for _ in range(images):
                own = noise * random.standard_normal(DIMENSION) + 1.5 * random.standard_normal(4) @ nuisance
                rows.append(centres[label] + own + 2 * camera * nuisance[0])
                owners.append(label)
                seen.append(camera)
    camera_of = np.array(seen) if cameras > 1 else None
    return Scene(f"scene {seed}", unit_rows(np.array(rows)), np.array(owners), camera_of)


def tpir(items: list[Drawn], rate: float) -> float:
    return float(np.mean([item.tpir(item.threshold(rate)) for item in items]))


def test_whitening_makes_the_covariance_within_labels_round() -> None:
    found = scene()
    mean, whitening = whitening_of(found.rows, found.labels, 0.0)
    rows = (found.rows - mean) @ whitening
    within = np.concatenate(
        [rows[found.labels == label] - rows[found.labels == label].mean(axis=0) for label in range(24)]
    )
    covariance = within.T @ within / len(within)
    np.testing.assert_allclose(covariance, np.eye(DIMENSION) * covariance.trace() / DIMENSION, atol=1e-3)


def test_a_space_recognises_more_at_the_same_rate() -> None:
    """Fitted to other labels than those that are asked."""
    both = scene(seed=1, labels=48)
    background, asked = both.only(np.arange(24)), both.only(np.arange(24, 48))
    space = space_of(background.rows, background.labels, shrink=0.1, neighbours=5, strength=0.5, cohort=16)
    plain, spaced = (
        list(draws(asked, used, "prototype", labels=8, images=4, count=20, seed=0)) for used in (None, space)
    )
    assert tpir(spaced, 0.05) > tpir(plain, 0.05) + 0.1


@pytest.mark.parametrize(("cameras", "strangers_by"), [(1, "other"), (2, "other"), (2, "same"), (2, "any")])
def test_whom_an_enrolment_takes(cameras: int, strangers_by: StrangersBy) -> None:
    found = replace(scene(cameras=cameras), strangers_by=strangers_by)
    for chosen in selections(found, labels=5, images=3, count=4, seed=2):
        assert len(chosen.enrolled) == 5
        assert chosen.counts.tolist() == [3] * 5
        assert found.labels[chosen.positions].tolist() == np.repeat(chosen.enrolled, 3).tolist()
        assert set(found.labels[chosen.queries]) == set(chosen.enrolled)
        assert not set(found.labels[chosen.strangers]) & set(chosen.enrolled)
        assert not set(chosen.positions) & {*chosen.queries, *chosen.strangers}
        if found.cameras is not None:
            assert len(set(found.cameras[chosen.positions])) == 1
            assert not set(found.cameras[chosen.positions]) & set(found.cameras[chosen.queries])
            own = set(found.cameras[chosen.positions])
            by = {"other": {0, 1} - own, "same": own, "any": {0, 1}}
            assert set(found.cameras[chosen.strangers]) == by[strangers_by]
    assert not list(selections(found, labels=21, images=3, count=4, seed=2))


def test_estimated_thresholds_keep_their_rates_on_other_labels() -> None:
    scenes = [scene(seed=3), scene(seed=4, noise=0.5)]
    statistics = fit(scenes, None, "prototype", same=same_cosine(scenes, None), source="a test")
    assert statistics.rates == RATES
    for rate in (0.05, 0.1):
        realised = []
        for other in (scene(seed=5), scene(seed=6, noise=0.5)):
            for item in draws(other, None, "prototype", labels=5, images=4, count=30, seed=1):
                threshold = statistics.threshold(item.features, rate)
                assert threshold is not None
                realised.append(item.fpir(threshold))
        assert rate / 2 < np.mean(realised) < 2 * rate
    measured = [item for item in statistics.measured if item.rate == 0.05]
    assert measured
    assert all(item.fpir_low <= item.fpir <= item.fpir_high for item in measured)


def test_a_sidecar_is_found_by_what_it_was_measured_on(tmp_path: Path) -> None:
    digest = "ab" * 32
    found = scene()
    space = space_of(found.rows, found.labels, shrink=None, neighbours=3, strength=0.5, cohort=8)
    header = read_sidecar(next(SHIPPED.glob("efficientnet-lite0.*"))).header
    path = tmp_path / "w.open_set.npz"
    write_sidecar(path, header, space)
    again = read_sidecar(path)
    assert again.header == header
    assert space_from(again.arrays, DIMENSION, "a test").digest == space.digest
    assert sidecar_of(digest, None) is None
    assert sidecar_of(header.weights_sha256, tmp_path / "w.safetensors") is not None
    with pytest.raises(WeightsError, match="was measured on other weights"):
        sidecar_of(digest, tmp_path / "w.safetensors")
    write_arrays(path, {"mean": np.zeros(3)})
    with pytest.raises(WeightsError, match="has no header"):
        read_sidecar(path)


@pytest.mark.parametrize("name", ["osnet-x0-25", "osnet-in-x0-5", "efficientnet-lite0"])
def test_the_weights_that_ship_were_measured(name: str) -> None:
    declared = models.entry(name)
    weights = models.shipped_weights(declared)
    assert weights is not None
    from edgevis.provenance import read_provenance

    provenance = read_provenance(weights)
    module = models.module_from(declared, {} if provenance is None else provenance.options)
    models.load_weights(module, weights)
    found = sidecar_of(weights_digest(module), None)
    assert found is not None
    assert found.header.model == name
    dimension = models.deployment_of(declared, module).graphs[0].outputs[0].shape[-1]
    assert isinstance(dimension, int)
    space_from(found.arrays, dimension, name)


def classes(folder: Path, count: int = 14, images: int = 6) -> Path:
    """A data set of coloured pictures with a table."""
    folder.mkdir()
    lines = ["path,class_name,split"]
    for label in range(count):
        for number in range(images):
            image = np.clip(
                picture(label, 96, 96).astype(int) + picture(1000 + 50 * label + number, 96, 96) // 4, 0, 255
            )
            cv2.imwrite(str(folder / f"{label}_{number}.png"), image.astype(np.uint8))
            lines.append(f"{label}_{number}.png,class {label:02},{'base' if label % 2 else 'val'}")
    (folder / "labels.csv").write_text("\n".join(lines) + "\n")
    return folder


def test_the_command_measures_weights(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    data = classes(tmp_path / "data")
    output = tmp_path / "made.open_set.npz"
    options: dict[str, int | str] = {"num_classes": 0, "side": 64, "embedding": 16}
    weights = tmp_path / "weights.safetensors"
    module = models.create("efficientnet-lite0", **options)
    write_weights(weights, module, Provenance("efficientnet-lite0", options, {}, {}, 0, 0))
    arguments = ["efficientnet-lite0", "--weights", str(weights), "--background", f"{data}:base"]
    arguments += ["--scenes", f"{data}", "--output", str(output)]
    assert main(arguments) == 0
    assert "FPIR" in capsys.readouterr().out
    found = read_sidecar(output)
    assert found.header.model == "efficientnet-lite0"
    assert str(tmp_path) not in json.dumps(found.header.command)
    assert found.header.statistics.source == "background data:base; scenes data"
    assert main([*arguments, "--strangers-by", "any"]) == 0
    assert read_sidecar(output).header.statistics.source.endswith("; scenes data; strangers by any")
    capsys.readouterr()
    assert main(["enet", *arguments[3:]]) == 1
    assert "makes no embeddings" in capsys.readouterr().err


@pytest.mark.parametrize("text", ["a.zip:base:odd:more", "a.zip:base:third"])
def test_data_that_are_named_wrongly(text: str) -> None:
    with pytest.raises(InputError, match=r"is not FILE\[:SPLIT"):
        Part.parse(text)
    assert str(Part.parse("folder/a.zip:base+val:odd")) == "a.zip:base+val:odd"


def test_the_benchmark(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    bundle = write_tiny_bundle(tmp_path / "tiny.edgevis", Tiny(task="classify"))
    data = classes(tmp_path / "data", images=12)
    arguments = ["--bundle", str(bundle), "--data", str(data), "--labels", "4", "--images", "3", "--enrolments", "5"]
    assert benchmark.main([*arguments, "--output", str(tmp_path / "out")]) == 0
    table = capsys.readouterr().out
    assert "calibrated, labels doubled" in table
    assert (tmp_path / "out" / "det.svg").read_bytes().startswith(b"<?xml")
    assert benchmark.main([*arguments, "--json"]) == 0
    rows: list[dict[str, Any]] = json.loads(capsys.readouterr().out)
    methods = ["raw cosine", "possible", "estimated", "calibrated", "calibrated, labels doubled"]
    assert sorted({row["method"] for row in rows}) == sorted(methods)
    for row in rows:
        if row["method"] in ("raw cosine", "possible"):
            assert row["fpir_most"] <= row["asked"]
    # By the predictor itself, at the threshold that the benchmark takes: the same answer.
    with Predictor(bundle) as predictor:
        assert predictor.info.open_set is not None
        assert predictor.info.open_set.method == "none"
