"""Episodic training by prototypes, alone and as two terms of AFL-Net's loss.

Paper: Tang, Xia, Chen, Du, Wang, "Task-Specific Few-Shot Image Classification by Balancing Sample-Level and Class-Level
Generalization", section 3.2, equations 4 to 9. Our own code.
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from edgevis.losses._checks import check_labels, check_rows
from edgevis.losses.cosine import cosine_logits, prototypes
from runtime.errors import InputError


class CosineEpisodeLoss(nn.Module):
    """Cross-entropy of the queries of few-shot episodes, by cosine to the episode's own prototypes (equations 7, 8).

    It is the mean over all queries, as Meta-Baseline computes it, where equation 8 sums over episodes: so its size does
    not depend on how many there are in a batch. The paper states no scale of the cosines, without which their softmax
    is nearly flat; the learnable one is Meta-Baseline's.

    Args:
        scale: Where the learnable scale of the cosines starts.
    """

    def __init__(self, *, scale: float = 10.0) -> None:
        super().__init__()
        if not (math.isfinite(scale) and scale > 0):
            raise InputError(f"scale is {scale}; allowed: a finite number above 0")
        self.scale = nn.Parameter(torch.tensor(float(scale)))

    def forward(self, embeddings: Tensor, *, way: int, shot: int, query: int) -> Tensor:
        """A scalar.

        Args:
            embeddings: (episodes * way * (shot + query), d) floating point: one episode after the other, in each one
                class after the other, in each class the support examples, then the queries.
            way: Classes of an episode.
            shot: Support examples of each class.
            query: Queries of each class.

        Raises:
            InputError: The rows are not whole episodes, NaN.
        """
        check_rows("embeddings", embeddings)
        classes = _by_episode(embeddings, way=way, shot=shot, query=query)
        queries = classes[:, :, shot:].flatten(1, 2)
        logits = cosine_logits(queries, prototypes(classes[:, :, :shot]), self.scale)
        labels = torch.arange(way, device=logits.device).repeat_interleave(query).repeat(len(logits))
        return F.cross_entropy(logits.flatten(0, 1), labels)


class AttentionFusionLoss(nn.Module):
    """Equation 9: global + local + concatenated, with equal weights.

    The global term is the cross-entropy of the linear classifier over all training classes, for every image of the
    batch; the other two are :class:`CosineEpisodeLoss` of X_local and X_cat. They share one learnable scale, which is
    the loss's only parameter: give it to the optimiser, too.

        features = model(images)
        loss = criterion(features.global_logits, features.local_embedding, features.embedding, labels,
                         way=5, shot=1, query=15)

    Args:
        scale: Where the learnable scale of the cosines starts.
    """

    def __init__(self, *, scale: float = 10.0) -> None:
        super().__init__()
        self.episode = CosineEpisodeLoss(scale=scale)

    def forward(
        self,
        global_logits: Tensor,
        local_embedding: Tensor,
        embedding: Tensor,
        labels: Tensor,
        *,
        way: int,
        shot: int,
        query: int,
    ) -> Tensor:
        """A scalar. B = episodes * way * (shot + query); rows in the order of :class:`CosineEpisodeLoss`.

        Args:
            global_logits: (B, training classes) floating point.
            local_embedding: X_local, (B, d) floating point.
            embedding: X_cat, (B, 2 d) floating point.
            labels: (B,) integers: each row's class among all training classes.
            way: Classes of an episode.
            shot: Support examples of each class.
            query: Queries of each class.

        Raises:
            InputError: Shapes do not fit together, a label has no logit, the labels are not those of whole episodes
                in that order, NaN.
        """
        check_rows("global_logits", global_logits)
        rows, classes = global_logits.shape
        check_labels(labels, rows, classes)
        for name, tensor in (("local_embedding", local_embedding), ("embedding", embedding)):
            if tensor.shape[:1] != (rows,):
                raise InputError(f"{name} has shape {tuple(tensor.shape)} beside {rows} rows of logits")
        _check_order(_by_episode(labels, way=way, shot=shot, query=query))
        local: Tensor = self.episode(local_embedding, way=way, shot=shot, query=query)
        fused: Tensor = self.episode(embedding, way=way, shot=shot, query=query)
        loss: Tensor = F.cross_entropy(global_logits, labels.long()) + local + fused
        return loss


def _by_episode(rows: Tensor, *, way: int, shot: int, query: int) -> Tensor:
    """(B, ...) -> (episodes, way, shot + query, ...)."""
    if way < 1 or shot < 1 or query < 1:
        raise InputError(f"way {way}, shot {shot}, query {query}; allowed: 1 or more of each")
    size = way * (shot + query)
    if len(rows) % size:
        raise InputError(
            f"{len(rows)} rows; allowed: a multiple of way * (shot + query) = {way} * ({shot} + {query}) = {size}"
        )
    return rows.reshape(-1, way, shot + query, *rows.shape[1:])


def _check_order(labels: Tensor) -> None:
    """InputError unless labels (episodes, way, shot + query) name one class per row and ``way`` of them an episode.

    Rows in another order would train on wrong prototypes without any other sign.
    """
    if torch.compiler.is_compiling():
        return
    first = labels[:, :, 0]
    repeated = (first.unsqueeze(1) == first.unsqueeze(2)).sum() > first.numel()
    if bool(repeated | (labels != labels[:, :, :1]).any()):
        raise InputError(
            "the labels are not those of whole episodes; allowed: one class after the other, each with its support "
            "examples, then its queries, and no class twice in an episode"
        )
