"""Dice of volumes whose slices were segmented one by one.

torchmetrics' ``dice_score`` gives the same of one volume; it knows no slices of several volumes and of several sizes,
needs PyTorch, and its versions differ in what two empty masks come to. The tests compare with it.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import ArrayLike

from runtime.errors import InputError

__all__ = ["dice_per_volume"]


def dice_per_volume(
    predictions: Sequence[ArrayLike],
    targets: Sequence[ArrayLike],
    volumes: Sequence[str],
    *,
    class_id: int = 1,
    empty: float = 1.0,
) -> dict[str, float]:
    """2 |P and T| / (|P| + |T|) over all pixels of a volume: its slices are stacked first, not averaged.

    Paper: "Bounding box tightness prior for weakly supervised image segmentation", section 3.3.

    Args:
        predictions, targets: S slices, each (H, W) bool or integers: class ids.
        volumes: S names: which volume a slice belongs to, in any order.
        class_id: What counts; True of bool masks is 1.
        empty: The Dice of a volume in which neither has the class: 1 says that both agree; ``nan`` that it is not to
            be counted.

    Returns:
        Each volume's Dice, from 0 to 1, in the order in which they come first.

    Raises:
        InputError: Another number of predictions, targets and volumes, none at all, a slice of another dtype or number
            of axes, or a prediction that is not as large as its target.
    """
    if not len(predictions) == len(targets) == len(volumes) or not len(volumes):
        raise InputError(
            f"{len(predictions)} predictions, {len(targets)} targets and {len(volumes)} names of volumes; allowed: "
            "equally many, one or more"
        )
    both: dict[str, int] = {}
    sizes: dict[str, int] = {}
    for number, (prediction, target, volume) in enumerate(zip(predictions, targets, volumes, strict=True)):
        pair = np.asarray(prediction), np.asarray(target)
        if pair[0].shape != pair[1].shape or any(mask.ndim != 2 or mask.dtype.kind not in "biu" for mask in pair):
            shown = " and ".join(f"{mask.shape} {mask.dtype}" for mask in pair)
            raise InputError(f"prediction and target of slice {number} are {shown}; allowed: (H, W), bool or integers")
        predicted, true = (mask == class_id for mask in pair)
        both[volume] = both.get(volume, 0) + int(np.count_nonzero(predicted & true))
        sizes[volume] = sizes.get(volume, 0) + int(np.count_nonzero(predicted)) + int(np.count_nonzero(true))
    return {volume: 2 * both[volume] / size if size else empty for volume, size in sizes.items()}
