"""The base of VAT-HM and ASNet-HM: a frozen ResNet, two graphs and official checkpoints.

Paper: Moon, Sohn, Kim, et al., "HM: Hybrid Masking for Few-Shot Segmentation", ECCV 2022.
Provenance: our own code.
Licence: this file, as the rest of edgevis.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Literal, get_args

from torch import Tensor, nn

from edgevis.layers import imagenet
from edgevis.layers.efficientnet import EfficientNetLite0Backbone
from edgevis.layers.mobilenetv2 import MobileNetV2Backbone
from edgevis.layers.regnet import RegNet
from edgevis.layers.resnet import ResNet, resnet50, resnet101
from edgevis.models.allowed import Allowed, one_of, whole
from runtime.bundle.spec import HYBRID_MASK_FLIPS, MAX_SIDE, Deployment, Graph, Precision, Preprocess, TensorSpec
from runtime.errors import InputError

Backbone = Literal["resnet50", "resnet101"]
SmallBackbone = Literal["mobilenetv2", "efficientnet-lite0", "regnetx_004", "regnetx_008"]
SmallNetwork = MobileNetV2Backbone | EfficientNetLite0Backbone | RegNet

# INT8 of a pre-ReLU pyramid whose signs decide what is masked needs layers left in float; a build does not try unasked.
PRECISIONS: tuple[Precision, ...] = ("fp32",)

# Linear bottlenecks end without ReLU: the sign of a feature hangs on rounding more often than behind one. With
# MobileNetV2's published weights ONNX Runtime decided 1.1e-5 of the elements otherwise, on 128 photographs.
_LINEAR_FLIPS = 1e-4

_SIDES = Allowed(
    f"32 k + 1 from 33 to {MAX_SIDE}, such as 417. Only then do the mask's sampling coordinates fall on whole pixels "
    "at every level, so that every runtime makes the same choice between masked features and features of the masked "
    "image",
    whole(33, MAX_SIDE, multiple=32).holds,
)
_WIDTHS = whole(1, 256)


class SupportQueryModel(nn.Module):
    """A model with a frozen backbone that segments a query image by a support image and its mask.

    The backbone never learns and its batch norms stay in evaluation mode, whatever :meth:`train` says.

    Args:
        backbone: ``resnet50`` or ``resnet101``; with ``small`` also one of :data:`SmallBackbone`.
        side: Side of the square images.
        width: Channels after the ResNet's stem: 64, or fewer in tests.
        small: Whether the model takes the small backbones, too.

    Raises:
        ModelError: There is no such backbone, or the side is not of the form 32 k + 1.
    """

    def __init__(self, backbone: Backbone | SmallBackbone, *, side: int, width: int, small: bool = False) -> None:
        super().__init__()
        allowed = (*get_args(Backbone), *(get_args(SmallBackbone) if small else ()))
        one_of(*allowed).require("backbone", backbone)
        _SIDES.require("side", side)
        _WIDTHS.require("width", width)
        self.side = side
        self.backbone: ResNet | SmallNetwork = _network(backbone, width)
        self.backbone.requires_grad_(False)
        self.backbone.eval()

    def train(self, mode: bool = True) -> SupportQueryModel:
        super().train(mode)
        self.backbone.eval()
        return self

    def check_image(self, image: Tensor) -> None:
        """InputError unless the image is (N, 3, side, side)."""
        if image.dim() != 4 or tuple(image.shape[1:]) != (3, self.side, self.side):
            raise InputError(f"image is {tuple(image.shape)}; allowed: (N, 3, {self.side}, {self.side})")

    @staticmethod
    def check_rows(query_image: Tensor, support_image: Tensor) -> None:
        """InputError unless there are as many queries as supports."""
        if query_image.shape[0] != support_image.shape[0]:
            raise InputError(
                f"{query_image.shape[0]} query images and {support_image.shape[0]} support images; allowed: as many"
            )

    @staticmethod
    def check_supports(tensors: Sequence[Tensor], expected: Sequence[tuple[str, tuple[int, ...]]]) -> None:
        """InputError unless the tensors have these shapes behind a first axis of one size."""
        for tensor, (name, shape) in zip(tensors, expected, strict=True):
            if tuple(tensor.shape[1:]) != shape or tensor.shape[0] != tensors[0].shape[0]:
                raise InputError(
                    f"{name} is {tuple(tensor.shape)}; allowed: {('K', *shape)} with one K for all: what the model's "
                    "own support() gives"
                )


def _network(backbone: Backbone | SmallBackbone, width: int) -> ResNet | SmallNetwork:
    if backbone == "mobilenetv2":
        return MobileNetV2Backbone()
    if backbone == "efficientnet-lite0":
        return EfficientNetLite0Backbone()
    if backbone in ("regnetx_004", "regnetx_008"):
        return RegNet(backbone)
    return (resnet50 if backbone == "resnet50" else resnet101)(width=width)


def map_side(side: int, stage: int) -> int:
    """The side of the maps of the backbone's stage, 1 to 4, for an image of ``side``, 32 k + 1."""
    return (side - 1) // (4 << (stage - 1)) + 1


