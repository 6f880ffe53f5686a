"""What the papers train with, one file for each."""

from edgevis.losses.attention_fusion import AttentionFusionLoss, CosineEpisodeLoss
from edgevis.losses.cosine import cosine_logits, prototypes, squared_distance_logits
from edgevis.losses.reid import ReIDLoss, hard_triplet_loss, smoothed_cross_entropy

__all__ = [
    "AttentionFusionLoss",
    "CosineEpisodeLoss",
    "ReIDLoss",
    "cosine_logits",
    "hard_triplet_loss",
    "prototypes",
    "smoothed_cross_entropy",
    "squared_distance_logits",
]
