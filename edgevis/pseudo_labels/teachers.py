"""Detectors that label pictures, and what several of them see in several views of a picture."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import cv2
import numpy as np
from numpy.typing import NDArray

from edgevis.pseudo_labels.box_fusion import FusedDetections, ViewDetections, weighted_box_fusion
from edgevis.pseudo_labels.graph_teacher import bundle_teacher, model_teacher
from runtime.backends import Engine
from runtime.backends import load as load_backend
from runtime.bundle.bundle import sha256
from runtime.bundle.engine_files import read_engine
from runtime.common.vendors import import_onnxruntime
from runtime.errors import EngineError, InputError
from runtime.images.decode import Image

_MIN_TILE = 64
_OVERLAP = 0.25
_GREY = 114


class LabellingTeacher(Protocol):
    """A detector. Boxes are (N, 4) xyxy in pixels of the image, scores 0..1."""

    @property
    def name(self) -> str:
        """Its file's or bundle's name and the first digits of its SHA-256, for the labels' provenance."""
        ...

    def detect(self, image: Image) -> tuple[NDArray[np.float64], NDArray[np.float64], Sequence[str]]:
        """The boxes, their scores and their labels, of an (H, W, 3) uint8 BGR image."""
        ...

    def close(self) -> None: ...


class DetrTeacher:
    """An ONNX file with DETR's interface, such as the exports of DEIM, DEIMv2, D-FINE and RT-DETR.

    Inputs: ``images`` (N, 3, H, W) float32, RGB in 0..1, resized without keeping the aspect, and ``orig_target_sizes``
    (N, 2) int64, width and height. Outputs: ``labels`` (N, K) int64, ``boxes`` (N, K, 4) xyxy in pixels of the original
    image, ``scores`` (N, K).

    Args:
        path: The file.
        labels: The class names by label.
        threads: Of ONNX Runtime; None for its default.

    Raises:
        EngineError: It cannot be opened, or has other inputs or outputs.
    """

    def __init__(self, path: Path, labels: Sequence[str], *, threads: int | None = None) -> None:
        files = read_engine(path)
        self.name = f"{path.name} {sha256(path)[:16]}"
        self._labels = tuple(labels)
        self._engine: Engine = load_backend("onnxruntime").open_engine(
            files, precision="fp32", device="cpu", threads=threads
        )
        self._check_names(path)
        self._size = _input_size(files.main, path)

    def _check_names(self, path: Path) -> None:
        actual = (set(self._engine.inputs), set(self._engine.outputs))
        if actual != ({"images", "orig_target_sizes"}, {"labels", "boxes", "scores"}):
            self._engine.close()
            raise EngineError(
                f"{path.name} has the inputs and outputs {sorted(actual[0])} -> {sorted(actual[1])}; a DETR file has "
                "images, orig_target_sizes -> boxes, labels, scores"
            )

    def detect(self, image: Image) -> tuple[NDArray[np.float64], NDArray[np.float64], Sequence[str]]:
        resized = cv2.resize(image, self._size[::-1], interpolation=cv2.INTER_LINEAR)
        planes = np.ascontiguousarray(resized[..., ::-1].transpose(2, 0, 1), np.float32)[None] / np.float32(255)
        sizes = np.array([[image.shape[1], image.shape[0]]], np.int64)
        outputs = self._engine.run({"images": planes, "orig_target_sizes": sizes})
        known = outputs["labels"][0] < len(self._labels)
        labels = [self._labels[number] for number in outputs["labels"][0][known]]
        return outputs["boxes"][0][known].astype(np.float64), outputs["scores"][0][known].astype(np.float64), labels

    def close(self) -> None:
        self._engine.close()


def open_teacher(text: str, *, labels: Sequence[str], score: float, threads: int | None = None) -> LabellingTeacher:
    """The detector that a text names: a bundle's folder, an ``.onnx`` file with DETR's interface, or ``MODEL=WEIGHTS``.

    Args:
        text: Such as ``bundles/yolox-nano.edgevis``, ``deimv2.onnx`` or ``yolox-nano=yolox_nano_coco.safetensors``.
        labels: The class names of a DETR file.
        score: The lowest score of a detection that counts.
        threads: Of an engine.

    Raises:
        InputError: It is none of these.
        BundleError, BackendError, ModelError: It cannot be opened.
    """
    path = Path(text)
    if path.is_dir():
        return bundle_teacher(path, score=score, threads=threads)
    if path.suffix == ".onnx" and path.is_file():
        return DetrTeacher(path, labels, threads=threads)
    model, equals, weights = text.partition("=")
    if equals and model and weights:
        return model_teacher(model, Path(weights), score=score)
    raise InputError(
        f"{text} is no teacher; allowed: a bundle's folder, an .onnx file with DETR's interface, or MODEL=WEIGHTS"
    )


@dataclass(frozen=True, slots=True)
class TeacherViews:
    """How teachers look at a picture.

    Attributes:
        flip: Whether each view is looked at mirrored, too.
        scales: 1 is the whole picture; 2 are tiles of half its sides, overlapping by a quarter; 0.5 is the picture
            at half its size on a grey ground, for persons who fill it.
        iou: Of boxes that are fused.
    """

    flip: bool = True
    scales: tuple[float, ...] = (1.0,)
    iou: float = 0.55

    def __post_init__(self) -> None:
        if not self.scales or any(not 0.25 <= scale <= 8 for scale in self.scales):
            raise InputError(
                f"the scales are {', '.join(map(str, self.scales))}; allowed: at least one, each 0.25 to 8"
            )


