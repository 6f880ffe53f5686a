"""Measures of what a model decides, one file for each task."""

from edgevis.metrics.dice import dice_per_volume
from edgevis.metrics.interval import EpisodeAccuracy, episode_accuracy
from edgevis.metrics.retrieval import reid_ranking
from edgevis.metrics.segmentation import SegmentationScore, intersection_and_union

__all__ = [
    "EpisodeAccuracy",
    "SegmentationScore",
    "dice_per_volume",
    "episode_accuracy",
    "intersection_and_union",
    "reid_ranking",
]
