"""VAT-HM: few-shot segmentation by a 4-D convolutional Swin transformer over correlations, with hybrid masking.

Papers: Cho, Hong, Kim, "VAT: Cost Aggregation with 4D Convolutional Swin Transformer for Few-Shot Segmentation", ECCV
2022; Moon, Sohn, Zhou, Yoon, Pavlovic, Khan, Kapadia, "HM: Hybrid Masking for Few-Shot Segmentation", ECCV 2022,
section 3.3.
Provenance: our own code. Sizes that the papers leave open, and the names that :func:`load_official_learner` reads, are
facts taken from the published code (Seokju-Cho/Volumetric-Aggregation-Transformer, MIT).
Licence: this file, as the rest of edgevis. No weights ship: they must be trained.

The default side is 417 = 32 * 13 + 1: with sides of that form the mask is resampled at whole pixels on every level, so
all runtimes agree on the places where hybrid masking switches (the papers use 473 and 417).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Literal, get_args

import torch
from torch import Tensor, nn

from edgevis.layers.correlation import pair_correlation, row_correlation, unit_channels
from edgevis.layers.grid_resize import resize_matrix, resize_query_grid
from edgevis.layers.masking import masked_pyramid
from edgevis.layers.pooled_conv4d import PooledBlock4d
from edgevis.layers.resize import resize
from edgevis.layers.swin import WindowTransformer
from edgevis.models._support_query import (
    PRECISIONS,
    Backbone,
    SupportQueryModel,
    deployment,
    official_learner,
    to_pairs,
)
from edgevis.models.allowed import Allowed, one_of, whole
from edgevis.models.entry import ModelEntry
from edgevis.models.recipe import FewShotSegmentationRecipe
from edgevis.state_dict import load_strict
from runtime.bundle.spec import Deployment
from runtime.errors import InputError, ModelError

Variant = Literal["pascal", "coco", "fss"]

SIDE = 417
GRID = 16
"""Side of the fixed grid of stage 4; those of stages 3, 2 and 1 are two, four and eight times as long."""

_GRIDS = Allowed(
    "4 or a multiple of 8 up to 128, so that windows divide every grid",
    lambda value: one_of(4).holds(value) or whole(8, 128, multiple=8).holds(value),
)

# Which of the decoder's stages, coarse to fine, see the query image's features.
_GUIDED: Mapping[str, tuple[bool, bool, bool]] = {
    "pascal": (False, True, True),
    "coco": (False, False, True),
    "fss": (True, True, True),
}
_CHANNELS = 128
_HEADS = 4
_GUIDE_CHANNELS = (64, 32, 16)
_DECODER_CHANNELS = (128, 96, 48)

# Per level, deep to shallow: (channels, query stride, support stride, groups) of each convolution.
_ENCODERS = (
    ((64, 2, 1, 4), (128, 1, 2, 8)),
    ((64, 2, 2, 4), (128, 1, 2, 8)),
    ((32, 2, 2, 2), (64, 1, 2, 4), (128, 1, 2, 8)),
)
_DEPTHS = (4, 2, 2)

# ONNX Runtime 1.31 takes 2 GB per pair of query and shot: the correlations of stage 2 alone are 64^4 in four layers,
# 268 MB, as are the attention logits of 65,536 tokens.
_MAX_BATCH = 2


class VATEncoder(nn.Module):
    """The 4-D convolutions of one level: (B, L, Q, S) -> tokens (B, Q' * S', 128)."""

    def __init__(self, layers: int, level: int, grid: int) -> None:
        super().__init__()
        self.blocks = nn.ModuleList()
        # Sides of the query and support grid before each block, and after the last.
        self.sides = [(grid, grid)]
        for channels, query_stride, support_stride, groups in _ENCODERS[level]:
            self.blocks.append(
                PooledBlock4d(layers, channels, query_stride=query_stride, support_stride=support_stride, groups=groups)
            )
            query, support = self.sides[-1]
            self.sides.append((query // query_stride, support // support_stride))
            layers = channels

    def forward(self, x: Tensor) -> Tensor:
        for block, (query, support) in zip(self.blocks, self.sides, strict=False):
            x = block(x, (query, query), (support, support))
        return x.flatten(2).transpose(1, 2)


class DecoderStage(nn.Module):
    """A 2-D Swin transformer added to its input, then a 1x1 convolution: (B, C, side, side) -> (B, outputs, ...)."""

    def __init__(self, channels: int, side: int, outputs: int | None) -> None:
        super().__init__()
        self.side = side
        self.transformer = WindowTransformer((side, side), channels, depth=2, heads=_HEADS, window=8, final_norm=True)
        self.reduce = None if outputs is None else nn.Conv2d(channels, outputs, 1)

    def forward(self, x: Tensor) -> Tensor:
        tokens = x.flatten(2).transpose(1, 2)
        tokens = tokens + self.transformer(tokens)
        maps = tokens.transpose(1, 2).reshape(x.shape[0], x.shape[1], self.side, self.side)
        result: Tensor = maps if self.reduce is None else self.reduce(maps)
        return result


class VATLearner(nn.Module):
    """The part of VAT that learns: correlations of three levels to logits.

    Parameters with a ResNet-50 / ResNet-101: ``pascal`` 3,180,954 / 3,200,538, ``coco`` 3,006,490 / 3,026,074, ``fss``
    3,680,410 / 3,699,994. As in the published code these counts include what is never applied: the final layer norms
    of the three 4-D transformers and the projections that a variant does not use.

    Args:
        depths: Layers of the correlations of stages 2, 3 and 4.
        channels: Channels of the backbone's stages 1, 2 and 3.
        variant: Which of the projected query features the decoder sees: ``fss`` those of stages 3, 2 and 1, ``pascal``
            2 and 1, ``coco`` 1.
        grid: Side of the grid of stage 4: 4 or a multiple of 8.
    """

    def __init__(
        self, depths: tuple[int, int, int], channels: tuple[int, int, int], *, variant: Variant, grid: int
    ) -> None:
        super().__init__()
        one_of(*get_args(Variant)).require("variant", variant)
        _GRIDS.require("grid", grid)
        self.guided = _GUIDED[variant]
        self.grids = (grid, 2 * grid, 4 * grid)
        encoders = [
            VATEncoder(layers, level, side)
            for level, (layers, side) in enumerate(zip(reversed(depths), self.grids, strict=True))
        ]
        self.encoders = nn.ModuleList(encoders)
        self.transformers = nn.ModuleList()
        for encoder, depth in zip(encoders, _DEPTHS, strict=True):
            query, support = encoder.sides[-1]
            grid4d = (query, query, support, support)
            self.transformers.append(
                WindowTransformer(grid4d, _CHANNELS, depth=depth, heads=_HEADS, window=4, final_norm=False)
            )
        self.projections = nn.ModuleList(
            nn.Conv2d(inputs, outputs, 1) for inputs, outputs in zip(reversed(channels), _GUIDE_CHANNELS, strict=True)
        )
        self.decoders = nn.ModuleList()
        width = 0
        for stage, side in enumerate((2 * grid, 4 * grid, 8 * grid)):
            width = _DECODER_CHANNELS[stage] + (_GUIDE_CHANNELS[stage] if self.guided[stage] else 0)
            outputs = _DECODER_CHANNELS[stage + 1] if stage < 2 else None
            self.decoders.append(DecoderStage(width, side, outputs))
        self.head = nn.Sequential(nn.Conv2d(width, 32, 3, padding=1), nn.ReLU(), nn.Conv2d(32, 2, 3, padding=1))
        self.dropout = nn.Dropout2d(0.5)
        self.register_buffer("to_level3", resize_matrix(grid // 2, grid), persistent=False)
        self.register_buffer("to_level2", resize_matrix(grid, 2 * grid), persistent=False)

    def guides(self, maps: Sequence[Tensor]) -> tuple[Tensor | None, ...]:
        """The query image's features for the decoder.

        The projection is linear, so it comes before the resize, on fewer channels; the reference resizes first.

        Args:
            maps: The last feature maps (N, C, h, w) of stages 1, 2 and 3, not masked.

        Returns:
            (N, 64, 2 g, 2 g), (N, 32, 4 g, 4 g) and (N, 16, 8 g, 8 g), coarse to fine, g the grid of stage 4; None
            where the variant uses none.
        """
        guides: list[Tensor | None] = []
        for stage, (features, projection) in enumerate(zip(reversed(maps), self.projections, strict=True)):
            if not self.guided[stage]:
                guides.append(None)
                continue
            side = self.grids[0] * 2 ** (stage + 1)
            guide = torch.relu(resize(projection(features), (side, side)))
            # In training channels of the first two are dropped: the finest one is the smallest and stays whole.
            guides.append(self.dropout(guide) if stage < 2 else guide)
        return tuple(guides)

    def forward(self, correlations: Sequence[Tensor], guides: Sequence[Tensor | None]) -> Tensor:
        """Correlations and guides to logits.

        Args:
            correlations: Of stages 4, 3 and 2: (B, L, g ** 2, g ** 2) with their grid's side g, query places first.
            guides: What :meth:`guides` gives, for B pairs.

        Returns:
            (B, 2, 8 g, 8 g) with g the grid of stage 4: background, object.

        Raises:
            InputError: The correlations have other shapes.
        """
        if len(correlations) != 3:
            raise InputError(f"{len(correlations)} correlations; allowed: 3, of stages 4, 3 and 2")
        deep = self._level(0, correlations[0])
        middle = self._level(1, correlations[1], deep, self.get_buffer("to_level3"))
        tokens = self._level(2, correlations[2], middle, self.get_buffer("to_level2"))
        side = 2 * self.grids[0]
        x = tokens.reshape(tokens.shape[0], side * side, -1, _CHANNELS).mean(2)
        x = x.transpose(1, 2).reshape(tokens.shape[0], _CHANNELS, side, side)
        for stage, (decoder, guide) in enumerate(zip(self.decoders, guides, strict=True)):
            x = decoder(x if guide is None else torch.cat((x, guide), dim=1))
            if stage < 2:
                side *= 2
                x = resize(x, (side, side))
        logits: Tensor = self.head(x)
        return logits

    def _level(
        self, level: int, correlation: Tensor, deeper: Tensor | None = None, matrix: Tensor | None = None
    ) -> Tensor:
        """Tokens (B, Q * S, 128) of a level, plus the deeper level's tokens with the query grid resized."""
        tokens: Tensor = self.encoders[level](correlation)
        if deeper is not None and matrix is not None:
            # To the resize each query place is one row: its support places and their channels.
            rows = deeper.reshape(deeper.shape[0], 1, matrix.shape[1] ** 2, -1)
            tokens = tokens + resize_query_grid(rows, matrix).reshape(tokens.shape)
        result: Tensor = tokens + self.transformers[level](tokens)
        return result


