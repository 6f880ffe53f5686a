"""ASNet-HM: its layer against reference values (tests/golden/README.md). Its graphs: tests/contracts/test_models.py."""

from __future__ import annotations

import re

import numpy as np
import onnxruntime
import pytest
import torch
from onnx import inliner, shape_inference
from torch import Tensor, nn

from edgevis import models
from edgevis.layers import attentive_squeeze
from edgevis.layers.attentive_squeeze import AttentiveSqueeze
from edgevis.layers.correlation import unit_channels
from edgevis.layers.grid_resize import resize_mask, resize_matrix
from edgevis.layers.masking import mask_maps
from edgevis.layers.resize import resize
from edgevis.models.asnet import ASNet, ASNetLearner, asnet_hm, load_official_learner
from export.onnx import onnx_from_module
from runtime.bundle.spec import Graph, TensorSpec
from runtime.errors import InputError, ModelError, WeightsError

from bundles import needs_openvino
from locations import GOLDEN_FOLDER
from support_query_models import images_and_masks, shrink

pytestmark = pytest.mark.torch

GOLDEN = np.load(GOLDEN_FOLDER / "09_asnet_layer.npz")
CASES = ("c0", "c1", "c2", "c3", "c4")
# The same structure as at 417, where maps are pooled from a side of 50 on.
SIDE = 257


def golden_layer(case: str) -> AttentiveSqueeze:
    inputs, outputs, kernel, stride, padding, pool_keys, heads, groups = GOLDEN[f"{case}.meta"].tolist()
    layer = AttentiveSqueeze(
        inputs,
        outputs,
        kernel=kernel,
        stride=stride,
        padding=padding,
        pool_keys=bool(pool_keys),
        heads=heads,
        groups=groups,
    )
    names = [name for name in GOLDEN.files if name.startswith((f"{case}.attn.", f"{case}.ff."))]
    weights = {name.removeprefix(f"{case}."): torch.from_numpy(GOLDEN[name]) for name in names}
    layer.load_state_dict({name: w.squeeze(2) if w.dim() == 5 else w for name, w in weights.items()})
    return layer.eval()


def golden_inputs(case: str, layer: AttentiveSqueeze) -> tuple[Tensor, tuple[int, int], Tensor]:
    """The correlation with flat grids, its support grid, and the mask at the grid of the keys."""
    x = torch.from_numpy(GOLDEN[f"{case}.x"])
    mask = torch.from_numpy(GOLDEN[f"{case}.mask"]).float()
    attend = resize_mask(mask, resize_matrix(mask.shape[1], layer.key_side(x.shape[4])))
    return x.flatten(4).flatten(2, 3), (x.shape[4], x.shape[5]), attend.flatten(1)


def tiny(*, seed: int = 0) -> ASNet:
    """The whole structure with one block per stage of the backbone."""
    torch.manual_seed(seed)
    model = asnet_hm(side=SIDE, width=2, pooled_from=33)
    shrink(model, lambda _: ASNetLearner((1, 1, 1), model.learner.query_sides, model.learner.support_sides))
    return model


@pytest.mark.parametrize("case", CASES)
def test_attentive_squeeze(case: str) -> None:
    layer = golden_layer(case)
    x, grid, attend = golden_inputs(case, layer)
    expected = torch.from_numpy(GOLDEN[f"{case}.y"])
    assert tuple(layer.output_side(side) for side in grid) == expected.shape[4:]
    found = layer(x, grid, attend)
    torch.testing.assert_close(found.reshape(expected.shape), expected, rtol=0, atol=5e-5)
    # A flag says as much as the weight, also where there is none; another mask gives another result.
    assert torch.equal(layer(x, grid, (attend > 0).float()), found)
    other = torch.zeros_like(attend)
    other[:, 0] = 1
    assert (layer(x, grid, other) - found).abs().max() > 1e-3


def test_attention_piece_by_piece(monkeypatch: pytest.MonkeyPatch) -> None:
    layer = golden_layer("c1")
    x, grid, attend = golden_inputs("c1", layer)
    whole = layer(x, grid, attend)
    monkeypatch.setattr(attentive_squeeze, "_PIECE", 5000)  # 96 rows of 16 x 16 logits: five pieces, the last smaller
    torch.testing.assert_close(layer(x, grid, attend), whole, rtol=0, atol=1e-6)


def test_a_mask_without_places_gives_uniform_attention() -> None:
    assert not GOLDEN["c4.mask"].any(axis=(1, 2)).all()
    layer = golden_layer("c0")
    x, grid, attend = golden_inputs("c0", layer)
    none, every = torch.zeros_like(attend), torch.ones_like(attend)
    nn.init.zeros_(layer.attn.khead.weight)
    torch.testing.assert_close(layer(x, grid, none), layer(x, grid, every), rtol=0, atol=1e-6)


@pytest.mark.parametrize(("middle", "expected"), [(6, 1_320_610), (23, 1_354_610)])
def test_learner_sizes(middle: int, expected: int) -> None:
    assert models.parameters(ASNetLearner((4, middle, 3), (53, 27, 14), (27, 27, 14))) == expected


