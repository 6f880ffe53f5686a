"""Prototypes, their logits and the losses of few-shot training against the reference and by hand."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor

from edgevis.data.episodes import EpisodeSampler
from edgevis.losses import (
    AttentionFusionLoss,
    CosineEpisodeLoss,
    cosine_logits,
    prototypes,
    squared_distance_logits,
)
from runtime.errors import InputError

from locations import GOLDEN_FOLDER

GOLDEN = GOLDEN_FOLDER / "fewshot_eval.npz"
CASES = ("5w1s", "5w5s", "10w3s")


def case_of(name: str) -> dict[str, NDArray[np.float64]]:
    golden = np.load(GOLDEN)
    assert set(golden["names"]) == set(CASES)
    return {key.removeprefix(f"{name}/"): golden[key] for key in golden if key.startswith(f"{name}/")}


@pytest.mark.parametrize("kind", ["cos", "sqr"])
@pytest.mark.parametrize("name", CASES)
def test_few_shot_evaluation(name: str, kind: str) -> None:
    case = case_of(name)
    shot = int(case["shape_ep_way_shot_query_dim"][2])
    embeddings = torch.from_numpy(case["emb"])
    scale = torch.tensor(float(case[f"{kind}/temp"]), requires_grad=True)
    centres = prototypes(embeddings[:, :, :shot])
    queries = embeddings[:, :, shot:].flatten(1, 2)
    logits = (cosine_logits if kind == "cos" else squared_distance_logits)(queries, centres, scale)
    labels = torch.from_numpy(case["labels"])
    loss = F.cross_entropy(logits.flatten(0, 1), labels)
    loss.backward()
    hits = logits.argmax(-1).flatten() == labels
    np.testing.assert_allclose(centres.numpy(), case["prototypes"], rtol=1e-5, atol=1e-6)
    expected = case[f"{kind}/logits"]
    np.testing.assert_allclose(logits.detach().numpy(), expected, rtol=0, atol=1e-5 * np.abs(expected).max())
    assert float(loss.detach()) == pytest.approx(float(case[f"{kind}/loss"]), rel=1e-5)
    assert scale.grad is not None
    # A mean of hundreds of terms that nearly cancel, in float32 on both sides.
    assert float(scale.grad) == pytest.approx(float(case[f"{kind}/grad_temp"]), rel=1e-5, abs=1e-6)
    assert float(hits.float().mean()) == float(case[f"{kind}/acc"])
    per_episode = hits.view(len(embeddings), -1).float().mean(1)
    np.testing.assert_array_equal(per_episode.numpy(), case[f"{kind}/acc_per_episode"])


@pytest.mark.parametrize("name", CASES)
def test_episode_loss_is_the_references(name: str) -> None:
    """With its learnable scale, from rows in the order that an episode sampler gives them."""
    case = case_of(name)
    _, way, shot, query, dim = (int(size) for size in case["shape_ep_way_shot_query_dim"])
    criterion = CosineEpisodeLoss(scale=float(case["cos/temp"]))
    rows = torch.from_numpy(case["emb"]).reshape(-1, dim)
    loss = criterion(rows, way=way, shot=shot, query=query)
    loss.backward()
    assert float(loss.detach()) == pytest.approx(float(case["cos/loss"]), rel=1e-5)
    assert criterion.scale.grad is not None
    assert float(criterion.scale.grad) == pytest.approx(float(case["cos/grad_temp"]), rel=1e-5, abs=1e-6)


def test_logits_by_hand() -> None:
    support = torch.tensor([[[2.0, 0.0], [4.0, 0.0]], [[0.0, 1.0], [0.0, 3.0]]])
    centres = prototypes(support)
    assert centres.tolist() == [[3.0, 0.0], [0.0, 2.0]]
    query = torch.tensor([[3.0, 4.0]])
    torch.testing.assert_close(cosine_logits(query, centres), torch.tensor([[6.0, 8.0]]))
    torch.testing.assert_close(cosine_logits(query, centres, 1.0, normalise_queries=False), torch.tensor([[3.0, 4.0]]))
    torch.testing.assert_close(squared_distance_logits(query, centres, 0.5), torch.tensor([[-8.0, -6.5]]))


def test_scale_starts_at_ten_and_is_one_parameter() -> None:
    for criterion in (CosineEpisodeLoss(), AttentionFusionLoss()):
        (scale,) = criterion.parameters()
        assert scale.requires_grad
        assert float(scale.detach()) == 10.0
    for wrong in (0.0, -1.0, math.nan, math.inf):
        with pytest.raises(InputError, match=r"scale is .* allowed: a finite number above 0"):
            AttentionFusionLoss(scale=wrong)


def batch(way: int = 3, shot: int = 2, query: int = 1) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Logits, local and joined embeddings and labels of two episodes."""
    torch.manual_seed(0)
    labels = torch.tensor([4, 0, 7, 1, 7, 2]).repeat_interleave(shot + query)
    local = torch.randn(len(labels), 5)
    return torch.randn(len(labels), 8), local, torch.cat((torch.randn(len(labels), 5), local), 1), labels


def test_attention_fusion_loss_is_the_sum_of_its_three_terms() -> None:
    logits, local, joined, labels = (tensor.double() if tensor.is_floating_point() else tensor for tensor in batch())
    expected = F.cross_entropy(logits, labels)
    for embedding in (local, joined):
        terms = []
        for episode in embedding.reshape(2, 3, 3, -1):
            for index in range(3):
                cosines = [
                    float(F.cosine_similarity(episode[index, 2], episode[other, :2].mean(0), dim=0))
                    for other in range(3)
                ]
                terms.append(torch.logsumexp(10 * torch.tensor(cosines).double(), 0) - 10 * cosines[index])
        expected = expected + torch.stack(terms).mean()
    criterion = AttentionFusionLoss()
    found = criterion(logits, local, joined, labels, way=3, shot=2, query=1).detach()
    assert float(found) == pytest.approx(float(expected), rel=1e-6)
    again = criterion(logits, local, joined, labels.int(), way=3, shot=2, query=1)
    assert torch.equal(again, found)


