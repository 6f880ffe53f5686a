"""Counts the floating-point operations of a model's graph."""

from __future__ import annotations

import copy

import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from runtime.bundle.spec import Graph


def graph_flops(module: nn.Module, graph: Graph) -> int:
    """Floating-point operations of one image, every open axis being 1.

    PyTorch's count of convolutions and matrix products, a multiplication and an addition being two. It is taken on
    shapes alone: nothing is computed, and no weights are copied from a module on the ``meta`` device.
    """
    shapes = module if next(module.parameters()).is_meta else copy.deepcopy(module).to("meta")
    inputs = [
        torch.zeros([1 if isinstance(size, str) else size for size in tensor.shape], device="meta")
        for tensor in graph.inputs
    ]
    with torch.no_grad(), FlopCounterMode(display=False) as counter:
        getattr(shapes, graph.name)(*inputs)
    return int(counter.get_total_flops())
