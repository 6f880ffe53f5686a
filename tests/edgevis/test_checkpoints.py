"""Checkpoints as other training code writes them load, or the error says what to do."""

from __future__ import annotations

import argparse
import logging
import math
from collections import OrderedDict
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from edgevis import models
from edgevis.training.warm_start import load_backbone
from runtime.errors import WeightsError

pytestmark = pytest.mark.torch


class Tiny(nn.Module):
    """A backbone of one convolution and one batch norm."""

    def __init__(self) -> None:
        super().__init__()
        self.backbone = nn.Sequential(OrderedDict(conv=nn.Conv2d(3, 2, 1), norm=nn.BatchNorm2d(2)))


def state(value: float = 1.0) -> dict[str, Tensor]:
    return {name: torch.full_like(tensor, value) for name, tensor in Tiny().state_dict().items()}


def prefixed(prefix: str, value: float = 1.0) -> dict[str, Tensor]:
    return {prefix + name: tensor for name, tensor in state(value).items()}


def loaded(path: Path) -> float:
    """The value that every weight has after loading."""
    model = Tiny()
    models.load_weights(model, path)
    values = {float(value) for tensor in model.state_dict().values() for value in tensor.flatten()}
    assert len(values) == 1
    return values.pop()


HEAD = {"classifier.weight": torch.zeros(751, 2), "classifier.bias": torch.zeros(751)}

NANS = {name: torch.full((2,), math.nan) for name in ("backbone.conv.bias", "backbone.norm.bias")}

KINDS: dict[str, Any] = {
    "dataparallel.pth": prefixed("module."),
    "wrapped.pth.tar": {"state_dict": prefixed("module."), "epoch": 3, "best": 0.5},
    "compiled.pth": prefixed("_orig_mod."),
    "part_compiled.pth": {name.replace("backbone.", "backbone._orig_mod."): t for name, t in state().items()},
    "lightning.ckpt": {"state_dict": prefixed("model."), "pytorch-lightning_version": "2.5"},
    # What a metric keeps beside the model is no weight.
    "lightning_metric.ckpt": {"state_dict": {**prefixed("model."), "best.value": torch.tensor(-math.inf)}},
    "lightning_loss.ckpt": {"state_dict": {**prefixed("model."), "criterion.centers": torch.zeros(4)}},
    "several.pth": {"model": prefixed("module._orig_mod.model.")},
    "student.bin": prefixed("student.net."),
    "nested.pt": {"checkpoint": 1, "model": {"state_dict": state()}},
    "torchreid.pth.tar-60": {"state_dict": state(), "rank1": np.float64(0.87), "epoch": np.int64(60)},
    "numbers.pth": {"state_dict": state(), "seen": np.bool_(True), "lr": np.float32(0.1)},
    "arguments.pth": {"state_dict": state(), "args": argparse.Namespace(lr=0.1, layers=[1, 2])},
    "classifier.pth": {**state(), **HEAD},
    "module_classifier.pth": {f"module.{name}": tensor for name, tensor in {**state(), **HEAD}.items()},
}


@pytest.mark.parametrize("name", KINDS)
def test_what_wraps_the_weights_is_taken_off(tmp_path: Path, name: str) -> None:
    torch.save(KINDS[name], tmp_path / name)
    assert loaded(tmp_path / name) == 1.0


def test_prefixes_in_safetensors(tmp_path: Path) -> None:
    save_file(prefixed("module."), tmp_path / "x.safetensors")
    assert loaded(tmp_path / "x.safetensors") == 1.0


@pytest.mark.parametrize("key", ["state_dict_ema", "model_ema", "ema_state_dict", "ema"])
@pytest.mark.parametrize("inner", ["", "state_dict", "module"])
def test_averaged_weights_are_preferred_and_the_log_says_so(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, key: str, inner: str
) -> None:
    average = prefixed("module.", 2.0)
    torch.save({"state_dict": state(), key: {inner: average} if inner else average}, tmp_path / "x.pth")
    with caplog.at_level(logging.WARNING, "edgevis.weights"):
        assert loaded(tmp_path / "x.pth") == 2.0
    assert f"the averaged weights under '{key}' were loaded" in caplog.text


def test_averaged_weights_beside_the_others_in_one_state_dict(tmp_path: Path) -> None:
    torch.save({**prefixed("model."), **prefixed("model_ema.", 2.0)}, tmp_path / "x.pth")
    assert loaded(tmp_path / "x.pth") == 2.0


