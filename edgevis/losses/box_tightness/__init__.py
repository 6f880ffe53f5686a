"""Segmentation from boxes: the box-tightness loss, its multiple-instance baseline and the pairwise term of both."""

from edgevis.losses.box_tightness.baseline import MILBaselineLoss, mil_baseline_loss
from edgevis.losses.box_tightness.loss import BoxTightnessLoss, box_tightness_loss
from edgevis.losses.box_tightness.pairwise import pairwise_loss

__all__ = ["BoxTightnessLoss", "MILBaselineLoss", "box_tightness_loss", "mil_baseline_loss", "pairwise_loss"]
