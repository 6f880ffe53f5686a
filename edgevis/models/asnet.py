"""ASNet-HM: few-shot segmentation by attention that squeezes correlations, with hybrid masking.

Papers: Kang, Cho, "Integrative Few-Shot Learning for Classification and Segmentation", CVPR 2022, section 5; Moon,
Sohn, Zhou, Yoon, Pavlovic, Khan, Kapadia, "HM: Hybrid Masking for Few-Shot Segmentation", ECCV 2022, section 3.3.
Provenance: our own code. Sizes that the papers leave open, and the names that :func:`load_official_learner` reads, are
facts taken from the published code (dahyun-kang/ifsl, MIT).
Licence: this file, as the rest of edgevis. No weights ship: they must be trained.

The default side is 417 = 32 * 13 + 1: with sides of that form the mask is resampled at whole pixels on every level, so
all runtimes agree on the places where hybrid masking switches (the paper uses 400).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor, nn

from edgevis.layers.attentive_squeeze import AttentiveSqueeze
from edgevis.layers.correlation import pair_correlation, row_correlation, unit_channels
from edgevis.layers.grid_resize import resize_mask, resize_matrix
from edgevis.layers.masking import Maps, masked_pyramid
from edgevis.layers.resize import resize
from edgevis.models._support_query import (
    PRECISIONS,
    Backbone,
    SupportQueryModel,
    deployment,
    map_side,
    official_learner,
    to_pairs,
)
from edgevis.models.allowed import whole
from edgevis.models.entry import ModelEntry
from edgevis.models.hsnet import PAPER, SMALL
from edgevis.state_dict import load_strict
from runtime.bundle.spec import Deployment
from runtime.errors import InputError, ModelError

SIDE = 417

POOLED_FROM = 50
"""Support maps with at least this side are average-pooled to half of it."""

_CHANNELS = 128
# The side of the support grid on which the mixing layers, which reduce 2 x 2 places to one, can work.
_SQUEEZED = 2

# ONNX Runtime 1.31 takes 0.45 GB per pair of query and shot at the default side.
_MAX_BATCH = 2


class ASNetLearner(nn.Module):
    """The part of ASNet that learns: correlations of three levels to logits.

    1,320,610 parameters with a ResNet-50, 1,354,610 with a ResNet-101.

    Args:
        depths: Layers of the correlations of stages 2, 3 and 4.
        query_sides: Sides of the query grids of stages 2, 3 and 4.
        support_sides: Sides of the support grids.

    Attributes:
        attend_sides: Sides of the grids to which the support mask is resized for the attentions, in the order in which
            ``attend`` holds them.

    Raises:
        ModelError: The support grids of stages 2 and 3 do not shrink to 2 x 2.
    """

    def __init__(
        self, depths: tuple[int, int, int], query_sides: tuple[int, int, int], support_sides: tuple[int, int, int]
    ) -> None:
        super().__init__()
        self.query_sides = query_sides
        self.support_sides = support_sides
        self.encoder_layer4 = _stack(depths[2], (32, 128), kernels=(5, 3), strides=(4, 2))
        self.encoder_layer3 = _stack(depths[1], (32, 128), kernels=(5, 5), strides=(4, 4), pool_keys=True)
        self.encoder_layer2 = _stack(depths[0], (32, 128), kernels=(5, 5), strides=(4, 4), pool_keys=True)
        self.encoder_layer4to3 = _stack(_CHANNELS, (_CHANNELS, _CHANNELS), kernels=(1, 2), strides=(1, 1))
        self.encoder_layer3to2 = _stack(_CHANNELS, (_CHANNELS, _CHANNELS), kernels=(1, 2), strides=(1, 1))
        self.decoder1 = nn.Sequential(
            nn.Conv2d(_CHANNELS, _CHANNELS, 3, padding=1), nn.ReLU(), nn.Conv2d(_CHANNELS, 64, 3, padding=1), nn.ReLU()
        )
        self.decoder2 = nn.Sequential(nn.Conv2d(64, 64, 3, padding=1), nn.ReLU(), nn.Conv2d(64, 2, 3, padding=1))

        sides: list[int] = []
        for stack, start, expected in (
            (self.encoder_layer4, support_sides[2], None),
            (self.encoder_layer3, support_sides[1], _SQUEEZED),
            (self.encoder_layer2, support_sides[0], _SQUEEZED),
            (self.encoder_layer3to2, _SQUEEZED, None),
        ):
            side = start
            for layer in _layers(stack):
                sides.append(layer.key_side(side))
                side = layer.output_side(side)
            if expected is not None and side != expected:
                raise ModelError(
                    f"a support grid of side {start} shrinks to side {side}; ASNet needs {expected}, which stages 2 "
                    "and 3 give at sides of 17 to 32"
                )
        self.attend_sides = tuple(dict.fromkeys(sides))

    def forward(self, correlations: Sequence[Tensor], attend: Tensor) -> Tensor:
        """Correlations to logits.

        Args:
            correlations: Of stages 4, 3 and 2: (B, layers, Q, S), query places first.
            attend: (B, places) float32: for each of ``attend_sides`` the grid's places, 0 where the support mask is.

        Returns:
            (B, 2, h, w) logits with twice the side of stage 2: background, object.

        Raises:
            InputError: A shape is another one.
        """
        if len(correlations) != 3 or attend.dim() != 2 or attend.shape[1] != sum(s * s for s in self.attend_sides):
            raise InputError(
                f"{len(correlations)} correlations and flags {tuple(attend.shape)}; allowed: 3 and "
                f"(B, {sum(s * s for s in self.attend_sides)})"
            )
        grids = torch.split(attend, [side * side for side in self.attend_sides], dim=1)
        flags = dict(zip(self.attend_sides, grids, strict=True))
        four, three, two = correlations
        deep = _squeeze(self.encoder_layer4, four, self.support_sides[2], flags).mean(dim=3)
        middle = _squeeze(self.encoder_layer3, three, self.support_sides[1], flags)
        middle = middle + _query_resized(deep, self.query_sides[2], self.query_sides[1])
        middle = _squeeze(self.encoder_layer4to3, middle, _SQUEEZED, flags).squeeze(3)
        fine = _squeeze(self.encoder_layer2, two, self.support_sides[0], flags)
        fine = fine + _query_resized(middle, self.query_sides[1], self.query_sides[0])
        fine = _squeeze(self.encoder_layer3to2, fine, _SQUEEZED, flags)
        side = self.query_sides[0]
        x = self.decoder1(fine.reshape(-1, _CHANNELS, side, side))
        logits: Tensor = self.decoder2(resize(x, (2 * side, 2 * side)))
        return logits


class ASNet(SupportQueryModel):
    """ASNet with hybrid masking; the mask also acts inside of the attention.

    :meth:`support` runs once per support image, :meth:`query` once per frame, whatever the number of shots; in between
    lies only what the query needs.

    Args:
        backbone: ``resnet50`` or ``resnet101``.
        side: Side of the square images: 417, 449 or 481. Others of the form 32 k + 1 leave support grids that the
            network's strides do not shrink to the 2 x 2 places of its mixing layers.
        width: Channels after the backbone's stem.
        pooled_from: Support maps with at least this side are average-pooled to half of it; 50 is the published
            network's. With 33 there is one of another side, 257, for tests.
    """

    def __init__(self, *, backbone: Backbone, side: int, width: int, pooled_from: int) -> None:
        super().__init__(backbone, side=side, width=width)
        _POOLED_FROM.require("pooled_from", pooled_from)
        sides = _sides(side)
        if not _fits(side, pooled_from):
            allowed = [str(other) for other in _SOME_SIDES if _fits(other, pooled_from)]
            raise ModelError(
                f"side is {side}; ASNet with pooled_from = {pooled_from} takes {', '.join(allowed)}. Only "
                "there do its strides shrink the support grids of stages 2 and 3 to the 2 x 2 places that it mixes"
            )
        self.pooled_from = pooled_from
        _, two, three, four = self.backbone.depths
        self.learner = ASNetLearner((two, three, four), sides, _support_sides(sides, pooled_from))
        for position, (inputs, outputs) in enumerate((side, attended) for attended in self.learner.attend_sides):
            self.register_buffer(f"attend_matrix{position}", resize_matrix(inputs, outputs), persistent=False)

    def support(self, image: Tensor, mask: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Features and masks of support images, as :meth:`query` takes them.

        Args:
            image: (N, 3, side, side) float32, RGB, ImageNet mean and standard deviation.
            mask: (N, side, side) float32, 1 on the object, 0 elsewhere.

        Returns:
            support_l4, support_l3, support_l2: (N, layers, channels, places) float32, unit channels, of stages 4, 3
            and 2, those of stage 2 average-pooled; support_attend: (N, places) float32, see :class:`ASNetLearner`.

        Raises:
            InputError: A shape is another one.
        """
        self.check_image(image)
        two, three, four = masked_pyramid(self._pooled_maps, image, mask)
        attend = [
            resize_mask(mask, self.get_buffer(f"attend_matrix{position}")).flatten(1)
            for position in range(len(self.learner.attend_sides))
        ]
        # A flag and no weight, so that no precision rounds a small weight to 0.
        flags = (torch.cat(attend, dim=1) > 0).to(image.dtype)
        return _unit(four), _unit(three), _unit(two), flags

    def query(
        self, image: Tensor, support_l4: Tensor, support_l3: Tensor, support_l2: Tensor, support_attend: Tensor
    ) -> Tensor:
        """Segment images by K shots, each alone.

        Args:
            image: (N, 3, side, side) float32, as for :meth:`support`.
            support_l4: (K, layers, channels, places), what :meth:`support` gave for K shots.
            support_l3: The same at level 3.
            support_l2: The same at level 2.
            support_attend: (K, places), from the same call of :meth:`support`.

        Returns:
            (N, K, 2, h, w) logits with twice the side of stage 2, 106 at the default side: background, object.

        Raises:
            InputError: A shape is another one.
        """
        self.check_image(image)
        images, shots = image.shape[0], support_l4.shape[0]
        supports = (support_l4, support_l3, support_l2)
        self.check_supports((*supports, support_attend), self.support_shapes())
        queries = [_unit(maps) for maps in reversed(self.backbone.features(image))]
        correlations = [pair_correlation(query, support) for query, support in zip(queries, supports, strict=True)]
        logits: Tensor = self.learner(correlations, to_pairs(support_attend, queries=images))
        return logits.reshape(images, shots, *logits.shape[1:])

    def forward(self, query_image: Tensor, support_image: Tensor, support_mask: Tensor) -> Tensor:
        """For training: row i of the queries with row i of the supports.

        Args:
            query_image: (B, 3, side, side) float32, as for :meth:`support`.
            support_image: (B, 3, side, side) float32, as for :meth:`support`.
            support_mask: (B, side, side) float32.

        Returns:
            (B, 2, h, w) logits.

        Raises:
            InputError: A shape is another one.
        """
        self.check_rows(query_image, support_image)
        with torch.no_grad():
            self.check_image(query_image)
            *supports, attend = self.support(support_image, support_mask)
            queries = [_unit(maps) for maps in reversed(self.backbone.features(query_image))]
            correlations = [row_correlation(query, support) for query, support in zip(queries, supports, strict=True)]
        logits: Tensor = self.learner(correlations, attend)
        return logits

    def support_shapes(self) -> tuple[tuple[str, tuple[int, ...]], ...]:
        """Names and shapes of the outputs of :meth:`support`, without the first axis."""
        return _support_shapes(
            self.learner.support_sides,
            self.backbone.depths,
            self.backbone.channels,
            attend_sides=self.learner.attend_sides,
        )

    def _pooled_maps(self, image: Tensor) -> Maps:
        """The backbone's maps of a support image; large ones at half the side."""
        return [
            [
                nn.functional.avg_pool2d(maps, 3, stride=2, padding=1) if maps.shape[3] >= self.pooled_from else maps
                for maps in stage
            ]
            for stage in self.backbone.features(image)
        ]


