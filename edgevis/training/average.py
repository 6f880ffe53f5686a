"""The exponential moving average of a model's weights, which validates better than the weights of the last step.

Sources: Polyak, Juditsky, "Acceleration of Stochastic Approximation by Averaging", 1992; the shorter average of the
first steps is TensorFlow's ``num_updates``. EfficientDet and YOLOX are trained with decays of 0.9998 and 0.9999.
"""

from __future__ import annotations

import copy

import torch
from torch import nn


class AveragedWeights:
    """A copy of a model whose parameters and batch norm statistics are averages over the steps.

    Args:
        model: The model that is trained; it is copied on its device.
        decay: 0..1, the share that an update keeps of the average.
    """

    def __init__(self, model: nn.Module, decay: float) -> None:
        self.decay = decay
        self.model = copy.deepcopy(model).requires_grad_(False)

    @torch.no_grad()
    def update(self, model: nn.Module, *, steps: int) -> None:
        """Move the average towards the model after its ``steps``-th step; counters are copied."""
        decay = min(self.decay, (1 + steps) / (10 + steps))
        state = model.state_dict()
        for name, mean in self.model.state_dict().items():
            value = state[name].to(mean.device)
            if mean.is_floating_point():
                mean.lerp_(value, 1 - decay)
            else:
                mean.copy_(value)

    def restart(self, model: nn.Module) -> None:
        """Take the model's weights as they are."""
        self.model.load_state_dict(model.state_dict())
