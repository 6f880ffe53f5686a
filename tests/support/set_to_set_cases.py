"""FEAT's set-to-set layer on sets of which the reference's outputs are known."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from edgevis.layers import SetToSet

from locations import GOLDEN_FOLDER

CASES = ("5w1s", "5w5s")
"""Five classes with one example each, or five."""

_GOLDEN = GOLDEN_FOLDER / "feat.npz"
_NAMES = {
    "w_q": "w_qs.weight",
    "w_k": "w_ks.weight",
    "w_v": "w_vs.weight",
    "fc_w": "fc.weight",
    "fc_b": "fc.bias",
    "ln_w": "layer_norm.weight",
    "ln_b": "layer_norm.bias",
}


def case_of(name: str) -> tuple[dict[str, NDArray[Any]], SetToSet]:
    """The arrays of a case by their names, and the reference's layer in float64, without dropout."""
    with np.load(_GOLDEN) as golden:
        assert set(golden["names"]) == set(CASES)
        case = {key.removeprefix(f"{name}/"): golden[key] for key in golden if key.startswith(f"{name}/")}
    layer = SetToSet(case["emb"].shape[1], attention_dropout=0.0, dropout=0.0).double()
    layer.load_state_dict({_NAMES[key]: torch.from_numpy(case[key]) for key in _NAMES})
    return case, layer
