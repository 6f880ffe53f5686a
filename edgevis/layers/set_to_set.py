"""FEAT's set-to-set function: the prototypes of a task look at each other before they classify.

Paper: Ye, Hu, Zhan, Sha, "Few-Shot Learning via Embedding Adaptation with Set-to-Set Functions", CVPR 2020 (the
transformer among its set functions). Our own code; parameters bear the names that FEAT's (Sha-Lab/FEAT, MIT) have under
``slf_attn``.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from runtime.errors import InputError, ModelError


class SetToSet(nn.Module):
    """(..., n, d) float32 -> (..., n, d): each member of a set adapted to the others, whatever their order.

    One-head self-attention with a linear output, added to the input, then layer norm; 4 d^2 + 3 d parameters. Only the
    prototypes of a task are adapted, queries are not: logits are ``squared_distance_logits(queries, adapted,
    1 / temperature)`` or ``cosine_logits(queries, adapted, 1 / temperature, normalise_queries=False)`` of
    :mod:`edgevis.losses`.

    Args:
        channels: d.
        attention_dropout: In training, of the attention's weights.
        dropout: In training, of the linear output.
    """

    def __init__(self, channels: int, *, attention_dropout: float = 0.1, dropout: float = 0.5) -> None:
        super().__init__()
        if channels < 1:
            raise ModelError(f"a set-to-set layer of {channels} channels; allowed: 1 or more")
        self.channels = channels
        self.w_qs = nn.Linear(channels, channels, bias=False)
        self.w_ks = nn.Linear(channels, channels, bias=False)
        self.w_vs = nn.Linear(channels, channels, bias=False)
        self.fc = nn.Linear(channels, channels)
        self.layer_norm = nn.LayerNorm(channels)
        self.attention_dropout = nn.Dropout(attention_dropout)
        self.dropout = nn.Dropout(dropout)
        # Square matrices: Xavier's variance is the paper code's 2 / (d_model + d_k).
        for linear in (self.w_qs, self.w_ks, self.w_vs, self.fc):
            nn.init.xavier_normal_(linear.weight)

    def forward(self, members: Tensor) -> Tensor:
        """Raises InputError unless the shape is (..., n, d) with n >= 1."""
        if members.dim() < 2 or members.shape[-1] != self.channels or members.shape[-2] == 0:
            raise InputError(f"a set of shape {tuple(members.shape)}; allowed: (..., n, {self.channels}) with n >= 1")
        query, key, value = self.w_qs(members), self.w_ks(members), self.w_vs(members)
        affinity = torch.softmax(query @ key.transpose(-1, -2) / self.channels**0.5, dim=-1)  # (..., n, n)
        attended = self.dropout(self.fc(self.attention_dropout(affinity) @ value))
        result: Tensor = self.layer_norm(members + attended)
        return result

    def centres(self, instances: Tensor) -> Tensor:
        """The class centres of FEAT's training regulariser: (..., way, instances, d) -> (..., way, d).

        Each class's support and query embeddings are adapted to each other, then averaged. The regulariser is the
        cross-entropy of all instances against these centres.
        """
        return self.forward(instances).mean(-2)
