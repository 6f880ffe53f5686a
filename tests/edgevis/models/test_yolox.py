"""YOLOX-nano: the published weights and outputs, the stem's strided form, the box code, options."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

from edgevis import models
from edgevis.data.detection import chosen_classes
from edgevis.data.detection_split import read_detection_images
from edgevis.layers.csp_darknet import Focus, SpatialPyramidPooling
from edgevis.layers.grid_boxes import cell_grid, decode_cells
from edgevis.metrics.average_precision import average_precision
from edgevis.models._detection import COCO_LABELS, labels_of
from edgevis.models.yolox import YOLOX
from runtime.detection.postprocess import DetectionSettings, detected_boxes
from runtime.errors import InputError, ModelError
from runtime.images.preprocess import Preprocessor

from shared_data import shared_data

pytestmark = pytest.mark.torch


def yolox(**options: object) -> YOLOX:
    torch.manual_seed(0)
    model = models.create("yolox-nano", **options)
    assert isinstance(model, YOLOX)
    return model


def test_published_weights_give_the_published_outputs() -> None:
    """The raw rows of ONNX Runtime on a photograph and the boxes after NMS; their float32 differs by 2e-4 at most."""
    folder = shared_data("weights", "yolox_nano")
    model = yolox()
    models.load_weights(model, folder / "yolox_nano_coco.safetensors")
    with np.load(folder / "golden.npz") as golden:
        image = torch.from_numpy(golden["input_uint8"]).float()[None]
        with torch.no_grad():
            maps = model.heads(image)
            scores, boxes = model.detect(image)
        raw = torch.cat([x.flatten(2) for x in maps], dim=2)[0].T
        found = torch.cat([raw[:, :4], raw[:, 4:].sigmoid()], dim=1).numpy()[golden["rows"]]
        np.testing.assert_allclose(found, golden["raw_rows"], atol=2.5e-4)
        assert [COCO_LABELS[index] for index in golden["classes"]] == ["person", "skis"]
        for box, score, index in zip(golden["boxes_xyxy"], golden["scores"], golden["classes"], strict=True):
            best = int(scores[0, :, index].argmax())
            assert float(scores[0, best, index]) == pytest.approx(float(score), abs=1e-5)
            np.testing.assert_allclose(boxes[0, best].numpy() / golden["ratio"], box, atol=1e-3)


def test_published_weights_find_persons_as_published() -> None:
    """AP50 0.590 of persons on the photographs of COCO's val2017, threshold 0.01, suppression above IoU 0.65."""
    pytest.importorskip("pycocotools", reason="detections are measured with it")
    data = chosen_classes(read_detection_images(shared_data("detect_coco", "coco_sample_dev.zip")), "person")
    assert data.roles is not None
    model = yolox()
    models.load_weights(model, shared_data("weights", "yolox_nano", "yolox_nano_coco.safetensors"))
    preprocess = Preprocessor(models.entry("yolox-nano").deployment.preprocess)
    settings = DetectionSettings(("person",), score=0.01, iou=0.65)
    truths, detections = [], []
    for place in (place for place, role in enumerate(data.roles) if role == "test"):
        image, labels = data[place]
        size = (image.shape[0], image.shape[1])
        with torch.no_grad():
            scores, boxes = (x[0].numpy() for x in model.detect(torch.from_numpy(preprocess([image]))))
        found = detected_boxes(scores[:, :1], boxes, settings, geometry=preprocess.geometry(size), size=size)
        truths.append(labels)
        detections.append((found.boxes, found.scores, found.class_ids))
    assert len(truths) == 70
    measured = average_precision(truths, detections, classes=1)
    assert (measured.value, measured.at_50) == pytest.approx((0.320, 0.590), abs=0.001)


def test_the_stem_is_one_strided_convolution_in_evaluation() -> None:
    stem = Focus(8)
    nn.init.uniform_(stem.conv.bn.weight, 0.5, 1.5)
    stem.conv.bn.eval()
    image = torch.randn(2, 3, 12, 20)
    with torch.no_grad():
        sliced = stem(image)
        strided = stem.eval()(image)
    assert sliced.shape == (2, 8, 6, 10)
    torch.testing.assert_close(strided, sliced, rtol=1e-5, atol=1e-5)


