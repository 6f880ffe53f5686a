"""Distillation losses: the direction of a teacher's embeddings, and its distribution over the classes.

Papers: Hinton, Vinyals, Dean, "Distilling the Knowledge in a Neural Network", 2015, section 2 (logits, and the factor
of the squared temperature); Romero et al., "FitNets: Hints for Thin Deep Nets", ICLR 2015 (a learned map from the
student's width to the teacher's). Our own code.

A model that is used compares embeddings by cosine alone, so their directions are what is learned, not their lengths.
Relations of pairs (Park et al., "Relational Knowledge Distillation", CVPR 2019) would need no map between two widths,
but leave open where an embedding lies: of a width that both share, every coordinate of the teacher's is a target.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from edgevis.losses._checks import check_rows
from runtime.errors import InputError

_HALVES = (torch.float16, torch.bfloat16)


def embedding_distillation_loss(student: Tensor, teacher: Tensor) -> Tensor:
    """The mean over rows of 1 - cosine: 0 where both point the same way, 2 where they point opposite ways.

    Args:
        student: (B, d) floating point; half precision is computed in float32.
        teacher: (B, d) floating point.

    Returns:
        A scalar.

    Raises:
        InputError: Shapes do not fit together, NaN.
    """
    student, teacher = _checked("embedding", student, teacher)
    return 1 - F.cosine_similarity(student, teacher).mean()


def logit_distillation_loss(student: Tensor, teacher: Tensor, temperature: float = 4.0) -> Tensor:
    """``temperature**2`` times the mean over rows of KL(softmax(teacher / temperature) || softmax(student / ...)).

    The factor keeps the gradient's size as it is when the temperature changes.

    Args:
        student: (B, classes) floating point; half precision is computed in float32.
        teacher: (B, classes) floating point, the classes in the same order.
        temperature: Above 0; the higher, the more the unlikely classes count.

    Returns:
        A scalar, 0 or more.

    Raises:
        InputError: Shapes do not fit together, a temperature of 0 or less, NaN.
    """
    _check_temperature(temperature)
    student, teacher = _checked("logits", student, teacher)
    log_student, log_teacher = F.log_softmax(student / temperature, 1), F.log_softmax(teacher / temperature, 1)
    return F.kl_div(log_student, log_teacher, reduction="batchmean", log_target=True) * temperature**2


class DistillationLoss(nn.Module):
    """Both terms by name, each times its weight; one of weight 0 is left out.

    Where the embeddings have two widths, the student's goes through a linear map first. The map is learned with the
    student and needed by nothing afterwards: give it to the optimiser, too.

    Args:
        student: Width of the student's embedding.
        teacher: Width of the teacher's.
        embedding: Weight of :func:`embedding_distillation_loss`.
        logits: Weight of :func:`logit_distillation_loss`.
        temperature: Of the logits.
    """

    def __init__(
        self, *, student: int, teacher: int, embedding: float = 1.0, logits: float = 0.0, temperature: float = 4.0
    ) -> None:
        super().__init__()
        for name, width in (("student", student), ("teacher", teacher)):
            if width < 1:
                raise InputError(f"{name} has width {width}; allowed: 1 or more")
        for name, weight in (("embedding", embedding), ("logits", logits)):
            if not (math.isfinite(weight) and weight >= 0):
                raise InputError(f"weight of {name} is {weight}; allowed: a finite number, 0 or more")
        if not (embedding or logits):
            raise InputError("the weights of embedding and logits are both 0; allowed: one of them above 0")
        _check_temperature(temperature)
        self.embedding = embedding
        self.logits = logits
        self.temperature = temperature
        # A map that no term uses would have no gradient, for which several processes would wait.
        mapped = embedding > 0 and student != teacher
        self.map = nn.Linear(student, teacher, bias=False) if mapped else nn.Identity()

    def forward(
        self, embedding: Tensor, logits: Sequence[Tensor], teacher_embedding: Tensor, teacher_logits: Sequence[Tensor]
    ) -> dict[str, Tensor]:
        """Scalars named ``distill embedding`` and ``distill logits``.

        Args:
            embedding: (B, student's width) floating point.
            logits: (B, classes) floating point, of each of the student's classifiers: each one learns from the mean
                of the teacher's, as each one has a cross-entropy of its own. A mean of the student's would leave open
                which of them is wrong.
            teacher_embedding: (B, teacher's width) floating point.
            teacher_logits: (B, classes) floating point, of each of the teacher's classifiers.

        Logits are not looked at where they have no weight; they may be left empty.

        Raises:
            InputError: Shapes do not fit together, no logits although they have a weight, NaN.
        """
        terms: dict[str, Tensor] = {}
        if self.embedding:
            mapped = self.map(embedding)
            terms["distill embedding"] = self.embedding * embedding_distillation_loss(mapped, teacher_embedding)
        if self.logits:
            if not (logits and teacher_logits):
                raise InputError(
                    f"{len(logits)} logits of the student and {len(teacher_logits)} of the teacher; allowed: 1 or more"
                )
            target = torch.stack(list(teacher_logits)).mean(0)
            terms_of_heads = [logit_distillation_loss(x, target, self.temperature) for x in logits]
            terms["distill logits"] = self.logits * torch.stack(terms_of_heads).mean()
        return terms


def _checked(name: str, student: Tensor, teacher: Tensor) -> tuple[Tensor, Tensor]:
    check_rows(f"the student's {name}", student)
    check_rows(f"the teacher's {name}", teacher)
    if student.shape != teacher.shape:
        raise InputError(
            f"the student's {name} has shape {tuple(student.shape)}, the teacher's {tuple(teacher.shape)}; allowed: "
            "the same"
        )
    wide = [tensor.float() if tensor.dtype in _HALVES else tensor for tensor in (student, teacher)]
    return wide[0], wide[1].to(wide[0].dtype)


def _check_temperature(temperature: float) -> None:
    if not (math.isfinite(temperature) and temperature > 0):
        raise InputError(f"temperature is {temperature}; allowed: a finite number above 0")
