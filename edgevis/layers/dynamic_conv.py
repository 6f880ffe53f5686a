"""Dynamic convolution: each image has a kernel of its own, a mixture of K kernels by attention.

Paper: Chen, Dai, Liu, Chen, Yuan, Liu, "Dynamic Convolution: Attention over Convolution Kernels", CVPR 2020. Its
authors published neither code nor weights; our own code, names as in kaijieshi7/Dynamic-convolution-Pytorch.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn
from torch.nn import functional

from runtime.errors import ModelError


class KernelAttention(nn.Module):
    """The share of each of K kernels in an image's own. (N, C, h, w) -> (N, K), rows of sum 1.

    Args:
        channels: C.
        hidden: Width between the two layers.
        kernels: K.

    Attributes:
        temperature: Of the softmax, a buffer, so that weights from the middle of a training mean what they meant there.
            1 unless a training changes it.
    """

    temperature: Tensor

    def __init__(self, channels: int, *, hidden: int, kernels: int) -> None:
        super().__init__()
        self.fc1 = nn.Conv2d(channels, hidden, 1, bias=False)
        self.fc2 = nn.Conv2d(hidden, kernels, 1)
        self.register_buffer("temperature", torch.ones(()))

    def forward(self, x: Tensor) -> Tensor:
        scores = self.fc2(torch.relu(self.fc1(x.mean((2, 3), keepdim=True)))).flatten(1)
        return torch.softmax(scores / self.temperature, dim=1)


class DynamicConv2d(nn.Module):
    """A convolution by a mixture of kernels.

    Each engine takes it with any batch: 1x1 kernels are mixed and multiplied as matrices, one for each image; the
    results of others are mixed instead of the kernels, which is the same, because a convolution is linear in them.

    Args:
        inputs, outputs: Channels.
        kernel: Side of the kernels.
        stride, padding, groups: Of the convolution.
        kernels: K.
        hidden: Of the attention.
        bias: Whether there is one for each kernel, which is mixed, too.

    Raises:
        ModelError: ``groups`` does not divide the channels.
    """

    def __init__(
        self,
        inputs: int,
        outputs: int,
        kernel: int,
        *,
        stride: int = 1,
        padding: int = 0,
        groups: int = 1,
        kernels: int = 4,
        hidden: int,
        bias: bool = False,
    ) -> None:
        super().__init__()
        if inputs % groups or outputs % groups:
            raise ModelError(f"groups is {groups}; allowed: what divides {inputs} and {outputs} channels")
        self.stride, self.padding, self.groups = stride, padding, groups
        self.weight = nn.Parameter(torch.empty(kernels, outputs, inputs // groups, kernel, kernel))
        self.bias = nn.Parameter(torch.zeros(kernels, outputs)) if bias else None
        self.attention = KernelAttention(inputs, hidden=hidden, kernels=kernels)
        # K independent kernels, for their mixture by equal shares has a K-th of the variance of one.
        nn.init.normal_(self.weight, std=math.sqrt(2.0 * kernels / (kernel * kernel * outputs // groups)))

    def forward(self, x: Tensor) -> Tensor:
        """(N, inputs, h, w) -> (N, outputs, h', w')."""
        kernels, outputs, inputs, side, _ = self.weight.shape
        share = self.attention(x)
        if side == 1 and self.groups == 1 and self.stride == 1 and not self.padding:
            own = (share @ self.weight.view(kernels, outputs * inputs)).view(-1, outputs, inputs)
            result = torch.matmul(own, x.flatten(2)).view(-1, outputs, x.shape[2], x.shape[3])
        else:
            # By groups, then kernels, so that each group's outputs of all kernels lie together.
            weight = self.weight.view(kernels, self.groups, -1, inputs, side, side).transpose(0, 1).flatten(0, 2)
            every = functional.conv2d(x, weight, stride=self.stride, padding=self.padding, groups=self.groups)
            height, width = every.shape[2:]
            every = every.view(-1, self.groups, kernels, outputs // self.groups * height * width)
            result = (every * share.view(-1, 1, kernels, 1)).sum(2).view(-1, outputs, height, width)
        return result if self.bias is None else result + (share @ self.bias)[:, :, None, None]


def made_dynamic(module: nn.Module, *, kernels: int, squeeze: int) -> None:
    """Put dynamic convolutions in the places of all convolutions of a module.

    Args:
        module: Is changed in place.
        kernels: K of each.
        squeeze: The attention's hidden width is the layer's input channels divided by this.
    """
    for name, child in module.named_children():
        if isinstance(child, nn.Conv2d):
            dynamic = DynamicConv2d(
                child.in_channels,
                child.out_channels,
                child.kernel_size[0],
                stride=child.stride[0],
                padding=int(child.padding[0]),
                groups=child.groups,
                kernels=kernels,
                hidden=max(child.in_channels // squeeze, 1),
            )
            setattr(module, name, dynamic)
        else:
            made_dynamic(child, kernels=kernels, squeeze=squeeze)