def load_official_learner(model: ASNet, state_dict: Mapping[str, Tensor]) -> None:
    """Copy the learner of an official checkpoint; the backbone stays as it is.

    Args:
        model: Built with the checkpoint's backbone.
        state_dict: The published checkpoint's ``state_dict``: names ``learner.*``. The backbone's tensors are left
            out; weights of 3-D convolutions lose the axis of length 1 that they have in front of the support grid.

    Raises:
        WeightsError: Names or shapes are not the learner's; nothing was copied.
    """
    tensors = official_learner(state_dict, prefix="learner.", renames=())
    load_strict(
        model.learner,
        {
            name: tensor.squeeze(2) if tensor.dim() == 5 and tensor.shape[2] == 1 else tensor
            for name, tensor in tensors.items()
        },
        source="the official state dict",
        hint="Create the model with the backbone that the checkpoint was trained with",
    )


def asnet_hm(
    *, backbone: Backbone = "resnet50", side: int = SIDE, width: int = 64, pooled_from: int = POOLED_FROM
) -> ASNet:
    """ASNet-HM; see :class:`ASNet` for the options."""
    return ASNet(backbone=backbone, side=side, width=width, pooled_from=pooled_from)


def _stack(
    inputs: int,
    outputs: tuple[int, int],
    *,
    kernels: tuple[int, int],
    strides: tuple[int, int],
    pool_keys: bool = False,
) -> nn.ModuleList:
    """Two attentive squeeze layers; kernels above 2 are padded by half."""
    layers = nn.ModuleList()
    for channels, kernel, stride in zip(outputs, kernels, strides, strict=True):
        padding = kernel // 2 if kernel > 2 else 0
        layers.append(
            AttentiveSqueeze(inputs, channels, kernel=kernel, stride=stride, padding=padding, pool_keys=pool_keys)
        )
        inputs = channels
    return layers


