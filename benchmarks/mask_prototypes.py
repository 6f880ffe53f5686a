r"""Few-shot segmentation without training, beside trained weights.

    python -m benchmarks.mask_prototypes --data ccp_dev.zip --backbone efficientnet-lite0=efficientnet_lite0.safetensors
    python -m benchmarks.mask_prototypes --data coco_sample_dev.zip --fold 3 --shots 1 --in-turn 4 \
        --backbone efficientnet-lite0=efficientnet_lite0.safetensors --weights edgevis/weights/hsnet-hm.safetensors \
        --bundle bundles/prior-net.edgevis

What anyone has without a training: everything is object; the example's own mask; and the prototypes of a backbone that
was trained on ImageNet. Whatever was trained must be ahead of them. All see the same episodes of the novel classes, and
the last column is the difference in mIoU to the prototypes, with its 95 % interval over the episodes.
"""

from __future__ import annotations

import argparse
import functools
import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import cv2
import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor

from benchmarks.figure import Figure, figure_text
from benchmarks.report import report
from benchmarks.trained_weights import open_trained
from edgevis import EnrolmentError, Predictor, Segmentation, models
from edgevis.data import SegmentationEpisodes
from edgevis.data.few_shot_masks import ClassMask
from edgevis.data.few_shot_split import FewShotSplit, split_masked_classes
from edgevis.data.leakage import SplitCheck
from edgevis.data.segmentation_episodes import SegmentationEpisode
from edgevis.layers.correlation import unit_channels
from edgevis.layers.resize import resize
from edgevis.metrics import SegmentationScore
from edgevis.models.hsnet import HSNet
from edgevis.training.warm_start import load_backbone
from runtime.bundle.bundle import Bundle
from runtime.common.command import run_command
from runtime.errors import InputError
from runtime.images.preprocess import Preprocessor
from runtime.tasks.few_shot_segment import aggregate_votes
from runtime.verification.timing import each_engine

Mask = NDArray[np.bool_]
Find = Callable[[SegmentationEpisode], Mask]

PROTOTYPES = "prototypes"
# Chosen on training classes of clothing and of COCO; see docs/accuracy.md.
_SIDE = 353
_TEMPERATURE = 0.05
# What a place's share of the mask may least be, for its logarithm.
_LEAST = 1e-5
# The seed that edgevis.training draws its evaluation's episodes with, so that figures compare.
_EPISODE_SEED = 3


@dataclass(frozen=True, slots=True)
class MaskScores:
    """The overlap of one method's masks with the true ones.

    Attributes:
        method: What found the masks.
        shots: Examples per episode.
        episodes, classes: Numbers of them.
        mean_iou, fb_iou: 0 to 1, with intervals over episodes.
        difference: Of the mIoU to the prototypes'; None for themselves.
    """

    method: str
    shots: int
    episodes: int
    classes: int
    mean_iou: Figure
    fb_iou: Figure
    difference: Figure | None


class Prototypes:
    """Masks by likeness to an example, on a frozen backbone: no training.

    The margin of a place of the query, for the last map of stages 3 and 4: its cosine to the mean vector of the
    example's object less that to the mean of the rest (masked average pooling), averaged with the soft maximum of the
    cosine to single places of either (temperature 0.05; object and rest weigh the same, whatever their sizes). The sum
    over both maps and all examples is enlarged linearly and cut at 0. Size, stages, temperature and the equal parts
    were chosen on the training classes of clothing and on two folds of the sample of COCO that do not evaluate.

    Args:
        backbone: As of ``hsnet``: a small one.
        path: Its published weights.
        side: Side of the images, 32 k + 1.

    Source: Zhang, Wei, Yang, Huang, "SG-One: Similarity Guidance Network for One-Shot Semantic Segmentation", 2018, for
    masked average pooling; Wang, Liew, Zou, Zhou, Feng, "PANet", ICCV 2019, for the prototype of the background.
    """

    def __init__(self, backbone: str, path: Path, side: int = _SIDE) -> None:
        model = models.create("hsnet-hm", backbone=backbone, side=side)
        load_backbone(model, path)
        if not isinstance(model, HSNet):
            raise InputError("hsnet-hm is no HSNet")
        self.model = model.eval()
        self._preprocess = Preprocessor(models.deployment_of(models.entry("hsnet-hm"), model).preprocess)
        self._side = side
        self._maps = functools.cache(self._maps_of)

    def __call__(self, episode: SegmentationEpisode) -> Mask:
        with torch.inference_mode():
            query = self._maps(episode.query)
            margins = [self._margin(query, support) for support in episode.supports]
            margin = resize(torch.stack(margins).mean(0, keepdim=True), episode.query.mask.shape)
        found: Mask = (margin[0, 0] > 0).numpy()
        return found

    def _maps_of(self, example: ClassMask) -> list[Tensor]:
        """The last map of stages 3 and 4, unit channels, (C, h, w)."""
        pixels = torch.from_numpy(self._preprocess([example.image]))
        return [unit_channels(stage[-1])[0] for stage in self.model.backbone.features(pixels, (3, 4))]

    def _margin(self, query: Sequence[Tensor], support: ClassMask) -> Tensor:
        """How much nearer to the object than to the rest each place is, (1, h, w) of the finest map."""
        mask = cv2.resize(support.mask.astype(np.float32), (self._side,) * 2, interpolation=cv2.INTER_NEAREST)
        size = query[0].shape[1:]
        layers = [
            resize(_layer_margin(of_query, of_support, torch.from_numpy(mask))[None, None], (size[0], size[1]))[0]
            for of_query, of_support in zip(query, self._maps(support), strict=True)
        ]
        return torch.stack(layers).mean(0)


