"""VAT-HM: its blocks against reference values (tests/golden/README.md). Its graphs: tests/contracts/test_models.py."""

from __future__ import annotations

import re

import numpy as np
import onnxruntime
import pytest
import torch
from onnx import inliner, shape_inference
from torch import Tensor, nn

from edgevis import models
from edgevis.layers.correlation import unit_channels
from edgevis.layers.grid_resize import resize_mask, resize_matrix, resize_query_grid
from edgevis.layers.masking import mask_maps, masked_pyramid
from edgevis.layers.pooled_conv4d import PooledBlock4d, PooledConv4d
from edgevis.layers.resize import resize
from edgevis.layers.swin import WindowTransformer
from edgevis.models.vat import VAT, VATLearner, at_grid, load_official_learner, vat_hm
from export.onnx import onnx_from_module
from runtime.bundle.spec import Graph, TensorSpec
from runtime.errors import InputError, ModelError, WeightsError

from bundles import needs_openvino
from locations import GOLDEN_FOLDER
from support_query_models import images_and_masks, shrink

pytestmark = pytest.mark.torch

GOLDEN = np.load(GOLDEN_FOLDER / "08_vat_blocks.npz")
SIDE, GRID = 65, 4


def golden(name: str) -> Tensor:
    return torch.from_numpy(GOLDEN[name])


def tiny(*, variant: str = "pascal", seed: int = 0) -> VAT:
    """The whole structure with one block per stage of the backbone."""
    torch.manual_seed(seed)
    model = vat_hm(variant=variant, side=SIDE, width=2, grid=GRID)  # type: ignore[arg-type]
    shrink(model, lambda backbone: VATLearner((1, 1, 1), backbone.channels[:3], variant=variant, grid=GRID))  # type: ignore[arg-type]
    return model


@pytest.mark.parametrize("case", ["conv0", "conv1", "conv2"])
def test_pooled_convolution(case: str) -> None:
    x, expected = golden(f"{case}.x"), golden(f"{case}.y")
    query_stride, _, support_stride, _ = GOLDEN[f"{case}.stride"].tolist()
    module = PooledConv4d(x.shape[1], expected.shape[1], query_stride=query_stride, support_stride=support_stride)
    weights = {name: golden(f"{case}.{name}") for name in module.state_dict()}
    weights["query_conv.weight"] = weights["query_conv.weight"].unsqueeze(4)
    module.load_state_dict(weights)
    query_grid, support_grid = tuple(x.shape[2:4]), tuple(x.shape[4:])
    found = module(x.flatten(4).flatten(2, 3), query_grid, support_grid)
    assert module.output_grids(query_grid, support_grid) == (expected.shape[2:4], expected.shape[4:])
    torch.testing.assert_close(found.reshape(expected.shape), expected, rtol=0, atol=1e-5)


@pytest.mark.parametrize("case", ["swin0", "swin1"])
def test_window_transformer_over_four_axes(case: str) -> None:
    x, expected = golden(f"{case}.x"), golden(f"{case}.y")
    channels, depth, heads, window = GOLDEN[f"{case}.meta"].tolist()
    module = WindowTransformer(tuple(x.shape[2:]), channels, depth=depth, heads=heads, window=window, final_norm=False)
    assert module.shifted == tuple(bool(shift) for shift in GOLDEN[f"{case}.shift"])
    prefix = f"{case}.transformer."
    names = [name for name in GOLDEN.files if name.startswith(prefix)]
    module.load_state_dict({name.removeprefix(prefix).removeprefix("layer."): golden(name) for name in names})
    found = module(x.flatten(2).transpose(1, 2))
    # Tokens are places in row order: the reference's tensor is (1, C, hq, wq, hs, ws).
    torch.testing.assert_close(found.transpose(1, 2).reshape(expected.shape), expected, rtol=0, atol=1e-4)


@pytest.mark.parametrize("level", ["00", "04", "09", "10", "12"])
def test_masked_and_switched_before_the_resize(level: str) -> None:
    feature, masked_image = golden(f"order.feat.{level}"), golden(f"order.feat_im.{level}")
    mask = golden("order.mask").float()
    hybrid, features_alone = golden(f"order.vat_hm.{level}"), golden(f"order.vat_fm.{level}")
    side = hybrid.shape[3]
    masked = mask_maps([[feature]], [[masked_image]], mask, masking="hm")[0]
    torch.testing.assert_close(at_grid(masked, side).reshape(hybrid.shape), hybrid, rtol=0, atol=2e-4)
    # VAT's own feature masking goes the other way round; the orders differ, so the test above can fail.
    resized = at_grid([feature], side).reshape(hybrid.shape)
    weight = resize(mask.unsqueeze(1), (side, side))
    torch.testing.assert_close(resized * weight, features_alone, rtol=0, atol=2e-4)
    late = mask_maps([[resized]], [[at_grid([masked_image], side).reshape(hybrid.shape)]], mask, masking="hm")[0][0]
    assert (late - hybrid).abs().max() > 0.05


