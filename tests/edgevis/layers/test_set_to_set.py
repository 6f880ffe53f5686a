"""FEAT's set-to-set layer against the reference, and what a set function must keep."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import Tensor

from edgevis import models
from edgevis.layers import SetToSet
from edgevis.losses import cosine_logits, prototypes, squared_distance_logits
from runtime.errors import InputError, ModelError

from set_to_set_cases import CASES, case_of


def logits_of(kind: str, queries: Tensor, centres: Tensor, temperature: float) -> Tensor:
    if kind == "euclid":
        return squared_distance_logits(queries, centres, 1 / temperature)
    return cosine_logits(queries, centres, 1 / temperature, normalise_queries=False)


@pytest.mark.parametrize("training", [False, True])
@pytest.mark.parametrize("kind", ["euclid", "cosine"])
@pytest.mark.parametrize("name", CASES)
def test_feat(name: str, kind: str, training: bool) -> None:
    case, layer = case_of(name)
    layer.train(training)
    way, shot, query = (int(size) for size in case["way_shot_query"])
    rows = torch.from_numpy(case["emb"]).double()
    by_shot = rows.reshape(shot + query, way, -1).transpose(0, 1)  # (way, shot + query, d)
    before = prototypes(by_shot[:, :shot])
    after = layer(before)
    logits = logits_of(kind, rows[way * shot :], after, float(case["temperature"]))
    auxiliary = logits_of(kind, rows, layer.centres(by_shot), float(case["temperature2"]))
    for found, key in (
        (before, "proto"),
        (after, "proto_adapted"),
        (logits, f"{kind}/logits_train_nodropout" if training else f"{kind}/logits"),
        (auxiliary, f"{kind}/logits_aux_nodropout"),
    ):
        expected = case[key]
        np.testing.assert_allclose(found.detach().numpy(), expected, rtol=0, atol=1e-5 * np.abs(expected).max())


@pytest.mark.parametrize("channels", [1, 64, 640])
def test_count(channels: int) -> None:
    assert models.parameters(SetToSet(channels)) == 4 * channels**2 + 3 * channels


def test_members_have_no_order_and_sets_no_neighbours() -> None:
    torch.manual_seed(0)
    layer = SetToSet(16).eval()
    sets = torch.randn(4, 5, 16)
    order = torch.tensor([3, 0, 4, 1, 2])
    with torch.inference_mode():
        together = layer(sets)
        torch.testing.assert_close(layer(sets[:, order]), together[:, order])
        torch.testing.assert_close(layer(sets[2]), together[2])
        assert not torch.allclose(layer(sets[2, :4]), together[2, :4])  # a member less changes the others


def test_both_dropouts_work_in_training_only() -> None:
    torch.manual_seed(0)
    members = torch.randn(5, 16)
    for layer in (SetToSet(16, dropout=0.0), SetToSet(16, attention_dropout=0.0)):
        assert not torch.equal(layer(members), layer(members))
        layer.eval()
        assert torch.equal(layer(members), layer(members))


def test_initial_weights_have_the_papers_variance() -> None:
    torch.manual_seed(0)
    layer = SetToSet(400)
    for linear in (layer.w_qs, layer.w_ks, layer.w_vs):
        assert float(linear.weight.detach().std()) == pytest.approx((2 / 800) ** 0.5, rel=0.01)


@pytest.mark.parametrize("shape", [(16,), (3, 8), (0, 16), (2, 0, 16)])
def test_what_is_no_set_is_refused(shape: tuple[int, ...]) -> None:
    with pytest.raises(InputError, match=r"a set of shape .* allowed: \(..., n, 16\) with n >= 1"):
        SetToSet(16)(torch.zeros(shape))
    with pytest.raises(ModelError, match="of 0 channels"):
        SetToSet(0)
