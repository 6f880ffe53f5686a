"""Prior-Net: few-shot segmentation by a small decoder over what a frozen backbone says without training.

No paper's model: HSNet's frozen backbone, layers and two graphs, with a 2-D decoder in place of its 4-D convolutions.
For each layer, five maps say how much each place of the query is like the example's object and like what is around it:
the cosine to the nearest place of either, the cosine to the mean of either, and the difference of their soft maxima;
and, since the parts of a thing lie alike in pictures of it, the first and last of them again with places far apart in
their images counting as less alike.
These are the training-free methods of Zhang et al., "SG-One" (2018), Wang et al., "PANet" (ICCV 2019) and the prior of
Tian et al., "PFENet" (TPAMI 2020); the decoder learns which of them to believe where. What it finds is an example of
its own, after Fan et al., "Self-Support Few-Shot Semantic Segmentation" (ECCV 2022): a second pass also sees how like
that each place of the query is. The decoder never sees what a place looks like, only how like others it is (but for
edges, at the end), so that what it learns from some kinds of things holds for others.
Provenance: our own code. Licence: this file, as the rest of edgevis.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple, get_args

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from edgevis.layers.correlation import unit_channels
from edgevis.layers.efficientnet import EfficientNetLite0Backbone
from edgevis.layers.resize import resize
from edgevis.models._support_query import (
    PRECISIONS,
    SmallBackbone,
    SmallNetwork,
    SupportQueryModel,
    deployment,
    map_side,
    to_pairs,
)
from edgevis.models.allowed import one_of
from edgevis.models.entry import ModelEntry
from edgevis.models.recipe import FewShotSegmentationRecipe
from runtime.bundle.spec import Deployment
from runtime.errors import ModelError

SIDE = 289

_WIDTH = 64
# Of one layer, and where what lies elsewhere in its image counts as less alike.
_MAPS, _NEAR_MAPS = 5, 3
# How much less alike, per square of a distance of this share of the side.
_FAR, _NEAR = 0.05, 0.1
_TEMPERATURE = 0.1
# What a place's share of the mask may least be, for its logarithm.
_LEAST = 1e-5
# Of the mean over a place's part, so that an empty part is 0.
_EMPTY = 1e-4
_EDGES = 16
# The share of maps that a training step hides.
_DROPPED = 0.1
_MAX_BATCH = 4


class Places(NamedTuple):
    """What a support image's places show, and how much of each is the object.

    Attributes:
        inside, outside: (B, C, S), unit channels: the object's part of each place and the rest.
        share: (B, S), 0 to 1.
    """

    inside: Tensor
    outside: Tensor
    share: Tensor


def similarity_maps(query: Tensor, support: Places, far: Tensor | None = None) -> Tensor:
    """How much each place of a query is like an object and like the rest, by one layer.

    Args:
        query: (B, C, Q), unit channels.
        support: Of the same B.
        far: (Q, S), added to the cosine of each two places: less where they lie far apart in their images.

    Returns:
        (B, 5, Q): the cosine to the nearest place of the object and of the rest, to the mean of either, and the soft
        maximum over the object's places less that over the others'. What belongs to the object for a small part is
        nearest only if it is far more similar. With ``far`` (B, 3, Q), without the two means.
    """
    sides = _sides(support)
    similar = [query.transpose(1, 2) @ places for places, _, _ in sides]  # (B, Q, S)
    if far is not None:
        similar = [x + far for x in similar]
    nearest = [(x + _TEMPERATURE * weight).amax(2) for x, (_, weight, _) in zip(similar, sides, strict=True)]
    soft = [_soft(x / _TEMPERATURE + weight) for x, (_, weight, _) in zip(similar, sides, strict=True)]
    mean = [] if far is not None else [_to_mean(query, places, part) for places, _, part in sides]
    return torch.stack([*nearest, *mean, _TEMPERATURE * (soft[0] - soft[1])], 1)


def _sides(support: Places) -> tuple[tuple[Tensor, Tensor, Tensor], ...]:
    """Of the object and of the rest: places, the logarithm of their shares (B, 1, S), the shares (B, 1, S)."""
    shares = (support.share[:, None], 1 - support.share[:, None])
    return tuple(
        (places, share.clamp(min=_LEAST).log(), share)
        for places, share in zip((support.inside, support.outside), shares, strict=True)
    )


def _soft(x: Tensor) -> Tensor:
    """The logarithm of the sum of exponentials over the last axis; written out, for the graph."""
    most = x.detach().amax(-1, keepdim=True)
    return (x - most).exp().sum(-1).log() + most.squeeze(-1)


def _to_mean(query: Tensor, places: Tensor, share: Tensor) -> Tensor:
    """(B, Q): the cosine to the mean of places."""
    mean = unit_channels((places * share).sum(2, keepdim=True))
    return (mean.transpose(1, 2) @ query).squeeze(1)


class PriorDecoder(nn.Module):
    """Similarity maps to logits in two passes: the second also sees how like what the first found each place is.

    Args:
        maps: Similarity maps to the example.
        own: Those to what was found in the query itself.
        edges: Channels of the maps at a quarter of the image's sides.
    """

    def __init__(self, maps: int, own: int, edges: int) -> None:
        super().__init__()
        self.norm = nn.BatchNorm2d(maps)
        self.first = _block(maps + 1, _WIDTH, kernel=1)
        self.first_residual = nn.ModuleList(_block(_WIDTH, _WIDTH, dilation) for dilation in (2, 4, 1))
        self.guess = nn.Conv2d(_WIDTH, 1, 1)
        self.own_norm = nn.BatchNorm2d(own)
        self.second = _block(own + _WIDTH + 1, _WIDTH, kernel=1)
        self.second_residual = nn.ModuleList(_block(_WIDTH, _WIDTH, dilation) for dilation in (4, 2, 1))
        self.edges = nn.Sequential(nn.BatchNorm2d(edges, affine=False), nn.Conv2d(edges, _EDGES, 1), nn.ReLU())
        self.last = nn.Sequential(_block(_WIDTH + _EDGES, _WIDTH // 2), nn.Conv2d(_WIDTH // 2, 2, 3, padding=1))

    def guessed(self, maps: Tensor, wanted: Tensor) -> tuple[Tensor, Tensor]:
        """The first pass.

        Args:
            maps: (B, maps, h, w) to the example.
            wanted: (B, 1, h, w): the object's share in the example.

        Returns:
            (B, 64, h, w), and the logits (B, 1, h, w) of the object.
        """
        x = F.dropout2d(self.norm(maps), _DROPPED, self.training)
        x = self.first(torch.cat([x, wanted], 1))
        for block in self.first_residual:
            x = x + block(x)
        return x, self.guess(x)

    def forward(self, x: Tensor, guess: Tensor, own: Tensor, edges: Tensor) -> Tensor:
        """The second pass: (B, 64, h, w), the guess (B, 1, h, w) as a probability, (B, own, h, w) and
        (B, edges, 2 h - 1, 2 w - 1) -> logits (B, 2, 2 h - 1, 2 w - 1).
        """
        own = F.dropout2d(self.own_norm(own), _DROPPED, self.training)
        x = x + self.second(torch.cat([own, x, guess], 1))
        for block in self.second_residual:
            x = x + block(x)
        result: Tensor = self.last(torch.cat([_like(x, edges), self.edges(edges)], 1))
        return result


class PriorNet(SupportQueryModel):
    """A frozen small backbone, similarity maps, and :class:`PriorDecoder`.

    Args:
        backbone: ``efficientnet-lite0`` or ``mobilenetv2``.
        side: Side of the square images, 32 k + 1.

    Raises:
        ModelError: A value is not one of those.
    """

    backbone: SmallNetwork

    def __init__(self, *, backbone: SmallBackbone, side: int) -> None:
        one_of(*get_args(SmallBackbone)).require("backbone", backbone)
        super().__init__(backbone, side=side, width=64, small=True)
        _, two, three, four = self.backbone.depths
        maps = _MAPS * (two + three + four) + _NEAR_MAPS * three
        self.decoder = PriorDecoder(maps, _MAPS * (three + four), self.backbone.channels[0])

    def support(self, image: Tensor, mask: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Features of support images, as :meth:`query` takes them.

        Args:
            image: (N, 3, side, side) float32, RGB, normalised as the backbone's weights ask.
            mask: (N, side, side) float32, 1 on the object, 0 elsewhere.

        Returns:
            support_l4: (N, layers * C + 1, places) float32: the maps of stage 4, unit channels, and the object's share.
            support_l3: The same of stage 3; before the share what the places of stage 2 show of the object and of the
                rest, by places of stage 3.
            support_l2: (N, 1, places): the object's share at stage 2.

        Raises:
            InputError: A shape is another one.
        """
        self.check_image(image)
        _, *stages = self._features(image)
        return self._placed(stages, mask)

    def query(self, image: Tensor, support_l4: Tensor, support_l3: Tensor, support_l2: Tensor) -> Tensor:
        """Logits of every image with every shot.

        Args:
            image: (N, 3, side, side) float32, as for :meth:`support`.
            support_l4, support_l3, support_l2: What :meth:`support` gave for K shots.

        Returns:
            (N, K, 2, h, w) float32 logits at a quarter of the side: background, object.

        Raises:
            InputError: A shape is another one.
        """
        self.check_image(image)
        supports = (support_l4, support_l3, support_l2)
        self.check_supports(supports, self.support_shapes())
        images, shots = image.shape[0], support_l4.shape[0]
        of_query = [[to_pairs(x, shots=shots) for x in maps] for maps in self._features(image)]
        logits, _ = self._logits(of_query, [to_pairs(x, queries=images) for x in supports])
        return logits.reshape(images, shots, *logits.shape[1:])

    def forward(self, query_image: Tensor, support_image: Tensor, support_mask: Tensor) -> tuple[Tensor, Tensor]:
        """For training: row i of the queries with row i of the supports.

        Args:
            query_image: (B, 3, side, side) float32, as for :meth:`support`.
            support_image: (B, 3, side, side) float32, as for :meth:`support`.
            support_mask: (B, side, side) float32.

        Returns:
            (B, 2, h, w) float32 logits at a quarter of the side: background, object; and those of the first pass, at an
            eighth.

        Raises:
            InputError: A shape is another one.
        """
        self.check_rows(query_image, support_image)
        self.check_image(query_image)
        self.check_image(support_image)
        with torch.no_grad():
            features = self._features(torch.cat([query_image, support_image]))
            rows = len(query_image)
            supports = self._placed([[x[rows:] for x in maps] for maps in features[1:]], support_mask)
        logits, guess = self._logits([[x[:rows] for x in maps] for maps in features], supports)
        return logits, torch.cat([-guess / 2, guess / 2], 1)

    def support_shapes(self) -> list[tuple[str, tuple[int, ...]]]:
        """Names and shapes of the outputs of :meth:`support`, without the first axis."""
        return _support_shapes(self.side, self.backbone.depths, self.backbone.channels)

    def _features(self, image: Tensor) -> list[list[Tensor]]:
        """The last map of stage 1, and all of stages 2, 3 and 4, those with unit channels."""
        first, *stages = self.backbone.features(image, (1, 2, 3, 4))
        return [first[-1:], *([unit_channels(x) for x in maps] for maps in stages)]

    @staticmethod
    def _placed(stages: Sequence[Sequence[Tensor]], mask: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """What :meth:`support` gives."""
        two, three, four = stages
        fine = _mean_of_places(mask[:, None], 8)
        middle = _mean_of_places(fine, 2)
        coarse = _mean_of_places(middle, 2)
        parts = [part for x in two for part in _parts(x, fine, middle)]
        return (
            torch.cat([*four, coarse], 1).flatten(2),
            torch.cat([*three, *parts, middle], 1).flatten(2),
            fine.flatten(2),
        )

    def _logits(self, of_query: Sequence[Sequence[Tensor]], supports: Sequence[Tensor]) -> tuple[Tensor, Tensor]:
        """(B, 2, h, w) of rows of queries with rows of supports, and what the first pass found, (B, 1, h', w')."""
        (edges,), two, three, four = of_query
        support_l4, support_l3, support_l2 = supports
        size = (two[0].shape[2], two[0].shape[3])
        maps, start = [], len(three) * three[0].shape[1]
        parts = torch.split(support_l3[:, start:-1], two[0].shape[1], 1)
        share3, share4 = support_l3[:, -1], support_l4[:, -1]
        for number, x in enumerate(two):
            maps.append(_mapped(x, Places(parts[2 * number], parts[2 * number + 1], share3)))
        far = _far(three[0].shape[2], three[0].device)
        for stage, given, share in ((three, support_l3[:, :start], share3), (four, support_l4[:, :-1], share4)):
            for x, places in zip(stage, torch.split(given, stage[0].shape[1], 1), strict=True):
                maps.append(resize(_mapped(x, Places(places, places, share)), size))
                if stage is three:
                    maps.append(resize(_mapped(x, Places(places, places, share), far), size))
        x, guess = self.decoder.guessed(torch.cat(maps, 1), support_l2.reshape(-1, 1, *size))
        found = guess.sigmoid().detach()
        middle = _mean_of_places(found, 2)
        own = [
            resize(_mapped(x, Places(x.flatten(2), x.flatten(2), share.flatten(1))), size)
            for stage, share in ((three, middle), (four, _mean_of_places(middle, 2)))
            for x in stage
        ]
        return self.decoder(x, found, torch.cat(own, 1), edges), guess


def _mapped(x: Tensor, places: Places, far: Tensor | None = None) -> Tensor:
    """The maps (B, ., h, w) of (B, C, h, w), unit channels."""
    maps = similarity_maps(x.flatten(2), places, far)
    return maps.reshape(-1, maps.shape[1], *x.shape[2:])


def _far(side: int, device: torch.device | None = None) -> Tensor:
    """(places, places) of a square map, 0 and below: what lies elsewhere in its image is less alike."""
    places = torch.linspace(0, 1, side, device=device)
    apart = (places[:, None] - places).square()  # of rows, and of columns
    squares = (apart[:, None, :, None] + apart[None, :, None, :]).flatten(2).flatten(0, 1)
    return -_FAR * (squares / (2 * _NEAR**2)).clamp(max=4)


def _parts(x: Tensor, mask: Tensor, share: Tensor) -> tuple[Tensor, Tensor]:
    """Means over the object's part of each two by two places and over the rest, unit channels."""
    inside = _mean_of_places(x * mask, 2) / (share + _EMPTY)
    outside = _mean_of_places(x * (1 - mask), 2) / (1 - share + _EMPTY)
    return unit_channels(inside), unit_channels(outside)


def _mean_of_places(x: Tensor, step: int) -> Tensor:
    """(B, C, h, w) -> means around each ``step``-th place, those at the border of what there is."""
    return F.avg_pool2d(x, step, step, step // 2, count_include_pad=False)


def _like(x: Tensor, other: Tensor) -> Tensor:
    return resize(x, (other.shape[2], other.shape[3]))


def _block(inputs: int, outputs: int, dilation: int = 1, *, kernel: int = 3) -> nn.Sequential:
    padding = dilation * (kernel // 2)
    convolution = nn.Conv2d(inputs, outputs, kernel, padding=padding, dilation=dilation, bias=False)
    return nn.Sequential(convolution, nn.BatchNorm2d(outputs), nn.ReLU())


def prior_net(*, backbone: SmallBackbone = "efficientnet-lite0", side: int = SIDE) -> PriorNet:
    """Prior-Net; see :class:`PriorNet` for the options."""
    return PriorNet(backbone=backbone, side=side)


def _support_shapes(side: int, depths: Sequence[int], channels: Sequence[int]) -> list[tuple[str, tuple[int, ...]]]:
    places = {stage: map_side(side, stage) ** 2 for stage in (2, 3, 4)}
    _, two, three, four = (depth * count for depth, count in zip(depths, channels, strict=True))
    return [
        ("support_l4", (four + 1, places[4])),
        ("support_l3", (three + 2 * two + 1, places[3])),
        ("support_l2", (1, places[2])),
    ]


def _deploy(module: nn.Module) -> Deployment:
    """The deployment of a Prior-Net that was built with any options."""
    if not isinstance(module, PriorNet):
        raise ModelError(f"a {type(module).__name__} is no Prior-Net")
    return deployment(
        side=module.side,
        support=module.support_shapes(),
        logits_side=map_side(module.side, 1),
        max_batch=_MAX_BATCH,
        small=module.backbone,
    )


DEPLOYMENT = deployment(
    side=SIDE,
    support=_support_shapes(SIDE, EfficientNetLite0Backbone.depths, EfficientNetLite0Backbone.channels),
    logits_side=map_side(SIDE, 1),
    max_batch=_MAX_BATCH,
    small=EfficientNetLite0Backbone(),
)

# Chosen on pants, sweater and the categories of COCO-20i's fold 2, of ``benchmarks.general_masks``.
SMALL = FewShotSegmentationRecipe(
    epochs=30,
    steps_per_epoch=40,
    optimizer="adamw",
    learning_rate=2e-3,
    weight_decay=2e-2,
    decay_vectors=False,
    schedule="cosine",
    warm_up_epochs=1,
    clip_norm=5.0,
    batch=12,
    photometric=0.2,
    flip=True,
    dice_weight=1.0,
    class_power=0.5,
    learn_ignored=False,
    test_episodes=400,
    test_shots=(1,),
)

ENTRIES = (
    ModelEntry(
        "prior-net",
        prior_net,
        DEPLOYMENT,
        "none: similarities as of SG-One (2018), PANet (ICCV 2019) and PFENet (TPAMI 2020), decoded by our own network",
        "Apache-2.0",
        2_609_861,
        weights="prior-net.safetensors",
        deploy=_deploy,
        precisions=PRECISIONS,
        recipes={"small": SMALL},
    ),
)
