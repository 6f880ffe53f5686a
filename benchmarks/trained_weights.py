"""Trained weights in PyTorch, for benchmarks that ask them directly."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from edgevis import models
from edgevis.provenance import read_provenance
from runtime.errors import InputError
from runtime.images.decode import Image
from runtime.images.preprocess import Preprocessor
from runtime.tasks.segment import segmentation_from_logits


def open_trained(path: Path, *, published: str | None = None) -> tuple[Any, Preprocessor]:
    """The model, in evaluation mode, and its preprocessing.

    Args:
        path: Weights that name their model and options, as all that a training of edgevis writes.
        published: The model, with its default options, of weights that name none; None refuses these.

    Raises:
        InputError: They are refused.
    """
    provenance = read_provenance(path)
    if provenance is not None:
        entry, options = models.entry(provenance.model), provenance.options
    elif published is not None:
        entry, options = models.entry(published), {}
    else:
        raise InputError(f"{path} does not say which model it is of; allowed: weights that edgevis train wrote")
    model = models.module_from(entry, options).eval()
    models.load_weights(model, path)
    return model, Preprocessor(models.deployment_of(entry, model).preprocess)


class TrainedSegmenter:
    """Masks of trained weights of the task ``segment``.

    Args:
        path: As of :func:`open_trained`.
    """

    def __init__(self, path: Path) -> None:
        self._model, self._preprocess = open_trained(path)

    def __call__(self, image: Image) -> NDArray[np.bool_]:
        """(H, W), where the first class is, of an image (H, W, 3) uint8 BGR."""
        with torch.inference_mode():
            logits = self._model(torch.from_numpy(self._preprocess([image])))[0].numpy()
        size = (image.shape[0], image.shape[1])
        return np.asarray(segmentation_from_logits(logits, size, labels=("object",), threshold=0.5).mask, np.bool_)