def _layer_margin(query: Tensor, support: Tensor, mask: Tensor) -> Tensor:
    """(C, h, w) twice and (H, W) -> (h, w)."""
    height, width = support.shape[1:]
    share = F.adaptive_avg_pool2d(mask[None], (height, width)).flatten().clamp(_LEAST, 1 - _LEAST)
    places, seen = query.flatten(1).T, support.flatten(1)
    weights = [part / part.sum() for part in (share, 1 - share)]
    soft = [torch.logsumexp(places @ seen / _TEMPERATURE + weight.log(), 1) for weight in weights]
    mean = [F.normalize(seen @ weight, dim=0) for weight in weights]
    margin = _TEMPERATURE * (soft[0] - soft[1]) + places @ (mean[0] - mean[1])
    return margin.reshape(query.shape[1:])


class Trained:
    """Masks of a trained model in PyTorch.

    Args:
        path: Weights that name their model and options, as all that a training of edgevis writes.
    """

    def __init__(self, path: Path) -> None:
        self.model, self._preprocess = open_trained(path)
        self._support = functools.cache(self._support_of)

    def __call__(self, episode: SegmentationEpisode) -> Mask:
        query = torch.from_numpy(self._preprocess([episode.query.image]))
        with torch.inference_mode():
            shots = [torch.cat(tensors) for tensors in zip(*map(self._support, episode.supports), strict=True)]
            logits = self.model.query(query, *shots).numpy()
        found: Mask = aggregate_votes(logits.transpose(1, 0, 2, 3, 4), episode.query.mask.shape)[0]
        return found

    def _support_of(self, example: ClassMask) -> tuple[Tensor, ...]:
        spec = self._preprocess.spec
        size = (spec.width, spec.height)
        mask = cv2.resize(example.mask.astype(np.float32), size, interpolation=cv2.INTER_NEAREST)[None]
        tensors: tuple[Tensor, ...] = self.model.support(
            torch.from_numpy(self._preprocess([example.image])), torch.from_numpy(mask)
        )
        return tensors


class Bundled:
    """Masks of one engine of a bundle, through ``Predictor``.

    Args:
        predictor: Of few-shot segmentation.
    """

    def __init__(self, predictor: Predictor) -> None:
        self._predictor = predictor

    def __call__(self, episode: SegmentationEpisode) -> Mask:
        shown = [support.image for support in episode.supports]
        masks = [support.mask for support in episode.supports]
        try:
            self._predictor.enroll("object", shown, masks=masks)
        except EnrolmentError:  # nothing of the object is left at the model's size
            return np.zeros(episode.query.mask.shape, np.bool_)
        result = self._predictor.predict(episode.query.image)
        self._predictor.forget("object")
        if not isinstance(result, Segmentation):
            raise InputError("the bundle is not of few-shot segmentation")
        return result.mask_of("object")


def everything(episode: SegmentationEpisode) -> Mask:
    """All of the query image."""
    return np.ones(episode.query.mask.shape, np.bool_)


def same_place(episode: SegmentationEpisode) -> Mask:
    """The first example's own mask, stretched to the query image."""
    height, width = episode.query.mask.shape
    first = episode.supports[0].mask.astype(np.uint8)
    return cv2.resize(first, (width, height), interpolation=cv2.INTER_NEAREST).astype(np.bool_)


