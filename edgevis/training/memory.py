"""Memory of a training: weights in channels-last order; on a processor, freed memory stays for the next step.

A step takes and frees the same hundreds of large tensors. glibc gives each back to the system and gets it back zeroed,
page by page: on the machine of docs/training.md more than half of a step of MobileNetV2 went there.
"""

from __future__ import annotations

import ctypes
import sys

import torch
from torch import nn

# Of malloc.h.
_TRIM_THRESHOLD, _TOP_PAD, _MMAP_MAX = -1, -2, -4
_PAD = 1 << 28
# A convolution's weight and an image: the only tensors that channels-last is an order of.
_IMAGE_AXES = 4


def keep_freed_memory() -> None:
    """Let the allocator of this process keep what is freed. Does nothing where the allocator is not glibc's."""
    if sys.platform != "linux":
        return
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is not None:  # musl has none
        for setting, value in ((_MMAP_MAX, 0), (_TRIM_THRESHOLD, -1), (_TOP_PAD, _PAD)):
            mallopt(setting, value)


def use_channels_last(module: nn.Module) -> None:
    """Move the module's four-dimensional parameters and buffers into channels-last order, in place.

    Others stay: ``module.to(memory_format=...)`` refuses a dynamic convolution's, which have five.
    """
    for tensor in (*module.parameters(), *module.buffers()):
        if tensor.ndim == _IMAGE_AXES:
            tensor.data = tensor.data.contiguous(memory_format=torch.channels_last)
