"""Prior-Net: its similarity maps by hand, its graphs against its training form, and that it learns."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from edgevis import models
from edgevis.losses import dice_loss
from edgevis.models.prior_net import Places, PriorNet, _far, similarity_maps
from runtime.errors import InputError, ModelError

pytestmark = pytest.mark.torch

SIDE = 65


@pytest.fixture(scope="module")
def net() -> PriorNet:
    torch.manual_seed(0)
    model = models.create("prior-net", side=SIDE)
    assert isinstance(model, PriorNet)
    return model


def test_similarity_maps_by_hand() -> None:
    """Two places of the query, three of the example: object, half object, rest."""
    query = np.array([[1.0, 0.0], [0.0, 1.0]])  # (C, Q)
    places = np.array([[1.0, 0.6, 0.0], [0.0, 0.8, 1.0]])  # (C, S)
    share = np.array([1.0, 0.5, 0.0])
    shown = torch.tensor(places[None], dtype=torch.float32)
    given = Places(shown, shown, torch.tensor(share[None], dtype=torch.float32))
    found = similarity_maps(torch.tensor(query[None], dtype=torch.float32), given)[0].numpy()
    cosine = query.T @ places
    expected = []
    for part in (share, 1 - share):
        expected.append((cosine + 0.1 * np.log(np.maximum(part, 1e-5))).max(1))
    for part in (share, 1 - share):
        mean = places @ part
        expected.append(mean @ query / np.linalg.norm(mean))
    soft = [np.log((np.exp(cosine / 0.1) * np.maximum(part, 1e-5)).sum(1)) for part in (share, 1 - share)]
    expected.append(0.1 * (soft[0] - soft[1]))
    np.testing.assert_allclose(found, np.stack(expected), atol=2e-4)


def test_a_part_of_a_place_is_told_from_its_rest() -> None:
    """Where the object fills half of a place, what is inside is like the object and what is outside like the rest."""
    inside, outside = torch.eye(3)[:, :1], torch.eye(3)[:, 1:2]
    places = Places(inside[None], outside[None], torch.full((1, 1), 0.5))
    maps = similarity_maps(torch.eye(3)[None], places)[0]
    assert maps[2].tolist() == pytest.approx([1, 0, 0], abs=1e-3)
    assert maps[3].tolist() == pytest.approx([0, 1, 0], abs=1e-3)
    assert maps[4].tolist() == pytest.approx([1, -1, 0], abs=1e-3)


def test_what_lies_elsewhere_counts_as_less_alike(net: PriorNet) -> None:
    """The same picture: with places far apart less alike, the object's own places are told from their copies."""
    same = torch.ones(1, 2, 9)
    share = torch.zeros(1, 9)
    share[0, 0] = 1
    far = _far(3)
    assert torch.equal(far, far.T)
    assert torch.equal(far == 0, torch.eye(9, dtype=torch.bool))
    plain = similarity_maps(same, Places(same, same, share))[0, 4]
    near = similarity_maps(same, Places(same, same, share), far)[0, 2]
    assert plain.std() < 1e-6
    assert near.argmax() == 0
    assert near[0] > near[1:].max() + 0.1


def test_the_graphs_give_what_training_saw(net: PriorNet) -> None:
    draw = torch.Generator().manual_seed(1)
    images = torch.randn(3, 3, SIDE, SIDE, generator=draw)
    masks = torch.zeros(3, SIDE, SIDE)
    for number in range(3):
        masks[number, 8 * number : 40, 16:56] = 1
    with torch.inference_mode():
        together = net.query(images, *net.support(images.flip(0), masks))
        for query in range(3):
            for shot in range(3):
                one, first = net(images[[query]], images.flip(0)[[shot]], masks[[shot]])
                assert torch.allclose(together[query, shot], one[0], atol=2e-4)
                assert first.shape == (1, 2, 9, 9)
    with pytest.raises(InputError, match="support_l3 is"):
        net.query(images, *[x[:, :, :-1] if x.shape[1] == 497 else x for x in net.support(images, masks)])
    with pytest.raises(InputError, match="allowed: as many"):
        net(images, images[:1], masks[:1])
    with pytest.raises(ModelError, match="backbone"):
        models.create("prior-net", backbone="resnet50")


def test_it_learns_and_its_backbone_does_not() -> None:
    torch.manual_seed(0)
    net = models.create("prior-net", side=SIDE).train()
    before = {name: value.clone() for name, value in net.backbone.state_dict().items()}
    image = torch.rand(2, 3, SIDE, SIDE) * 0.1
    mask = torch.zeros(2, SIDE, SIDE)
    mask[0, 8:40, 8:40] = mask[1, 24:56, 16:56] = 1
    image = image + mask[:, None]
    optimizer = torch.optim.Adam([part for part in net.parameters() if part.requires_grad], 3e-3)
    losses = []
    for _ in range(25):
        logits, first = net(image.flip(0), image, mask)
        loss = dice_loss(logits, mask.flip(0)) + dice_loss(first, mask.flip(0))
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < 0.5 * losses[0]
    assert all(torch.equal(value, before[name]) for name, value in net.backbone.state_dict().items())
