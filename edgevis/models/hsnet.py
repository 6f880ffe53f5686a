"""HSNet-HM: few-shot segmentation by squeezing 4-D correlations, with hybrid masking and its baselines.

Papers: Min, Kang, Cho, "Hypercorrelation Squeeze for Few-Shot Segmentation", ICCV 2021; Moon, Sohn, Zhou, Yoon,
Pavlovic, Khan, Kapadia, "HM: Hybrid Masking for Few-Shot Segmentation", ECCV 2022, section 3 and the tables of its
ablations (masking by features, by the image, hybrid, simple addition, reverse).
Provenance: our own code from the papers. Sizes that they leave open, and the names that :func:`load_official_learner`
reads, are facts found in the published code (juhongm999/hsnet and moonsh/HM-Hybrid-Masking, without a licence).
Licence: this file, as the rest of edgevis. Weights ship for ``hsnet-hm`` on MobileNetV2;
``edgevis/weights/hsnet-hm.json`` says from which pictures its learner learned, and whose backbone it holds.

The default side is 417 = 32 * 13 + 1 (the papers use 400). Hybrid masking switches where the resized mask becomes 0;
with sides of the form 32 k + 1 all sampling coordinates are whole pixels on every level (steps 8, 16 and 32), every
runtime computes them exactly and all switch at the same places.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from typing import cast

import torch
from torch import Tensor, nn

from edgevis.layers.conv4d import CenterPivotConv4d, Grid
from edgevis.layers.correlation import pair_correlation, row_correlation, unit_channels
from edgevis.layers.grid_norm import GridGroupNorm
from edgevis.layers.masking import Masking, check_masking, masked_pyramid
from edgevis.layers.resize import resize
from edgevis.layers.resnet import ResNet
from edgevis.models._support_query import (
    PRECISIONS,
    Backbone,
    SmallBackbone,
    SmallNetwork,
    SupportQueryModel,
    deployment,
    map_side,
)
from edgevis.models.entry import ModelEntry
from edgevis.models.recipe import FewShotSegmentationRecipe
from edgevis.state_dict import load_strict
from runtime.bundle.spec import Deployment
from runtime.errors import InputError, ModelError

SIDE = 417

_CHANNELS = 128
_GROUPS = 4
# Of the squeezing blocks: kernels and strides on the support grid, by the level's stage of the backbone.
_SQUEEZE = {4: ((3, 3, 3), (2, 2, 2)), 3: ((5, 3, 3), (4, 2, 2)), 2: ((5, 5, 3), (4, 4, 2))}
_WIDTHS = (16, 64, _CHANNELS)

# The correlations of stage 2 take 126 MB per pair of query and shot, and an engine holds some seven copies of them.
_MAX_BATCH = 2


class Block4d(nn.Module):
    """Centre-pivot 4-D convolution, group norm, ReLU; layouts as in :mod:`edgevis.layers.conv4d`."""

    def __init__(self, inputs: int, outputs: int, *, kernel: int, stride: int = 1) -> None:
        super().__init__()
        self.convolution = CenterPivotConv4d(inputs, outputs, kernel, stride)
        self.norm = GridGroupNorm(_GROUPS, outputs)

    def query_major(self, x: Tensor, query_grid: Grid, support_grid: Grid) -> Tensor:
        """(B, Q, C, S) -> (B, Q, O, S')."""
        return torch.relu(self.norm(self.convolution.query_major(x, query_grid, support_grid)))

    def support_major(self, x: Tensor, query_grid: Grid, support_grid: Grid) -> Tensor:
        """(B, S, C, Q) -> (B, S, O, Q)."""
        return torch.relu(self.norm(self.convolution.support_major(x, query_grid, support_grid)))


class _Blocks(nn.ModuleList):
    """A typed list of :class:`Block4d`; PyTorch's ``ModuleList`` has no element type."""

    def __iter__(self) -> Iterator[Block4d]:
        return cast(Iterator[Block4d], super().__iter__())


class Squeeze(_Blocks):
    """Three blocks that shrink the support grid of a level's correlations."""

    def __init__(self, layers: int, kernels: Sequence[int], strides: Sequence[int]) -> None:
        inputs = (layers, *_WIDTHS[:-1])
        super().__init__(
            Block4d(i, o, kernel=kernel, stride=stride)
            for i, o, kernel, stride in zip(inputs, _WIDTHS, kernels, strides, strict=True)
        )

    def squeezed_grid(self, support_grid: Grid) -> Grid:
        """The support grid after the blocks."""
        for block in self:
            support_grid = block.convolution.kept_grid(support_grid)
        return support_grid

    def forward(self, correlation: Tensor, query_grid: Grid, support_grid: Grid) -> Tensor:
        """(B, L, Q, S) -> (B, S', 128, Q)."""
        x = correlation.transpose(1, 2)
        for block in self:
            x = block.query_major(x, query_grid, support_grid)
            support_grid = block.convolution.kept_grid(support_grid)
        return x.transpose(1, 3)


class Mix(_Blocks):
    """Three blocks that mix two levels and keep both grids."""

    def __init__(self) -> None:
        super().__init__(Block4d(_CHANNELS, _CHANNELS, kernel=3) for _ in range(3))

    def forward(self, x: Tensor, query_grid: Grid, support_grid: Grid) -> Tensor:
        """(B, S, 128, Q) -> the same shape."""
        for block in self:
            x = block.support_major(x, query_grid, support_grid)
        return x


class HSNetLearner(nn.Module):
    """The part of HSNet that learns: correlations of three levels to logits.

    2,573,794 parameters with a ResNet-50, 2,587,394 with a ResNet-101.

    Args:
        depths: Layers of the correlations of stages 2, 3 and 4.
    """

    def __init__(self, depths: tuple[int, int, int]) -> None:
        super().__init__()
        two, three, four = depths
        self.squeeze4 = Squeeze(four, *_SQUEEZE[4])
        self.squeeze3 = Squeeze(three, *_SQUEEZE[3])
        self.squeeze2 = Squeeze(two, *_SQUEEZE[2])
        self.mix4to3 = Mix()
        self.mix3to2 = Mix()
        self.decoder1 = nn.Sequential(
            nn.Conv2d(_CHANNELS, _CHANNELS, 3, padding=1), nn.ReLU(), nn.Conv2d(_CHANNELS, 64, 3, padding=1), nn.ReLU()
        )
        self.decoder2 = nn.Sequential(nn.Conv2d(64, 64, 3, padding=1), nn.ReLU(), nn.Conv2d(64, 2, 3, padding=1))

    def forward(self, l4: Tensor, l3: Tensor, l2: Tensor) -> Tensor:
        """From the outputs of :func:`edgevis.layers.correlation_pyramid` to logits.

        Args:
            l4: (B, L4, ha, wa, hb, wb) float32: correlations of stage 4, query grid first.
            l3: (B, L3, ...), the same at level 3.
            l2: (B, L2, ...), the same at level 2; its query grid is (h, w).

        Returns:
            (B, 2, 2 h, 2 w) float32: logits of background and object.

        Raises:
            InputError: A tensor has another rank, batch or number of layers, or the support grids shrink to different
                ones.
        """
        for name, x, stack in (("l4", l4, self.squeeze4), ("l3", l3, self.squeeze3), ("l2", l2, self.squeeze2)):
            layers = next(iter(stack)).convolution.query.in_channels
            if x.dim() != 6 or x.shape[1] != layers or x.shape[0] != l4.shape[0] or 0 in x.shape:
                raise InputError(
                    f"{name} is {tuple(x.shape)}; allowed: (B, {layers}, ha, wa, hb, wb), one B for all, not empty"
                )
        grids = [((x.shape[2], x.shape[3]), (x.shape[4], x.shape[5])) for x in (l4, l3, l2)]
        query_grids, support_grids = zip(*grids, strict=True)
        return self.logits([x.flatten(4).flatten(2, 3) for x in (l4, l3, l2)], query_grids, support_grids)

    def logits(
        self, correlations: Sequence[Tensor], query_grids: Sequence[Grid], support_grids: Sequence[Grid]
    ) -> Tensor:
        """As :meth:`forward`, with flattened grids: the exported form.

        Args:
            correlations: Of stages 4, 3 and 2: (B, layers, Q, S) float32.
            query_grids: Their query grids (h, w).
            support_grids: Their support grids.

        Raises:
            InputError: The support grids shrink to different ones.
        """
        stacks = (self.squeeze4, self.squeeze3, self.squeeze2)
        squeezed = {stack.squeezed_grid(grid) for stack, grid in zip(stacks, support_grids, strict=True)}
        if len(squeezed) != 1:
            raise InputError(
                f"support grids {tuple(support_grids)} of stages 4, 3 and 2 shrink to different ones, "
                f"{sorted(squeezed)}; allowed: maps of one image"
            )
        support_grid = squeezed.pop()
        four, three, two = (
            stack(x, query_grid, grid)
            for stack, x, query_grid, grid in zip(stacks, correlations, query_grids, support_grids, strict=True)
        )
        x = self.mix4to3(_query_resized(four, query_grids[0], query_grids[1]) + three, query_grids[1], support_grid)
        x = self.mix3to2(_query_resized(x, query_grids[1], query_grids[2]) + two, query_grids[2], support_grid)
        height, width = query_grids[2]
        x = self.decoder1(x.mean(1).reshape(-1, _CHANNELS, height, width))
        result: Tensor = self.decoder2(resize(x, (2 * height, 2 * width)))
        return result


class HSNet(SupportQueryModel):
    """HSNet with one of the five maskings.

    :meth:`support` runs once per support image, :meth:`query` once per frame, whatever the number of shots. Masking is
    a matter of :meth:`support` alone: the graph ``query`` is the same for all five.

    Args:
        backbone: ``resnet50`` or ``resnet101``; or ``mobilenetv2``, ``efficientnet-lite0``, ``regnetx_004`` or
            ``regnetx_008``, which are none of the papers' and an eighth to a fifth of the work.
        masking: How the support mask enters, see :mod:`edgevis.layers.masking`.
        side: Side of the square images, 32 k + 1.
        width: Channels after the ResNet's stem: 64, or fewer in tests.

    Raises:
        ModelError: A value is not one of those.
    """

    def __init__(self, *, backbone: Backbone | SmallBackbone, masking: Masking, side: int, width: int) -> None:
        check_masking(masking)
        super().__init__(backbone, side=side, width=width, small=True)
        self.masking: Masking = masking
        _, two, three, four = self.backbone.depths
        self.learner = HSNetLearner((two, three, four))

    def support(self, image: Tensor, mask: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Features of support images, as :meth:`query` takes them.

        Args:
            image: (N, 3, side, side) float32, RGB, ImageNet mean and standard deviation.
            mask: (N, side, side) float32, 1 on the object, 0 elsewhere.

        Returns:
            support_l4, support_l3, support_l2: (N, layers, channels, places) float32, masked, unit channels, of stages
            4, 3 and 2.

        Raises:
            InputError: A shape is another one.
        """
        self.check_image(image)
        return self._supports(image, mask)

    def query(self, image: Tensor, support_l4: Tensor, support_l3: Tensor, support_l2: Tensor) -> Tensor:
        """Logits of every image with every shot.

        Args:
            image: (N, 3, side, side) float32, as for :meth:`support`.
            support_l4: (K, layers, channels, places): what :meth:`support` gave for K shots.
            support_l3: The same at level 3.
            support_l2: The same at level 2.

        Returns:
            (N, K, 2, h, w) float32 logits with twice the side of stage 2, 106 at the default side: background, object.

        Raises:
            InputError: A shape is another one.
        """
        self.check_image(image)
        grids = [(side, side) for side in (map_side(self.side, stage) for stage in (4, 3, 2))]
        supports = (support_l4, support_l3, support_l2)
        self.check_supports(supports, self.support_shapes())
        queries = [_unit(maps) for maps in reversed(self.backbone.features(image))]
        correlations = [pair_correlation(query, support) for query, support in zip(queries, supports, strict=True)]
        logits = self.learner.logits(correlations, grids, grids)
        return logits.reshape(image.shape[0], support_l4.shape[0], *logits.shape[1:])

    def forward(self, query_image: Tensor, support_image: Tensor, support_mask: Tensor) -> Tensor:
        """For training: row i of the queries with row i of the supports. Images may have any one size.

        Args:
            query_image: (B, 3, H, W) float32, as for :meth:`support`.
            support_image: (B, 3, H', W') float32, as for :meth:`support`.
            support_mask: (B, H', W') float32.

        Returns:
            (B, 2, h, w) float32 logits with twice the sides of stage 2 of the query: background, object.

        Raises:
            InputError: A shape is another one.
        """
        self.check_rows(query_image, support_image)
        with torch.no_grad():
            supports = self._supports(support_image, support_mask)
            maps = self.backbone.features(query_image)[::-1]
            correlations = [row_correlation(_unit(stage), x) for stage, x in zip(maps, supports, strict=True)]
        query_grids = [(stage[0].shape[2], stage[0].shape[3]) for stage in maps]
        height, width = support_image.shape[2:]
        support_grids = [(-(-height // step), -(-width // step)) for step in (32, 16, 8)]
        return self.learner.logits(correlations, query_grids, support_grids)

    def support_shapes(self) -> list[tuple[str, tuple[int, ...]]]:
        """Names and shapes of the outputs of :meth:`support`, without the first axis."""
        return _support_shapes(self.side, self.backbone.depths, self.backbone.channels)

    def _supports(self, image: Tensor, mask: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        two, three, four = masked_pyramid(self.backbone.features, image, mask, masking=self.masking)
        return _unit(four), _unit(three), _unit(two)


def load_official_learner(model: HSNet | HSNetLearner, state_dict: Mapping[str, Tensor]) -> None:
    """Copy an official checkpoint of HSNet or HSNet-HM.

    Args:
        model: An HSNet or its learner, built for the checkpoint's backbone.
        state_dict: The learner's tensors by bare names (``encoder_layer4.0.conv1.weight``) or behind ``hpn_learner.``,
            also within ``module.``. Tensors ``backbone.*`` are copied when the model is a whole HSNet; their
            classifier ``fc.*`` is left out.

    Raises:
        WeightsError: Names or shapes are not the model's; the message names them, and nothing was copied.
    """
    backbone: dict[str, Tensor] = {}
    learner: dict[str, Tensor] = {}
    for name, tensor in state_dict.items():
        short = name.removeprefix("module.")
        if short.startswith("backbone."):
            if not short.startswith("backbone.fc."):
                backbone[short] = tensor
        else:
            learner[short.removeprefix("hpn_learner.")] = tensor
    hint = "Create the model with the backbone that the checkpoint was trained with"
    if isinstance(model, HSNetLearner) or not backbone:
        target = model if isinstance(model, HSNetLearner) else model.learner
        load_strict(
            target, learner, source="the official state dict", hint=hint, name_in_checkpoint=_official_learner_name
        )
        return
    load_strict(
        model,
        {**backbone, **{f"hpn_learner.{name}": tensor for name, tensor in learner.items()}},
        source="the official state dict",
        hint=hint,
        name_in_checkpoint=_official_name,
    )


def _official_name(name: str) -> str:
    prefix = "learner."
    return f"hpn_{prefix}{_official_learner_name(name.removeprefix(prefix))}" if name.startswith(prefix) else name


def _official_learner_name(name: str) -> str:
    """``squeeze4.1.norm.weight`` -> ``encoder_layer4.4.weight``: a block is three modules, the last a ReLU."""
    stack, rest = name.split(".", maxsplit=1)
    if stack.startswith("decoder"):
        return name
    block, part, rest = rest.split(".", maxsplit=2)
    stack = f"encoder_layer{stack.removeprefix('squeeze').removeprefix('mix')}"
    if part == "norm":
        return f"{stack}.{3 * int(block) + 1}.{rest}"
    convolution, kind = rest.split(".")
    return f"{stack}.{3 * int(block)}.{'conv1' if convolution == 'query' else 'conv2'}.{kind}"


def _query_resized(x: Tensor, grid: Grid, target: Grid) -> Tensor:
    """(B, S, 128, Q) -> (B, S, 128, Q'): the query grid resized at every support place."""
    support = x.shape[1]
    resized = resize(x.reshape(-1, _CHANNELS, *grid), target)
    return resized.reshape(-1, support, _CHANNELS, target[0] * target[1])


def _unit(maps: Sequence[Tensor]) -> Tensor:
    """Maps (N, C, h, w) of one stage -> (N, layers, C, places), unit channels."""
    return unit_channels(torch.stack(list(maps), dim=1).flatten(3), dim=2)


def hsnet(
    *, masking: Masking = "hm", backbone: Backbone | SmallBackbone = "resnet50", side: int = SIDE, width: int = 64
) -> HSNet:
    """HSNet with hybrid or another masking; see :class:`HSNet` for the options."""
    return HSNet(backbone=backbone, masking=masking, side=side, width=width)


def _builder(masking: Masking) -> Callable[..., HSNet]:
    def build(*, backbone: Backbone | SmallBackbone = "resnet50", side: int = SIDE, width: int = 64) -> HSNet:
        return HSNet(backbone=backbone, masking=masking, side=side, width=width)

    build.__doc__ = f"HSNet with masking {masking!r}; see :class:`HSNet` for the options."
    return build


def _deploy(module: nn.Module) -> Deployment:
    """The deployment of an HSNet that was built with any options."""
    if not isinstance(module, HSNet):
        raise ModelError(f"a {type(module).__name__} is no HSNet")
    small = None if isinstance(module.backbone, ResNet) else module.backbone
    return _deployment(module.side, module.support_shapes(), small=small)


def _deployment(
    side: int, support: Sequence[tuple[str, tuple[int, ...]]], *, small: SmallNetwork | None = None
) -> Deployment:
    logits_side = 2 * map_side(side, 2)
    return deployment(side=side, support=support, logits_side=logits_side, max_batch=_MAX_BATCH, small=small)


def _support_shapes(side: int, depths: Sequence[int], channels: Sequence[int]) -> list[tuple[str, tuple[int, ...]]]:
    return [
        (f"support_l{stage}", (depths[stage - 1], channels[stage - 1], map_side(side, stage) ** 2))
        for stage in (4, 3, 2)
    ]


DEPLOYMENT = _deployment(SIDE, _support_shapes(SIDE, (3, 4, 6, 3), (256, 512, 1024, 2048)))

# HM, section 4 (implementation details): HSNet's Adam and constant rate, batch 20; an epoch is one pass over the
# training images, and the best of up to 2000 is kept. Its PASCAL runs also change light and colour (photometric=0.4).
PAPER = FewShotSegmentationRecipe(epochs=2000, optimizer="adam", learning_rate=1e-3, batch=20)
SMALL = replace(
    PAPER,
    epochs=20,
    steps_per_epoch=40,
    batch=8,
    schedule="cosine",
    photometric=0.2,
    flip=True,
    dice_weight=1.0,
    test_episodes=200,
)

_HSNET = "Min, Kang, Cho: Hypercorrelation Squeeze for Few-Shot Segmentation, ICCV 2021"
_HM = "Moon, Sohn, Zhou, Yoon, Pavlovic, Khan, Kapadia: HM: Hybrid Masking for Few-Shot Segmentation, ECCV 2022"
_PARAMETERS = 23_508_032 + 2_573_794


def _entry(
    name: str, build: Callable[..., HSNet], paper: str = f"{_HSNET}; {_HM}", *, weights: str | None = None
) -> ModelEntry:
    return ModelEntry(
        name,
        build,
        DEPLOYMENT,
        paper,
        "Apache-2.0",
        _PARAMETERS,
        weights=weights,
        deploy=_deploy,
        precisions=PRECISIONS,
        recipes={"paper": PAPER, "small": SMALL},
    )


ENTRIES = (
    _entry("hsnet", hsnet),
    _entry("hsnet-hm", _builder("hm"), weights="hsnet-hm.safetensors"),
    _entry("hsnet-fm", _builder("fm"), _HSNET),
    _entry("hsnet-im", _builder("im")),
    _entry("hsnet-add", _builder("add")),
    _entry("hsnet-reverse", _builder("reverse")),
)
