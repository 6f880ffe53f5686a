"""Making models and loading weights; published weights reproduce their reference outputs."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from torch import nn

from edgevis import models
from edgevis.open_set.sidecar import weights_digest
from edgevis.provenance import read_provenance
from runtime.errors import ModelError, UnknownModelError, WeightsError
from runtime.images.preprocess import Preprocessor

from shared_data import shared_data

OSNET_WEIGHTS = ("weights", "osnet_x0_25_msmt17.safetensors")
# Published encoders for prototypes: weights, and reference outputs for one photograph.
ENCODERS = {
    "mobilenetv2": ("mobilenetv2_100.tf2_ptq_in1k.safetensors", "golden_mobilenetv2_100.npz"),
    "efficientnet-lite0": ("efficientnet_lite0_in1k.safetensors", "golden_efficientnet_lite0.npz"),
}


@pytest.mark.parametrize("name", models.names())
def test_shipped_weights_load(name: str) -> None:
    path = models.shipped_weights(name)
    if path is None:
        assert models.entry(name).weights is None
        return
    assert path.is_file(), f"{path.name} is declared but not there"
    assert path.with_suffix(".json").is_file(), "weights without a word on where they come from"
    provenance = read_provenance(path)
    models.load_weights(models.create(name, **({} if provenance is None else provenance.options)), path)


def test_unknown_model_lists_the_known() -> None:
    with pytest.raises(UnknownModelError, match=r"no model 'resnet'; known: .*osnet-x0-25"):
        models.create("resnet")


def test_options() -> None:
    with pytest.raises(ModelError, match="no option 'classes'; its options: num_identities"):
        models.create("osnet-x0-25", classes=3)
    with pytest.raises(ModelError, match="num_identities is -1"):
        models.create("osnet-x0-25", num_identities=-1)
    with pytest.raises(ModelError, match="num_identities is 'many'; allowed: 0"):
        models.create("osnet-x0-25", num_identities="many")
    model = models.create("osnet-x0-25", num_identities=7)
    assert models.parameters(model) == models.entry("osnet-x0-25").parameters + 513 * 7


def test_edgevis_does_not_import_torch() -> None:
    code = "import sys, edgevis; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_osnet_reproduces_published_outputs() -> None:
    golden = np.load(shared_data("weights", "golden_osnet_x0_25.npz"))
    model = models.create("osnet-x0-25")
    models.load_weights(model, shared_data(*OSNET_WEIGHTS))
    with torch.inference_mode():
        found = model(torch.from_numpy(golden["input"])).numpy()
    # float32 in another order of summation; the features go up to 12.
    np.testing.assert_allclose(found, golden["features"], rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("name", ENCODERS)
def test_encoders_reproduce_published_outputs(name: str) -> None:
    weights, reference = ENCODERS[name]
    golden = np.load(shared_data("weights", reference))
    model = models.create(name)
    models.load_weights(model, shared_data("weights", weights))
    image = torch.from_numpy(golden["input"])
    with torch.inference_mode():
        logits, embedding = model(image).numpy(), model.encode(image)
        classified = model.get_submodule("classifier")(embedding).numpy()
    np.testing.assert_allclose(logits, golden["logits"], rtol=1e-4, atol=1e-4)
    np.testing.assert_array_equal(classified, logits)
    if "embedding" in golden:
        np.testing.assert_allclose(embedding.numpy(), golden["embedding"], rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("name", ENCODERS)
def test_encoders_recognise_the_sample_images(name: str) -> None:
    """The declared preprocessing with the published weights: the pictures are what their names say."""
    model = models.create(name)
    models.load_weights(model, shared_data("weights", ENCODERS[name][0]))
    labels = shared_data("weights", "imagenet1k_labels.txt").read_text().splitlines()
    files = ["hot_dog.jpg", "sunflower.png"]
    images = [cv2.imread(str(shared_data("sample_images", file))) for file in files]
    batch = Preprocessor(models.entry(name).deployment.preprocess)(images)
    with torch.inference_mode():
        best = model(torch.from_numpy(batch)).topk(5).indices
    assert "hot" in labels[best[0, 0]]
    assert "daisy" in " ".join(labels[i] for i in best[1])


def test_an_encoders_side_and_width_are_options() -> None:
    entry = models.entry("efficientnet-lite0")
    model = models.module_from(entry, {"side": 96, "embedding": 24})
    deployment = models.deployment_of(entry, model)
    (graph,) = deployment.graphs
    assert (graph.inputs[0].shape, graph.outputs[0].shape) == (("N", 3, 96, 96), ("N", 24))
    assert (deployment.preprocess.height, deployment.preprocess.width) == (96, 96)
    assert models.parameters(model) == entry.parameters + 1985 * 24
    with torch.inference_mode():
        image = torch.rand(1, 3, 96, 96)
        embedding = model.eval().encode(image)
        torch.testing.assert_close(embedding, model.get_submodule("projection")(model.pooled(image)))
    assert embedding.shape == (1, 24)


def test_a_power_keeps_signs_and_belongs_to_the_weights() -> None:
    entry = models.entry("efficientnet-lite0")
    plain, rooted = (models.module_from(entry, {"side": 64, "embedding": 6, "power_percent": p}) for p in (100, 50))
    rooted.load_state_dict(plain.state_dict(), strict=False)
    image = torch.rand(2, 3, 64, 64)
    with torch.inference_mode():
        before, after = plain.encode(image), rooted.encode(image)
    assert (before < 0).any()
    torch.testing.assert_close(after, before.sign() * before.abs().sqrt())
    assert weights_digest(rooted) != weights_digest(plain)
    assert models.deployment_of(entry, rooted).graphs[0].float32_outputs == ("embedding",)
    with pytest.raises(ModelError, match="power_percent is 0; allowed: a whole number from 1 to 100"):
        models.module_from(entry, {"power_percent": 0})


@pytest.mark.parametrize("name", ENCODERS)
def test_encoders_export_without_shape_arithmetic(name: str) -> None:
    program = torch.export.export(models.create(name), (torch.rand(1, 3, 224, 224),))
    operators = {str(node.target) for node in program.graph.nodes if node.op == "call_function"}
    assert not {name for name in operators if "sym_size" in name or "floordiv" in name}


class Tiny(nn.Module):
    """One linear layer and one batch norm."""

    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(3, 2)
        self.norm = nn.BatchNorm1d(2)


def _tiny_state() -> dict[str, torch.Tensor]:
    torch.manual_seed(1)
    return {
        "linear.weight": torch.randn(2, 3),
        "linear.bias": torch.randn(2),
        "norm.weight": torch.rand(2),
        "norm.bias": torch.rand(2),
        "norm.running_mean": torch.rand(2),
        "norm.running_var": torch.rand(2),
    }


@pytest.mark.parametrize("kind", ["safetensors", "pt", "wrapped"])
def test_load_weights_reads_each_kind(tmp_path: Path, kind: str) -> None:
    state = {name: tensor.half() for name, tensor in _tiny_state().items()}
    path = tmp_path / ("tiny.safetensors" if kind == "safetensors" else "tiny.pth")
    if kind == "safetensors":
        save_file(state, path)
    else:
        torch.save({"state_dict": state, "epoch": 3} if kind == "wrapped" else state, path)
    model = Tiny()
    models.load_weights(model, path)
    assert model.linear.weight.dtype == torch.float32
    for name, tensor in state.items():
        torch.testing.assert_close(model.state_dict()[name], tensor.float(), rtol=0, atol=0)


def test_load_weights_names_what_does_not_fit(tmp_path: Path) -> None:
    state = _tiny_state()
    state["classifier.weight"] = state.pop("linear.bias")
    state["linear.weight"] = torch.zeros(4, 3)
    save_file(state, tmp_path / "other.safetensors")
    model = Tiny()
    before = model.linear.weight.detach().clone()
    with pytest.raises(WeightsError) as caught:
        models.load_weights(model, tmp_path / "other.safetensors")
    message = str(caught.value)
    assert "1 missing: linear.bias" in message
    assert "1 unexpected: classifier.weight" in message
    assert "linear.weight is (4, 3), the model takes (2, 3)" in message
    assert torch.equal(model.linear.weight, before)


class Evil:
    """Pickles into a call."""

    def __reduce__(self) -> tuple[object, tuple[str]]:
        return (print, ("this ran",))


@pytest.mark.parametrize(
    ("kind", "change"),
    [
        ("without content", lambda tensor: tensor.to("meta")),
        ("sparse", lambda tensor: tensor.to_sparse()),
        ("complex", lambda tensor: tensor.to(torch.complex64)),
    ],
)
def test_load_weights_refuses_tensors_without_plain_numbers(
    tmp_path: Path, kind: str, change: Callable[[torch.Tensor], torch.Tensor]
) -> None:
    """PyTorch raises RuntimeError, or leaves the model as it is without a word."""
    model = nn.Linear(3, 2)
    before = model.weight.detach().clone()
    torch.save({name: change(tensor) for name, tensor in model.state_dict().items()}, tmp_path / "odd.pt")
    with pytest.raises(WeightsError, match=rf"2 not plain numbers, .*: weight is {kind}"):
        models.load_weights(model, tmp_path / "odd.pt")
    assert torch.equal(model.weight, before)


def test_load_weights_refuses_what_is_not_weights(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model = Tiny()
    with pytest.raises(WeightsError, match="cannot read"):
        models.load_weights(model, tmp_path / "absent.safetensors")
    for suffix in ("safetensors", "pt"):
        broken = tmp_path / f"broken.{suffix}"
        broken.write_bytes(b"\x10\0\0\0\0\0\0\0garbage")
        with pytest.raises(WeightsError, match="cannot read"):
            models.load_weights(model, broken)
    torch.save(Evil(), tmp_path / "evil.pt")
    with pytest.raises(WeightsError, match="cannot read"):
        models.load_weights(model, tmp_path / "evil.pt")
    torch.save([1, 2], tmp_path / "list.pt")
    with pytest.raises(WeightsError, match="holds a list"):
        models.load_weights(model, tmp_path / "list.pt")
    torch.save({"linear.weight": "text"}, tmp_path / "text.pt")
    with pytest.raises(WeightsError, match=r"'linear\.weight' is a str"):
        models.load_weights(model, tmp_path / "text.pt")
    (tmp_path / "weights.onnx").write_bytes(b"")
    with pytest.raises(WeightsError, match="unknown kind"):
        models.load_weights(model, tmp_path / "weights.onnx")
    save_file(_tiny_state(), tmp_path / "large.safetensors")
    monkeypatch.setattr(models, "MAX_WEIGHTS_BYTES", 10)
    with pytest.raises(WeightsError, match="allowed: at most 10"):
        models.load_weights(model, tmp_path / "large.safetensors")
