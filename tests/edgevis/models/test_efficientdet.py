"""EfficientDet-D0 against effdet's outputs: names, counts, heads, BiFPN, anchors, box code, detections, options."""

from __future__ import annotations

import csv
from collections import Counter
from collections.abc import Iterator

import numpy as np
import onnx
import pytest
import torch
from torch.nn import functional

from edgevis import models
from edgevis.layers.anchors import ANCHORS_PER_CELL, anchor_boxes, anchors_per_level, decode_anchors, encode_anchors
from edgevis.layers.bifpn import LEVELS, BiFPN, halved
from edgevis.layers.shared_head import SharedHead
from edgevis.models.efficientdet import EfficientDet, rows_of
from runtime.common.arrays import Array
from runtime.detection.postprocess import DetectionSettings, detected_boxes
from runtime.errors import InputError, ModelError

from built import small_bundle
from bundles import needs_openvino
from locations import GOLDEN_FOLDER
from recipe_weights import load_recipe_weights

pytestmark = pytest.mark.torch

NAMES = {"pytorch": "efficientdet_d0", "tf": "tf_efficientdet_d0"}
MEAN, STD = np.array([0.485, 0.456, 0.406]), np.array([0.229, 0.224, 0.225])
SWAPPED = [1, 0, 3, 2]
TOLERANCE = 1e-4

each_variant = pytest.mark.parametrize("variant", NAMES)


def efficientdet(**options: object) -> EfficientDet:
    torch.manual_seed(0)
    model = models.create("efficientdet-d0", **options)
    assert isinstance(model, EfficientDet)
    return model


def assert_near(actual: torch.Tensor, expected: Array) -> None:
    assert actual.shape == expected.shape
    assert np.abs(actual.numpy() - expected).max() < TOLERANCE * np.abs(expected).max()


@pytest.fixture(scope="module")
def golden() -> Iterator[dict[str, Array]]:
    with np.load(GOLDEN_FOLDER / "efficientdet_d0.npz") as file:
        yield dict(file)


@pytest.fixture(scope="module")
def parts() -> Iterator[dict[str, Array]]:
    with np.load(GOLDEN_FOLDER / "efficientdet_parts.npz") as file:
        yield dict(file)


@each_variant
def test_parameters_bear_the_published_names(variant: str) -> None:
    with (GOLDEN_FOLDER / "efficientdet_names.csv").open() as file:
        expected = {
            row["name"]: tuple(int(size) for size in row["shape"].split("x") if size)
            for row in csv.DictReader(file)
            if row["variant"] in ("both", variant)
        }
    state = efficientdet(variant=variant).state_dict()
    actual = {name: tuple(x.shape) for name, x in state.items() if not name.endswith("num_batches_tracked")}
    assert actual == expected


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ({}, 3_877_763),
        ({"variant": "tf"}, 3_880_067),
        ({"num_classes": 1}, 3_825_698),
        ({"num_classes": 1, "variant": "tf"}, 3_828_002),
        ({"num_classes": 1, "backbone": "mobilenetv2"}, 2_039_462),
    ],
)
def test_counts(options: dict[str, object], expected: int) -> None:
    model = efficientdet(**options)
    assert models.parameters(model) == expected
    if options.get("backbone") is None:
        assert models.parameters(model.backbone) == 3_595_388


@each_variant
def test_heads_are_effdets(variant: str, golden: dict[str, Array]) -> None:
    name = NAMES[variant]
    model = efficientdet(num_classes=3, size=128, variant=variant)
    load_recipe_weights(model, seed=int(golden["seed"]), gain=float(golden[f"{name}/gain"]))
    image = ((golden["image_uint8_rgb"] / 255 - MEAN) / STD).astype(np.float32).transpose(2, 0, 1)
    with torch.no_grad():
        classes, boxes = model.heads(torch.from_numpy(image)[None])
        fused = model.fpn(model.backbone.pyramid(torch.from_numpy(image)[None]))
    found = {
        **{f"class_p{level}": x for level, x in zip(LEVELS, classes, strict=True)},
        **{f"box_p{level}": x for level, x in zip(LEVELS, boxes, strict=True)},
        "p6_fpn_out": fused[3],
        "p7_fpn_out": fused[4],
    }
    compared = [key for key in found if f"{name}/{key}" in golden]
    # The box map of level 3 is left out of the reference values of one variant.
    assert len(compared) >= 11
    for key in compared:
        assert_near(found[key], golden[f"{name}/{key}"])


