"""Real inputs for every graph of a model, and the reference model's outputs for them.

A graph's input is ``image``, ``mask``, or bears the name of an earlier graph's output: support features, say, that an
enrolment makes and a prediction is given. One row of those stands for an enrolment. A graph over a set takes an earlier
output's rows of several images, which stand for as many labels.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping

import cv2
import numpy as np

from calibration.data.samples import SampleSet
from export.reference_models import ReferenceModel
from runtime import tasks
from runtime.bundle.spec import Deployment, Graph, Preprocess, TensorSpec
from runtime.common.arrays import Array
from runtime.errors import ExportError
from runtime.images.preprocess import Preprocessor
from runtime.parity.compare import BATCH_SIZES

GOLDEN_ROWS = max(BATCH_SIZES)
"""The maximum number of rows in ``golden.npz`` and of one run of the reference model."""

# A row of few-shot segmentation's support features is 50 MB; a build must neither need nor leave gigabytes.
_MAX_GOLDEN_BYTES = 64 << 20
_MAX_REFERENCE_BYTES = 384 << 20
# An image of a residual U-Net is 53 billion operations; a build shall take minutes.
_MAX_REFERENCE_FLOPS = 1.5e12

_SHOTS = 1
# Labels of the set that graphs over one are compared on.
_SET = 20

CALIBRATION_BATCH = 4
"""Images that INT8's ranges and float16's are measured on at once."""


def needs_masks(deployment: Deployment) -> bool:
    """Whether an example of a label is an image with a mask."""
    return tasks.load(deployment.task).TRAITS.enrolment == "images and masks"


def golden_rows(deployment: Deployment) -> int:
    """The number of images in ``golden.npz``."""
    return max(1, min(GOLDEN_ROWS, _MAX_GOLDEN_BYTES // _row_bytes(deployment)))


def limit_samples(samples: SampleSet, model: ReferenceModel, deployment: Deployment) -> SampleSet:
    """As many of the images as a build can compute and hold the tensors of, and not fewer than the largest batch."""
    flops = sum(model.flops(graph) for graph in deployment.graphs)
    count = int(min(_MAX_REFERENCE_BYTES // _row_bytes(deployment), _MAX_REFERENCE_FLOPS // max(flops, 1)))
    count = max(GOLDEN_ROWS, count)
    return samples if len(samples) <= count else samples.subset(range(count))


def reference_of(
    model: ReferenceModel,
    deployment: Deployment,
    samples: SampleSet,
    advance: Callable[[int, int], None],
) -> dict[str, Array]:
    """``GRAPH/TENSOR`` to an array of one row per image: the inputs, and the model's outputs for them in float32.

    Inputs that an enrolment makes have one row for all images.

    Raises:
        ExportError: A graph takes an input that nothing makes.
    """
    rows = golden_rows(deployment)
    image_inputs = _image_inputs(samples, deployment.preprocess)
    arrays: dict[str, Array] = {}
    earlier_outputs: dict[str, Array] = {}
    total = len(deployment.graphs) * len(samples)
    for number, graph in enumerate(deployment.graphs):
        inputs = _inputs_of(graph, deployment.preprocess, image_inputs, earlier_outputs, arrays)
        parts: list[tuple[Array, ...]] = []
        for start in range(0, 1 if graph.set_of else len(samples), rows):
            parts.append(model.outputs(graph, _rows(graph, inputs, start, start + rows)))
            advance(number * len(samples) + min(start + rows, len(samples)), total)
        outputs = [np.concatenate(column) for column in zip(*parts, strict=True)]
        named = dict(zip((tensor.name for tensor in graph.outputs), outputs, strict=True))
        earlier_outputs |= named
        arrays |= {f"{graph.name}/{name}": array for name, array in {**inputs, **named}.items()}
    return arrays


def _inputs_of(
    graph: Graph,
    preprocess: Preprocess,
    image_inputs: Mapping[str, Array],
    earlier_outputs: Mapping[str, Array],
    arrays: Mapping[str, Array],
) -> dict[str, Array]:
    """The inputs of a graph, see :func:`graph_inputs`; of one over a set the first rows of ``arrays``."""
    if graph.set_of:
        return {graph.inputs[0].name: arrays[graph.set_of][None, :_SET]}
    return graph_inputs(graph, preprocess, image_inputs, earlier_outputs)


def golden_of(reference: Mapping[str, Array], deployment: Deployment) -> dict[str, Array]:
    """The first rows of :func:`reference_of`'s arrays, which go into the bundle."""
    rows = golden_rows(deployment)
    return {
        f"{graph.name}/{tensor.name}": reference[f"{graph.name}/{tensor.name}"][: rows if tensor.batched else None]
        for graph in deployment.graphs
        for tensor in (*graph.inputs, *graph.outputs)
    }


