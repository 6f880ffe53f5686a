"""The cross-entropy and the Dice loss of few-shot segmentation."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from edgevis import InputError
from edgevis.losses import dice_loss, segmentation_loss

from locations import GOLDEN_FOLDER

GOLDEN = GOLDEN_FOLDER / "07_loss_metrics.npz"


def test_reference_value() -> None:
    with np.load(GOLDEN) as golden:
        logits, mask = torch.from_numpy(golden["ce_logits"]), torch.from_numpy(golden["ce_target"])
        assert float(segmentation_loss(logits, mask)) == pytest.approx(float(golden["ce_loss"]), abs=1e-6)


def test_at_the_masks_size_and_refusals() -> None:
    """Logits are resized with their corners aligned; all pixels have one weight."""
    logits = torch.zeros(1, 2, 2, 2)
    logits[0, 1] = torch.tensor([[3.0, 3.0], [-3.0, -3.0]])
    mask = torch.tensor([[[1, 1, 1], [1, 0, 0], [1, 0, 0]]])
    margins = torch.tensor([[3.0] * 3, [0.0] * 3, [-3.0] * 3])
    signs = mask[0] * 2 - 1
    expected = torch.log1p(torch.exp(-signs * margins)).mean()
    for kind in (torch.uint8, torch.float32, torch.bool):
        assert torch.allclose(segmentation_loss(logits, mask.to(kind)), expected)
    with pytest.raises(InputError, match="values other than 0 and 1"):
        segmentation_loss(logits, mask * 255)
    with pytest.raises(InputError, match=r"allowed: \(B, 2, h, w\) and \(B, H, W\)"):
        segmentation_loss(logits, mask[:, None])
    with pytest.raises(InputError, match="logits holds NaN"):
        segmentation_loss(logits * float("nan"), mask)


def test_dice_is_one_less_the_overlap_and_counts_each_image_alike() -> None:
    mask = torch.zeros(2, 8, 8)
    mask[0, :4] = 1  # half of one image, one pixel of the other
    mask[1, 0, 0] = 1
    right = torch.stack((-mask, mask), 1) * 40 - torch.stack((mask - 1, 1 - mask), 1) * 40
    assert float(dice_loss(right, mask)) == pytest.approx(0, abs=1e-6)
    nothing = torch.stack((torch.ones(2, 8, 8), -torch.ones(2, 8, 8)), 1) * 40
    assert float(dice_loss(nothing, mask)) == pytest.approx(1 - (1 / 33 + 1 / 2) / 2, abs=1e-6)
    with pytest.raises(InputError, match="values other than 0 and 1"):
        dice_loss(right, mask * 255)


def test_dice_finds_a_small_object_where_cross_entropy_hardly_pulls() -> None:
    """At the start, where everything looks like background, its gradient on the object is the larger one."""
    mask = torch.zeros(1, 64, 64)
    mask[0, 30:33, 30:33] = 1
    pulls = []
    for loss in (segmentation_loss, dice_loss):
        logits = torch.stack((torch.full((1, 64, 64), 2.0), torch.full((1, 64, 64), -2.0)), 1).requires_grad_()
        loss(logits, mask).backward()
        assert logits.grad is not None
        pulls.append(float(-logits.grad[0, 1][mask[0] > 0].sum()))
    assert pulls[1] > 5 * pulls[0] > 0


def test_pixels_that_do_not_count_change_neither_loss_nor_gradient() -> None:
    draw = torch.Generator().manual_seed(0)
    mask = torch.randint(0, 2, (2, 6, 6), generator=draw)
    logits = torch.randn(2, 2, 6, 6, generator=draw, requires_grad=True)
    counted = torch.ones(2, 6, 6, dtype=torch.bool)
    assert torch.allclose(segmentation_loss(logits, mask, counted), segmentation_loss(logits, mask))
    assert torch.allclose(dice_loss(logits, mask, counted), dice_loss(logits, mask))
    counted[:, 2:4] = False
    mask[:, 2:4] = 0
    for loss in (segmentation_loss, dice_loss):
        (gradient,) = torch.autograd.grad(loss(logits, mask, counted), logits)
        assert not gradient[:, :, 2:4].any()
        assert gradient[:, :, :2].abs().min() > 0
    expected = segmentation_loss(logits[:, :, [0, 1, 4, 5]], mask[:, [0, 1, 4, 5]])
    assert torch.allclose(segmentation_loss(logits, mask, counted), expected)