def test_support_is_masked_then_resized_then_normalised() -> None:
    model = tiny()
    image, mask = images_and_masks(2, SIDE)
    two, three, four = masked_pyramid(model.backbone.features, image, mask)
    for found, maps, side in zip(model.support(image, mask), (four, three, two), (4, 8, 16), strict=True):
        assert torch.equal(found, unit_channels(at_grid(maps, side), dim=2))


@pytest.mark.parametrize(
    ("variant", "resnet50", "resnet101"),
    [("pascal", 3_180_954, 3_200_538), ("coco", 3_006_490, 3_026_074), ("fss", 3_680_410, 3_699_994)],
)
def test_learner_sizes(variant: str, resnet50: int, resnet101: int) -> None:
    for depth, expected in ((6, resnet50), (23, resnet101)):
        learner = VATLearner((4, depth, 3), (256, 512, 1024), variant=variant, grid=16)  # type: ignore[arg-type]
        assert models.parameters(learner) == expected


def test_shots_are_independent_and_training_pairs_rows() -> None:
    model = tiny()
    image, _ = images_and_masks(2, SIDE, seed=1)
    support_image, mask = images_and_masks(2, SIDE, seed=2)
    with torch.inference_mode():
        supports = model.support(support_image, mask)
        logits = model.query(image, *supports)
        one_shot = model.query(image[1:], *(tensor[:1] for tensor in supports))
        rows = model(image, support_image, mask)
    assert logits.shape == (2, 2, 2, 8 * GRID, 8 * GRID)
    torch.testing.assert_close(one_shot[0, 0], logits[1, 0], rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(rows, torch.stack((logits[0, 0], logits[1, 1])), rtol=1e-4, atol=1e-5)
    assert (logits[:, 0] - logits[:, 1]).abs().max() > 1e-2


def test_guides_reach_the_logits() -> None:
    """The projection of ``coco`` is that of stage 1; ``fss`` also sees stages 2 and 3, and they are not masked."""
    one, two, three = (torch.rand(1, channels, 9, 9) for channels in (8, 16, 32))
    for variant, sides in (("coco", (None, None, 32)), ("pascal", (None, 16, 32)), ("fss", (8, 16, 32))):
        guides = tiny(variant=variant).learner.guides((one, two, three))
        assert tuple(None if guide is None else guide.shape[3] for guide in guides) == sides
    learner = tiny(variant="fss").learner
    guide = learner.guides((one, two, three))[2]
    weight, bias = learner.projections[2].weight, learner.projections[2].bias
    resized = nn.functional.conv2d(resize(one, (32, 32)), weight, bias)  # type: ignore[arg-type]
    assert guide is not None
    torch.testing.assert_close(guide, torch.relu(resized), rtol=0, atol=1e-5)


def test_learns_all_but_what_is_never_applied() -> None:
    model = tiny().train()
    assert not any(module.training for module in model.backbone.modules())
    image, mask = images_and_masks(1, SIDE)
    model(image, image.flip(3), mask).square().sum().backward()
    without = {name for name, parameter in model.learner.named_parameters() if parameter.grad is None}
    norms = {f"transformers.{level}.norm.{kind}" for level in range(3) for kind in ("weight", "bias")}
    assert without == norms | {"projections.0.weight", "projections.0.bias"}
    assert all(parameter.grad is None for parameter in model.backbone.parameters())


OFFICIAL = {
    "proj_query_feat.2.0.weight": (16, 8, 1, 1),
    "encoders.2.conv4d.2.0.query_conv.weight": (128, 64, 3, 3),
    "encoders.2.conv4d.2.0.supp_conv.bias": (128,),
    "encoders.0.conv4d.1.1.weight": (128,),
    "transformer.0.transformer.layer.blocks.3.attn.relative_position_bias_table": (81, 4),
    "transformer.1.transformer.norm.bias": (128,),
    "swin_decoder.0.0.transformer.layers.0.blocks.1.mlp.fc1.weight": (512, 128),
    "swin_decoder.1.0.transformer.norm.weight": (128,),
    "swin_decoder.1.1.weight": (48, 128, 1, 1),
    "decoder.2.bias": (2,),
}


def official(model: VAT) -> dict[str, Tensor]:
    """The learner's tensors as the published code names them."""
    renames = (
        (r"^encoders\.(\d)\.blocks\.(\d)\.conv\.", r"encoders.\1.conv4d.\2.0."),
        (r"^encoders\.(\d)\.blocks\.(\d)\.norm\.", r"encoders.\1.conv4d.\2.1."),
        (r"^transformers\.(\d)\.blocks", r"transformer.\1.transformer.layer.blocks"),
        (r"^transformers\.(\d)\.norm", r"transformer.\1.transformer.norm"),
        (r"^decoders\.(\d)\.transformer\.blocks", r"swin_decoder.\1.0.transformer.layers.0.blocks"),
        (r"^decoders\.(\d)\.transformer\.norm", r"swin_decoder.\1.0.transformer.norm"),
        (r"^decoders\.(\d)\.reduce", r"swin_decoder.\1.1"),
        (r"^head", "decoder"),
        (r"^projections\.(\d)", r"proj_query_feat.\1.0"),
    )
    found = {}
    for name, tensor in model.learner.state_dict().items():
        for pattern, replacement in renames:
            name = re.sub(pattern, replacement, name)
        found[name] = tensor.squeeze(4) if tensor.dim() == 5 else tensor
    return found


@pytest.mark.parametrize("lead", ["module.hpn_learner.ours.", "hpn_learner.ours.", ""])
def test_official_checkpoints(lead: str) -> None:
    source, model = tiny(seed=1), tiny(seed=2)
    tensors = official(source)
    assert {name: tuple(tensors[name].shape) for name in OFFICIAL} == OFFICIAL
    state_dict = {f"{lead}{name}": tensor for name, tensor in tensors.items()}
    if lead:
        block = f"{lead}transformer.0.transformer.layer.blocks.1."
        state_dict[f"{block}attn_mask"] = torch.zeros(1)
        state_dict[f"{block}attn.relative_position_index"] = torch.zeros(1)
        state_dict["module.backbone.conv1.weight"] = torch.zeros(1)
    load_official_learner(model, state_dict)
    for (name, found), expected in zip(
        model.learner.state_dict().items(), source.learner.state_dict().values(), strict=True
    ):
        assert torch.equal(found, expected), name


def test_official_checkpoint_of_another_variant() -> None:
    model = tiny(seed=2)
    before = {name: tensor.clone() for name, tensor in model.learner.state_dict().items()}
    with pytest.raises(WeightsError, match=r"of another shape: .*Create the model with the backbone and the variant"):
        load_official_learner(model, official(tiny(variant="coco")))
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.learner.state_dict().items())