def calibration_feeds(
    model: ReferenceModel, deployment: Deployment, graph: Graph, samples: SampleSet, *, batch: int
) -> Iterator[dict[str, Array]]:
    """Batches of real inputs of one graph; support tensors come from the first image of each batch."""
    batch = min(batch, golden_rows(deployment))
    for start in range(0, len(samples), batch):
        part = samples.subset(range(start, min(start + batch, len(samples))))
        image_inputs = _image_inputs(part, deployment.preprocess)
        earlier_outputs: dict[str, Array] = {}
        for earlier in deployment.image_graphs[: deployment.image_graphs.index(graph)]:
            inputs = graph_inputs(earlier, deployment.preprocess, image_inputs, earlier_outputs)
            outputs = model.outputs(earlier, _rows(earlier, inputs, 0, _SHOTS))
            earlier_outputs |= dict(zip((tensor.name for tensor in earlier.outputs), outputs, strict=True))
        yield graph_inputs(graph, deployment.preprocess, image_inputs, earlier_outputs)


def graph_inputs(
    graph: Graph, preprocess: Preprocess, image_inputs: Mapping[str, Array], earlier_outputs: Mapping[str, Array]
) -> dict[str, Array]:
    """The inputs of a graph.

    Args:
        graph: The graph.
        preprocess: How an image becomes ``image``.
        image_inputs: ``image`` and, where there are masks, ``mask``: one row per image.
        earlier_outputs: Outputs of earlier graphs by name.

    Raises:
        ExportError: It takes something else, or the same in another shape.
    """
    allowed = {
        "image": preprocess.input,
        "mask": TensorSpec("mask", "float32", ("N", preprocess.height, preprocess.width)),
    }
    inputs: dict[str, Array] = {}
    for tensor in graph.inputs:
        if allowed.get(tensor.name) == tensor and tensor.name in image_inputs:
            inputs[tensor.name] = image_inputs[tensor.name]
        elif (
            tensor.name in earlier_outputs
            and tensor.shape[0] == "K"
            and tensor.fits(earlier_outputs[tensor.name].shape)
        ):
            inputs[tensor.name] = earlier_outputs[tensor.name][:_SHOTS]
        else:
            raise ExportError(
                f"graph {graph.name!r} takes {tensor}; a build makes {allowed['image']}, {allowed['mask']} and the "
                "outputs of earlier graphs, their first axis then being 'K'"
            )
    return inputs


def _image_inputs(samples: SampleSet, preprocess: Preprocess) -> dict[str, Array]:
    image_inputs: dict[str, Array] = {"image": Preprocessor(preprocess)(samples.images)}
    if samples.masks:
        size = (preprocess.width, preprocess.height)
        masks = [cv2.resize(mask.astype(np.float32), size, interpolation=cv2.INTER_NEAREST) for mask in samples.masks]
        image_inputs["mask"] = np.stack(masks)
    return image_inputs


def _rows(graph: Graph, inputs: Mapping[str, Array], start: int, end: int) -> list[Array]:
    return [inputs[tensor.name][start:end] if tensor.batched else inputs[tensor.name] for tensor in graph.inputs]


def _row_bytes(deployment: Deployment) -> int:
    """The float32 size in bytes of one image's inputs and outputs, over all graphs."""
    tensors = [tensor for graph in deployment.graphs for tensor in (*graph.inputs, *graph.outputs) if tensor.batched]
    return sum(4 * math.prod(size for size in tensor.shape[1:] if not isinstance(size, str)) for tensor in tensors)