class TeacherEnsemble:
    """Several teachers, their views fused by :func:`weighted_box_fusion`.

    Args:
        teachers: They are closed with the ensemble.
        classes: The labels that are kept; a detection's class id is the position here.
        views: How they look at a picture.
        score: The lowest score of a teacher's detection that takes part.
    """

    def __init__(
        self, teachers: Sequence[LabellingTeacher], *, classes: Sequence[str], views: TeacherViews, score: float
    ) -> None:
        self.teachers, self.classes, self.views = tuple(teachers), tuple(classes), views
        self._score = score

    def __enter__(self) -> TeacherEnsemble:
        return self

    def __exit__(self, *exception: object) -> None:
        with ExitStack() as stack:
            for teacher in self.teachers:
                stack.callback(teacher.close)

    def detect(self, image: Image) -> FusedDetections:
        """The fused detections of an (H, W, 3) uint8 BGR image; boxes are clipped to it."""
        height, width = image.shape[:2]
        views = [
            self._view(teacher, image, window, mirrored)
            for scale in self.views.scales
            for window in windows_of(width, height, scale)
            for mirrored in ((False, True) if self.views.flip else (False,))
            for teacher in self.teachers
        ]
        fused = weighted_box_fusion(views, iou=self.views.iou)
        boxes = np.clip(fused.boxes_xyxy, 0, np.array([width, height, width, height]))
        visible = ((boxes[:, 2:] - boxes[:, :2]) > 1).all(axis=1)
        return FusedDetections(boxes[visible], fused.scores[visible], fused.class_ids[visible], fused.votes[visible])

    def _view(
        self, teacher: LabellingTeacher, image: Image, window: tuple[int, int, int, int], mirrored: bool
    ) -> ViewDetections:
        boxes, scores, labels = teacher.detect(_part(image, window, mirrored))
        class_ids = np.array([self.classes.index(label) if label in self.classes else -1 for label in labels], np.int64)
        chosen = (class_ids >= 0) & (scores >= self._score)
        boxes, scores, class_ids = boxes[chosen], scores[chosen], class_ids[chosen]
        if mirrored:
            across = window[2] - window[0]
            boxes = np.stack([across - boxes[:, 2], boxes[:, 1], across - boxes[:, 0], boxes[:, 3]], axis=1)
        boxes = boxes + np.array([window[0], window[1]] * 2, np.float64)
        whole = ~_cut(boxes, window, image.shape[1], image.shape[0])
        return ViewDetections(boxes[whole], scores[whole], class_ids[whole], window)


def windows_of(width: int, height: int, scale: float) -> list[tuple[int, int, int, int]]:
    """The windows, x0, y0, x1, y1, that show a picture at a scale; below 1 one window that is larger than it.

    Tiles of less than 64 pixels become the whole picture.
    """
    sides = []
    for side in (width, height):
        tile = round(side / scale)
        if scale <= 1 or tile < _MIN_TILE:
            margin = max(0, tile - side) // 2
            sides.append([(-margin, side + margin)])
            continue
        count = 1 + int(np.ceil((side - tile) / (tile * (1 - _OVERLAP))))
        starts = np.linspace(0, side - tile, count).round().astype(int)
        sides.append([(int(start), int(start) + tile) for start in starts])
    return [(x0, y0, x1, y1) for y0, y1 in sides[1] for x0, x1 in sides[0]]


def _part(image: Image, window: tuple[int, int, int, int], mirrored: bool) -> Image:
    x0, y0, x1, y1 = window
    height, width = image.shape[:2]
    part = image[max(0, y0) : y1, max(0, x0) : x1]
    if x0 < 0 or y0 < 0:
        edges = (max(0, -y0), max(0, y1 - height), max(0, -x0), max(0, x1 - width))
        grey = (_GREY, _GREY, _GREY)
        part = cv2.copyMakeBorder(part, *edges, cv2.BORDER_CONSTANT, value=grey).astype(np.uint8, copy=False)
    return np.ascontiguousarray(part[:, ::-1] if mirrored else part)


def _cut(boxes: NDArray[np.float64], window: tuple[int, int, int, int], width: int, height: int) -> NDArray[np.bool_]:
    """Which boxes touch a side of the window that is not one of the picture: what they hold is cut off there."""
    x0, y0, x1, y1 = window
    edge = 2.0
    cut = np.zeros(len(boxes), bool)
    cut |= (boxes[:, 0] < x0 + edge) & (x0 > 0)
    cut |= (boxes[:, 1] < y0 + edge) & (y0 > 0)
    cut |= (boxes[:, 2] > x1 - edge) & (x1 < width)
    cut |= (boxes[:, 3] > y1 - edge) & (y1 < height)
    return cut


def _input_size(content: bytes, path: Path) -> tuple[int, int]:
    """Height and width of the input ``images``."""
    session = import_onnxruntime().InferenceSession(content, providers=["CPUExecutionProvider"])
    shapes = {node.name: node.shape for node in session.get_inputs()}
    shape = shapes.get("images", [])
    if len(shape) != 4 or not all(isinstance(side, int) for side in shape[2:]):
        raise EngineError(
            f"{path.name}: the input images has the shape {shape}; (N, 3, H, W) with fixed H, W is needed"
        )
    return int(shape[2]), int(shape[3])
