"""Cross-entropy of few-shot segmentation, and the Dice loss for small objects.

Source: Min, Kang, Cho, "Hypercorrelation Squeeze for Few-Shot Segmentation", ICCV 2021, section 4.4; VAT, ASNet and
hybrid masking train with the same. Provenance: our own code. Licence: as the rest of edgevis.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from edgevis.layers.resize import resize
from edgevis.losses._checks import check_values
from runtime.errors import InputError


def segmentation_loss(logits: Tensor, mask: Tensor, counted: Tensor | None = None) -> Tensor:
    """Mean cross-entropy of background and object over all pixels, without weights, at the mask's size.

    Args:
        logits: (B, 2, h, w) float, resized to the mask's size (bilinear, corners aligned).
        mask: (B, H, W) of any dtype: 1 on the object, 0 elsewhere. Pixels to be ignored count as background, as in
            the papers' experiments: set them to 0.
        counted: (B, H, W) bool: the pixels over which the mean is; None for all.

    Returns:
        () float.

    Raises:
        InputError: Shapes do not fit together, logits are not finite, or the mask holds another value.
    """
    if counted is None:
        return F.cross_entropy(_at_mask_size(logits, mask), mask.long())
    of_pixels = F.cross_entropy(_at_mask_size(logits, mask), mask.long(), reduction="none")
    return (of_pixels * counted).sum() / counted.sum().clamp(min=1)


def dice_loss(logits: Tensor, mask: Tensor, counted: Tensor | None = None) -> Tensor:
    """1 - Dice of the object's probability, over each image, averaged: small objects count as much as large ones.

    Source: Milletari, Navab, Ahmadi, "V-Net", 3DV 2016, equation (3). Where objects are a few percent of the pixels,
    cross-entropy alone has them learned as background at first.

    Args:
        logits, mask, counted: As of :func:`segmentation_loss`. An image without the object counts what is
            found there as wrong.

    Returns:
        () float, 0 to 1.

    Raises:
        InputError: As :func:`segmentation_loss`.
    """
    probability = _at_mask_size(logits, mask).softmax(1)[:, 1].flatten(1)
    if counted is not None:
        probability = probability * counted.flatten(1)
    target = mask.to(probability.dtype).flatten(1)
    shared = 2 * (probability * target).sum(1) + 1
    return 1 - (shared / (probability.square().sum(1) + target.sum(1) + 1)).mean()


def _at_mask_size(logits: Tensor, mask: Tensor) -> Tensor:
    """The logits at the mask's size, both checked."""
    if logits.dim() != 4 or logits.shape[1] != 2 or mask.dim() != 3 or logits.shape[0] != mask.shape[0]:
        raise InputError(
            f"logits are {tuple(logits.shape)} and mask {tuple(mask.shape)}; allowed: (B, 2, h, w) and (B, H, W)"
        )
    check_values("logits", logits)
    if not torch.compiler.is_compiling() and not bool(((mask == 0) | (mask == 1)).all()):
        raise InputError("the mask holds values other than 0 and 1; set pixels to be ignored to 0, background")
    height, width = mask.shape[1:]
    return resize(logits, (height, width))
