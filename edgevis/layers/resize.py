"""Bilinear resizing with aligned corners, the only kind that the few-shot segmentation models use."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor


def resize(x: Tensor, size: tuple[int, int]) -> Tensor:
    """(N, C, h, w) -> (N, C, *size): first and last samples of each axis stay where they are.

    The size is of plain ints, so that an exported graph holds it as a constant.
    """
    return F.interpolate(x, size=size, mode="bilinear", align_corners=True)
