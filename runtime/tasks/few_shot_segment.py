"""Few-shot segmentation: enrol images with the masks of an object, find that object in other images.

Two graphs. ``support`` makes of an image and its mask all that the network needs of them, once, when they are
enrolled. ``query`` takes an image and the support tensors of all shots, which stay resident: a frame pays neither for
masking nor for the support images' backbone, and the query's backbone runs once however many shots there are.

Several shots of a label vote (Min, Kang, Cho, "Hypercorrelation Squeeze for Few-Shot Segmentation", ICCV 2021,
section 4.4).
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import cv2
import numpy as np
import numpy.typing as npt

from runtime.bundle.manifest import Decisions
from runtime.bundle.spec import TensorSpec
from runtime.common.arrays import Array
from runtime.enrolment.quality import (
    EnrolmentReport,
    Finding,
    inspect,
    no_direction,
    object_crop,
    repeated_pictures,
    report_on,
    thumbnails,
)
from runtime.enrolment.quality_bounds import FEW_SHOT_SEGMENT
from runtime.errors import EnrolmentError, InputError, SchemaError
from runtime.gallery.support import Supports, SupportSets
from runtime.images.decode import Image
from runtime.images.masks import Mask
from runtime.images.resize import resize_aligned, rows_aligned, widened
from runtime.parity.compare import mask_agreement
from runtime.results import Segmentation
from runtime.sessions.session import Resident
from runtime.tasks import Context, Result, Task, TaskTraits
from runtime.tasks._maps import probability_of, segmentation_of, size_of, stretched, strips
from runtime.tasks._timing import StageTimer

_LOGITS = "query/logits"

TRAITS = TaskTraits(Segmentation, enrolment="images and masks")


@dataclass(frozen=True, slots=True)
class FewShotSegmentationSettings:
    """This task has no settings: a pixel belongs to the object where its object logit is the greater one."""


def open_task(context: Context) -> Task:
    return FewShotSegmentation(context)


def settings_from(postprocess: Mapping[str, Any]) -> FewShotSegmentationSettings:
    return FewShotSegmentationSettings()


def agreement(reference: Mapping[str, Array], actual: Mapping[str, Array]) -> Decisions | None:
    """Mask IoU of the query graph's logits, (N, K, 2, h, w)."""
    return mask_agreement(reference[_LOGITS], actual[_LOGITS]) if _LOGITS in actual else None


