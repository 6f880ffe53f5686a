"""The loss of similarity distillation: what it is zero for, what it does not see, what it refuses."""

from __future__ import annotations

import math

import numpy as np
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


def test_it_is_one_less_the_correlation() -> None:
    """By NumPy's own function; a common part of all rows, which raises all cosines, costs nothing."""
    torch.manual_seed(0)
    student, teacher = torch.randn(10, 6), torch.randn(10, 4)
    units = [torch.nn.functional.normalize(rows).numpy() for rows in (student, teacher)]
    ours, theirs = ((rows @ rows.T)[~np.eye(10, dtype=bool)] for rows in units)
    expected = 1 - np.corrcoef(ours, theirs)[0, 1]
    assert float(similarity_distillation_loss(student, teacher)) == pytest.approx(expected, abs=1e-5)
    unit = torch.nn.functional.normalize(teacher)
    raised = torch.cat([unit, torch.full((10, 1), 2.0)], dim=1)
    assert float(similarity_distillation_loss(raised, teacher)) == pytest.approx(0, abs=1e-5)


def test_the_map_is_learned_and_a_term_without_weight_is_left_out() -> None:
    torch.manual_seed(0)
    student, teacher = torch.randn(8, 6), torch.randn(8, 4)
    both = SimilarityDistillationLoss(student=6, teacher=4, pairs=2.0, direction=0.5)
    with torch.no_grad():
        terms = both(student, teacher)
        cosine = torch.nn.functional.cosine_similarity(both.map(student), teacher).mean()
    assert float(terms["pairs"]) == pytest.approx(2 * float(similarity_distillation_loss(student, teacher)))
    assert float(terms["direction"]) == pytest.approx(0.5 * (1 - float(cosine)))
    assert set(SimilarityDistillationLoss(student=6, teacher=4, direction=0)(student, teacher)) == {"pairs"}
    assert not list(SimilarityDistillationLoss(student=6, teacher=4, direction=0).parameters())
    assert set(SimilarityDistillationLoss(student=6, teacher=4, pairs=0)(student, teacher)) == {"direction"}


def test_the_anchor_is_the_cosine_to_the_start() -> None:
    torch.manual_seed(0)
    student, start, teacher = torch.randn(8, 6), torch.randn(8, 6), torch.randn(8, 4)
    loss = SimilarityDistillationLoss(student=6, teacher=4, direction=0, anchor=3.0)
    cosine = torch.nn.functional.cosine_similarity(student, start).mean()
    assert float(loss(student, teacher, start)["anchor"]) == pytest.approx(3 * (1 - float(cosine)))
    assert float(loss(start, teacher, 2 * start)["anchor"]) == pytest.approx(0, abs=1e-6)
    assert set(loss(student, teacher)) == {"pairs"}


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