def test_batches_of_the_sampler_are_in_the_losses_order() -> None:
    _, _, _, of_images = batch()
    sampler = EpisodeSampler(of_images.numpy(), way=3, shot=2, query=1, episodes=4, per_batch=2)
    positions = torch.tensor(next(iter(sampler)))
    torch.manual_seed(1)
    logits, local, joined = torch.randn(18, 8), torch.randn(18, 5), torch.randn(18, 10)
    found = AttentionFusionLoss()(logits, local, joined, of_images[positions], way=3, shot=2, query=1)
    assert float(found.detach()) > 0


def test_labels_out_of_the_samplers_order_are_refused() -> None:
    """Rows shot after shot instead of class after class, a class twice, another way: no silent training on nonsense."""
    logits, local, joined, labels = batch()
    criterion = AttentionFusionLoss()
    shuffled = labels.reshape(2, 3, 3).transpose(1, 2).flatten()
    twice = labels.clone()
    twice[:3] = 7
    for wrong in (shuffled, twice):
        with pytest.raises(InputError, match="not those of whole episodes"):
            criterion(logits, local, joined, wrong, way=3, shot=2, query=1)
    with pytest.raises(InputError, match="not those of whole episodes"):
        criterion(logits, local, joined, labels, way=1, shot=2, query=4)
    with pytest.raises(InputError, match=r"18 rows; allowed: a multiple of way \* \(shot \+ query\) = 5 \* \(1 \+ 1\)"):
        criterion(logits, local, joined, labels, way=5, shot=1, query=1)


def test_attention_fusion_loss_refuses_what_does_not_fit() -> None:
    logits, local, joined, labels = batch()
    criterion = AttentionFusionLoss()
    sizes = {"way": 3, "shot": 2, "query": 1}
    with pytest.raises(InputError, match=r"labels go from 0 to 9; allowed: 0 to 7"):
        criterion(logits, local, joined, labels.where(labels != 7, torch.tensor(9)), **sizes)
    with pytest.raises(InputError, match=r"labels are of torch.float32; allowed: integers"):
        criterion(logits, local, joined, labels.float(), **sizes)
    with pytest.raises(InputError, match=r"labels have shape \(9,\) for 18 rows"):
        criterion(logits, local, joined, labels[:9], **sizes)
    with pytest.raises(InputError, match=r"local_embedding has shape \(9, 5\) beside 18 rows of logits"):
        criterion(logits, local[:9], joined, labels, **sizes)
    with pytest.raises(InputError, match=r"global_logits has shape \(0, 8\)"):
        criterion(logits[:0], local, joined, labels, **sizes)
    for index in range(3):
        tensors = [logits.clone(), local.clone(), joined.clone()]
        tensors[index][0, 0] = math.nan
        with pytest.raises(InputError, match="NaN or infinity"):
            criterion(*tensors, labels, **sizes)


@pytest.mark.parametrize("sizes", [(0, 1, 1), (3, 0, 1), (3, 1, 0)])
def test_an_episode_has_at_least_one_of_each(sizes: tuple[int, int, int]) -> None:
    way, shot, query = sizes
    with pytest.raises(InputError, match="allowed: 1 or more of each"):
        CosineEpisodeLoss()(torch.rand(6, 4), way=way, shot=shot, query=query)


def test_prototypes_refuse_an_empty_support_set() -> None:
    for shape in ((5, 0, 8), (0, 1, 8), (5, 8)):
        with pytest.raises(InputError, match=r"support has shape .* allowed: \(..., way, shot, d\), none of them 0"):
            prototypes(torch.zeros(shape))
    with pytest.raises(InputError, match="support holds NaN or infinity"):
        prototypes(torch.full((5, 1, 8), math.nan))
    with pytest.raises(InputError, match=r"support is of torch\.int64"):
        prototypes(torch.ones(5, 1, 8, dtype=torch.int64))


@pytest.mark.parametrize("logits", [cosine_logits, squared_distance_logits])
def test_logits_refuse_what_does_not_fit(logits: object) -> None:
    assert callable(logits)
    queries, centres = torch.rand(4, 15, 8), torch.rand(4, 5, 8)
    for wrong in (torch.rand(4, 5, 7), torch.rand(3, 5, 8), torch.rand(5, 8), torch.rand(4, 0, 8)):
        with pytest.raises(InputError, match=r"queries have shape \(4, 15, 8\) and centres"):
            logits(queries, wrong)
    queries[0, 0, 0] = math.inf
    with pytest.raises(InputError, match="queries holds NaN or infinity"):
        logits(queries, centres)
    with pytest.raises(InputError, match="centres holds NaN or infinity"):
        logits(centres, centres * math.nan)


def test_the_losses_compile_in_one_piece() -> None:
    """torch.compile traces them without a graph break: the checks of values step aside."""
    logits, local, joined, labels = batch()
    criterion = AttentionFusionLoss()

    def step(logits: Tensor, local: Tensor, joined: Tensor, labels: Tensor) -> Tensor:
        result: Tensor = criterion(logits, local, joined, labels, way=3, shot=2, query=1)
        return result

    compiled = torch.compile(step, backend="eager", fullgraph=True)
    torch.testing.assert_close(compiled(logits, local, joined, labels), step(logits, local, joined, labels))
