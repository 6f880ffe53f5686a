"""The distillation loss of detectors: what it is zero for, what it weighs, and where its gradient points."""

from __future__ import annotations

import pytest
import torch

from edgevis.losses import ObjectnessDistillationLoss
from runtime.errors import InputError

pytestmark = pytest.mark.torch

TERMS = ("taught objectness", "taught class", "taught box")


def rows(seed: int = 0, *, images: int = 2, cells: int = 6, classes: int = 3) -> torch.Tensor:
    return torch.randn(images, cells, 5 + classes, generator=torch.Generator().manual_seed(seed))


def test_equal_student_has_no_loss_and_no_gradient() -> None:
    teacher = rows()
    student = teacher.clone().requires_grad_()
    terms = ObjectnessDistillationLoss()(student, teacher)
    assert tuple(terms) == TERMS
    assert all(abs(value.item()) < 1e-6 for value in terms.values())
    sum(terms.values()).backward()
    columns = student.grad[..., 4:]  # of the box's distance any subgradient is right
    assert float(columns.abs().max()) < 1e-6


def test_each_term_is_the_divergence_over_the_expected_objects() -> None:
    teacher, student = torch.zeros(1, 2, 6), torch.zeros(1, 2, 6)
    teacher[0, :, 4] = torch.tensor([2.0, -30.0])  # the second cell is certainly empty
    teacher[0, :, 5] = 1.0
    student[0, :, :4] = torch.tensor([[1.0, 0.5, 0.0, -0.5], [9.0, 9.0, 9.0, 9.0]])
    student[0, 1, 4] = -30.0
    terms = ObjectnessDistillationLoss()(student, teacher)
    there, person = torch.sigmoid(torch.tensor(2.0)), torch.sigmoid(torch.tensor(1.0))

    def divergence(share: torch.Tensor) -> torch.Tensor:  # from one half, in nats
        return torch.log(torch.tensor(2.0)) + share * share.log() + (1 - share) * (1 - share).log()

    torch.testing.assert_close(terms["taught objectness"], divergence(there))
    torch.testing.assert_close(terms["taught class"], there * divergence(person))
    torch.testing.assert_close(terms["taught box"], there * person * 2.0)


def test_more_objects_of_the_teacher_weigh_each_less() -> None:
    teacher = torch.full((1, 4, 6), 20.0)
    student = teacher.clone()
    student[0, 0, 0] += 1.0
    torch.testing.assert_close(ObjectnessDistillationLoss()(student, teacher)["taught box"], torch.tensor(0.25))


def test_steps_down_the_gradient_approach_the_teacher_and_leave_it_as_it_is() -> None:
    teacher = rows(1).requires_grad_()
    student = rows(2).requires_grad_()
    loss = ObjectnessDistillationLoss()
    first = sum(loss(student, teacher).values()).item()
    optimizer = torch.optim.SGD([student], 0.2)
    for _ in range(200):
        optimizer.zero_grad()
        sum(loss(student, teacher).values()).backward()
        optimizer.step()
    assert sum(loss(student, teacher).values()).item() < 0.2 * first
    assert teacher.grad is None


@pytest.mark.parametrize("shape", [(2, 6, 7), (2, 5, 8), (6, 8)])
def test_rows_of_other_shapes_are_refused(shape: tuple[int, ...]) -> None:
    with pytest.raises(InputError, match="allowed: both"):
        ObjectnessDistillationLoss()(torch.zeros(shape), rows())
    with pytest.raises(InputError, match="allowed: both"):
        ObjectnessDistillationLoss()(torch.zeros(1, 3, 5), torch.zeros(1, 3, 5))


def test_rows_that_are_not_finite_are_refused() -> None:
    student = rows()
    student[0, 0, 4] = float("nan")
    with pytest.raises(InputError, match="rows"):
        ObjectnessDistillationLoss()(student, rows())
