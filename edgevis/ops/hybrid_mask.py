"""Hybrid masking: support features masked by the object, with the masked image's features where that masks too much.

Paper: Moon, Sohn, Kim, et al., "HM: Hybrid Masking for Few-Shot Segmentation", ECCV 2022, section 3.3 and algorithm 1.
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

NODE = "HybridMask"


def hybrid_mask(feature: Tensor, masked_image_feature: Tensor, mask: Tensor) -> Tensor:
    """Feature masking where it leaves something positive, else the features of the masked image.

    The mask is resized to the map (bilinear, corners aligned) and multiplies ``feature``; every element of the product
    that is not greater than zero is replaced by that of ``masked_image_feature``. NaN is not greater than zero.

    The rule is discontinuous where the resized mask is nearly 0. With image sides of 32 k + 1 the sampling coordinates
    of maps at 1/4 to 1/32 are whole numbers that every runtime computes exactly, so all take the same branch.

    Args:
        feature: (B, C, h, w) floating point: features of the support image before their ReLU.
        masked_image_feature: (B, C, h, w) of the support image with its background set to zero.
        mask: (B, H, W), 1 on the object, 0 elsewhere; bool, integer or floating point, H and W the image's.

    Returns:
        (B, C, h, w) of ``feature``'s dtype.

    Raises:
        InputError: Shapes or dtypes do not fit together.
    """
    _check(feature, masked_image_feature, mask)
    mask = mask.to(feature.dtype)
    if torch.onnx.is_in_onnx_export():
        node: Tensor = torch.onnx.ops.symbolic(
            f"edgevis::{NODE}",
            (feature, masked_image_feature, mask),
            dtype=feature.dtype,
            shape=feature.shape,
            version=1,
        )
        return node
    masked: Tensor = _hybrid_mask(feature, masked_image_feature, mask)
    return masked


@torch.library.custom_op("edgevis::hybrid_mask", mutates_args=())
def _hybrid_mask(feature: Tensor, masked_image_feature: Tensor, mask: Tensor) -> Tensor:
    masked = feature * _resized(mask, feature)
    return torch.where(masked > 0, masked, masked_image_feature)


@_hybrid_mask.register_fake
def _(feature: Tensor, masked_image_feature: Tensor, mask: Tensor) -> Tensor:
    return torch.empty_like(feature)


def _setup_context(ctx: Any, inputs: tuple[Tensor, Tensor, Tensor], output: Tensor) -> None:
    feature, _, mask = inputs
    ctx.save_for_backward(feature, mask)


def _backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, Tensor, None]:
    feature, mask = ctx.saved_tensors
    weight = _resized(mask, feature)
    positive = feature * weight > 0
    zero = gradient.new_zeros(())
    return torch.where(positive, gradient * weight, zero), torch.where(positive, zero, gradient), None


_hybrid_mask.register_autograd(_backward, setup_context=_setup_context)


def onnx_function() -> FunctionProto:
    """The operator in standard ones, opset 18."""
    from onnx import parser

    return parser.parse_function(
        f"""
        <opset_import: ["" : 18], domain: "edgevis">
        {NODE} (feature, masked_image_feature, mask) => (result)
        {{
            channel = Constant <value_ints: ints = [1]> ()
            zero = Constant <value_float: float = 0.0> ()
            planes = Unsqueeze (mask, channel)
            outer = Shape <start: int = 0, end: int = 2> (planes)
            inner = Shape <start: int = 2, end: int = 4> (feature)
            sizes = Concat <axis: int = 0> (outer, inner)
            resized = Resize <mode: string = "linear", coordinate_transformation_mode: string = "align_corners">
                (planes, , , sizes)
            kept = Mul (feature, resized)
            decision = Greater (kept, zero)
            result = Where (decision, kept, masked_image_feature)
        }}
        """
    )


def _resized(mask: Tensor, feature: Tensor) -> Tensor:
    """The mask at the map's size, (B, 1, h, w)."""
    return F.interpolate(mask[:, None], size=feature.shape[2:], mode="bilinear", align_corners=True)


def _check(feature: Tensor, masked_image_feature: Tensor, mask: Tensor) -> None:
    if feature.dim() != 4 or feature.shape != masked_image_feature.shape:
        raise InputError(
            f"feature is {tuple(feature.shape)} and masked_image_feature {tuple(masked_image_feature.shape)}; "
            "allowed: both (B, C, h, w)"
        )
    if mask.dim() != 3 or mask.shape[0] != feature.shape[0]:
        raise InputError(
            f"mask is {tuple(mask.shape)}; allowed: (B, H, W) with B = {feature.shape[0]}, H and W of the image"
        )
    if not feature.is_floating_point() or feature.dtype != masked_image_feature.dtype:
        raise InputError(
            f"feature is {feature.dtype} and masked_image_feature {masked_image_feature.dtype}; "
            "allowed: one floating-point dtype"
        )
