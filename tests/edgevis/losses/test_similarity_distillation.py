"""The loss of similarity distillation: what it is zero for, what it does not see, what it refuses."""

from __future__ import annotations

import math

import pytest
import torch

from edgevis.losses import SimilarityDistillationLoss, similarity_distillation_loss
from runtime.errors import InputError

pytestmark = pytest.mark.torch


def test_turned_and_scaled_rows_are_as_alike_as_before() -> None:
    """A rotation into another width, and another length of each row, leave all cosines as they are."""
    torch.manual_seed(0)
    teacher = torch.randn(12, 5)
    rotation = torch.linalg.qr(torch.randn(9, 9))[0][:5]
    student = (teacher @ rotation) * (torch.rand(12, 1) + 0.5)
    assert float(similarity_distillation_loss(student, teacher)) < 1e-10
    assert float(similarity_distillation_loss(torch.randn(12, 9), teacher)) > 0.1


def test_it_is_the_unexplained_share_of_the_variance() -> None:
    """Three rows, three cosines: by hand."""
    teacher = torch.eye(3)[[0, 0, 1]]  # cosines 1, 0, 0, each twice
    student = torch.eye(3)  # 0, 0, 0
    variance = 6 / 5 * (1 / 3 - 1 / 9)
    assert float(similarity_distillation_loss(student, teacher)) == pytest.approx(1 / 3 / variance)


def test_the_map_is_learned_and_a_term_without_weight_is_left_out() -> None:
    torch.manual_seed(0)
    student, teacher = torch.randn(8, 6), torch.randn(8, 4)
    both = SimilarityDistillationLoss(student=6, teacher=4, pairs=2.0, direction=0.5)
    terms = both(student, teacher)
    assert float(terms["pairs"]) == pytest.approx(2 * float(similarity_distillation_loss(student, teacher)))
    cosine = torch.nn.functional.cosine_similarity(both.map(student), teacher).mean()
    assert float(terms["direction"]) == pytest.approx(0.5 * (1 - float(cosine)))
    assert set(SimilarityDistillationLoss(student=6, teacher=4, direction=0)(student, teacher)) == {"pairs"}
    assert not list(SimilarityDistillationLoss(student=6, teacher=4, direction=0).parameters())
    assert set(SimilarityDistillationLoss(student=6, teacher=4, pairs=0)(student, teacher)) == {"direction"}


def test_what_is_wrong_is_refused() -> None:
    rows = torch.randn(4, 3)
    with pytest.raises(InputError, match="has 4 rows, the teacher's 5; allowed"):
        similarity_distillation_loss(rows, torch.randn(5, 3))
    with pytest.raises(InputError, match="has 2 rows"):
        similarity_distillation_loss(rows[:2], rows[:2])
    with pytest.raises(InputError, match="NaN"):
        similarity_distillation_loss(rows, rows * math.nan)
    with pytest.raises(InputError, match="both 0"):
        SimilarityDistillationLoss(student=3, teacher=3, pairs=0, direction=0)
