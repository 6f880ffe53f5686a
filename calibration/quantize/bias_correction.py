"""Bias correction: the mean rounding error of each channel of a layer, to be subtracted by its bias.

Source: Nagel, van Baalen, Blankevoort, Welling, "Data-Free Quantization Through Weight Equalization and Bias
Correction", ICCV 2019, section 4.2, with the means measured instead of derived: each layer is given what it reads in
the float graph, once as it is and once rounded, so that one pass serves all layers and no error is corrected twice.
(Corrected in the whole int8 graph at once, where every layer also sees the errors before it, OSNet x0.25 was ruined.)
OSNet x0.25, mean cosine of the embedding: 0.9890 without, 0.9920 with; mAP on PKU-Reid 0.700 and 0.711, float 0.714.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping

import numpy as np
import onnx_ir as ir

from calibration.quantize.qdq import initializer, with_qdq
from calibration.quantize.sessions import open_session
from runtime.common.arrays import Array

_SUFFIX = "_int8_branch"
# The operators with a bias; the channels of their results are axis 1.
_OPERATORS = ("Conv", "Gemm")


def measure_bias_correction(
    model: ir.Model, amax: Mapping[str, float], layers: Collection[str], feeds: Iterable[Mapping[str, Array]]
) -> dict[str, Array]:
    """For each layer that can have a bias, ``mean(float - int8)`` of its result: (channels,) float32.

    Args:
        model: The float graph, every node named; it is not changed.
        amax: As for :func:`calibration.quantize.qdq.with_qdq`.
        layers: Names of nodes.
        feeds: Batches of real inputs.
    """
    probe = model.clone()
    names = _add_branches(probe.graph, layers)
    if not names:
        return {}
    probe = with_qdq(probe, amax, {f"{name}{_SUFFIX}" for name in names}, placement="inputs")
    session = open_session(probe)
    outputs = [output.name for output in probe.graph.outputs]
    sums: dict[str, Array] = {}
    rows = 0
    for feed in feeds:
        count = max(len(array) for array in feed.values())
        for name, value in zip(names, session.run(outputs, dict(feed)), strict=True):
            sums[name] = sums.get(name, np.zeros(1)) + np.asarray(value, np.float64) * count
        rows += count
    return {name: (total / rows).astype(np.float32) for name, total in sums.items()}


def _add_branches(graph: ir.Graph, layers: Collection[str]) -> list[str]:
    """Add a second copy of each layer, the mean difference of both being an output; returns the layers' names."""
    graph.outputs.clear()
    axes: dict[int, ir.Value] = {}
    names: list[str] = []
    for node in tuple(graph):
        if node.name is None or node.name not in layers or node.op_type not in _OPERATORS:
            continue
        weight = node.inputs[1]
        if weight is None or not weight.is_initializer() or weight.shape is None:
            continue
        rank = len(weight.shape)  # of the weight, and as that of the result
        if rank not in axes:
            others = [axis for axis in range(rank) if axis != 1]
            axes[rank] = initializer(graph, f"{_SUFFIX}_axes_{rank}", np.array(others, np.int64))
        result = node.outputs[0]
        copy = ir.Node(node.domain, node.op_type, node.inputs, node.attributes.values(), name=f"{node.name}{_SUFFIX}")
        difference = ir.node("Sub", [result, copy.outputs[0]])
        mean = ir.node("ReduceMean", [difference.outputs[0], axes[rank]], {"keepdims": 0})
        for part, suffix in ((copy, ""), (difference, "_difference"), (mean, "_mean")):
            part.outputs[0].name = f"{result.name}{_SUFFIX}{suffix}"
        mean.outputs[0].dtype = ir.DataType.FLOAT
        graph.insert_after(node, [copy, difference, mean])
        graph.outputs.append(mean.outputs[0])
        names.append(node.name)
    return names
