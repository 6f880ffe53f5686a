"""Measures of what a model decides, one file for each task."""

from edgevis.metrics.retrieval import reid_ranking

__all__ = ["reid_ranking"]