class FewShotSegmentation:
    """Graphs ``support`` (image, mask -> support tensors) and ``query`` (image, support tensors -> logits)."""

    open_set = None
    """There is no score between labels."""

    def __init__(self, context: Context) -> None:
        deployment = context.deployment
        support, query = deployment.graph("support"), deployment.graph("query")
        stretched(deployment.preprocess)
        image = deployment.preprocess.input
        mask = TensorSpec("mask", "float32", ("N", *image.shape[2:]))
        resident = tuple(replace(tensor, shape=("K", *tensor.shape[1:])) for tensor in support.outputs)
        logits = query.outputs[0]
        if (
            support.inputs != (image, mask)
            or query.inputs != (image, *resident)
            or any(isinstance(size, str) for tensor in resident for size in tensor.shape[1:])
            or len(query.outputs) != 1
            or logits.name != "logits"
            or logits.shape[:3] != ("N", "K", 2)
            or len(logits.shape) != 5
        ):
            raise SchemaError(
                "few-shot segmentation needs a graph 'support' from 'image' and 'mask' to tensors (N, ...), and a "
                "graph 'query' from 'image' and those tensors as (K, ...) to 'logits' (N, K, 2, h, w); the bundle has "
                f"{support} and {query}"
            )
        self.gallery = SupportSets(support.outputs)
        self._support, self._query = context.sessions["support"], context.sessions["query"]
        self._preprocess = context.preprocess
        self._limit = deployment.max_batch
        self._prepared: tuple[Supports, list[Resident]] | None = None

    def enroll(
        self, label: str, images: Sequence[Image], masks: Sequence[Mask] | None, *, names: Sequence[str], strict: bool
    ) -> EnrolmentReport:
        if masks is None:
            raise InputError(
                "few-shot segmentation learns an object from images and masks; give one mask for each image: "
                "predictor.enroll('label', images, masks=masks)"
            )
        rows = [self._support_row(image, mask) for image, mask in zip(images, masks, strict=True)]
        findings = self._findings(label, images, masks, rows, names)
        report = report_on(label, names, findings, strict=strict)
        enrolled = [row for row, item in zip(rows, report.judgements, strict=True) if item.enrolled and row is not None]
        self.gallery.add(label, np.concatenate(enrolled))
        return report

    def _support_row(self, image: Image, mask: Mask) -> Array | None:
        """(1, D) float32, the support tensors one after the other; None when the model sees nothing of the mask."""
        size = self._preprocess.spec
        seen = cv2.resize(mask.astype(np.float32), (size.width, size.height), interpolation=cv2.INTER_NEAREST)
        if not seen.any():
            return None
        tensors = self._support.run({"image": self._preprocess([image]), "mask": seen[None]})
        return np.concatenate([tensor.reshape(1, -1) for tensor in tensors.values()], axis=1)

    def _findings(
        self,
        label: str,
        images: Sequence[Image],
        masks: Sequence[Mask],
        rows: Sequence[Array | None],
        names: Sequence[str],
    ) -> list[list[Finding]]:
        """The findings for each image, from the pixels of its object."""
        size = self._preprocess.spec
        known = self.gallery.state.rows.get(label, ())
        objects = [object_crop(image, mask)[0] for image, mask in zip(images, masks, strict=True)]
        pictures = repeated_pictures(thumbnails(objects), names, FEW_SHOT_SEGMENT)
        findings = []
        for image, mask, row, picture in zip(images, masks, rows, pictures, strict=True):
            if row is None:
                detail = (
                    "the mask marks so little that nothing is left of it at the model's "
                    f"{size.height} x {size.width}; crop the image around the object"
                )
                findings.append([Finding("unusable", "refuse", 0.0, 1.0, detail)])
                continue
            if not np.isfinite(row).all():
                findings.append([no_direction()])
                continue
            item = inspect(image, size, FEW_SHOT_SEGMENT, mask)
            # Support features have no scale that near-duplicates could be told by; equal ones are the same picture.
            if any(np.array_equal(row[0], other) for other in known):
                detail = f"the same picture and mask as one enrolled as {label!r}: it adds nothing"
                picture = [Finding("duplicate", "warn", 1.0, FEW_SHOT_SEGMENT.max_picture_correlation, detail)]
            findings.append(item + picture)
        return findings

    def embed(self, images: Sequence[Image]) -> Array:
        raise InputError("few-shot segmentation compares maps, not embeddings; there is nothing to embed")

    scored_rows = embed

    def predict(self, images: Sequence[Image], *, top_k: int) -> list[Result]:
        supports = self.gallery.state
        if not supports.rows:
            raise EnrolmentError(
                "no object is enrolled; enrol at least one: predictor.enroll('label', images, masks=masks)"
            )
        residents = self._residents(supports)
        # The correlations of every image with every shot stand in memory at once: that product is what is limited.
        rows = self._limit // min(sum(supports.shots), self._limit)
        return [
            result
            for start in range(0, len(images), rows)
            for result in self._predict(images[start : start + rows], supports, residents)
        ]

    def _predict(self, images: Sequence[Image], supports: Supports, residents: Sequence[Resident]) -> list[Result]:
        timer = StageTimer()
        tensor = self._preprocess(images)
        timer.end("preprocess")
        logits = np.concatenate([self._query.run({"image": tensor}, part)["logits"] for part in residents], axis=1)
        timer.end("inference")
        results = [self._segment(shots, size_of(image), supports) for shots, image in zip(logits, images, strict=True)]
        timer.end("postprocess")
        speed_ms = timer.speed_ms(len(images))
        return [replace(result, speed_ms=speed_ms) for result in results]

    def _segment(self, shots: Array, size: tuple[int, int], supports: Supports) -> Segmentation:
        """The result of one image from the logits of its shots, (K, 2, h, w)."""
        wide = widened(shots[:, 1] - shots[:, 0], size[1])
        ends = np.cumsum(supports.shots)[:-1]
        parts = strips(size, len(shots))

        def margins(rows: slice) -> list[npt.NDArray[np.float32]]:
            """The margins of each label's shots, (K, rows, W)."""
            return np.split(rows_aligned(wide, size[0], rows), ends)

        once = margins(parts[0]) if len(parts) == 1 else None
        most = [1] * len(supports.shots)
        if max(supports.shots) > 1:  # only what is seen of all of the image says how many votes are many
            for rows in parts:
                for label, label_margins in enumerate(once or margins(rows)):
                    most[label] = max(most[label], int((label_margins > 0).sum(axis=0).max()))

        def segmented() -> Iterator[tuple[slice, list[npt.NDArray[np.bool_]], list[npt.NDArray[np.float32]]]]:
            for rows in parts:
                masks, probabilities = [], []
                for label, label_margins in enumerate(once or margins(rows)):
                    masks.append(2 * (label_margins > 0).sum(axis=0) >= most[label])
                    probabilities.append(_mean_probability(label_margins))
                yield rows, masks, probabilities

        return segmentation_of(size, tuple(supports.rows), segmented())

    def _residents(self, supports: Supports) -> list[Resident]:
        """The shots as resident inputs, checked once; more of them than may run at once are several."""
        known = self._prepared
        if known is not None and known[0] is supports:
            return known[1]
        total = sum(supports.shots)
        tensors = [
            self._query.prepare({name: array[start : start + self._limit] for name, array in supports.inputs.items()})
            for start in range(0, total, self._limit)
        ]
        self._prepared = (supports, tensors)
        return tensors