def test_support_is_pooled_then_masked() -> None:
    """Stage 2 is averaged with its padding counted; the mask is resized to the pooled size."""
    model = tiny()
    image, mask = images_and_masks(2, SIDE)
    *levels, attend = model.support(image, mask)
    both = [model.backbone.features(picture) for picture in (image, image * mask.unsqueeze(1))]
    for stage, found in ((2, levels[2]), (3, levels[1]), (4, levels[0])):
        maps = [features[stage - 2] for features in both]
        if stage == 2:
            padded = [[nn.functional.pad(x, (1, 1, 1, 1)).unfold(2, 3, 2).unfold(3, 3, 2) for x in m] for m in maps]
            maps = [[x.mean((4, 5)) for x in m] for m in padded]
            assert maps[0][0].shape[3] == 17
        masked = mask_maps([maps[0]], [maps[1]], mask, masking="hm")[0]
        expected = unit_channels(torch.stack(masked, dim=1).flatten(3), dim=2)
        torch.testing.assert_close(found, expected, rtol=0, atol=1e-5)
    assert model.learner.attend_sides == (9, 3, 5, 2)
    flags = [(resize(mask.unsqueeze(1), (side, side)) > 0).flatten(1).float() for side in (9, 3, 5, 2)]
    assert torch.equal(attend, torch.cat(flags, dim=1))


def test_shots_are_independent_and_training_pairs_rows() -> None:
    model = tiny()
    image, _ = images_and_masks(2, SIDE, seed=1)
    support_image, mask = images_and_masks(2, SIDE, seed=2)
    with torch.inference_mode():
        supports = model.support(support_image, mask)
        logits = model.query(image, *supports)
        one_shot = model.query(image[1:], *(tensor[:1] for tensor in supports))
        rows = model(image, support_image, mask)
        attend = supports[3].flip(0)
        other_mask = model.query(image[:1], *(tensor[:1] for tensor in supports[:3]), attend[:1])  # type: ignore[call-arg]
    assert logits.shape == (2, 2, 2, 66, 66)
    torch.testing.assert_close(one_shot[0, 0], logits[1, 0], rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(rows, torch.stack((logits[0, 0], logits[1, 1])), rtol=1e-4, atol=1e-5)
    assert (logits[:, 0] - logits[:, 1]).abs().max() > 1e-3
    assert (other_mask[0, 0] - logits[0, 0]).abs().max() > 1e-4


def test_learns_through_every_parameter() -> None:
    model = tiny().train()
    assert not any(module.training for module in model.backbone.modules())
    image, mask = images_and_masks(1, SIDE)
    model(image, image.flip(3), mask).square().sum().backward()
    assert [name for name, parameter in model.learner.named_parameters() if parameter.grad is None] == []
    assert all(parameter.grad is None for parameter in model.backbone.parameters())


OFFICIAL = {
    "encoder_layer4.0.attn.qhead.weight": (16, 1, 1, 5, 5),
    "encoder_layer3.1.attn.khead.weight": (64, 32, 1, 5, 5),
    "encoder_layer4.1.attn.vhead.bias": (64,),
    "encoder_layer2.0.attn.short_cut.0.weight": (32, 1, 1, 5, 5),
    "encoder_layer2.0.attn.short_cut.1.bias": (32,),
    "encoder_layer4to3.1.attn.agg.2.weight": (128, 64, 1, 1, 1),
    "encoder_layer4to3.1.attn.agg.3.weight": (128,),
    "encoder_layer3to2.0.ff.ff.3.weight": (128, 64, 1, 1, 1),
    "encoder_layer3to2.0.ff.out_norm.bias": (128,),
    "decoder1.2.weight": (64, 128, 3, 3),
    "decoder2.2.bias": (2,),
}


def official(model: ASNet) -> dict[str, Tensor]:
    """The learner's tensors as the published code has them: 3-D convolutions in the encoders."""
    return {
        name: tensor.unsqueeze(2) if tensor.dim() == 4 and name.startswith("encoder") else tensor
        for name, tensor in model.learner.state_dict().items()
    }


@pytest.mark.parametrize("lead", ["learner.", "module.learner.", ""])
def test_official_checkpoints(lead: str) -> None:
    source, model = tiny(seed=1), tiny(seed=2)
    tensors = official(source)
    assert {name: tuple(tensors[name].shape) for name in OFFICIAL} == OFFICIAL
    state_dict = {f"{lead}{name}": tensor for name, tensor in tensors.items()}
    load_official_learner(model, {**state_dict, "backbone.conv1.weight": torch.zeros(1)})
    for (name, found), expected in zip(
        model.learner.state_dict().items(), source.learner.state_dict().values(), strict=True
    ):
        assert torch.equal(found, expected), name


def test_official_checkpoint_that_does_not_fit() -> None:
    model = tiny(seed=2)
    before = {name: tensor.clone() for name, tensor in model.learner.state_dict().items()}
    tensors = official(tiny())
    del tensors["decoder2.2.bias"]
    tensors["encoder_layer3.0.attn.qhead.weight"] = torch.zeros(16, 23, 1, 5, 5)
    with pytest.raises(WeightsError, match=r"1 missing: decoder2\.2\.bias .*1 of another shape: .*\(16, 23, 5, 5\)"):
        load_official_learner(model, tensors)
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.learner.state_dict().items())


