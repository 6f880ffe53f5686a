"""Building blocks that more than one model may use."""

from edgevis.layers.attentive_squeeze import AttentiveSqueeze
from edgevis.layers.channel_attention import ChannelAttention
from edgevis.layers.conv4d import CenterPivotConv4d
from edgevis.layers.correlation import correlation_pyramid
from edgevis.layers.cross_attention import CrossAttention
from edgevis.layers.efficientnet import EfficientNetB0
from edgevis.layers.group_norm import GroupNorm
from edgevis.layers.pooled_conv4d import PooledConv4d
from edgevis.layers.position_attention import PositionAttention
from edgevis.layers.resnet12 import ResNet12
from edgevis.layers.set_to_set import SetToSet
from edgevis.layers.swin import WindowTransformer

__all__ = [
    "AttentiveSqueeze",
    "CenterPivotConv4d",
    "ChannelAttention",
    "CrossAttention",
    "EfficientNetB0",
    "GroupNorm",
    "PooledConv4d",
    "PositionAttention",
    "ResNet12",
    "SetToSet",
    "WindowTransformer",
    "correlation_pyramid",
]