@pytest.mark.parametrize(("padding", "tensorflow"), [("sym", False), ("same", True)])
def test_bifpn_and_head_are_effdets(padding: str, tensorflow: bool, parts: dict[str, Array]) -> None:
    """A narrow one with two cells on maps that are not square."""
    inputs = [torch.from_numpy(parts[f"{padding}/in_p{level}"]) for level in (3, 4, 5)]
    fpn = BiFPN([x.shape[1] for x in inputs], channels=8, cells=2, tensorflow=tensorflow).eval()
    head = SharedHead(8, 2 * ANCHORS_PER_CELL, repeats=2, redundant_bias=tensorflow).eval()
    load_recipe_weights(fpn, seed=int(parts["seed"]) + 1, gain=1.2, prefix="fpn.")
    load_recipe_weights(head, seed=int(parts["seed"]) + 2, gain=1.2, prefix="class_net.")
    with torch.no_grad():
        fused = fpn(inputs)
        classes = head(fused)
    for kind, maps in (("fpn_out", fused), ("class_out", classes)):
        for level, x in zip(LEVELS, maps, strict=True):
            if f"{padding}/{kind}_p{level}" in parts:
                assert_near(x, parts[f"{padding}/{kind}_p{level}"])


def test_the_heads_batch_norms_fold_into_the_convolutions() -> None:
    """In evaluation mode; where they are trained the norms of the batch count."""
    head = SharedHead(8, 4, repeats=2, redundant_bias=True)
    load_recipe_weights(head, seed=1, gain=1.0)
    maps = [torch.randn(2, 8, side, side) for side in (16, 8, 4, 2, 2)]
    for module in head.modules():
        if isinstance(module, torch.nn.BatchNorm2d):
            module.momentum = 1.0
            module.train()
    with torch.no_grad():
        trained = head(maps)
        head.eval()
        for norms in head.bn_rep:
            for level, norm in enumerate(norms.children()):
                # Statistics of the batch, without the correction for its size that the running variance has.
                count = maps[level][:, 0].numel()
                norm.bn.running_var.mul_((count - 1) / count)  # type: ignore[union-attr, operator]
        folded = head(maps)
    for first, second in zip(trained, folded, strict=True):
        torch.testing.assert_close(second, first, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("side", [2, 4, 8, 32])
def test_pooling_pads_as_tensorflow_does_without_an_infinity(side: int) -> None:
    x = torch.randn(2, 3, side, 2 * side) - 5.0
    padded = functional.pad(x, (0, 1, 0, 1), value=-torch.inf)
    assert torch.equal(halved(x, tensorflow=True), functional.max_pool2d(padded, 3, stride=2))


@pytest.mark.xdist_group("efficientdet-d0")  # with the contract tests, which build the same bundle
@needs_openvino
def test_the_graph_folds_fusion_weights_and_batch_norms(tmp_path_factory: pytest.TempPathFactory) -> None:
    """Each level has its own copy of the heads' pointwise convolutions, with its batch norm in it."""
    model = onnx.load(small_bundle(tmp_path_factory, "efficientdet-d0") / "graphs" / "detect.onnx")
    kinds = Counter(node.op_type for node in model.graph.node)
    assert not {"BatchNormalization", "Div", "Pad", "ReduceSum", "Relu", "Sqrt", "Unsqueeze"} & set(kinds)
    pointwise = [tensor for tensor in model.graph.initializer if tuple(tensor.dims) == (64, 64, 1, 1)]
    # Two heads of three convolutions at five levels, and 24 nodes of the BiFPN.
    assert len(pointwise) == 2 * 3 * 5 + 24


@pytest.mark.parametrize("size", [(512, 512), (384, 640), (128, 128), (160, 96)])
def test_anchors_are_effdets(size: tuple[int, int], parts: dict[str, Array]) -> None:
    anchors = anchor_boxes(size)
    key = f"anchors_{size[0]}x{size[1]}"
    assert len(anchors) == sum(anchors_per_level(size)) == parts[f"{key}/count"]
    np.testing.assert_allclose(anchors[parts[f"{key}/rows"]], parts[f"{key}/yxyx"][:, SWAPPED], rtol=1e-6, atol=1e-5)
    np.testing.assert_allclose(anchors.double().sum(0), parts[f"{key}/sum"][SWAPPED], rtol=1e-6)


def test_box_code_is_effdets(parts: dict[str, Array]) -> None:
    anchors = anchor_boxes((128, 128))
    chosen = anchors[parts["decode/anchor_index_128"]]
    code = torch.from_numpy(parts["decode/rel_codes_ty_tx_th_tw"])
    boxes = decode_anchors(code, chosen)
    np.testing.assert_allclose(boxes, parts["decode/xyxy"], rtol=1e-4, atol=1e-3)
    torch.testing.assert_close(encode_anchors(boxes, chosen), code, rtol=1e-4, atol=1e-5)
    image, anchor = parts["target/pos_image"], parts["target/pos_anchor"]
    # One of the reference's positives, encoded from its box: the box that the anchor overlaps most.
    boxes_of_image = parts["target/boxes_yxyx"][parts["target/image_of_box"] == image[0]][:, SWAPPED]
    codes = encode_anchors(torch.from_numpy(boxes_of_image).float(), anchors[anchor[0]])
    assert np.abs(codes.numpy() - parts["target/pos_box"][0]).max(1).min() < 1e-4
    assert torch.isfinite(decode_anchors(torch.full((1, 4), 1e9), chosen[:1])).all()


@pytest.mark.parametrize("candidates", [5000, 300])
def test_detections_are_the_references(candidates: int, golden: dict[str, Array]) -> None:
    """The best of all pairs of anchor and class, decoded, clipped, suppressed by class, at most 100."""
    maps = [
        [torch.from_numpy(golden[f"efficientdet_d0/{kind}_p{level}"]) for level in LEVELS] for kind in ("class", "box")
    ]
    scores = torch.sigmoid(rows_of(maps[0], 3))[0]
    boxes = decode_anchors(rows_of(maps[1], 4)[0] * float(golden["post/box_factor"]), anchor_boxes((128, 128)))
    scale = float(golden["post/img_scale"])
    width, height = (round(float(side) / scale) for side in golden["post/img_size_wh"])
    settings = DetectionSettings(("a", "b", "c"), score=0.0, iou=0.5, max_detections=100, candidates=candidates)
    found = detected_boxes(scores.numpy(), boxes.numpy(), settings, size=(height, width))
    rows = golden[f"post/k{candidates}/xyxy_score_class1"]
    # The reference keeps boxes that clipping left without an area; they suppress nothing.
    rows = rows[(rows[:, 2] > rows[:, 0]) & (rows[:, 3] > rows[:, 1])]
    count = len(rows)
    assert count >= 30
    assert found.class_ids[:count].tolist() == (rows[:, 5] - 1).astype(int).tolist()
    np.testing.assert_allclose(found.scores[:count], rows[:, 4], rtol=TOLERANCE)
    np.testing.assert_allclose(found.boxes[:count] * scale, rows[:, :4], rtol=TOLERANCE, atol=1e-2)


@pytest.mark.parametrize("backbone", ["efficientnet-b0", "efficientnet-lite0", "mobilenetv2"])
def test_maps_and_rows(backbone: str) -> None:
    model = efficientdet(num_classes=2, size=128, backbone=backbone, labels="cat,dog")
    image = torch.zeros(2, 3, 128, 128)
    with torch.no_grad():
        classes, boxes = model.heads(image)
        scores, decoded = model.detect(image)
    assert [tuple(x.shape) for x in classes] == [(2, 18, side, side) for side in (16, 8, 4, 2, 1)]
    assert [tuple(x.shape) for x in boxes] == [(2, 36, side, side) for side in (16, 8, 4, 2, 1)]
    assert scores.shape == (2, 3069, 2)
    assert decoded.shape == (2, 3069, 4)
    assert float(scores.mean()) == pytest.approx(0.01, rel=0.5)
    deployment = models.deployment_of(models.entry("efficientdet-d0"), model)
    assert deployment.postprocess["labels"] == ["cat", "dog"]
    assert deployment.preprocess.mean == ((0.485, 0.456, 0.406) if backbone == "efficientnet-b0" else (0.5, 0.5, 0.5))
    with pytest.raises(InputError, match="multiples of 128"):
        model.heads(torch.zeros(1, 3, 128, 160))


def test_every_parameter_learns() -> None:
    model = efficientdet(num_classes=1, variant="tf").train()
    maps = [x for part in model(torch.randn(2, 3, 128, 128)) for x in part]
    torch.stack([x.square().sum() for x in maps]).sum().backward()
    assert not [name for name, parameter in model.named_parameters() if parameter.grad is None]


@pytest.mark.parametrize(
    "options", [{"num_classes": 0}, {"size": 500}, {"variant": "jax"}, {"backbone": "vgg"}, {"labels": 3}]
)
def test_options_out_of_range_are_refused(options: dict[str, object]) -> None:
    with pytest.raises(ModelError, match=f"{next(iter(options))} is .*; allowed"):
        models.create("efficientdet-d0", **options)
