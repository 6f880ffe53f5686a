"""Similarity distillation: which images of a batch a teacher's embeddings hold for alike, and their direction.

Papers: Tung, Mori, "Similarity-Preserving Knowledge Distillation", ICCV 2019; Park, Kim, Lu, Cho, "Relational Knowledge
Distillation", CVPR 2019; Huang, You, Wang, Qian, Xu, "Knowledge Distillation from a Stronger Teacher", NeurIPS 2022
(the correlation); Romero et al., "FitNets: Hints for Thin Deep Nets", ICLR 2015 (the learned map). Our own code.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from edgevis.losses._checks import check_rows
from edgevis.losses.distillation import embedding_distillation_loss
from runtime.errors import InputError


def similarity_distillation_loss(student: Tensor, teacher: Tensor) -> Tensor:
    """1 - Pearson's correlation between the student's and the teacher's cosines of all pairs of different rows.

    0 where one is a rising linear function of the other: embeddings that a ReLU keeps from pointing opposite ways have
    higher cosines than others, and a search for the nearest, or a threshold that is measured, is no worse for it.

    Args:
        student: (B, d) floating point with B >= 3; half precision is computed in float32.
        teacher: (B, e) floating point.

    Returns:
        A scalar.

    Raises:
        InputError: Shapes do not fit together, NaN.
    """
    check_rows("the student's embedding", student)
    check_rows("the teacher's embedding", teacher)
    if len(student) != len(teacher) or len(student) < 3:
        raise InputError(
            f"the student's embedding has {len(student)} rows, the teacher's {len(teacher)}; allowed: the same number, "
            "3 or more"
        )
    pairs = ~torch.eye(len(student), dtype=torch.bool, device=student.device)
    ours, theirs = (rows @ rows.T for rows in (F.normalize(student.float()), F.normalize(teacher.float())))
    ours, theirs = (cosines[pairs] - cosines[pairs].mean() for cosines in (ours, theirs))
    return 1 - F.cosine_similarity(ours, theirs, dim=0)


class SimilarityDistillationLoss(nn.Module):
    """The terms by name, each times its weight; one of weight 0 is left out.

    ``pairs`` is :func:`similarity_distillation_loss`. ``direction`` is 1 - cosine between a linear map of the student's
    embedding and the teacher's; the map is learned with the student and needed by nothing afterwards. ``anchor`` is
    1 - cosine between the student's embedding and its embedding before the training: what a student learned from more
    pictures than these is lost less (Li, Hoiem, "Learning without Forgetting", ECCV 2016).

    Args:
        student: Width of the student's embedding.
        teacher: Width of the teacher's.
        pairs, direction, anchor: Weights.
    """

    def __init__(
        self, *, student: int, teacher: int, pairs: float = 1.0, direction: float = 1.0, anchor: float = 0.0
    ) -> None:
        super().__init__()
        if not (pairs or direction):
            raise InputError("the weights of pairs and direction are both 0; allowed: one of them above 0")
        self.pairs, self.direction, self.anchor = pairs, direction, anchor
        # A map that no term uses would have no gradient, for which several processes would wait.
        self.map = nn.Linear(student, teacher, bias=False) if direction else nn.Identity()

    def forward(self, student: Tensor, teacher: Tensor, start: Tensor | None = None) -> dict[str, Tensor]:
        """Scalars by name, from embeddings (B, student's width) and (B, teacher's width).

        Args:
            student, teacher: The embeddings.
            start: The student's before the training, (B, student's width); the anchor needs it.
        """
        terms: dict[str, Tensor] = {}
        if self.pairs:
            terms["pairs"] = self.pairs * similarity_distillation_loss(student, teacher)
        if self.direction:
            terms["direction"] = self.direction * embedding_distillation_loss(self.map(student), teacher)
        if self.anchor and start is not None:
            terms["anchor"] = self.anchor * embedding_distillation_loss(student, start)
        return terms
