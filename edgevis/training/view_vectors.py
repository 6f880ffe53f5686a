"""What a frozen encoder gives for training images and random views of them: computed once and kept in memory."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from edgevis.data.leakage import ProgressCallback
from runtime.common.arrays import Array
from runtime.images.decode import Image
from runtime.images.preprocess import Preprocessor

ViewKey = tuple[int, int]
"""The position of an image, and which of its views: a number from 0, or :data:`PLAIN`."""

PLAIN = -1
"""The view that a predictor sees."""

_BATCH = 32


class ViewVectors:
    """The vectors of views by their keys.

    Args:
        encode: From a model and images (N, 3, h, w) float32 to vectors (N, c).
        image: The view of a key, (H, W, 3) uint8 BGR.
        preprocess: The model's.
    """

    def __init__(
        self, encode: Callable[[Any, Tensor], Tensor], image: Callable[[ViewKey], Image], preprocess: Preprocessor
    ) -> None:
        self._encode, self._image, self._preprocess = encode, image, preprocess
        self._kept: dict[ViewKey, Array] = {}

    def keep(self, model: Any, keys: Sequence[ViewKey], progress: ProgressCallback = lambda done, total: None) -> None:
        """Compute the vectors of those that have none yet."""
        missing = [key for key in dict.fromkeys(keys) if key not in self._kept]
        if missing:
            self._kept |= dict(zip(missing, self.computed(model, missing, progress), strict=True))

    def of(self, model: Any, keys: Sequence[ViewKey]) -> Array:
        """(N, c) float32, each computed once."""
        self.keep(model, keys)
        return np.stack([self._kept[key] for key in keys])

    def computed(
        self, model: Any, keys: Sequence[ViewKey], progress: ProgressCallback = lambda done, total: None
    ) -> Array:
        """(N, c) float32, computed now, in evaluation mode, and not kept."""
        device = next(model.parameters()).device
        modes = [(module, module.training) for module in model.modules()]
        model.eval()
        # One block for all: arrays that stay, taken between the encoder's own, would keep the heap from reusing these.
        rows = np.empty((0, 0), np.float32)
        for start in range(0, len(keys), _BATCH):
            progress(start, len(keys))
            part = keys[start : start + _BATCH]
            with torch.no_grad():
                images = torch.from_numpy(self._preprocess([self._image(key) for key in part])).to(device)
                vectors = self._encode(model, images).float().cpu().numpy()
            if start == 0:
                rows = np.empty((len(keys), vectors.shape[1]), np.float32)
            rows[start : start + len(part)] = vectors
        for module, training in modes:
            module.training = training
        progress(len(keys), len(keys))
        return rows
