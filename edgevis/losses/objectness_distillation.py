"""The distillation loss of detectors with an objectness, such as YOLOX.

Paper: Mehta, Ozturk, "Object detection at 200 Frames Per Second", 2018, arXiv:1805.06361, section 3.1 (eq. 4 to 6): the
student learns the teacher's objectness everywhere, and its boxes and classes as far as the teacher's objectness says
that there is an object. Ours: binary cross-entropy for probabilities, as YOLOX's own loss has, and for boxes the
distance of the codes.
Provenance: our own code. Licence: as the rest of edgevis.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional

from edgevis.losses._checks import check_values
from runtime.errors import InputError


class ObjectnessDistillationLoss(nn.Module):
    """What a student's rows differ from a teacher's.

    Each term is a sum over cells over the sum of the teacher's objectness, which is the expected number of cells with
    an object, and at least 1 for each image.
    """

    def forward(self, student: Tensor, teacher: Tensor) -> dict[str, Tensor]:
        """The terms ``taught objectness``, ``taught class`` and ``taught box``.

        Args:
            student: (B, A, 5 + C) float32: box code (4), logit of objectness, logits of the classes.
            teacher: The same of the teacher; no gradient reaches it.

        Raises:
            InputError: The shapes differ or are others, or a value is not finite.
        """
        if student.shape != teacher.shape or student.ndim != 3 or student.shape[2] < 6:
            raise InputError(
                f"rows have shapes {tuple(student.shape)} and {tuple(teacher.shape)}; allowed: both (B, A, 5 + classes)"
            )
        check_values("rows", student)
        teacher = teacher.detach()
        objects = torch.sigmoid(teacher[..., 4])
        count = objects.sum().clamp(min=len(student))
        entropy = functional.binary_cross_entropy_with_logits
        # Less the teacher's own entropy, so that the term of an equal student is 0.
        objectness = entropy(student[..., 4], objects, reduction="none") - entropy(
            teacher[..., 4], objects, reduction="none"
        )
        classes = torch.sigmoid(teacher[..., 5:])
        by_class = entropy(student[..., 5:], classes, reduction="none") - entropy(
            teacher[..., 5:], classes, reduction="none"
        )
        box = (student[..., :4] - teacher[..., :4]).abs().sum(-1)
        # A cell says person by objectness times class: boxes and classes count where the product is likely.
        return {
            "taught objectness": objectness.sum() / count,
            "taught class": (objects[..., None] * by_class).sum() / count,
            "taught box": (objects * classes.amax(-1) * box).sum() / count,
        }
