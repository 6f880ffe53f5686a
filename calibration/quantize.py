"""From a float ONNX graph to one with Q/DQ: a single INT8 graph for ONNX Runtime, OpenVINO and TensorRT."""

from __future__ import annotations

import hashlib
import itertools
import json
import tempfile
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from onnx import ModelProto, inliner, shape_inference

from calibration.lint import lint_quantized
from calibration.ranges import Method, measure_histograms
from calibration.samples import SampleSet
from runtime.arrays import Array
from runtime.errors import ExportError, MissingDependencyError
from runtime.jsondata import to_json
from runtime.spec import Preprocess

_INT8_MAX = 127
# What cuts values off and leaves the others as they are.
_CUTTING = ("Relu", "Clip")


@dataclass(frozen=True, slots=True)
class Recipe:
    """How a graph is quantised: symmetric int8, weights per channel, activations per tensor, biases in float.

    Attributes:
        method: How an activation's range follows from its values, see :meth:`calibration.ranges.Histogram.reach`.
            ``mse`` has nothing to tune and kept OSNet x0.25 closest to float whatever it was calibrated on. Mean cosine
            on PKU-Reid: 0.986 calibrated on the wheels' photographs (``percentile`` 0.986, ``minmax`` 0.984), 0.980 on
            fashion photographs (0.979, 0.971), 0.993 on PKU-Reid (0.991, 0.988).
        percentile: What ``percentile`` keeps, in per cent.
        operators: The operators whose inputs and weights become int8. Additions are not among them: where both terms
            come from convolutions they are int8 already, and where not, rounding them cost OSNet x0.25 two points of
            mAP and made no engine faster.
    """

    method: Method = "mse"
    percentile: float = 99.999
    operators: tuple[str, ...] = ("Conv", "Gemm", "MatMul")

    def __str__(self) -> str:
        ranges = f"percentile {self.percentile:g}" if self.method == "percentile" else self.method
        return f"Q/DQ, symmetric int8, weights per channel, activation ranges by {ranges}, {'/'.join(self.operators)}"


def quantize(model: ModelProto, feeds: Iterable[Mapping[str, Array]], *, recipe: Recipe | None = None) -> ModelProto:
    """The graph with Q/DQ around what :class:`Recipe` names; it has passed :func:`lint_quantized`.

    Args:
        model: A float graph; it is not changed. Model-local functions are inlined: inside them nothing is quantised.
        feeds: Batches of real inputs; read once, one at a time.
        recipe: None for the default one.

    Raises:
        ExportError: There are no feeds, or a tensor's values are not finite.
        MissingDependencyError: ONNX Runtime is not installed.
    """
    recipe = recipe or Recipe()
    prepared = shape_inference.infer_shapes(inliner.inline_local_functions(model))
    remaining: Iterator[Mapping[str, Array]] = iter(feeds)
    first = next(remaining, None)
    if first is None:
        raise ExportError("calibration: there is no image to measure ranges on")
    activations = _activations(prepared, recipe.operators)
    histograms = measure_histograms(prepared, activations, itertools.chain([first], remaining))
    reach = {name: histogram.reach(recipe.method, recipe.percentile) for name, histogram in histograms.items()}
    reach.update(_reach_after_cutting(prepared, reach))
    quantized = _with_qdq(prepared, reach, first, recipe)
    lint_quantized(quantized)
    return quantized


def calibration_digest(samples: SampleSet, *, preprocess: Preprocess, weights_sha256: str, recipe: Recipe) -> str:
    """What the INT8 scales depend on, in one digest: images, preprocessing, weights, recipe."""
    parts = [samples.digest, to_json(preprocess), weights_sha256, to_json(recipe)]
    return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()


def _activations(model: ModelProto, operators: tuple[str, ...]) -> list[str]:
    """The float inputs and outputs of the operators, each once, in order."""
    constants = {tensor.name for tensor in model.graph.initializer}
    constants |= {name for node in model.graph.node if node.op_type == "Constant" for name in node.output}
    values = (*model.graph.input, *model.graph.output, *model.graph.value_info)
    floats = {value.name for value in values if value.type.tensor_type.elem_type == onnx.TensorProto.FLOAT}
    used = (name for node in model.graph.node if node.op_type in operators for name in (*node.input, *node.output))
    return [name for name in dict.fromkeys(used) if name in floats and name not in constants]


def _reach_after_cutting(model: ModelProto, reach: Mapping[str, float]) -> dict[str, float]:
    """The reach of tensors that only a ReLU or Clip reads: that of its result.

    What it cuts off needs no integers. With both on one grid, the second rounding changes nothing.
    """
    readers: dict[str, list[onnx.NodeProto]] = {}
    for node in model.graph.node:
        for name in node.input:
            readers.setdefault(name, []).append(node)
    kept = {value.name for value in model.graph.output}
    shared = {}
    for name in reach:
        nodes = readers.get(name, [])
        if len(nodes) == 1 and nodes[0].op_type in _CUTTING and name not in kept and nodes[0].output[0] in reach:
            shared[name] = reach[nodes[0].output[0]]
    return shared


def _with_qdq(model: ModelProto, reach: Mapping[str, float], feed: Mapping[str, Array], recipe: Recipe) -> ModelProto:
    try:
        from onnxruntime.quantization import CalibrationMethod, QuantFormat, QuantType, quantize_static
    except ImportError as error:
        raise MissingDependencyError("onnxruntime is not installed: pip install onnxruntime") from error
    # ONNX Runtime 1.31 advises its own preprocessing in a log line unless the model says that it has been done.
    onnx.helper.set_model_props(model, {"onnx.quant.pre_process": "onnxruntime.quant"})
    scales: dict[str, list[dict[str, Any]]] = {
        name: [{"scale": np.array(value / _INT8_MAX, np.float32), "zero_point": np.array(0, np.int8)}]
        for name, value in reach.items()
    }
    with tempfile.TemporaryDirectory(prefix="edgevis-quantize-") as folder:
        # From file to file: ONNX Runtime 1.31 moves the weights of a ModelProto to a file that it then deletes.
        source, result = Path(folder, "float.onnx"), Path(folder, "int8.onnx")
        onnx.save(model, source)
        quantize_static(
            source,
            result,
            _OneFeed({name: array[:1] for name, array in feed.items()}),
            quant_format=QuantFormat.QDQ,
            op_types_to_quantize=list(recipe.operators),
            per_channel=True,
            activation_type=QuantType.QInt8,
            weight_type=QuantType.QInt8,
            calibrate_method=CalibrationMethod.MinMax,
            extra_options={
                "ActivationSymmetric": True,
                "WeightSymmetric": True,
                "QuantizeBias": False,  # TensorRT's parser fails on an INT32 bias behind DequantizeLinear
                # A matrix product may return float in every engine; rounding an embedding costs accuracy for nothing.
                "OpTypesToExcludeOutputQuantization": ["Gemm", "MatMul"],
                "TensorQuantOverrides": scales,
            },
        )
        quantized = onnx.load(result)
    del quantized.metadata_props[:]
    del quantized.graph.value_info[:]
    return quantized


class _OneFeed:
    """One image for ONNX Runtime's calibration, which must run although all ranges are given to it."""

    def __init__(self, feed: dict[str, Array]) -> None:
        self._feeds = iter([feed])

    def get_next(self) -> dict[str, Array] | None:
        return next(self._feeds, None)