def measure(
    split: FewShotSplit, methods: dict[str, Find], *, shots: Sequence[int], episodes: int, in_turn: int, seed: int
) -> Iterator[MaskScores]:
    """A row per number of shots and method; the first method is what the others are compared with.

    Args:
        split: Its ``test`` is asked for.
        methods: What finds the masks, by name.
        shots: Examples per episode.
        episodes: Drawn by class, where ``in_turn`` is 0.
        in_turn: How often each image is asked for once with each of its classes, other examples each time.
        seed: Of the split.
    """
    queries = sum(map(len, split.test.members.values()))
    read = functools.cache(split.test.read)  # an example is one object, by which the methods keep what they made of it
    for shot in shots:
        drawn = SegmentationEpisodes(
            split.test,
            shot=shot,
            episodes=in_turn * queries or episodes,
            queries="in turn" if in_turn else split.queries,
            seed=seed + _EPISODE_SEED,
        )
        scores = {name: SegmentationScore(tuple(split.test.members)) for name in methods}
        for number in range(len(drawn)):
            class_id, query, supports = drawn.draw(number)
            shown = tuple(read(position, class_id) for position in supports)
            episode = SegmentationEpisode(class_id, read(query, class_id), shown)
            for name, find in methods.items():
                scores[name].add(find(episode), episode.query.mask, episode.class_id, episode.query.ignore)
        samples = {name: score.samples() for name, score in scores.items()}
        first = next(iter(methods))
        for name, score in scores.items():
            own = samples[name]
            yield MaskScores(
                name,
                shot,
                len(drawn),
                len(score.class_iou),
                Figure.of(score.mean_iou, own["mIoU"]),
                Figure.of(score.fb_iou, own["FB-IoU"]),
                None if name == first else Figure.difference(own["mIoU"], samples[first]["mIoU"]),
            )


def main(argv: Sequence[str] | None = None) -> int:
    """Print the table; an EdgevisError becomes one line and exit status 1."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.mask_prototypes", description=__doc__)
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.add_argument("--data", metavar="PATH", type=Path, required=True, help="as of edgevis train")
    parser.add_argument("--backbone", metavar="NAME=FILE", required=True, help="of the prototypes, and its weights")
    parser.add_argument("--side", type=int, default=_SIDE, help=f"of their images, 32 k + 1 (default: {_SIDE})")
    parser.add_argument("--weights", metavar="FILE", type=Path, nargs="+", default=[], help="trained weights")
    parser.add_argument("--bundle", metavar="PATH", type=Path, nargs="+", default=[], help="all of their engines")
    parser.add_argument("--fold", type=int, help="which quarter of the classes is novel (default: drawn from the seed)")
    parser.add_argument("--shots", metavar="K", type=int, nargs="+", default=[1, 5], help="(default: 1 5)")
    parser.add_argument("--episodes", type=int, default=1000, help="(default: 1000)")
    parser.add_argument("--in-turn", type=int, default=0, help="instead: ask for each image this often")
    parser.add_argument("--split-side", type=int, default=129, help="where something of a class must be left of a mask")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--json", action="store_true", help="print JSON")
    arguments = parser.parse_args(argv)
    return report(
        lambda: list(_measured(arguments)),
        headers=("method", "shots", "mIoU", "FB-IoU", "mIoU to the prototypes"),
        cells=_cells,
        as_json=arguments.json,
        title=lambda first: f"{first.episodes} episodes of {first.classes} novel classes",
    )


def _measured(arguments: argparse.Namespace) -> Iterator[MaskScores]:
    name, equals, path = arguments.backbone.partition("=")
    if not equals:
        raise InputError(f"--backbone is {arguments.backbone!r}; allowed: NAME=FILE")
    methods: dict[str, Find] = {
        PROTOTYPES: Prototypes(name, Path(path), arguments.side),
        "everything": everything,
        "the example's mask": same_place,
        **{str(weights): Trained(weights) for weights in arguments.weights},
        **{
            f"{path.stem} {engine}": Bundled(predictor)
            for path in arguments.bundle
            for engine, predictor in each_engine(Bundle(path), threads=1)
        },
    }
    split = split_masked_classes(
        arguments.data,
        fold=arguments.fold,
        shots=max(arguments.shots),
        size=(arguments.split_side,) * 2,
        seed=arguments.seed,
        check=SplitCheck(),
    )
    yield from measure(
        split,
        methods,
        shots=arguments.shots,
        episodes=arguments.episodes,
        in_turn=arguments.in_turn,
        seed=arguments.seed,
    )


def _cells(row: MaskScores) -> tuple[str, ...]:
    return (
        row.method,
        str(row.shots),
        figure_text(row.mean_iou),
        figure_text(row.fb_iou),
        figure_text(row.difference, sign="+"),
    )


if __name__ == "__main__":
    sys.exit(run_command(main))
