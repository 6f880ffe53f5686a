"""What a student learns from a teacher, against the formulas written out in NumPy."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from edgevis.losses import DistillationLoss, embedding_distillation_loss, logit_distillation_loss
from runtime.errors import InputError

pytestmark = pytest.mark.torch


def drawn(*shape: int, seed: int = 0) -> Tensor:
    return torch.from_numpy(np.random.default_rng(seed).normal(0, 3, shape))


def softmax(x: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
    powers = np.exp(x - x.max(1, keepdims=True))
    return np.asarray(powers / powers.sum(1, keepdims=True))


def test_embeddings_by_formula() -> None:
    student, teacher = drawn(5, 7, seed=1), drawn(5, 7, seed=2)
    s, t = student.numpy(), teacher.numpy()
    cosines = (s * t).sum(1) / np.linalg.norm(s, axis=1) / np.linalg.norm(t, axis=1)
    assert float(embedding_distillation_loss(student, teacher)) == pytest.approx(float(1 - cosines.mean()), rel=1e-12)
    assert float(embedding_distillation_loss(3 * teacher, teacher)) == pytest.approx(0, abs=1e-12)
    assert float(embedding_distillation_loss(-teacher, teacher)) == pytest.approx(2)


@pytest.mark.parametrize("temperature", [1.0, 4.0])
def test_logits_by_formula(temperature: float) -> None:
    student, teacher = drawn(6, 9, seed=1), drawn(6, 9, seed=2)
    p, q = softmax(teacher.numpy() / temperature), softmax(student.numpy() / temperature)
    expected = temperature**2 * (p * np.log(p / q)).sum(1).mean()
    assert float(logit_distillation_loss(student, teacher, temperature)) == pytest.approx(float(expected), rel=1e-12)
    assert float(logit_distillation_loss(teacher + 5, teacher, temperature)) == pytest.approx(0, abs=1e-12)


def test_the_gradient_of_logits_does_not_shrink_with_the_temperature() -> None:
    """Hinton et al., section 2.1: at a high temperature it tends to the difference of the centred logits / classes."""
    student, teacher = drawn(1, 9, seed=1).requires_grad_(), drawn(1, 9, seed=2)
    logit_distillation_loss(student, teacher, 1e4).backward()
    difference = (student - student.mean() - teacher + teacher.mean()).detach() / 9
    assert student.grad is not None
    torch.testing.assert_close(student.grad, difference, rtol=1e-3, atol=1e-4)


def test_half_precision_is_computed_in_float32() -> None:
    student, teacher = drawn(4, 512, seed=1), drawn(4, 512, seed=2)
    for loss in (embedding_distillation_loss, logit_distillation_loss):
        found = loss(student.bfloat16(), teacher.bfloat16())
        assert found.dtype == torch.float32
        assert float(found) == pytest.approx(float(loss(student.bfloat16().double(), teacher.bfloat16().double())))


def test_the_terms_and_their_weights() -> None:
    embeddings, logits = (drawn(4, 6, seed=1), drawn(4, 6, seed=2)), [drawn(4, 5, seed=seed) for seed in range(5)]
    loss = DistillationLoss(student=6, teacher=6, embedding=0.5, logits=2.0, temperature=3.0)
    assert not list(loss.parameters())
    found = loss(embeddings[0], logits[:2], embeddings[1], logits[2:])
    assert float(found["distill embedding"]) == pytest.approx(0.5 * float(embedding_distillation_loss(*embeddings)))
    wanted = torch.stack(logits[2:]).mean(0)
    each = [float(logit_distillation_loss(x, wanted, 3.0)) for x in logits[:2]]
    assert float(found["distill logits"]) == pytest.approx(2 * sum(each) / 2)
    only = DistillationLoss(student=6, teacher=6, embedding=0.0, logits=1.0)
    assert list(only(embeddings[0], logits[:1], embeddings[1], logits[1:])) == ["distill logits"]
    assert list(DistillationLoss(student=6, teacher=6)(embeddings[0], (), embeddings[1], ())) == ["distill embedding"]


def test_two_widths_meet_by_a_map_that_is_learned() -> None:
    loss = DistillationLoss(student=3, teacher=8)
    assert isinstance(loss.map, nn.Linear)
    assert [tuple(parameter.shape) for parameter in loss.parameters()] == [(8, 3)]
    student, teacher = drawn(4, 3).float().requires_grad_(), drawn(4, 8, seed=1).float()
    found = loss(student, (), teacher, ())["distill embedding"]
    torch.testing.assert_close(found, embedding_distillation_loss(student @ loss.map.weight.T, teacher))
    found.backward()
    assert student.grad is not None
    assert loss.map.weight.grad is not None
    assert not list(DistillationLoss(student=3, teacher=8, embedding=0.0, logits=1.0).parameters())


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"student": 0}, "student has width 0"),
        ({"embedding": -1.0}, "weight of embedding is -1"),
        ({"logits": math.inf}, "weight of logits is inf"),
        ({"embedding": 0.0}, "are both 0; allowed: one of them above 0"),
        ({"temperature": 0.0}, "temperature is 0"),
    ],
)
def test_bad_values(values: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=message):
        DistillationLoss(**{"student": 3, "teacher": 3, **values})


def test_bad_tensors() -> None:
    with pytest.raises(InputError, match=r"the student's embedding has shape \(4, 3\), the teacher's \(4, 5\)"):
        embedding_distillation_loss(drawn(4, 3), drawn(4, 5))
    with pytest.raises(InputError, match="the teacher's logits holds NaN or infinity"):
        logit_distillation_loss(drawn(4, 3), drawn(4, 3) * math.nan)
    with pytest.raises(InputError, match="0 logits of the student and 1 of the teacher"):
        DistillationLoss(student=3, teacher=3, logits=1.0)(drawn(4, 3), (), drawn(4, 3), (drawn(4, 2),))
