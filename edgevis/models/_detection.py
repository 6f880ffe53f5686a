"""The shared options and deployments of the models of the tasks ``detect`` and ``instance_segment``.

Provenance: our own code; the names of COCO's categories are those of its annotations (cocodataset.org, CC BY 4.0).
Licence: this file, as the rest of edgevis.
"""

from __future__ import annotations

from runtime.bundle.spec import Deployment, Graph, Preprocess, TensorSpec
from runtime.common.json_data import to_json
from runtime.errors import ModelError
from runtime.tasks.detect import DetectionSettings

MAX_CLASSES = 1000
_MAX_BATCH = 8

# fmt: off
COCO_LABELS = (
    "person", "bicycle", "car", "motorcycle", "airplane", "bus", "train", "truck", "boat", "traffic light",
    "fire hydrant", "stop sign", "parking meter", "bench", "bird", "cat", "dog", "horse", "sheep", "cow", "elephant",
    "bear", "zebra", "giraffe", "backpack", "umbrella", "handbag", "tie", "suitcase", "frisbee", "skis", "snowboard",
    "sports ball", "kite", "baseball bat", "baseball glove", "skateboard", "surfboard", "tennis racket", "bottle",
    "wine glass", "cup", "fork", "knife", "spoon", "bowl", "banana", "apple", "sandwich", "orange", "broccoli",
    "carrot", "hot dog", "pizza", "donut", "cake", "chair", "couch", "potted plant", "bed", "dining table", "toilet",
    "tv", "laptop", "mouse", "remote", "keyboard", "cell phone", "microwave", "oven", "toaster", "sink",
    "refrigerator", "book", "clock", "vase", "scissors", "teddy bear", "hair drier", "toothbrush",
)
"""The 80 categories of COCO in the order of their ids."""
# COCO's category ids go to 90; these have no category. A detector with 90 classes has an output for each id.
_UNUSED_COCO_IDS = frozenset((12, 26, 29, 30, 45, 66, 68, 69, 71, 83))
# fmt: on
_COCO_IDS = 90


def labels_of(num_classes: int, labels: str = "") -> tuple[str, ...]:
    """The name of each class of a detector.

    Args:
        num_classes: How many there are.
        labels: The names separated by commas. Empty, they are ``person`` for one class, COCO's for 80, COCO's by id for
            90 (``unused-12`` and so on where an id has no category), else ``class-1`` and so on.

    Raises:
        ModelError: There are not as many names as classes, or two are equal.
    """
    if labels:
        names = tuple(name.strip() for name in labels.split(","))
        if len(names) != num_classes or len(set(names)) != len(names) or "" in names:
            raise ModelError(
                f"labels is {labels!r} for {num_classes} classes; allowed: as many different names, separated by commas"
            )
        return names
    if num_classes == 1:
        return ("person",)
    if num_classes == len(COCO_LABELS):
        return COCO_LABELS
    if num_classes == _COCO_IDS:
        names_in_order = iter(COCO_LABELS)
        return tuple(
            f"unused-{number}" if number in _UNUSED_COCO_IDS else next(names_in_order)
            for number in range(1, _COCO_IDS + 1)
        )
    return tuple(f"class-{index}" for index in range(1, num_classes + 1))


def deployment(preprocess: Preprocess, *, labels: tuple[str, ...], rows: int) -> Deployment:
    """The deployment of a detector.

    Args:
        preprocess: The preprocessing of an image to the graph's input.
        labels: The name of each class.
        rows: The number of boxes, A, that the graph gives for each image.
    """
    return _deployment("detect", "detect", preprocess, labels, _boxes(labels, rows))


def instance_deployment(preprocess: Preprocess, *, labels: tuple[str, ...], rows: int, vertices: int) -> Deployment:
    """The deployment of a model that segments instances by their outlines.

    Its one graph ``outline`` maps ``image`` to ``scores`` (N, P, C), ``boxes`` (N, P, 4) and ``polygons`` (N, P, V, 2),
    all float32, see :mod:`runtime.tasks.instance_segment`.

    Args:
        preprocess: The preprocessing of an image to the graph's input.
        labels: The name of each class, C of them.
        rows: The number of instances, P, that the graph gives for each image.
        vertices: The number of an outline's vertices, V.
    """
    outputs = (*_boxes(labels, rows), TensorSpec("polygons", "float32", ("N", rows, vertices, 2)))
    return _deployment("instance_segment", "outline", preprocess, labels, outputs)


def _boxes(labels: tuple[str, ...], rows: int) -> tuple[TensorSpec, TensorSpec]:
    """The outputs that graphs of both tasks have."""
    return (
        TensorSpec("scores", "float32", ("N", rows, len(labels))),
        TensorSpec("boxes", "float32", ("N", rows, 4)),
    )


def _deployment(
    task: str, graph: str, preprocess: Preprocess, labels: tuple[str, ...], outputs: tuple[TensorSpec, ...]
) -> Deployment:
    names = tuple(tensor.name for tensor in outputs)
    return Deployment(
        task=task,
        graphs=(Graph(graph, inputs=(preprocess.input,), outputs=outputs, float32_outputs=names),),
        preprocess=preprocess,
        postprocess=to_json(DetectionSettings(labels)),
        max_batch=_MAX_BATCH,
    )
