"""Channel cross-attention: one flow's channels gated by what another flow shows.

Paper: Tang et al., "Task-Specific Few-Shot Image Classification by Balancing Sample-Level and Class-Level
Generalization", equations 1 to 3.
Provenance: our own code from the paper.
Licence: this file, as the rest of edgevis.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
import torch.nn.functional as F
from torch import Tensor

from runtime.errors import InputError

if TYPE_CHECKING:
    from onnx import FunctionProto

NODE = "CrossAttention"


def cross_attention(
    source: Tensor, target: Tensor, reduce_weight: Tensor, expand_weight: Tensor, negative_slope: float = 0.01
) -> Tensor:
    """``z(target) * source``, where ``z = sigmoid(expand_weight @ leaky_relu(reduce_weight @ mean(target)))``.

    The gate comes from the *target* flow and multiplies the *source* flow, as the paper's text says. Its printed
    equation 3 multiplies the target by its own gate, which would be plain squeeze-and-excitation and leave the source
    unused.

    Args:
        source: (B, C, h, w) floating point.
        target: (B, C, h', w') of the same dtype.
        reduce_weight: (R, C); the paper's R is C/16.
        expand_weight: (C, R).
        negative_slope: Of the leaky ReLU; the paper states none, 0.01 is PyTorch's.

    Returns:
        (B, C, h, w).

    Raises:
        InputError: Shapes or dtypes do not fit together.
    """
    _check(source, target, reduce_weight, expand_weight)
    if torch.onnx.is_in_onnx_export():
        node: Tensor = torch.onnx.ops.symbolic(
            f"edgevis::{NODE}",
            (source, target, reduce_weight, expand_weight),
            {"negative_slope": float(negative_slope)},
            dtype=source.dtype,
            shape=source.shape,
            version=1,
        )
        return node
    gated: Tensor = _cross_attention(source, target, reduce_weight, expand_weight, negative_slope)
    return gated


@torch.library.custom_op("edgevis::cross_attention", mutates_args=())
def _cross_attention(
    source: Tensor, target: Tensor, reduce_weight: Tensor, expand_weight: Tensor, negative_slope: float
) -> Tensor:
    return _gate(target, reduce_weight, expand_weight, negative_slope) * source


@_cross_attention.register_fake
def _(source: Tensor, target: Tensor, reduce_weight: Tensor, expand_weight: Tensor, negative_slope: float) -> Tensor:
    return torch.empty_like(source)


def _setup_context(ctx: Any, inputs: tuple[Tensor, Tensor, Tensor, Tensor, float], output: Tensor) -> None:
    ctx.save_for_backward(*inputs[:4])
    ctx.negative_slope = inputs[4]


def _backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor, None]:
    source, target, reduce_weight, expand_weight = ctx.saved_tensors
    gate = _gate(target, reduce_weight, expand_weight, ctx.negative_slope)
    pooled = target.mean((2, 3))
    hidden = pooled @ reduce_weight.T
    active = F.leaky_relu(hidden, ctx.negative_slope)

    # Through the product and the sigmoid to the gate's logits, then back through the two linear maps.
    to_logits = (gradient * source).sum((2, 3)) * (gate * (1 - gate)).flatten(1)
    to_active = to_logits @ expand_weight
    to_hidden = torch.where(hidden > 0, to_active, to_active * ctx.negative_slope)
    places = target.shape[2] * target.shape[3]
    to_target = ((to_hidden @ reduce_weight) / places)[:, :, None, None].expand_as(target)
    return gradient * gate, to_target, to_hidden.T @ pooled, to_logits.T @ active, None


_cross_attention.register_autograd(_backward, setup_context=_setup_context)


def onnx_function() -> FunctionProto:
    """The operator in standard ones, opset 18."""
    from onnx import parser

    return parser.parse_function(
        f"""
        <opset_import: ["" : 18], domain: "edgevis">
        {NODE} <negative_slope: float = 0.01> (source, target, reduce_weight, expand_weight) => (result)
        {{
            places = Constant <value_ints: ints = [2, 3]> ()
            pooled = ReduceMean <keepdims: int = 0> (target, places)
            hidden = Gemm <transB: int = 1> (pooled, reduce_weight)
            active = LeakyRelu <alpha: float = @negative_slope> (hidden)
            logits = Gemm <transB: int = 1> (active, expand_weight)
            gate = Sigmoid (logits)
            planes = Unsqueeze (gate, places)
            result = Mul (planes, source)
        }}
        """
    )


def _gate(target: Tensor, reduce_weight: Tensor, expand_weight: Tensor, negative_slope: float) -> Tensor:
    """Equations 1 and 2: (B, C, 1, 1)."""
    hidden = F.leaky_relu(target.mean((2, 3)) @ reduce_weight.T, negative_slope)
    return torch.sigmoid(hidden @ expand_weight.T)[:, :, None, None]


def _check(source: Tensor, target: Tensor, reduce_weight: Tensor, expand_weight: Tensor) -> None:
    if source.dim() != 4 or target.dim() != 4 or source.shape[:2] != target.shape[:2]:
        raise InputError(
            f"source is {tuple(source.shape)} and target {tuple(target.shape)}; allowed: (B, C, h, w) with one B and C"
        )
    channels = source.shape[1]
    if (
        reduce_weight.dim() != 2
        or reduce_weight.shape[1] != channels
        or expand_weight.shape != reduce_weight.shape[::-1]
    ):
        raise InputError(
            f"reduce_weight is {tuple(reduce_weight.shape)} and expand_weight {tuple(expand_weight.shape)}; "
            f"allowed: (R, {channels}) and ({channels}, R)"
        )
    dtypes = {tensor.dtype for tensor in (source, target, reduce_weight, expand_weight)}
    if len(dtypes) > 1 or not source.is_floating_point():
        raise InputError(f"the tensors are of {sorted(map(str, dtypes))}; allowed: one floating-point dtype")
