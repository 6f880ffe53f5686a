"""Teachers whose graph is that of the task ``detect``: a bundle, or a model with its weights in PyTorch."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from runtime.bundle.bundle import Bundle, sha256
from runtime.bundle.spec import Deployment
from runtime.common.arrays import Array
from runtime.detection.postprocess import detected_boxes
from runtime.errors import InputError
from runtime.images.decode import Image
from runtime.images.preprocess import Preprocessor
from runtime.selection.choose import open_best
from runtime.tasks.detect import settings_from


class GraphTeacher:
    """A detector by its graph ``detect``; its own threshold does not count.

    Args:
        name: The detector's name in the labels' provenance.
        deployment: Its declaration.
        run: Maps image (1, 3, H, W) float32 to scores (1, A, C) and boxes (1, A, 4).
        close: Releases what it holds.
        score: The lowest score of its detections.

    Raises:
        InputError: The deployment is of another task.
    """

    def __init__(
        self,
        name: str,
        deployment: Deployment,
        run: Callable[[Array], tuple[Array, Array]],
        close: Callable[[], object],
        *,
        score: float,
    ) -> None:
        if deployment.task != "detect":
            close()
            raise InputError(f"{name} is of the task {deployment.task!r}; a teacher is of the task 'detect'")
        self.name = name
        self._run, self._close = run, close
        self._settings = replace(settings_from(deployment.postprocess), score=score)
        self._preprocess = Preprocessor(deployment.preprocess)

    def detect(self, image: Image) -> tuple[NDArray[np.float64], NDArray[np.float64], Sequence[str]]:
        """See :class:`edgevis.pseudo_labels.teachers.LabellingTeacher`."""
        size = (image.shape[0], image.shape[1])
        scores, boxes = self._run(self._preprocess([image]))
        geometry = self._preprocess.geometry(size)
        detections = detected_boxes(scores[0], boxes[0], self._settings, geometry=geometry, size=size)
        labels = [self._settings.labels[number] for number in detections.class_ids]
        return detections.boxes.astype(np.float64), detections.scores.astype(np.float64), labels

    def close(self) -> None:
        self._close()


def bundle_teacher(path: Path, *, score: float, threads: int | None = None) -> GraphTeacher:
    """The detector in a bundle, by the engine that a predictor would open.

    Raises:
        BundleError, BackendError: It cannot be opened.
        InputError: It is of another task.
    """
    bundle = Bundle(path)
    opened = open_best(bundle, backend="auto", device="auto", precision=None, threads=threads)

    def run(tensor: Array) -> tuple[Array, Array]:
        outputs = opened.sessions["detect"].run({"image": tensor}, finite=("scores",))
        return outputs["scores"], outputs["boxes"]

    def close() -> None:
        for session in opened.sessions.values():
            session.close()

    name = f"{path.name} {opened.record.name} {sha256(path / 'manifest.json')[:16]}"
    return GraphTeacher(name, bundle.manifest.deployment, run, close, score=score)


def model_teacher(model: str, weights: Path, *, score: float) -> GraphTeacher:
    """A model of :mod:`edgevis.models` with weights, in PyTorch: so a student is the next teacher without a build.

    The options are those that the weights were trained with.

    Raises:
        ModelError: There is no such model, or the weights do not fit it.
        InputError: It is of another task.
    """
    import torch

    from edgevis import models
    from edgevis.provenance import read_provenance

    declared = models.entry(model)
    provenance = read_provenance(weights)
    module: Any = models.module_from(declared, {} if provenance is None else provenance.options)
    models.load_weights(module, weights)

    def run(tensor: Array) -> tuple[Array, Array]:
        with torch.inference_mode():
            scores, boxes = module.detect(torch.from_numpy(tensor))
        return scores.numpy(), boxes.numpy()

    name = f"{declared.name} {weights.name} {sha256(weights)[:16]}"
    return GraphTeacher(name, models.deployment_of(declared, module), run, lambda: None, score=score)