class VAT(SupportQueryModel):
    """VAT with hybrid masking.

    :meth:`support` runs once per support image, :meth:`query` once per frame, whatever the number of shots; in between
    lies only what the query needs.

    Args:
        backbone: ``resnet50`` or ``resnet101``.
        variant: The decoder of the data set it is trained on: ``pascal``, ``coco`` or ``fss``.
        side: Side of the square images, 32 k + 1.
        width: Channels after the backbone's stem.
        grid: Side of the fixed grid to which stage 4 is resized, whatever the image's side.
    """

    def __init__(self, *, backbone: Backbone, variant: Variant, side: int, width: int, grid: int) -> None:
        super().__init__(backbone, side=side, width=width)
        _, two, three, four = self.backbone.depths
        first, second, third, _ = self.backbone.channels
        self.learner = VATLearner((two, three, four), (first, second, third), variant=variant, grid=grid)

    def support(self, image: Tensor, mask: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Features and masks of support images, as :meth:`query` takes them.

        Masked and switched at each level's own size, then resized: the other order gives other values.

        Args:
            image: (N, 3, side, side) float32, RGB, ImageNet mean and standard deviation.
            mask: (N, side, side) float32, 1 on the object, 0 elsewhere.

        Returns:
            support_l4, support_l3, support_l2: (N, layers, channels, places) float32, unit channels, of stages 4, 3
            and 2 at grids of side 16, 32 and 64.

        Raises:
            InputError: A shape is another one.
        """
        self.check_image(image)
        two, three, four = masked_pyramid(self.backbone.features, image, mask)
        return self._unit(four, 4), self._unit(three, 3), self._unit(two, 2)

    def query(self, image: Tensor, support_l4: Tensor, support_l3: Tensor, support_l2: Tensor) -> Tensor:
        """Segment images by K shots, each alone.

        Args:
            image: (N, 3, side, side) float32, as for :meth:`support`.
            support_l4: (K, layers, channels, places), what :meth:`support` gave for K shots.
            support_l3: The same at level 3.
            support_l2: The same at level 2.

        Returns:
            (N, K, 2, 128, 128) logits: background, object.

        Raises:
            InputError: A shape is another one.
        """
        shots = support_l4.shape[0]
        supports = (support_l4, support_l3, support_l2)
        self.check_supports(supports, self.support_shapes())
        one, two, three, four = self._query_maps(image)
        guides = [
            None if guide is None else to_pairs(guide, shots=shots)
            for guide in self.learner.guides((one[-1], two[-1], three[-1]))
        ]
        queries = (self._unit(four, 4), self._unit(three, 3), self._unit(two, 2))
        correlations = [pair_correlation(query, support) for query, support in zip(queries, supports, strict=True)]
        logits: Tensor = self.learner(correlations, guides)
        return logits.reshape(image.shape[0], shots, *logits.shape[1:])

    def forward(self, query_image: Tensor, support_image: Tensor, support_mask: Tensor) -> Tensor:
        """For training: row i of the queries with row i of the supports.

        Args:
            query_image: (B, 3, side, side) float32, as for :meth:`support`.
            support_image: (B, 3, side, side) float32, as for :meth:`support`.
            support_mask: (B, side, side) float32.

        Returns:
            (B, 2, 128, 128) logits.

        Raises:
            InputError: A shape is another one.
        """
        self.check_rows(query_image, support_image)
        with torch.no_grad():
            supports = self.support(support_image, support_mask)
            one, two, three, four = self._query_maps(query_image)
            queries = (self._unit(four, 4), self._unit(three, 3), self._unit(two, 2))
            correlations = [row_correlation(query, support) for query, support in zip(queries, supports, strict=True)]
        logits: Tensor = self.learner(correlations, self.learner.guides((one[-1], two[-1], three[-1])))
        return logits

    def support_shapes(self) -> tuple[tuple[str, tuple[int, ...]], ...]:
        """Names and shapes of the outputs of :meth:`support`, without the first axis."""
        return _support_shapes(self.backbone.depths, self.backbone.channels, self.learner.grids[0])

    def _query_maps(self, image: Tensor) -> list[list[Tensor]]:
        self.check_image(image)
        return self.backbone.features(image, stages=(1, 2, 3, 4))

    def _unit(self, maps: Sequence[Tensor], stage: int) -> Tensor:
        """Maps (N, C, h, w) of one stage -> (N, layers, C, places) at the stage's grid, unit channels."""
        return unit_channels(at_grid(maps, self.learner.grids[4 - stage]), dim=2)


def at_grid(maps: Sequence[Tensor], side: int) -> Tensor:
    """Maps (N, C, h, w) of one size, resized to ``side`` and stacked: (N, layers, C, side ** 2)."""
    layers = torch.stack(list(maps), dim=1)
    resized = resize(layers.flatten(0, 1), (side, side))
    return resized.reshape(*layers.shape[:3], side * side)


def load_official_learner(model: VAT, state_dict: Mapping[str, Tensor]) -> None:
    """Copy the learner of an official checkpoint; the backbone stays as it is.

    Args:
        model: Built with the checkpoint's backbone and variant.
        state_dict: The published checkpoint's ``state_dict``: names ``module.hpn_learner.ours.*``. The backbone's
            tensors and the constants stored beside the parameters (``relative_position_index``, ``attn_mask``) are
            left out.

    Raises:
        WeightsError: Names or shapes are not the learner's; nothing was copied.
    """
    tensors = official_learner(
        state_dict,
        prefix="hpn_learner.ours.",
        renames=(
            (r"^encoders\.(\d+)\.conv4d\.(\d+)\.0\.", r"encoders.\1.blocks.\2.conv."),
            (r"^encoders\.(\d+)\.conv4d\.(\d+)\.1\.", r"encoders.\1.blocks.\2.norm."),
            (r"^transformer\.(\d+)\.transformer\.(layer\.)?", r"transformers.\1."),
            (r"^swin_decoder\.(\d+)\.0\.transformer\.(layers\.0\.)?", r"decoders.\1.transformer."),
            (r"^swin_decoder\.(\d+)\.1\.", r"decoders.\1.reduce."),
            (r"^decoder\.", "head."),
            (r"^proj_query_feat\.(\d+)\.0\.", r"projections.\1."),
        ),
        constants=("relative_position_index", "attn_mask"),
    )
    load_strict(
        model.learner,
        {
            name: tensor.unsqueeze(4) if name.endswith("query_conv.weight") and tensor.dim() == 4 else tensor
            for name, tensor in tensors.items()
        },
        source="the official state dict",
        hint="Create the model with the backbone and the variant that the checkpoint was trained with",
    )


def vat_hm(
    *, backbone: Backbone = "resnet50", variant: Variant = "pascal", side: int = SIDE, width: int = 64, grid: int = GRID
) -> VAT:
    """VAT-HM; see :class:`VAT` for the options."""
    return VAT(backbone=backbone, variant=variant, side=side, width=width, grid=grid)


def _deploy(module: nn.Module) -> Deployment:
    """The deployment of a VAT that was built with any options."""
    if not isinstance(module, VAT):
        raise ModelError(f"a {type(module).__name__} is no VAT")
    return deployment(
        side=module.side,
        support=module.support_shapes(),
        logits_side=8 * module.learner.grids[0],
        max_batch=_MAX_BATCH,
    )


def _support_shapes(
    depths: Sequence[int], channels: Sequence[int], grid: int
) -> tuple[tuple[str, tuple[int, ...]], ...]:
    return tuple(
        (f"support_l{stage}", (depths[stage - 1], channels[stage - 1], (grid * 2 ** (4 - stage)) ** 2))
        for stage in (4, 3, 2)
    )


DEPLOYMENT = deployment(
    side=SIDE,
    support=_support_shapes((3, 4, 6, 3), (256, 512, 1024, 2048), GRID),
    logits_side=8 * GRID,
    max_batch=_MAX_BATCH,
)

# HM, section 4: VAT's AdamW and constant rate; batch 4 for PASCAL-5i and FSS-1000, 8 for COCO-20i.
_PAPER = FewShotSegmentationRecipe(epochs=300, optimizer="adamw", learning_rate=5e-4, batch=4)
_SMALL = replace(
    _PAPER,
    epochs=20,
    steps_per_epoch=40,
    schedule="cosine",
    photometric=0.2,
    flip=True,
    dice_weight=1.0,
    test_episodes=200,
)

ENTRIES = (
    ModelEntry(
        "vat-hm",
        vat_hm,
        DEPLOYMENT,
        "Cho, Hong, Kim: VAT: Cost Aggregation with 4D Convolutional Swin Transformer for Few-Shot Segmentation, "
        "ECCV 2022; Moon, Sohn, Zhou, Yoon, Pavlovic, Khan, Kapadia: HM: Hybrid Masking for Few-Shot Segmentation, "
        "ECCV 2022",
        "Apache-2.0",
        26_688_986,
        deploy=_deploy,
        precisions=PRECISIONS,
        recipes={"paper": _PAPER, "small": _SMALL},
    ),
)
