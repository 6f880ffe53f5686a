"""A model that outlines objects, in INT8: what its loss is measured by, and that every engine is verified."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from tiny_detector import GRAPH, TinyDetector, squares, tiny_detector_entry, weights_of, write_squares
from torch import Tensor

from edgevis import InstanceSegmentation, Predictor
from edgevis.models import ModelEntry
from edgevis.models._detection import instance_deployment
from export.request import BuildRequest
from export.stages import build_bundle
from runtime.bundle.bundle import Bundle
from runtime.bundle.manifest import ANSWERS
from runtime.parity.instances import OWN
from runtime.tasks import settings_of
from runtime.verification.answers.compare import compared, distances, read_answers
from runtime.verification.verify import verify_bundle

from built import Recorder
from bundles import needs_openvino
from detection_bundles import CELL, CELLS, LABELS

pytestmark = [pytest.mark.torch, needs_openvino]


DEPLOYMENT = instance_deployment(tiny_detector_entry().deployment.preprocess, labels=LABELS, rows=CELLS, vertices=4)


class TinyOutliner(TinyDetector):
    """The tiny detector, which outlines a diamond in each box."""

    def outline(self, image: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        scores, boxes = self.detect(image)
        left, top, right, bottom = boxes.unbind(2)
        x, y = (left + right) / 2, (top + bottom) / 2
        points = torch.stack([x, top, right, y, x, bottom, left, y], dim=2)
        return scores, boxes, points.reshape(-1, CELLS, 4, 2)


def entry() -> ModelEntry:
    made = tiny_detector_entry()
    return replace(made, name="tiny-outliner", build=TinyOutliner, deployment=DEPLOYMENT)


def test_the_deployment_is_the_detectors_with_polygons() -> None:
    graph = DEPLOYMENT.graph("outline")
    assert [tensor.shape for tensor in graph.outputs] == [("N", 64, 2), ("N", 64, 4), ("N", 64, 4, 2)]
    assert graph.outputs[:2] == GRAPH.outputs
    assert graph.float32_outputs == ("scores", "boxes", "polygons")
    assert settings_of(DEPLOYMENT).labels == LABELS


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    folder = tmp_path_factory.mktemp("outliner")
    request = BuildRequest(
        entry(),
        folder / "outliner.edgevis",
        precisions=("int8",),
        checkpoint=weights_of(folder / "weights.safetensors"),
        calibration_data=write_squares(folder / "pictures", 48, labelled=True),
    )
    return build_bundle(request, Recorder())


def test_boxes_and_masks_decide(bundle: Bundle) -> None:
    for record in bundle.manifest.engines:
        assert record.parity is not None
        decisions = record.parity.decisions
        assert decisions is not None
        assert decisions.metric == OWN
        assert decisions.agreement >= 0.99
        low, high = decisions.interval or (0.0, 0.0)  # on pictures with boxes
        assert 0.9 < low <= high < 1.1


def test_every_engine_is_verified_and_outlines(bundle: Bundle) -> None:
    assert [check.status for check in verify_bundle(bundle)] == ["passed"] * 2
    for backend in ("onnxruntime", "openvino"):
        with Predictor(bundle.path, backend=backend, precision="int8") as predictor:
            image, objects = squares(1, seed=9)[0]
            found = predictor.predict(image)
            assert isinstance(found, InstanceSegmentation)
            middles = {(int(y) // CELL, int(x) // CELL) for x, y in found.polygons.mean(axis=1)}
            assert middles <= {(row, column) for row, column, _ in objects}
            assert len(middles) >= 2


def test_answers_hold_outlines(bundle: Bundle) -> None:
    answers = read_answers(bundle)
    assert answers is not None
    assert (bundle.path / ANSWERS).stat().st_size < 600_000
    moved = {name: array + 0.25 if name.startswith("polygons/") else array for name, array in answers.expected.items()}
    off = distances(answers.expected, moved)
    assert off["boxes"] == off["scores"] == off["detections"] == 0
    assert 0.01 < off["outlines"] < 0.1
    assert compared(answers.expected, moved, "fp32", {}).beyond == ("outlines",)
    fewer = {name: array[:, 1:] if name.startswith("polygons/") else array for name, array in moved.items()}
    assert np.isinf(distances(answers.expected, fewer)["outlines"])
    without = {name: array for name, array in moved.items() if not name.startswith("polygons/")}
    assert set(distances(answers.expected, without)) == {"scores", "boxes", "outlines", "detections"}
