"""Embeddings of many images, for evaluation."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
import torch
from torch import Tensor

from edgevis.training.finite import require_finite
from runtime.common.arrays import Array, unit_rows
from runtime.images.decode import Image
from runtime.images.preprocess import Preprocessor

_BATCH = 32


def embeddings(
    embed: Callable[[Tensor], Tensor], images: Sequence[Image], preprocess: Preprocessor, device: torch.device
) -> Array:
    """(N, d) float32 unit rows.

    Args:
        embed: A model's graph: image (N, 3, h, w) to (N, d).
        images: N images, each (H, W, 3) uint8 BGR.
        preprocess: The model's.
        device: The model's.

    Raises:
        TrainingError: An embedding is not finite.
    """
    parts = []
    for start in range(0, len(images), _BATCH):
        batch = torch.from_numpy(preprocess(images[start : start + _BATCH])).to(device)
        parts.append(embed(batch).float().cpu().numpy())
    rows = np.concatenate(parts)
    require_finite(rows, "the model's embeddings")
    return unit_rows(rows)


def recognised(first: Array, second: Array) -> list[float]:
    """For each of (N, d) unit rows 1 where its own is the nearest by cosine of the second (N, d), else 0."""
    hits: list[float] = ((first @ second.T).argmax(1) == np.arange(len(first))).astype(np.float64).tolist()
    return hits
