"""Metrics, one file for each task."""

from edgevis.metrics.average_precision import AveragePrecision, InstanceMasks, average_precision, encoded_mask
from edgevis.metrics.boundary import boundary, boundary_iou_per_volume
from edgevis.metrics.box_fit import box_fit, box_fit_per_volume
from edgevis.metrics.dice import dice_per_volume
from edgevis.metrics.interval import EpisodeAccuracy, episode_accuracy
from edgevis.metrics.jackknife import difference, grouped_mean, mean_of_ratios
from edgevis.metrics.retrieval import QueryRanks, reid_queries, reid_ranking
from edgevis.metrics.segmentation import SegmentationScore, intersection_and_union
from edgevis.metrics.tracking import TrackingScores, tracking_scores

__all__ = [
    "AveragePrecision",
    "EpisodeAccuracy",
    "InstanceMasks",
    "QueryRanks",
    "SegmentationScore",
    "TrackingScores",
    "average_precision",
    "boundary",
    "boundary_iou_per_volume",
    "box_fit",
    "box_fit_per_volume",
    "dice_per_volume",
    "difference",
    "encoded_mask",
    "episode_accuracy",
    "grouped_mean",
    "intersection_and_union",
    "mean_of_ratios",
    "reid_queries",
    "reid_ranking",
    "tracking_scores",
]