def to_pairs(x: Tensor, *, shots: int | None = None, queries: int | None = None) -> Tensor:
    """Repeat rows so that row ``n * K + k`` belongs to query n and shot k.

    Args:
        x: (N, ...) with ``shots`` = K given, or (K, ...) with ``queries`` = N given.

    Returns:
        (N * K, ...).
    """
    rows = x.unsqueeze(0) if shots is None else x.unsqueeze(1)
    repeats = (queries or 1, -1) if shots is None else (-1, shots)
    return rows.expand(*repeats, *x.shape[1:]).flatten(0, 1)


def deployment(
    *,
    side: int,
    support: Sequence[tuple[str, tuple[int, ...]]],
    logits_side: int,
    max_batch: int,
    small: SmallNetwork | None = None,
) -> Deployment:
    """The two graphs of a few-shot segmentation model.

    Args:
        side: Side of the images.
        support: Names and shapes, without the first axis, of what ``support`` gives and ``query`` takes.
        logits_side: Side of the logits.
        max_batch: The largest batch of images that an engine is given at once.
        small: The backbone, unless it is a ResNet.
    """
    image = TensorSpec("image", "float32", ("N", 3, side, side))
    mask = TensorSpec("mask", "float32", ("N", side, side))
    return Deployment(
        task="few_shot_segment",
        graphs=(
            Graph(
                "support",
                inputs=(image, mask),
                outputs=tuple(TensorSpec(name, "float32", ("N", *shape)) for name, shape in support),
                max_flipped=_LINEAR_FLIPS if small is not None else HYBRID_MASK_FLIPS,
            ),
            Graph(
                "query",
                inputs=(image, *(TensorSpec(name, "float32", ("K", *shape)) for name, shape in support)),
                outputs=(TensorSpec("logits", "float32", ("N", "K", 2, logits_side, logits_side)),),
            ),
        ),
        preprocess=Preprocess(
            height=side,
            width=side,
            color="RGB",
            scale=1 / 255,
            mean=imagenet.MEAN if small is None else small.mean,
            std=imagenet.STD if small is None else small.std,
            fit="stretch",
            interpolation="linear",
        ),
        max_batch=max_batch,
    )


def official_learner(
    state_dict: Mapping[str, Tensor], *, prefix: str, renames: Sequence[tuple[str, str]], constants: Sequence[str] = ()
) -> dict[str, Tensor]:
    """The learner's tensors of an official checkpoint, by our names.

    Args:
        state_dict: As published; a data-parallel wrapper's ``module.`` may lead every name. The backbone's tensors are
            left out: they are the published ImageNet weights.
        prefix: What leads the learner's names, such as ``"learner."``. Tensors without it are taken for the learner's
            alone.
        renames: Pairs of a regular expression and its replacement, applied in this order.
        constants: Last parts of names of tensors that are computed from sizes and left out.
    """
    tensors: dict[str, Tensor] = {}
    for name, tensor in state_dict.items():
        short = name.removeprefix("module.")
        if short.startswith("backbone.") or short.rpartition(".")[2] in constants:
            continue
        short = short.removeprefix(prefix)
        for pattern, replacement in renames:
            short = re.sub(pattern, replacement, short)
        tensors[short] = tensor
    return tensors
