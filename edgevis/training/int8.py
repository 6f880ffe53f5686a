"""Quantisation-aware training: layers compute with values and weights that are rounded as INT8 engines round them.

The last epochs of a training (``int8_epochs`` of a recipe) let a network get used to the rounding, where rounding it
afterwards costs accuracy. The weights that are written stay float32: a build measures ranges and rounds as ever.

Sources: Jacob et al., "Quantization and Training of Neural Networks for Efficient Integer-Arithmetic-Only Inference",
CVPR 2018, section 3; gradients pass the rounding unchanged within the range (Bengio, Léonard, Courville, "Estimating or
Propagating Gradients Through Stochastic Neurons", 2013).
"""

from __future__ import annotations

from typing import Any, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

_LEVELS = 127  # as calibration/quantize: symmetric, -128 stays unused
# The cut of a tensor's range is the one of these shares of its largest magnitude that has the least squared error, as
# the calibration method `mse` chooses it.
_CANDIDATES = 32
_SMALLEST_SHARE = 0.1
# The number of evenly spaced values that a range is chosen by.
_COUNTED = 4096


def begin_int8(model: nn.Module) -> int:
    """Let convolutions and linear layers compute with rounded values and weights, as far as they do not already.

    Ranges of values are chosen anew for each batch, so that nothing has to be stored; ranges of weights are those of
    each output channel, which folding a batch norm does not change. Convolutions over a single place, as in
    squeeze-and-excitation, stay in float, as they do in the graph. Products that are no layer, such as those of
    attention, are not rounded.

    Args:
        model: Changed in place; names and shapes of its parameters stay.

    Returns:
        The number of layers that round.
    """
    rounding = 0
    for layer in model.modules():
        if isinstance(layer, nn.Conv2d) and not isinstance(layer, _Int8Convolution):
            kind = type(layer)
            layer.__class__ = type(f"Int8{kind.__name__}", (_Int8Convolution, kind), {"float_kind": kind})
        elif type(layer) is nn.Linear:
            layer.__class__ = _Int8Linear
        rounding += isinstance(layer, _Int8Convolution | _Int8Linear)
    return rounding


def end_int8(model: nn.Module) -> None:
    """Let all layers compute in float again."""
    for layer in model.modules():
        if isinstance(layer, _Int8Convolution):
            layer.__class__ = cast(Any, layer).float_kind
        elif isinstance(layer, _Int8Linear):
            cast(Any, layer).__class__ = nn.Linear


class _Int8Convolution(nn.Conv2d):
    def _conv_forward(self, input: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        if input.shape[-2:] != (1, 1):
            input, weight = rounded_values(input), rounded_weight(weight)
        result: Tensor = super()._conv_forward(input, weight, bias)
        return result


class _Int8Linear(nn.Linear):
    def forward(self, input: Tensor) -> Tensor:
        return F.linear(rounded_values(input), rounded_weight(self.weight), self.bias)


def rounded_values(values: Tensor) -> Tensor:
    """A tensor of any shape on the 255 levels of its range, in float32."""
    values = values.float()
    scale = _range(values.detach()) / _LEVELS
    return torch.fake_quantize_per_tensor_affine(values, scale, 0, -_LEVELS, _LEVELS)


def rounded_weight(weight: Tensor) -> Tensor:
    """A weight (outputs, …) on 255 levels for each output, in float32."""
    weight = weight.float()
    amax = weight.detach().flatten(1).abs().amax(1)
    scale = torch.where(amax > 0, amax, torch.ones_like(amax)) / _LEVELS
    zero = torch.zeros_like(scale, dtype=torch.int32)
    return torch.fake_quantize_per_channel_affine(weight, scale, zero, 0, -_LEVELS, _LEVELS)


def _range(values: Tensor) -> float:
    """The magnitude that 127 stands for; 1 for zeros."""
    counted = values.flatten()[:: values.numel() // _COUNTED | 1].abs()
    lowest, highest = values.aminmax()
    peak = max(float(highest), -float(lowest))
    if peak == 0.0:
        return 1.0
    cuts = peak * torch.linspace(_SMALLEST_SHARE, 1.0, _CANDIDATES, device=values.device)[:, None]
    scales = cuts / _LEVELS
    error = (torch.minimum((counted / scales).round(), torch.tensor(_LEVELS)) * scales - counted).square().sum(1)
    return float(cuts[int(error.argmin())])