def test_averaged_weights_that_do_not_fit_are_passed_over(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    part = {name: tensor for name, tensor in state(2.0).items() if "running" not in name}
    torch.save({"model": state(), "ema": part}, tmp_path / "x.pth")
    assert loaded(tmp_path / "x.pth") == 1.0
    assert "the averaged weights under 'ema' do not fit and were not loaded" in caplog.text


def test_what_is_left_out_is_named(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    torch.save({**state(), **HEAD}, tmp_path / "x.pth")
    loaded(tmp_path / "x.pth")
    assert "left out, which the model has not: classifier.weight, classifier.bias" in caplog.text


def test_a_backbone_takes_the_same_files(tmp_path: Path) -> None:
    plain = {name.removeprefix("backbone."): tensor for name, tensor in state().items()}
    torch.save({"state_dict": {f"module.{name}": tensor for name, tensor in {**plain, **HEAD}.items()}}, tmp_path / "x")
    model = Tiny()
    load_backbone(model, tmp_path / "x")
    assert float(model.backbone.conv.weight.detach().min()) == 1.0  # type: ignore[operator, union-attr]


class Model:
    """A class of the code that wrote the file."""


REFUSED: dict[str, tuple[Any, str]] = {
    "two.pth": ({**prefixed("student."), **prefixed("teacher.")}, r"holds the model 2 times, under 'student\.', 'teac"),
    "block.pth": ({**state(), "backbone.conv2.weight": torch.zeros(1)}, r"1 unexpected: backbone\.conv2\.weight"),
    "missing.pth": (dict(list(prefixed("module.").items())[1:]), r"1 missing: backbone\.conv\.weight"),
    "other.pth": ({"layer.conv.weight": torch.zeros(1), "head.conv.weight": torch.zeros(1)}, "missing: backbone"),
    "empty.pth": ({}, "holds no tensors; save the weights alone"),
    "tensor.pth": (torch.zeros(3), "holds a Tensor; a state dict is needed"),
    "module.pth": ({"model": Model()}, r"it holds a \S*Model besides tensors.*save the weights alone"),
    "nan.pth": ({**state(), "backbone.conv.bias": torch.full((2,), float("nan"))}, "'backbone.conv.bias' holds NaN"),
    "inf.pth": (
        {**state(), "backbone.conv.bias": torch.tensor([1.0, -math.inf])},
        r"inf\.pth: 'backbone\.conv\.bias' holds infinity \(1 of 2 numbers\)",
    ),
    "head.pth": ({**state(), **HEAD, "classifier.bias": torch.full((751,), math.inf)}, r"'classifier\.bias' holds inf"),
    # Finite in the file, and no longer as the model's float32.
    "wide.pth": ({**state(), "backbone.conv.bias": torch.full((2,), 1e300, dtype=torch.float64)}, "holds infinity"),
    "tiny.pth": (
        {**state(), "backbone.conv.bias": torch.full((2,), math.nan).to(torch.float8_e4m3fn)},
        r"'backbone\.conv\.bias' holds NaN \(2 of 2 numbers\)",
    ),
    "ema.pth": (
        {"state_dict": state(), "state_dict_ema": {**state(), **NANS}},
        "holds NaN .*, and so does 1 more of 7",
    ),
    "meta.pth": ({**state(), "backbone.conv.bias": torch.zeros(2, device="meta")}, "not plain numbers"),
    "sparse.pth": ({**state(), "backbone.conv.bias": torch.zeros(2).to_sparse()}, "not plain numbers"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_does_not_fit_says_why(tmp_path: Path, name: str) -> None:
    content, message = REFUSED[name]
    torch.save(content, tmp_path / name)
    model = Tiny()
    before = {key: tensor.clone() for key, tensor in model.state_dict().items()}
    with pytest.raises(WeightsError, match=message) as caught:
        models.load_weights(model, tmp_path / name)
    assert "\n" not in str(caught.value)
    assert all(torch.equal(before[key], tensor) for key, tensor in model.state_dict().items())


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("page.pth", b"<!DOCTYPE html><html>404</html>", "a web page"),
        ("lfs.safetensors", b"version https://git-lfs.github.com/spec/v1\noid sha256:00\nsize 1\n", "git lfs pull"),
        ("lfs.pth", b"version https://git-lfs.github.com/spec/v1\noid sha256:00\nsize 1\n", "git lfs pull"),
        ("short.pth", b"PK\x03\x04 and no more", "cut short"),
        ("pickle.ckpt", b"\x80\x02}q\x00", "cannot read"),
        ("notes.txt", b"hello", "unknown kind"),
    ],
)
def test_files_that_are_no_checkpoints(tmp_path: Path, name: str, content: bytes, message: str) -> None:
    (tmp_path / name).write_bytes(content)
    with pytest.raises(WeightsError, match=message):
        models.load_weights(Tiny(), tmp_path / name)


class Evil:
    """Pickles into a call that makes a file."""

    def __init__(self, witness: Path) -> None:
        self.witness = witness

    def __reduce__(self) -> tuple[Any, ...]:
        return Path.touch, (self.witness,)


def test_no_code_of_a_checkpoint_runs(tmp_path: Path) -> None:
    torch.save({"state_dict": state(), "note": Evil(tmp_path / "witness")}, tmp_path / "x.pth")
    with pytest.raises(WeightsError, match="only code of the file could make"):
        models.load_weights(Tiny(), tmp_path / "x.pth")
    assert not (tmp_path / "witness").exists()
