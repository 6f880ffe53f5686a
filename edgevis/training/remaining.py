"""The estimate of a training's remaining time, from what its steps and evaluations have taken so far."""

from __future__ import annotations

from collections import deque
from typing import Protocol, runtime_checkable

from edgevis.models.recipe import Recipe

_RECENT = 64
_FORWARD = 1 / 3
"""The share of a training step that as many images take in an evaluation: the backward pass costs twice the forward."""


@runtime_checkable
class CountedEvaluations(Protocol):
    """A task that says how much its evaluations have to do, so that their time can be estimated beforehand."""

    @property
    def evaluation_images(self) -> tuple[int, int]:
        """Passes of an image through the model in one ``validate`` and in ``test``."""
        ...


class RemainingTime:
    """Estimates the seconds until the end: of the steps, the validations and the evaluation after them.

    Evaluations that have not been timed yet are estimated from the time of a training image.

    Args:
        recipe: Of the training.
        steps: Of an epoch.
        task: The training's; see :class:`CountedEvaluations`.
    """

    def __init__(self, recipe: Recipe, steps: int, task: object) -> None:
        self._epochs, self._every, self._steps = recipe.epochs, recipe.validate_every, steps
        self._counts = task.evaluation_images if isinstance(task, CountedEvaluations) else (0, 0)
        self._step_s: deque[float] = deque(maxlen=_RECENT)
        self._first: float | None = None
        self._image_s = 0.0
        self._validation_s: float | None = None

    def stepped(self, seconds: float, images: int) -> None:
        """Count one step of that many images."""
        if self._first is None:  # it also allocates memory and decodes what later ones share
            self._first = seconds
        else:
            self._step_s.append(seconds)
        self._image_s = _FORWARD * self._step / images if images else 0.0

    def validated(self, seconds: float) -> None:
        """Count one validation."""
        self._validation_s = seconds

    @property
    def validation_s(self) -> float:
        """Estimated seconds of the next validation."""
        return self._counts[0] * self._image_s if self._validation_s is None else self._validation_s

    def left_s(self, epoch: int, step: int) -> float:
        """Estimated seconds after so many whole epochs and so many steps of the next one."""
        steps = (self._epochs - epoch) * self._steps - step
        validations = sum(self.validates_after(number) for number in range(epoch + 1, self._epochs + 1))
        validation, test = self._counts
        image = self._image_s
        if self._validation_s is not None and validation:
            image = self._validation_s / validation
        return steps * self._step + validations * self.validation_s + test * image

    def validates_after(self, epoch: int) -> bool:
        """Whether a validation follows that epoch, from 1."""
        return bool(self._every) and (epoch % self._every == 0 or epoch == self._epochs)

    @property
    def _step(self) -> float:
        return sum(self._step_s) / len(self._step_s) if self._step_s else self._first or 0.0