def _mean_probability(margins: npt.NDArray[np.float32]) -> npt.NDArray[np.float32]:
    """(K, H, W) -> (H, W)."""
    total = probability_of(margins[0])
    for margin in margins[1:]:
        total += probability_of(margin)
    return np.asarray(total / np.float32(len(margins)), np.float32)


def aggregate_votes(logits: Array, size: tuple[int, int] | None = None) -> npt.NDArray[np.bool_]:
    """The mask of one object by the votes of all its shots.

    Each shot votes for a pixel where its object logit is the greater one. One shot decides alone. Of several, those
    pixels are taken that at least half as many shots vote for as for the pixel with the most votes in that image: the
    divisor is the largest vote, not the number of shots. An image without a vote stays empty.

    Source: Min et al., ICCV 2021, section 4.4, as its published code divides.

    Args:
        logits: (K, B, 2, h, w) floating point: shots, images, background and object.
        size: (H, W) to resize each shot's logits to before they vote (bilinear, corners aligned); None leaves them.

    Returns:
        (B, H, W) bool.

    Raises:
        InputError: Another shape, no shot, or a size that is not positive.
    """
    if logits.ndim != 5 or logits.shape[2] != 2 or 0 in logits.shape:
        raise InputError(f"logits are {logits.shape}; allowed: (K, B, 2, h, w) with at least one of each")
    # Interpolation is linear, so the sign of the difference is that of the resized logits' difference.
    margin = logits[:, :, 1] - logits[:, :, 0]
    if size is not None:
        if len(size) != 2 or min(size) < 1:
            raise InputError(f"size is {size}; allowed: (H, W), both at least 1")
        margin = resize_aligned(margin, (size[0], size[1]))
    return _vote(margin > 0)


def _vote(ballots: npt.NDArray[np.bool_]) -> npt.NDArray[np.bool_]:
    """(K, B, H, W) -> (B, H, W)."""
    if len(ballots) == 1:
        return np.asarray(ballots[0])
    votes = ballots.sum(axis=0)
    most = np.maximum(votes.max(axis=(1, 2), keepdims=True), 1)
    return np.asarray(2 * votes >= most)
