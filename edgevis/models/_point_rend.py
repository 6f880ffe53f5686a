"""What models of the task ``segment`` that PointRend refines share; see :mod:`edgevis.layers.point_rend`.

Provenance: our own code.
Licence: this file, as the rest of edgevis.
"""

from __future__ import annotations

from abc import abstractmethod

from torch import Tensor, nn
from torch.nn import functional

from edgevis.layers.point_rend import MAX_POINTS, PointHead, PointLogits, point_sample, subdivide, training_points
from edgevis.models import _segmentation as segmentation
from edgevis.models._segmentation import SegmentationModel
from edgevis.models.allowed import whole
from runtime.bundle.spec import Deployment
from runtime.errors import ModelError

# Engines divide pixel numbers in float32 at worst, which is exact below 2^24.
_MAX_SIDE = 4096

POINT_REND_FLIPS = 1e-3
"""As :attr:`runtime.bundle.spec.Graph.max_flipped`: of two nearly equally uncertain pixels an engine that rounds
otherwise may refine the other one."""

FLOAT32_OUTPUTS = ("logits",)
"""As :attr:`runtime.bundle.spec.Graph.float32_outputs`: logits are doubled and compared in float32 in every precision.
Rounded to 16 bits, hundreds of them would be equally uncertain."""


class PointRefinedModel(SegmentationModel):
    """Logits at a part of the image's sides, enlarged to the image's size and refined at uncertain points.

    Args:
        in_channels, classes, side, multiple: As of :class:`SegmentationModel`.
        points: Refined at each doubling, and trained at in each image; 0 enlarges without.
        stride: The image's side by that of the coarse logits, a power of two.
        fine: Channels of the features at the coarse logits' size.
        width: Channels of the point head.

    Raises:
        ModelError: An option is not as described.
    """

    def __init__(
        self,
        *,
        in_channels: int,
        classes: int,
        side: int,
        multiple: int,
        points: int,
        stride: int,
        fine: int,
        width: int,
    ) -> None:
        super().__init__(in_channels=in_channels, classes=classes, side=side, multiple=multiple)
        whole(0, MAX_POINTS).require("points", points)
        first = (2 * side // stride) ** 2
        if points > first or (points and side > _MAX_SIDE):
            raise ModelError(
                f"points is {points} and side {side}; allowed: at most {first} points, the pixels after the first "
                f"doubling, and with points sides up to {_MAX_SIDE}; points=0 does without"
            )
        self.points, self.stride = points, stride
        if points:
            self.point_head = PointHead(fine, classes=classes, width=width)

    @abstractmethod
    def coarse_and_fine(self, image: Tensor) -> tuple[Tensor, Tensor]:
        """From image (N, in_channels, H, W) to logits (N, classes, h, w) and features (N, fine, h, w), h = H/stride."""

    def forward(self, image: Tensor) -> Tensor:
        """The same as :meth:`segment`, in training, too.

        Raises:
            InputError: The image's channels or sides do not fit.
        """
        self.check_image(image)
        coarse, fine = self.coarse_and_fine(image)
        if not self.points:
            return self._enlarged(coarse)
        steps = self.stride.bit_length() - 1
        return subdivide(coarse, fine, self.point_head, points=self.points, steps=steps)

    def training_outputs(self, image: Tensor) -> tuple[Tensor, PointLogits | None]:
        """The coarse logits, enlarged, and the point head's: see :class:`edgevis.training.task.PointTrainedModel`."""
        if not self.points:
            return self(image), None
        self.check_image(image)
        coarse, fine = self.coarse_and_fine(image)
        xy = training_points(coarse, self.points)
        at_points = self.point_head(point_sample(fine, xy), point_sample(coarse, xy))
        return self._enlarged(coarse), PointLogits(at_points, xy)

    def _enlarged(self, coarse: Tensor) -> Tensor:
        return functional.interpolate(coarse, scale_factor=float(self.stride), mode="bilinear", align_corners=False)


def deployment_of(module: nn.Module, *, max_flipped: float = 0.0) -> Deployment:
    """The deployment of a model that was built with any options; ``max_flipped`` of one without points."""
    if not (isinstance(module, PointRefinedModel) and module.points):
        return segmentation.deployment_of(module, max_flipped=max_flipped)
    return segmentation.deployment_of(
        module, max_flipped=max(max_flipped, POINT_REND_FLIPS), float32_outputs=FLOAT32_OUTPUTS
    )
