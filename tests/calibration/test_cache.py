"""Measured ranges between builds: found when nothing changed, and never otherwise."""

from __future__ import annotations

import os
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from calibration import cache
from calibration.cache import CacheKey, CalibrationInputs, load, store
from calibration.quantize.config import QuantizationConfig
from calibration.quantize.graph import Ranges
from export.request import BuildRequest
from export.stages import build_bundle
from runtime.bundle.spec import Preprocess

from built import Recorder
from tiny_models import PREPROCESS, pictures, tiny_entry, write_pictures

KEY = CacheKey("tiny/embed", "00", "11", "22", "33", "44")
RANGES = Ranges({"image": 2.5, "relu": 0.1}, {"node_Conv_1": np.array([0.5, -0.25], np.float32)})


def same(one: Ranges, other: Ranges) -> bool:
    return one.amax == other.amax and all(
        np.array_equal(one.bias_correction[name], other.bias_correction[name]) for name in one.bias_correction
    )


def entry(folder: Path) -> Path:
    (path,) = folder.iterdir()
    return path


def test_what_was_stored_is_found(tmp_path: Path) -> None:
    store(tmp_path / "new", KEY, RANGES)
    found, note = load(tmp_path / "new", KEY)
    assert found is not None
    assert same(found, RANGES)
    assert note == "from the cache"
    store(tmp_path / "new", KEY, RANGES)
    assert entry(tmp_path / "new").suffix == ".npz"


def test_nothing_is_found_where_nothing_is(tmp_path: Path) -> None:
    assert load(tmp_path / "nowhere", KEY) == (None, "never measured before")


@pytest.mark.parametrize("part", ["weights", "graph", "data", "preprocessing", "algorithm"])
def test_a_stale_entry_is_not_used_and_the_build_is_told_why(part: str, tmp_path: Path) -> None:
    store(tmp_path, KEY, RANGES)
    assert load(tmp_path, replace(KEY, **{part: "ff"})) == (None, f"changed since the last time: {part}")
    assert load(tmp_path, replace(KEY, model="other/embed")) == (None, "never measured before")


def test_an_entry_of_something_else_under_this_name_is_not_used(tmp_path: Path) -> None:
    store(tmp_path, replace(KEY, weights="ff"), RANGES)
    entry(tmp_path).rename(tmp_path / f"{KEY.digest}.ranges.npz")
    assert load(tmp_path, KEY) == (None, "the entry in the cache is of something else")


def test_altered_numbers_are_not_used(tmp_path: Path) -> None:
    store(tmp_path, KEY, RANGES)
    path = entry(tmp_path)
    with np.load(path) as data:
        arrays = {name: data[name] for name in data.files}
    np.savez(path.with_suffix(""), **{**arrays, "amax/image": np.array(2.4)})
    path.with_suffix("").with_suffix(".ranges.npz")
    assert load(tmp_path, KEY) == (None, "the entry in the cache is damaged")


@pytest.mark.parametrize("kept", [0, 10, 200])
def test_a_truncated_entry_is_not_used(kept: int, tmp_path: Path) -> None:
    store(tmp_path, KEY, RANGES)
    entry(tmp_path).write_bytes(entry(tmp_path).read_bytes()[:kept])
    found, note = load(tmp_path, KEY)
    assert found is None
    assert note.startswith("the entry in the cache cannot be read")
    assert load(tmp_path, replace(KEY, data="ff")) == (None, "never measured before")


def test_pickled_objects_are_not_read(tmp_path: Path) -> None:
    class Harm:
        def __reduce__(self) -> tuple[object, tuple[str]]:
            return (os.mkdir, (str(tmp_path / "harm"),))

    np.savez(tmp_path / f"{KEY.digest}.ranges", key=np.array([Harm()], object), sha256=np.zeros(32, np.uint8))
    found, note = load(tmp_path, KEY)
    assert found is None
    assert "pickle" in note
    assert not (tmp_path / "harm").exists()


def test_the_cache_is_bounded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cache, "MAX_ENTRIES", 3)
    for number in range(5):
        store(tmp_path, replace(KEY, data=str(number)), RANGES)
        os.utime(next(tmp_path.glob(f"{replace(KEY, data=str(number)).digest}*")), (number, number))
    assert len(list(tmp_path.iterdir())) == 3
    assert load(tmp_path, replace(KEY, data="4"))[0] is not None
    assert load(tmp_path, replace(KEY, data="0"))[0] is None
    monkeypatch.setattr(cache, "MAX_ENTRY_BYTES", 10)
    assert load(tmp_path, replace(KEY, data="4"))[0] is None


def test_digest_is_of_all_that_the_scales_depend_on() -> None:
    config = QuantizationConfig()
    inputs = CalibrationInputs("tiny", "00", pictures(8).digest, PREPROCESS)
    assert inputs.digest(config) == CalibrationInputs("tiny", "00", pictures(8).digest, PREPROCESS).digest(config)
    others = {
        replace(inputs, samples_sha256=pictures(8, seed=2).digest).digest(config),
        replace(inputs, preprocess=Preprocess(32, 16)).digest(config),
        replace(inputs, weights_sha256="01").digest(config),
        inputs.digest(QuantizationConfig(method="minmax")),
    }
    assert len(others - {inputs.digest(config)}) == 4


def test_default_folder(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.delenv("EDGEVIS_CACHE", raising=False)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert cache.default_folder() == tmp_path / "edgevis" / "calibration"
    monkeypatch.delenv("XDG_CACHE_HOME")
    assert cache.default_folder() == Path.home() / ".cache" / "edgevis" / "calibration"


@pytest.mark.torch
def test_a_build_uses_it_and_says_so(tmp_path: Path) -> None:
    first = write_pictures(tmp_path / "people", pictures(32))
    other = write_pictures(tmp_path / "others", pictures(32, seed=5))
    request = BuildRequest(
        tiny_entry(),
        tmp_path / "tiny.edgevis",
        target="jetson",  # on "cpu", of two graphs that lose the same the one is taken that was faster just then
        precisions=("int8",),
        calibration_data=first,
        cache=tmp_path / "cache",
    )
    notes, engines = [], []
    for data, method in ((first, None), (first, None), (other, None), (first, "entropy")):
        recorder = Recorder()
        bundle = build_bundle(replace(request, calibration_data=data, calibration=method), recorder)
        notes.append(recorder.details["calibrate"].partition("(")[2].partition(")")[0])
        engines.append((bundle.path / "engines" / "tensorrt-int8" / "embed.onnx").read_bytes())
    assert notes == [
        "never measured before",
        "from the cache",
        "changed since the last time: data",
        "changed since the last time: data, algorithm",
    ]
    assert engines[0] == engines[1] != engines[2]
