"""The shared options and deployment of the models of the task ``segment``.

Provenance: our own code.
Licence: this file, as the rest of edgevis.
"""

from __future__ import annotations

from torch import Tensor, nn

from edgevis.models._image import require_image
from edgevis.models.allowed import Allowed, one_of, whole
from runtime.bundle.spec import MAX_SIDE, Deployment, Graph, Preprocess, TensorSpec
from runtime.common.json_data import to_json
from runtime.errors import ModelError
from runtime.tasks.segment import SegmentationSettings

SIDE = 256
_MAX_BATCH = 8
_MAX_CLASSES = 1000


class SegmentationModel(nn.Module):
    """A model with one graph ``segment``: image (N, in_channels, side, side) -> logits (N, classes, side, side).

    Args:
        in_channels: 1 for grey images, 3 for RGB.
        classes: Number of maps; each is one class; classes may overlap.
        side: Side of the square images.
        multiple: What the side must be a multiple of.

    Raises:
        ModelError: An option is not as described.
    """

    def __init__(self, *, in_channels: int, classes: int, side: int, multiple: int) -> None:
        super().__init__()
        Allowed("1 for grey images, 3 for RGB", one_of(1, 3).holds).require("in_channels", in_channels)
        whole(1, _MAX_CLASSES).require("classes", classes)
        whole(multiple, MAX_SIDE, multiple=multiple).require("side", side)
        self.in_channels, self.classes, self.side, self.multiple = in_channels, classes, side, multiple

    def segment(self, image: Tensor) -> Tensor:
        """The graph ``segment``; a model's :meth:`forward` computes it.

        From image (N, in_channels, side, side) float32 to logits (N, classes, side, side) float32.
        """
        logits: Tensor = self(image)
        return logits

    def check_image(self, image: Tensor) -> None:
        """InputError unless the image is (N, in_channels, H, W) with sides that are such multiples."""
        require_image(image, multiple=self.multiple, channels=self.in_channels)


def deployment(
    *,
    in_channels: int = 1,
    classes: int = 1,
    side: int = SIDE,
    max_flipped: float = 0.0,
    float32_outputs: tuple[str, ...] = (),
) -> Deployment:
    """The deployment for these options: one label for each class, ``object`` or ``class-1`` and so on."""
    return Deployment(
        task="segment",
        graphs=(
            Graph(
                "segment",
                inputs=(TensorSpec("image", "float32", ("N", in_channels, side, side)),),
                outputs=(TensorSpec("logits", "float32", ("N", classes, side, side)),),
                max_flipped=max_flipped,
                float32_outputs=float32_outputs,
            ),
        ),
        preprocess=Preprocess(
            height=side,
            width=side,
            color="GRAY" if in_channels == 1 else "RGB",
            mean=(0.5,) * in_channels,
            std=(0.25,) * in_channels,
            fit="stretch",
        ),
        postprocess=to_json(
            SegmentationSettings(
                ("object",) if classes == 1 else tuple(f"class-{index}" for index in range(1, classes + 1))
            )
        ),
        max_batch=_MAX_BATCH,
    )


def deployment_of(module: nn.Module, *, max_flipped: float = 0.0, float32_outputs: tuple[str, ...] = ()) -> Deployment:
    """The deployment of a model that was built with any options."""
    if not isinstance(module, SegmentationModel):
        raise ModelError(f"a {type(module).__name__} is no model of the task 'segment'")
    return deployment(
        in_channels=module.in_channels,
        classes=module.classes,
        side=module.side,
        max_flipped=max_flipped,
        float32_outputs=float32_outputs,
    )
