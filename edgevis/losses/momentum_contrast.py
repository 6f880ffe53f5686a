"""Momentum contrast: two views of a picture are alike, and unlike those of the pictures before.

Papers: He, Fan, Wu, Xie, Girshick, "Momentum Contrast for Unsupervised Visual Representation Learning", CVPR 2020;
Chen, Fan, Girshick, He, "Improved Baselines with Momentum Contrastive Learning", 2020 (the head of two layers). Our own
code.
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from runtime.errors import InputError


class MomentumContrast(nn.Module):
    """The key encoder, the queue of keys, and the loss.

    A step: the key encoder's parameters move towards the query encoder's; the queries are compared with their keys and
    with the queue (cross-entropy of the first); then the keys replace the oldest ones of the queue, so that a batch
    never meets its own. Batch norms' statistics do not follow: each encoder keeps its own.

    Batch norm tells which key is a query's where both are normalised with the same pictures. With several ``groups``
    the keys are put into another order and normalised in parts of the batch, as the authors do with several GPUs.

    Args:
        key_encoder: From images (B, ...) to (B, dimension); of the same structure as the query encoder. It is not
            trained.
        dimension: Of queries and keys.
        queue: The number of keys that are kept, a multiple of the batch.
        momentum: What is kept of the key encoder's parameters in a step, 0 to below 1.
        temperature: Of the cosines.
        groups: Parts of the key batch.

    Raises:
        InputError: A value is not allowed.
    """

    queue: Tensor
    pointer: Tensor

    def __init__(
        self,
        key_encoder: nn.Module,
        *,
        dimension: int = 128,
        queue: int = 4096,
        momentum: float = 0.999,
        temperature: float = 0.2,
        groups: int = 1,
    ) -> None:
        super().__init__()
        if dimension < 1 or queue < 1 or groups < 1:
            raise InputError(f"dimension, queue and groups are {dimension}, {queue}, {groups}; allowed: 1 or more")
        if not 0 <= momentum < 1:
            raise InputError(f"momentum is {momentum}; allowed: from 0 to below 1")
        if not (math.isfinite(temperature) and temperature > 0):
            raise InputError(f"temperature is {temperature}; allowed: a finite number above 0")
        self.key_encoder = key_encoder.requires_grad_(False)
        self.momentum, self.temperature, self.groups = momentum, temperature, groups
        self.register_buffer("queue", F.normalize(torch.randn(dimension, queue), dim=0))
        self.register_buffer("pointer", torch.zeros(1, dtype=torch.int64))

    def begin(self, query_encoder: nn.Module) -> None:
        """Make the key encoder a copy of the query encoder, statistics of batch norms included."""
        self.key_encoder.load_state_dict(query_encoder.state_dict())

    def forward(self, query_encoder: nn.Module, query_image: Tensor, key_image: Tensor) -> tuple[Tensor, Tensor]:
        """The loss, a scalar, and the logits (B, 1 + queue), each query's own key first.

        Args:
            query_encoder: Is trained.
            query_image: (B, ...), one view of each picture.
            key_image: (B, ...), another view of each.

        Raises:
            InputError: The batch does not divide the queue, or the groups do not divide the batch.
        """
        rows = len(query_image)
        if self.queue.shape[1] % rows or rows % self.groups:
            raise InputError(
                f"the batch has {rows} pictures, the queue {self.queue.shape[1]} keys, and there are {self.groups} "
                "groups; allowed: a batch that divides the queue and is divided by the groups"
            )
        query = F.normalize(query_encoder(query_image).float(), dim=1)
        with torch.no_grad():
            self._follow(query_encoder)
            key = F.normalize(self._keys(key_image).float(), dim=1)
        own = (query * key).sum(1, keepdim=True)
        logits = torch.cat((own, query @ self.queue.clone()), dim=1) / self.temperature
        with torch.no_grad():
            first = int(self.pointer)
            self.queue[:, first : first + rows] = key.T
            self.pointer[0] = (first + rows) % self.queue.shape[1]
        return F.cross_entropy(logits, torch.zeros(rows, dtype=torch.int64, device=logits.device)), logits

    def _follow(self, query_encoder: nn.Module) -> None:
        for own, leading in zip(self.key_encoder.parameters(), query_encoder.parameters(), strict=True):
            own.lerp_(leading, 1 - self.momentum)

    def _keys(self, image: Tensor) -> Tensor:
        # Its parameters are not trained, its batch norms nevertheless are to see this batch.
        self.key_encoder.train(self.training)
        if self.groups == 1:
            rows: Tensor = self.key_encoder(image)
            return rows
        order = torch.randperm(len(image), device=image.device)
        keys = torch.cat([self.key_encoder(part) for part in image[order].chunk(self.groups)])
        return torch.empty_like(keys).index_copy_(0, order, keys)


def projection_head(width: int, dimension: int, *, layers: int = 2) -> nn.Sequential:
    """What is put behind an encoder while it is pre-trained: one linear layer (v1), or two with a ReLU (v2).

    Args:
        width: Of the embedding.
        dimension: Of the keys.
        layers: 1 or 2.
    """
    if layers == 1:
        return nn.Sequential(nn.Linear(width, dimension))
    return nn.Sequential(nn.Linear(width, width), nn.ReLU(), nn.Linear(width, dimension))
