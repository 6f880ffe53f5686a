"""What rounding adds to each channel of a layer on average, so that the layer's bias can take it away again.

Source: Nagel, van Baalen, Blankevoort, Welling, "Data-Free Quantization Through Weight Equalization and Bias
Correction", ICCV 2019, section 4.2, with the means measured instead of derived: each layer is given what it reads in
the float graph, once as it is and once rounded, so that one pass serves all layers and no error is corrected twice.
(Corrected in the whole int8 graph at once, where every layer also sees the errors before it, OSNet x0.25 was ruined.)
OSNet x0.25, mean cosine of the embedding: 0.9890 without, 0.9920 with; mAP on PKU-Reid 0.700 and 0.711, float 0.714.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping

import numpy as np
from onnx import ModelProto, NodeProto, TensorProto, helper, numpy_helper

from calibration.quantize.qdq import with_qdq
from calibration.quantize.sessions import open_session
from runtime.common.arrays import Array

_SUFFIX = "_int8_branch"
# The operators with a bias; the channels of their results are axis 1.
_OPERATORS = ("Conv", "Gemm")


def measure_bias_correction(
    model: ModelProto, amax: Mapping[str, float], layers: Collection[str], feeds: Iterable[Mapping[str, Array]]
) -> dict[str, Array]:
    """For each layer that can have a bias, ``mean(float - int8)`` of its result: (channels,) float32.

    Args:
        model: The float graph, every node named; it is not changed.
        amax: As for :func:`calibration.quantize.qdq.with_qdq`.
        layers: Names of nodes.
        feeds: Batches of real inputs.
    """
    probe, means = _with_branches(model, layers)
    if not means:
        return {}
    probe = with_qdq(probe, amax, {f"{name}{_SUFFIX}" for name in means}, placement="inputs")
    del probe.graph.output[:]
    probe.graph.output.extend(helper.make_tensor_value_info(name, TensorProto.FLOAT, None) for name in means.values())
    session = open_session(probe)
    sums: dict[str, Array] = {}
    rows = 0
    for feed in feeds:
        count = max(len(array) for array in feed.values())
        for name, value in zip(means, session.run(list(means.values()), dict(feed)), strict=True):
            sums[name] = sums.get(name, np.zeros(1)) + np.asarray(value, np.float64) * count
        rows += count
    return {name: (total / rows).astype(np.float32) for name, total in sums.items()}


def _with_branches(model: ModelProto, layers: Collection[str]) -> tuple[ModelProto, dict[str, str]]:
    """The model with a second copy of each layer beside it, and the tensor that holds its mean difference."""
    made = ModelProto()
    made.CopyFrom(model)
    ranks = {tensor.name: len(tensor.dims) for tensor in made.graph.initializer}
    nodes: list[NodeProto] = []
    means: dict[str, str] = {}
    for node in made.graph.node:
        nodes.append(node)
        if node.name not in layers or node.op_type not in _OPERATORS or node.input[1] not in ranks:
            continue
        rank = ranks[node.input[1]]  # of the weight, and as that of the result
        copy = NodeProto.FromString(node.SerializeToString())
        copy.name += _SUFFIX
        result, difference = f"{node.output[0]}{_SUFFIX}", f"{node.output[0]}{_SUFFIX}_difference"
        copy.output[0] = result
        means[node.name] = f"{node.output[0]}{_SUFFIX}_mean"
        axes = f"{_SUFFIX}_axes_{rank}"
        nodes += [
            copy,
            helper.make_node("Sub", [node.output[0], result], [difference]),
            helper.make_node("ReduceMean", [difference, axes], [means[node.name]], keepdims=0),
        ]
    copies = [NodeProto.FromString(node.SerializeToString()) for node in nodes]
    del made.graph.node[:]
    made.graph.node.extend(copies)
    for rank in set(ranks.values()):  # those that no node reads do no harm
        axes_of = np.array([axis for axis in range(rank) if axis != 1], np.int64)
        made.graph.initializer.append(numpy_helper.from_array(axes_of, f"{_SUFFIX}_axes_{rank}"))
    return made, means
