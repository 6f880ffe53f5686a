"""Building blocks that more than one model may use."""

from edgevis.layers.channel_attention import ChannelAttention
from edgevis.layers.conv4d import CenterPivotConv4d
from edgevis.layers.correlation import correlation_pyramid
from edgevis.layers.cross_attention import CrossAttention
from edgevis.layers.efficientnet import EfficientNetB0
from edgevis.layers.position_attention import PositionAttention
from edgevis.layers.resnet12 import ResNet12
from edgevis.layers.set_to_set import SetToSet

__all__ = [
    "CenterPivotConv4d",
    "ChannelAttention",
    "CrossAttention",
    "EfficientNetB0",
    "PositionAttention",
    "ResNet12",
    "SetToSet",
    "correlation_pyramid",
]
