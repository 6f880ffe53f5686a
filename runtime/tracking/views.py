"""Which crops of a track are worth an embedding, and how much each counts."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from runtime.common.arrays import Array
from runtime.detection.boxes import areas_of

GOOD = 1.0
"""The weight of a whole, sharp view."""
POOR = 0.25
"""The weight of a view that is cut off, or that the quality checks speak against; used only for want of a good one."""

_MAX_HIDDEN = 0.35  # share of a box behind another one: the crop would show two objects
_MARGIN = 0.005  # of the frame's side: a box so near to the edge is cut off by it
_MIN_SIDE = 12  # pixels; of less nothing is recognised
_RESIZED = 1.3  # a view this much larger or smaller than the last one shows another scale
_TURNED = 1.25  # likewise of width over height: a body that has turned or bent


@dataclass(frozen=True, slots=True)
class ViewSize:
    """The size of the crop that an embedding was made of, in pixels."""

    width: float
    height: float

    def differs(self, other: ViewSize) -> bool:
        """Whether another crop shows the object at another scale or in another pose."""
        scale = max(self.height / other.height, other.height / self.height)
        ratio, before = self.width / self.height, other.width / other.height
        return scale > _RESIZED or max(ratio / before, before / ratio) > _TURNED


def view_weights(boxes: Array, image_size: tuple[int, int]) -> npt.NDArray[np.float64]:
    """(N,) the weight of each object's view by where its box lies: :data:`GOOD`, :data:`POOR`, or 0 for none.

    Args:
        boxes: (N, 4) xyxy of all objects of a frame, in pixels.
        image_size: The frame's (height, width).
    """
    height, width = image_size
    limits = np.array([width, height, width, height])
    clipped = np.clip(boxes, 0, limits)
    margin = np.maximum(_MARGIN * limits, 1.0)
    cut = ((boxes[:, :2] < margin[:2]) | (boxes[:, 2:] > limits[2:] - margin[2:])).any(axis=1)
    small = (clipped[:, 2:] - clipped[:, :2]).min(axis=1, initial=np.inf) < _MIN_SIDE
    weights = np.where(cut, POOR, GOOD)
    weights[small | (hidden_shares(boxes) > _MAX_HIDDEN)] = 0.0
    return np.asarray(weights)


def hidden_shares(boxes: Array) -> npt.NDArray[np.float64]:
    """(N,) the largest share of each of (N, 4) boxes, 0..1, that one other box hides.

    Of two objects on one floor the one whose box ends lower in the image is nearer to the camera.
    """
    if len(boxes) < 2:
        return np.zeros(len(boxes))
    low = np.maximum(boxes[:, None, :2], boxes[None, :, :2])
    high = np.minimum(boxes[:, None, 2:], boxes[None, :, 2:])
    shares = areas_of(np.concatenate([low, high], axis=2)) / np.maximum(areas_of(boxes), 1e-9)[:, None]
    shares[boxes[:, None, 3] >= boxes[None, :, 3]] = 0.0  # row: hidden, column: in front
    return np.asarray(shares.max(axis=1))
