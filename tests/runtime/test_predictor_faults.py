"""A predictor of a bundle that is missing, lies or computes no numbers: each fault has its error."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import edgevis
from runtime.errors import BundleNotFoundError, EngineError, InputError, SchemaError
from runtime.predictor import Predictor

from bundles import Tiny, edited_manifest, picture, replace_file, tiny_weights, write_tiny_bundle
from logs import logged_warnings

PICTURES = [picture(seed) for seed in range(6)]


def opened(folder: Path, tiny: Tiny | None = None) -> Predictor:
    return Predictor(write_tiny_bundle(folder / "made.edgevis", tiny), threads=1)


@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_weights_that_are_not_finite_are_named_when_the_engine_opens(tmp_path: Path, value: float) -> None:
    weights = tiny_weights()
    broken = Tiny(weights=replace(weights, dense_bias=np.full_like(weights.dense_bias, value)))
    with (
        logged_warnings(match="did not open"),
        pytest.raises(EngineError, match="the weight 'dense_bias' holds NaN or infinity"),
    ):
        opened(tmp_path, broken)


@pytest.mark.parametrize("node", ["Div", "Log"])
def test_a_model_that_gives_nan_is_an_engine_that_failed(tmp_path: Path, node: str) -> None:
    """NaN compares false with everything: a result made of it would look like "unknown"."""
    with opened(tmp_path) as sound:
        sound.enroll("anna", PICTURES[0])
        sound.save(tmp_path / "lobby.enrolment")
    with opened(tmp_path, Tiny(broken=node)) as broken:
        with pytest.raises(EngineError, match=r"8 of 8 numbers in the engine's output 'embedding' are NaN or infinite"):
            broken.enroll("björn", PICTURES[1])
        assert broken.labels == ()
        broken.load(tmp_path / "lobby.enrolment")
        for threshold in (None, -1.0, 0.5):
            broken.threshold = threshold
            with pytest.raises(EngineError, match="NaN or infinite"):
                broken.predict(PICTURES[0])
        with pytest.raises(EngineError, match="NaN or infinite"):
            broken.embed(PICTURES[0])


def test_an_embedding_without_direction_is_not_enrolled(tmp_path: Path) -> None:
    """It could be saved and never be loaded again: what is acknowledged must be kept."""
    weights = tiny_weights()
    dead = replace(weights, dense=0 * weights.dense, dense_bias=0 * weights.dense_bias)
    with opened(tmp_path, Tiny(weights=dead)) as predictor:
        with pytest.raises(InputError, match="nothing was enrolled"):
            predictor.enroll("black", np.zeros((32, 16, 3), np.uint8))
        predictor.save(tmp_path / "a.enrolment")
        predictor.load(tmp_path / "a.enrolment")
        assert predictor.labels == ()


def test_a_model_of_another_size_than_the_manifest_says(tmp_path: Path) -> None:
    bundle = write_tiny_bundle(tmp_path / "liar.edgevis")
    other = write_tiny_bundle(tmp_path / "other.edgevis", Tiny(weights=tiny_weights(dimension=5)))
    file = "engines/onnxruntime-fp32/embed.onnx"
    replace_file(bundle, file, (other / file).read_bytes())
    with Predictor(bundle) as predictor, pytest.raises(edgevis.EngineError, match=r"\(1, 5\) .*manifest says \(N, 8\)"):
        predictor.predict(PICTURES[0])


@pytest.mark.parametrize("postprocess", [{"open_set": 3}, {"false_accept_rate": 2.0}, {"false_accept_rate": "x"}])
def test_settings_of_a_task_that_lie(tmp_path: Path, postprocess: dict[str, Any]) -> None:
    with pytest.raises(SchemaError, match=r"postprocess\."):
        opened(tmp_path, Tiny(postprocess=postprocess))


@pytest.mark.parametrize("threads", [0, -1, 1.0, True, "2", 1025, 2**40])
def test_a_wrong_number_of_threads(tiny_bundle: Path, threads: Any) -> None:
    with pytest.raises(InputError, match=r"threads is .*; allowed: None or an int >= 1"):
        Predictor(tiny_bundle, threads=threads)


def test_a_bundle_that_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(BundleNotFoundError, match=r"there is no bundle at .*missing\.edgevis; build one with: "):
        edgevis.Predictor(tmp_path / "missing.edgevis")


@pytest.mark.parametrize(
    "lie",
    [
        lambda deployment: deployment["preprocess"].update(height=64),
        lambda deployment: deployment["graphs"][0]["inputs"][0].update(dtype="float16"),
        lambda deployment: deployment["graphs"][0]["inputs"][0].update(shape=["K", 3, 32, 16]),
        lambda deployment: deployment["graphs"][0]["outputs"][0].update(dtype="float16"),
        lambda deployment: deployment["graphs"][0]["outputs"][0].update(shape=["N", "D"]),
        lambda deployment: deployment["graphs"][0]["outputs"][0].update(shape=["N", 8, 1]),
        lambda deployment: deployment["graphs"][0]["outputs"][0].update(shape=["N"]),
    ],
)
def test_a_graph_that_the_task_cannot_use(tmp_path: Path, lie: Callable[[dict[str, Any]], None]) -> None:
    bundle = write_tiny_bundle(tmp_path / "liar.edgevis")
    with edited_manifest(bundle) as data:
        lie(data["deployment"])
    with pytest.raises(SchemaError, match=r"graph 'embed' of this task maps .* the bundle has"):
        Predictor(bundle)
