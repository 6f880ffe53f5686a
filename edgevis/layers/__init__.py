"""Building blocks that more than one model may use."""

from edgevis.layers.correlation import correlation_pyramid
from edgevis.layers.efficientnet import EfficientNetB0
from edgevis.layers.position_attention import PositionAttention

__all__ = ["EfficientNetB0", "PositionAttention", "correlation_pyramid"]