class Layer(nn.Module):
    """Two layers with both kinds of keys and both kinds of short cut, behind one another."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = golden_layer("c1"), golden_layer("c2")

    def squeeze(self, x: Tensor, attend: Tensor) -> Tensor:
        four, _ = torch.split(attend, [16, 4], dim=1)
        result: Tensor = self.second(self.first(x, (13, 13), four), (4, 4), four)
        return result


@needs_openvino
def test_layers_in_engines() -> None:
    import openvino

    module = Layer()
    x, _, attend = golden_inputs("c1", module.first)
    shapes = ("N", *x.shape[1:]), ("N", 20), ("N", 32, 12, 16)
    specs = [TensorSpec(name, "float32", shape) for name, shape in zip(("x", "attend", "y"), shapes, strict=True)]
    made = onnx_from_module(module, Graph("squeeze", tuple(specs[:2]), tuple(specs[2:])))
    flat = shape_inference.infer_shapes(inliner.inline_local_functions(made), strict_mode=True, data_prop=True)
    assert max(len(value.type.tensor_type.shape.dim) for value in flat.graph.value_info) <= 5
    assert "Einsum" not in {node.op_type for node in flat.graph.node}
    core = openvino.Core()
    compiled = core.compile_model(core.read_model(flat.SerializeToString()), "CPU", {"INFERENCE_PRECISION_HINT": "f32"})
    session = onnxruntime.InferenceSession(made.SerializeToString(), providers=["CPUExecutionProvider"])
    for batch in (1, 3):
        inputs = (
            torch.cat([x, x.flip(2), x * 0.5])[:batch],
            torch.cat([attend, torch.zeros_like(attend), attend.flip(1)])[:batch],
        )
        inputs = (inputs[0], nn.functional.pad(inputs[1], (0, 4)))
        with torch.no_grad():
            expected = module.squeeze(*inputs).numpy()
        feed = {"x": inputs[0].numpy(), "attend": inputs[1].numpy()}
        for found in (session.run(None, feed)[0], next(iter(compiled(feed).values()))):
            np.testing.assert_allclose(found, expected, rtol=0, atol=5e-5)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"side": 400}, "side is 400; allowed: 32 k"),
        ({"side": 257}, "side is 257; ASNet with pooled_from = 50 takes 417, 449, 481."),
        ({"side": 545}, "side is 545; ASNet with pooled_from = 50 takes 417, 449, 481."),
        ({"backbone": "vgg16"}, "backbone is 'vgg16'; allowed: resnet50, resnet101"),
    ],
)
def test_wrong_options(options: dict[str, object], message: str) -> None:
    with pytest.raises(ModelError, match=re.escape(message)):
        asnet_hm(**{"width": 2, **options})  # type: ignore[arg-type]


@pytest.mark.parametrize("side", [417, 449, 481])
def test_sides_of_the_published_structure(side: int) -> None:
    model = asnet_hm(side=side, width=1)
    deploy = models.entry("asnet-hm").deploy
    assert deploy is not None
    graph = deploy(model).graph("support")
    with torch.inference_mode():
        found = model.support(torch.randn(1, 3, side, side), torch.ones(1, side, side))
    assert [tuple(tensor.shape[1:]) for tensor in found] == [tensor.shape[1:] for tensor in graph.outputs]


def test_wrong_inputs() -> None:
    model = tiny()
    image, mask = images_and_masks(2, SIDE)
    supports = model.support(image, mask)
    layer = golden_layer("c2")
    for call, message in (
        (lambda: model.support(image[:, :2], mask), r"image is \(2, 2, 257, 257\)"),
        (lambda: model.support(image, mask[:, 1:]), r"mask is \(2, 256, 257\)"),
        (lambda: model.query(image[0], *supports), r"image is \(3, 257, 257\)"),
        (lambda: model.query(image, *supports[:3], supports[3][:, 1:]), r"support_attend is \(2, 118\)"),
        (lambda: model.query(image, *supports[:3], supports[3][:1]), "with one K for all"),
        (lambda: model(image, image[:1], mask[:1]), "2 query images and 1 support images"),
        (lambda: model.learner([], supports[3]), "0 correlations"),
        (lambda: layer(torch.zeros(1, 31, 4, 4), (2, 2), torch.ones(1, 4)), r"takes \(N, 32, Q, S\)"),
        (lambda: layer(torch.zeros(1, 32, 4, 4), (2, 2), torch.ones(1, 5)), r"allowed: \(N, 4\)"),
    ):
        with pytest.raises(InputError, match=message):
            call()
    with pytest.raises(ModelError, match="8 heads do not divide 10 channels"):
        AttentiveSqueeze(4, 20, kernel=1, stride=1, padding=0)
    with pytest.raises(ModelError, match="a support grid of side 9 shrinks to side 1"):
        ASNetLearner((1, 1, 1), (17, 9, 5), (17, 9, 5))
