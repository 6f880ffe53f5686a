"""Cross-entropy of few-shot segmentation.

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


def segmentation_loss(logits: Tensor, mask: Tensor) -> Tensor:
    """Mean cross-entropy of background and object over all pixels, without weights, at the mask's size.

    Args:
        logits: (B, 2, h, w) float, resized to the mask's size (bilinear, corners aligned).
        mask: (B, H, W) of any dtype: 1 on the object, 0 elsewhere. Pixels to be ignored count as background, as in
            the papers' experiments: set them to 0.

    Returns:
        () float.

    Raises:
        InputError: Shapes do not fit together, logits are not finite, or the mask holds another value.
    """
    if logits.dim() != 4 or logits.shape[1] != 2 or mask.dim() != 3 or logits.shape[0] != mask.shape[0]:
        raise InputError(
            f"logits are {tuple(logits.shape)} and mask {tuple(mask.shape)}; allowed: (B, 2, h, w) and (B, H, W)"
        )
    check_values("logits", logits)
    if not torch.compiler.is_compiling() and not bool(((mask == 0) | (mask == 1)).all()):
        raise InputError("the mask holds values other than 0 and 1; set pixels to be ignored to 0, background")
    height, width = mask.shape[1:]
    return F.cross_entropy(resize(logits, (height, width)), mask.long())
