"""Weights of a whole network from the names of its parameters: what reference values were computed with."""

from __future__ import annotations

import zlib

import numpy as np
import torch
from torch import nn


def load_recipe_weights(module: nn.Module, *, seed: int, gain: float, prefix: str = "") -> None:
    """Replace all parameters and statistics by random ones that depend on their names alone.

    NumPy's legacy generator, seeded with the CRC-32 of ``prefix`` and name plus ``seed``, draws normal numbers z.
    Variances are exp(0.2 z), means and biases 0.1 z, the weights of a fusion 1 + 0.6 z, other vectors 1 + 0.1 z, and
    the rest has the standard deviation gain / sqrt(fan-in).
    """
    state = module.state_dict()
    for name, tensor in state.items():
        if name.endswith("num_batches_tracked"):
            continue
        draw = np.random.RandomState((zlib.crc32((prefix + name).encode()) + seed) % 2**32)
        z = np.asarray(draw.standard_normal(tuple(tensor.shape)))
        state[name] = torch.tensor(np.asarray(_values(name.rpartition(".")[2], z, gain), np.float32))
    module.load_state_dict(state)


def _values(kind: str, z: np.ndarray, gain: float) -> np.ndarray:
    if kind == "running_var":
        return np.exp(0.2 * z)
    if kind in ("running_mean", "bias"):
        return 0.1 * z
    if kind == "edge_weights":
        return 1 + 0.6 * z
    if z.ndim <= 1:
        return 1 + 0.1 * z
    scaled: np.ndarray = z * gain / np.sqrt(np.prod(z.shape[1:]))
    return scaled
