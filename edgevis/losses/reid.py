"""Losses of person re-identification: batch-hard triplets, smoothed cross-entropy, and both in EPRI-Net's sum.

Papers: Hermans, Beyer, Leibe, "In Defense of the Triplet Loss for Person Re-Identification", 2017; Szegedy et al.,
"Rethinking the Inception Architecture for Computer Vision", CVPR 2016 (label smoothing); Lin, Zhang, Chen, Wu, Zhou,
"Efficient Person Re-Identification with Multi-Scale Feature Fusion", sections III.D and IV.B. Our own code.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from edgevis.losses._checks import check_labels, check_rows
from edgevis.losses.circle import circle_loss
from runtime.errors import InputError

# Distances below the root of the usual 1e-12 count as that and have no gradient, which is infinite at 0.
_MIN_DISTANCE = 1e-6


def hard_triplet_loss(features: Tensor, labels: Tensor, margin: float = 0.3) -> Tensor:
    """The mean over rows of ``max(0, farthest positive - nearest negative + margin)``, distances Euclidean.

    The row itself is among its positives, so an identity with one image has a positive at distance 0. Rows are used as
    they are, not normalised.

    Args:
        features: (B, d) floating point; distances are computed in float32 or better.
        labels: (B,) integers: the identities, at least two of them in the batch.
        margin: 0 or more, in units of the features.

    Returns:
        A scalar.

    Raises:
        InputError: Shapes do not fit together, only one identity, NaN.
    """
    check_rows("features", features)
    check_labels(labels, len(features))
    _check_margin(margin)
    if features.dtype in (torch.float16, torch.bfloat16):
        features = features.float()
    same = labels.unsqueeze(0) == labels.unsqueeze(1)
    if not torch.compiler.is_compiling() and bool(same.all()):
        raise InputError("all rows are of one identity, so none has a negative; allowed: two identities or more")
    # Differences, not |a|^2 + |b|^2 - 2 a.b: near images would lose their distance to rounding.
    distances = torch.cdist(features, features, compute_mode="donot_use_mm_for_euclid_dist").clamp(min=_MIN_DISTANCE)
    positive = distances.masked_fill(~same, -math.inf).amax(1)
    negative = distances.masked_fill(same, math.inf).amin(1)
    return F.relu(positive - negative + margin).mean()


def smoothed_cross_entropy(logits: Tensor, labels: Tensor, smoothing: float = 0.1) -> Tensor:
    """Cross-entropy with the target ``(1 - smoothing) * one-hot + smoothing / classes``, mean over rows.

    Args:
        logits: (B, classes) floating point.
        labels: (B,) integers, each below ``classes``.
        smoothing: 0 (none) to 1.

    Returns:
        A scalar.

    Raises:
        InputError: Shapes do not fit together, a label has no logit, a smoothing outside of 0..1, NaN.
    """
    check_rows("logits", logits)
    check_labels(labels, *logits.shape)
    _check_smoothing(smoothing)
    return F.cross_entropy(logits, labels.long(), label_smoothing=smoothing)


class ReIDLoss(nn.Module):
    """EPRI-Net's equation 1: ``alpha * CE(backbone) + beta * CE(pyramid) + triplet_weight * triplet``.

    The triplets are on the joined features of all branches, before any BNNeck (section III.B); equation 1's product
    sign is explained there as a distance. The defaults are section IV.B's, where the weight that equation 1 calls λ is
    printed as γ. In the first ``warmup_epochs`` only the triplet counts. The paper states neither smoothing nor margin:
    0.1 and 0.3 are those of the strong baseline that it compares with. The PAM row of its table II is said to have
    weights 1, 1 and 0, while the baseline that it extends is said to use triplets; ``triplet_weight=0,
    warmup_epochs=0`` is that literal setting.

        branches = model.branches(images)
        loss = criterion(branches, model.logits(branches), identities, epoch=epoch)

    Circle loss, which is not of that paper, can stand beside the triplets or in their place (``triplet_weight=0``).

    Args:
        alpha: Weight of the first branch's cross-entropy.
        beta: Weight of the other branches' cross-entropy: their mean where there are more (FPB's stripes), nothing
            where there are none.
        triplet_weight: λ.
        smoothing: Of the labels, 0 to 1.
        margin: Of the triplets.
        warmup_epochs: Epochs without cross-entropy.
        circle_weight: Of :func:`edgevis.losses.circle_loss` on the joined features; 0 leaves it out.
        circle_margin, circle_gamma: Of the same.
    """

    def __init__(
        self,
        *,
        alpha: float = 1.0,
        beta: float = 1.0,
        triplet_weight: float = 6.375,
        smoothing: float = 0.1,
        margin: float = 0.3,
        warmup_epochs: int = 10,
        circle_weight: float = 0.0,
        circle_margin: float = 0.25,
        circle_gamma: float = 128.0,
    ) -> None:
        super().__init__()
        weights = {"alpha": alpha, "beta": beta, "triplet_weight": triplet_weight, "circle_weight": circle_weight}
        for name, weight in weights.items():
            if not (math.isfinite(weight) and weight >= 0):
                raise InputError(f"{name} is {weight}; allowed: a finite number, 0 or more")
        _check_smoothing(smoothing)
        _check_margin(margin)
        if warmup_epochs < 0 or (warmup_epochs and not triplet_weight and not circle_weight):
            raise InputError(
                f"warmup_epochs is {warmup_epochs} with triplet_weight {triplet_weight}; allowed: 0 or more, and 0 "
                "where neither the triplets nor the circle loss, which alone count in the warm-up, have a weight"
            )
        self.alpha = alpha
        self.beta = beta
        self.triplet_weight = triplet_weight
        self.smoothing = smoothing
        self.margin = margin
        self.warmup_epochs = warmup_epochs
        self.circle_weight, self.circle_margin, self.circle_gamma = circle_weight, circle_margin, circle_gamma

    def forward(self, branches: Sequence[Tensor], logits: Sequence[Tensor], labels: Tensor, *, epoch: int) -> Tensor:
        """A scalar.

        Args:
            branches: (B, d_i) floating point each: the pooled features before the BNNecks.
            logits: (B, identities) floating point for each branch, in the same order.
            labels: (B,) integers: the identities, at least two of them in the batch.
            epoch: Counted from 0.

        Raises:
            InputError: Shapes do not fit together, a label has no logit, only one identity, NaN.
        """
        if not branches or len(branches) != len(logits):
            raise InputError(f"{len(branches)} branches and {len(logits)} logits; allowed: as many of each, 1 or more")
        if epoch < 0:
            raise InputError(f"epoch is {epoch}; allowed: 0 or more")
        for index, branch in enumerate(branches):
            check_rows(f"branch {index}", branch)
            if len(branch) != len(branches[0]):
                raise InputError(f"branch {index} has {len(branch)} rows, branch 0 has {len(branches[0])}")
        terms: list[Tensor] = []
        joined = torch.cat(list(branches), dim=1)
        if self.triplet_weight:
            terms.append(self.triplet_weight * hard_triplet_loss(joined, labels, self.margin))
        if self.circle_weight:
            circle = circle_loss(joined, labels, margin=self.circle_margin, gamma=self.circle_gamma)
            terms.append(self.circle_weight * circle)
        if epoch >= self.warmup_epochs:
            entropies = [smoothed_cross_entropy(x, labels, self.smoothing) for x in logits]
            terms.append(self.alpha * entropies[0])
            if len(entropies) > 1:
                terms.append(self.beta * torch.stack(entropies[1:]).mean())
        return torch.stack(terms).sum()


def _check_smoothing(smoothing: float) -> None:
    if not 0 <= smoothing <= 1:
        raise InputError(f"smoothing is {smoothing}; allowed: 0 to 1")


def _check_margin(margin: float) -> None:
    if not (math.isfinite(margin) and margin >= 0):
        raise InputError(f"margin is {margin}; allowed: a finite number, 0 or more")