def _layers(stack: nn.ModuleList) -> list[AttentiveSqueeze]:
    return [layer for layer in stack if isinstance(layer, AttentiveSqueeze)]


def _squeeze(stack: nn.ModuleList, x: Tensor, side: int, flags: Mapping[int, Tensor]) -> Tensor:
    for layer in _layers(stack):
        x = layer(x, (side, side), flags[layer.key_side(side)])
        side = layer.output_side(side)
    return x


def _query_resized(x: Tensor, side: int, target: int) -> Tensor:
    """(B, C, side ** 2), one value per query place -> (B, C, target ** 2, 1)."""
    maps = resize(x.reshape(-1, _CHANNELS, side, side), (target, target))
    return maps.flatten(2).unsqueeze(3)


def _unit(maps: Sequence[Tensor]) -> Tensor:
    """Maps (N, C, h, w) of one stage -> (N, layers, C, places), unit channels."""
    return unit_channels(torch.stack(list(maps), dim=1).flatten(3), dim=2)


def _sides(side: int) -> tuple[int, int, int]:
    """Sides of the maps of stages 2, 3 and 4."""
    return map_side(side, 2), map_side(side, 3), map_side(side, 4)


def _support_sides(sides: tuple[int, int, int], pooled_from: int) -> tuple[int, int, int]:
    two, three, four = ((side + 1) // 2 if side >= pooled_from else side for side in sides)
    return two, three, four


def _fits(side: int, pooled_from: int) -> bool:
    """Whether the strides shrink the support grids of stages 2 and 3 to 2 x 2."""
    return all(17 <= support <= 32 for support in _support_sides(_sides(side), pooled_from)[:2])


_SOME_SIDES = range(33, 1025, 32)
_FITTING = [size for size in range(1, 129) if any(_fits(side, size) for side in _SOME_SIDES)]
_POOLED_FROM = whole(_FITTING[0], _FITTING[-1])


def _deploy(module: nn.Module) -> Deployment:
    """The deployment of an ASNet that was built with any options."""
    if not isinstance(module, ASNet):
        raise ModelError(f"a {type(module).__name__} is no ASNet")
    return deployment(
        side=module.side,
        support=module.support_shapes(),
        logits_side=2 * map_side(module.side, 2),
        max_batch=_MAX_BATCH,
    )


def _support_shapes(
    sides: tuple[int, int, int], depths: Sequence[int], channels: Sequence[int], *, attend_sides: Sequence[int]
) -> tuple[tuple[str, tuple[int, ...]], ...]:
    levels = zip((4, 3, 2), reversed(sides), strict=True)
    return (
        *((f"support_l{stage}", (depths[stage - 1], channels[stage - 1], places**2)) for stage, places in levels),
        ("support_attend", (sum(attended * attended for attended in attend_sides),)),
    )


DEPLOYMENT = deployment(
    side=SIDE,
    support=_support_shapes((27, 27, 14), (3, 4, 6, 3), (256, 512, 1024, 2048), attend_sides=(14, 4, 7, 2)),
    logits_side=2 * map_side(SIDE, 2),
    max_batch=_MAX_BATCH,
)

# HM trains it as HSNet, by whose recipes. (ASNet's own also learns classification, which few-shot segmentation does
# without.)
ENTRIES = (
    ModelEntry(
        "asnet-hm",
        asnet_hm,
        DEPLOYMENT,
        "Kang, Cho: Integrative Few-Shot Learning for Classification and Segmentation, CVPR 2022; "
        "Moon, Sohn, Zhou, Yoon, Pavlovic, Khan, Kapadia: HM: Hybrid Masking for Few-Shot Segmentation, ECCV 2022",
        "Apache-2.0",
        24_828_642,
        deploy=_deploy,
        precisions=PRECISIONS,
        recipes={"paper": PAPER, "small": SMALL},
    ),
)