class Pieces(nn.Module):
    """What the contract of all models does not reach at small sizes: shifts on all axes, sides that strides split."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.transformer = WindowTransformer((4, 6, 4, 4), 8, depth=3, heads=2, window=2, final_norm=True)
        self.block = PooledBlock4d(3, 8, query_stride=2, support_stride=2, groups=2)
        self.register_buffer("matrix", resize_matrix(3, 6))

    def attend(self, tokens: Tensor) -> Tensor:
        result: Tensor = self.transformer(tokens)
        return result

    def convolve(self, x: Tensor) -> Tensor:
        return resize_query_grid(self.block(x, (5, 6), (7, 4)), self.get_buffer("matrix"))


def one_to_one(method: str, shape: tuple[int, ...], result: tuple[int, ...]) -> Graph:
    x, y = TensorSpec("x", "float32", ("N", *shape)), TensorSpec("y", "float32", ("N", *result))
    return Graph(method, (x,), (y,))


@needs_openvino
@pytest.mark.parametrize(
    "graph",
    [one_to_one("attend", (384, 8), (384, 8)), one_to_one("convolve", (3, 30, 28), (8, 36, 8))],
    ids=lambda graph: graph.name,
)
def test_pieces_in_engines(graph: Graph) -> None:
    import openvino

    module = Pieces().eval()
    assert module.transformer.shifted == (False, True, False)
    made = onnx_from_module(module, graph)
    flat = shape_inference.infer_shapes(inliner.inline_local_functions(made), strict_mode=True, data_prop=True)
    assert max(len(value.type.tensor_type.shape.dim) for value in flat.graph.value_info) <= 5
    core = openvino.Core()
    compiled = core.compile_model(core.read_model(flat.SerializeToString()), "CPU", {"INFERENCE_PRECISION_HINT": "f32"})
    session = onnxruntime.InferenceSession(made.SerializeToString(), providers=["CPUExecutionProvider"])
    for batch in (1, 3):
        x = torch.randn(batch, *(int(size) for size in graph.inputs[0].shape[1:]))
        with torch.no_grad():
            expected = getattr(module, graph.name)(x).numpy()
        for found in (session.run(None, {"x": x.numpy()})[0], compiled(x.numpy())[0]):
            np.testing.assert_allclose(found, expected, rtol=0, atol=1e-5)


@pytest.mark.parametrize(("inputs", "outputs"), [(27, 53), (417, 14), (417, 4), (5, 3), (1, 4), (9, 1), (8, 8)])
def test_resize_matrix_is_bilinear_with_aligned_corners(inputs: int, outputs: int) -> None:
    matrix = resize_matrix(inputs, outputs)
    maps = torch.rand(2, 3, inputs, inputs)
    # In float64: PyTorch's float32 coordinates are off by 1.5e-5 of a place at 417.
    expected = resize(maps.double(), (outputs, outputs)).float()
    flat = resize_query_grid(maps.reshape(2, 1, 3, -1).transpose(2, 3), matrix)  # three support places
    torch.testing.assert_close(flat.transpose(2, 3).reshape(expected.shape), expected, rtol=0, atol=1e-5)
    torch.testing.assert_close(resize_mask(maps[:, 0], matrix), expected[:, 0], rtol=0, atol=1e-5)


def test_resized_masks_have_exact_zeros() -> None:
    """A pixel next to a sample of a whole coordinate does not count, not even by a rounding."""
    mask = torch.ones(1, 417, 417)
    mask[:, ::32, ::32] = 0
    assert torch.equal(resize_mask(mask, resize_matrix(417, 14)), torch.zeros(1, 14, 14))
    mask[:, 416, 416] = 1
    assert resize_mask(mask, resize_matrix(417, 4))[0, 3, 3] == 1


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"side": 400}, "side is 400; allowed: 32 k"),
        ({"side": 1}, "side is 1; allowed: 32 k"),
        ({"backbone": "vgg16"}, "backbone is 'vgg16'; allowed: resnet50, resnet101"),
        ({"variant": "ade"}, "variant is 'ade'; allowed: pascal, coco, fss"),
        ({"grid": 12}, "grid is 12; allowed: 4 or a multiple of 8"),
    ],
)
def test_wrong_options(options: dict[str, object], message: str) -> None:
    with pytest.raises(ModelError, match=re.escape(message)):
        vat_hm(**{"width": 2, **options})  # type: ignore[arg-type]


def test_wrong_inputs() -> None:
    model = tiny()
    image, mask = images_and_masks(2, SIDE)
    supports = model.support(image, mask)
    convolution = PooledConv4d(3, 4, query_stride=1, support_stride=1)
    for call, message in (
        (lambda: model.support(image[:, :, 1:], mask), r"image is \(2, 3, 64, 65\)"),
        (lambda: model.support(image, mask[:1]), r"mask is \(1, 65, 65\)"),
        (lambda: model.query(image[0], *supports), r"image is \(3, 65, 65\)"),
        (lambda: model.query(image, *reversed(supports)), r"support_l4 is"),
        (lambda: model.query(image, supports[0], supports[1][:1], supports[2]), "with one K for all"),
        (lambda: model(image, image[:1], mask[:1]), "2 query images and 1 support images"),
        (lambda: model.learner([], []), "0 correlations; allowed: 3"),
        (lambda: convolution(torch.zeros(1, 3, 4, 5), (2, 2), (2, 2)), r"takes \(N, 3, 4, 4\)"),
        (lambda: resize_matrix(0, 4), "cannot resize 0 points to 4"),
        (lambda: resize_query_grid(torch.zeros(1, 1, 5, 1), resize_matrix(2, 4)), "resizes query grids of 2 x 2"),
        (lambda: resize_mask(torch.zeros(1, 3, 2), resize_matrix(3, 4)), r"allowed: \(N, 3, 3\)"),
        (lambda: model.learner.transformers[0](torch.zeros(1, 15, 128)), r"takes \(N, 16, 128\)"),
    ):
        with pytest.raises(InputError, match=message):
            call()
    for grid, channels, heads in (((4, 6, 5, 4), 8, 2), ((4, 4), 9, 2)):
        with pytest.raises(ModelError, match="divide"):
            WindowTransformer(grid, channels, depth=1, heads=heads, window=3, final_norm=False)