def test_pyramid_pooling_is_over_5_9_and_13_cells() -> None:
    pooling = SpatialPyramidPooling(8).eval()
    x = torch.randn(1, 8, 15, 17)
    with torch.no_grad():
        first = pooling.conv1(x)
        pools = [functional.max_pool2d(first, size, stride=1, padding=size // 2) for size in (5, 9, 13)]
        torch.testing.assert_close(pooling(x), pooling.conv2(torch.cat([first, *pools], dim=1)))


def test_box_code() -> None:
    """By hand: the cell at column 2 of row 1 with stride 8, and the only cell with stride 32."""
    corners, strides = cell_grid((32, 32), (8, 32))
    assert corners.shape == (17, 2)
    assert corners[6].tolist() == [16, 8]
    assert strides[:, 0].tolist() == [8.0] * 16 + [32.0]
    code = torch.zeros(17, 4)
    code[6] = torch.tensor([0.5, 0.25, np.log(2), np.log(4)])
    boxes = decode_cells(code, corners, strides)
    torch.testing.assert_close(boxes[6], torch.tensor([12.0, -6, 28, 26]))
    torch.testing.assert_close(boxes[16], torch.tensor([-16.0, -16, 16, 16]))
    code[:, 2:] = 1e9
    assert torch.isfinite(decode_cells(code, corners, strides)).all()


@pytest.mark.parametrize(("height", "width"), [(64, 96), (96, 64)])
def test_rows_are_the_cells_of_the_three_levels(height: int, width: int) -> None:
    model = yolox(num_classes=1, height=height, width=width)
    image = torch.zeros(2, 3, height, width)
    with torch.no_grad():
        maps = model.heads(image)
        scores, boxes = model.detect(image)
    assert [tuple(x.shape) for x in maps] == [(2, 6, height // stride, width // stride) for stride in (8, 16, 32)]
    rows = 96 * 64 * 21 // 1024
    (graph,) = models.deployment_of(models.entry("yolox-nano"), model).graphs
    assert [output.shape for output in graph.outputs] == [("N", rows, 1), ("N", rows, 4)]
    assert scores.shape == (2, rows, 1)
    assert boxes.shape == (2, rows, 4)
    # The prior of an untrained head: 0.01 for an object, 0.01 for the class.
    assert float(scores.mean()) == pytest.approx(1e-4, rel=0.5)
    with pytest.raises(InputError, match="multiples of 32"):
        model.heads(torch.zeros(1, 3, height, width + 8))


def test_every_parameter_learns() -> None:
    model = yolox(num_classes=2).train()
    maps: list[Tensor] = model(torch.randn(2, 3, 64, 64))
    sum(x.square().sum() for x in maps).backward()  # type: ignore[union-attr]
    assert not [name for name, parameter in model.named_parameters() if parameter.grad is None]


def test_labels() -> None:
    assert labels_of(1) == ("person",)
    assert labels_of(80) == COCO_LABELS
    ninety = labels_of(90)
    # COCO's ids: 1 person, 13 stop sign, 90 toothbrush.
    assert (ninety[0], ninety[12], ninety[89], ninety[11]) == ("person", "stop sign", "toothbrush", "unused-12")
    assert [name for name in ninety if not name.startswith("unused")] == list(COCO_LABELS)
    assert labels_of(2) == ("class-1", "class-2")
    assert yolox(num_classes=2, labels="cat, dog").labels == ("cat", "dog")
    for labels in ("cat", "cat,cat", "cat,", ","):
        with pytest.raises(ModelError, match="different names"):
            labels_of(2, labels)


def test_hardswish_is_close_to_silu() -> None:
    """The same parameters, and maps that differ by little; ReLU's differ more."""
    silu, hard, relu = (yolox(num_classes=1, activation=name) for name in ("silu", "hardswish", "relu"))
    hard.load_state_dict(silu.state_dict())
    relu.load_state_dict(silu.state_dict())
    image = torch.randn(1, 3, 64, 64)
    with torch.no_grad():
        expected, near, far = (model.heads(image)[0] for model in (silu, hard, relu))
    assert 0 < float((near - expected).square().mean()) < float((far - expected).square().mean())


@pytest.mark.parametrize(
    "options", [{"num_classes": 0}, {"height": 100}, {"width": 0}, {"labels": 3}, {"activation": "gelu"}]
)
def test_options_out_of_range_are_refused(options: dict[str, object]) -> None:
    with pytest.raises(ModelError, match=f"{next(iter(options))} is .*; allowed"):
        models.create("yolox-nano", **options)
