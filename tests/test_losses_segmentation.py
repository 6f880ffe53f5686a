"""The cross-entropy of few-shot segmentation."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from edgevis import InputError
from edgevis.losses import segmentation_loss

GOLDEN = Path(__file__).parent / "golden" / "07_loss_metrics.npz"


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
