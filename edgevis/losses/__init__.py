"""The papers' losses, one file each."""

from edgevis.losses._boxes import COLUMNS as TARGET_COLUMNS
from edgevis.losses._checks import NonFiniteError
from edgevis.losses.anchor_matching import match_atss, match_largest_iou
from edgevis.losses.attention_fusion import AttentionFusionLoss, CosineEpisodeLoss
from edgevis.losses.box_tightness import (
    BoxTightnessLoss,
    MILBaselineLoss,
    box_tightness_loss,
    mil_baseline_loss,
    pairwise_loss,
)
from edgevis.losses.circle import circle_logits, circle_loss
from edgevis.losses.cosine import cosine_logits, prototypes, squared_distance_logits
from edgevis.losses.distillation import DistillationLoss, embedding_distillation_loss, logit_distillation_loss
from edgevis.losses.focal import EfficientDetLoss, sigmoid_focal_loss
from edgevis.losses.momentum_contrast import MomentumContrast, projection_head
from edgevis.losses.nuclear_norm import BatchNuclearNormLoss, batch_nuclear_norm
from edgevis.losses.objectness_distillation import ObjectnessDistillationLoss
from edgevis.losses.point_rend import point_rend_loss
from edgevis.losses.polar_mask import PolarMaskLoss, polar_centerness, polar_iou_loss
from edgevis.losses.reid import ReIDLoss, hard_triplet_loss, smoothed_cross_entropy
from edgevis.losses.segmentation import dice_loss, segmentation_loss
from edgevis.losses.sim_ota import sim_ota
from edgevis.losses.similarity_distillation import SimilarityDistillationLoss, similarity_distillation_loss
from edgevis.losses.yolox import YOLOXLoss

__all__ = [
    "TARGET_COLUMNS",
    "AttentionFusionLoss",
    "BatchNuclearNormLoss",
    "BoxTightnessLoss",
    "CosineEpisodeLoss",
    "DistillationLoss",
    "EfficientDetLoss",
    "MILBaselineLoss",
    "MomentumContrast",
    "NonFiniteError",
    "ObjectnessDistillationLoss",
    "PolarMaskLoss",
    "ReIDLoss",
    "SimilarityDistillationLoss",
    "YOLOXLoss",
    "batch_nuclear_norm",
    "box_tightness_loss",
    "circle_logits",
    "circle_loss",
    "cosine_logits",
    "dice_loss",
    "embedding_distillation_loss",
    "hard_triplet_loss",
    "logit_distillation_loss",
    "match_atss",
    "match_largest_iou",
    "mil_baseline_loss",
    "pairwise_loss",
    "point_rend_loss",
    "polar_centerness",
    "polar_iou_loss",
    "projection_head",
    "prototypes",
    "segmentation_loss",
    "sigmoid_focal_loss",
    "sim_ota",
    "similarity_distillation_loss",
    "smoothed_cross_entropy",
    "squared_distance_logits",
]
