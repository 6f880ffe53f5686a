"""The results of ``Predictor.predict``: frozen data that can be drawn, printed and sent on."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, NamedTuple, Protocol, TypeVar, overload

import cv2
import numpy as np
import numpy.typing as npt

from runtime.common.json_data import to_json
from runtime.errors import InputError, UnknownLabelError
from runtime.images.decode import Image, as_image
from runtime.images.draw import annotated, color_of, draw_tag, drawable, strips, tag_height, tag_scale, tint
from runtime.interop.supervision import supervision_detections

SomeDetections = TypeVar("SomeDetections", bound="Detections")


class Result(Protocol):
    """The result of one image, whatever its task."""

    @property
    def speed_ms(self) -> Mapping[str, float]:
        """Milliseconds that one image took: ``preprocess``, ``inference``, ``postprocess``."""
        ...

    def to_dict(self) -> dict[str, Any]:
        """Plain data for JSON."""
        ...

    def plot(self, image: Image) -> Image:
        """A copy of ``image``, (H, W, 3) uint8 BGR, with the result drawn on it."""
        ...

    def cells(self) -> tuple[str, str]:
        """The label or labels and their scores, as text for a table's row."""
        ...


class Ranking(Result, Protocol):
    """The result of a task with scores between labels."""

    def plot(self, image: Image, pictures: Mapping[str, Image] | None = None) -> Image:
        """A copy of ``image`` with the labels and their scores; ``pictures`` of the labels are drawn below it."""
        ...

    @property
    def label(self) -> str | None:
        """The best label; None below the open-set threshold."""
        ...

    @property
    def ranking(self) -> tuple[Match, ...]:
        """The best labels with their scores, best first."""
        ...


class Match(NamedTuple):
    """An enrolled label and its cosine score, -1..1."""

    label: str
    score: float


@dataclass(frozen=True, slots=True)
class Classification:
    """The enrolled class that an image shows.

    Attributes:
        label: The best class; None when its score is below the open-set threshold.
        score: The best class's cosine score, -1..1.
        labels: The best classes, best first, as many as ``top_k``.
        scores: Their scores.
        speed_ms: Milliseconds that one image took: ``preprocess``, ``inference``, ``postprocess``.
    """

    label: str | None
    score: float
    labels: tuple[str, ...]
    scores: tuple[float, ...]
    speed_ms: Mapping[str, float] = field(default_factory=dict, compare=False)

    def to_dict(self) -> dict[str, Any]:
        """Plain data for JSON."""
        return dict(to_json(self))

    def plot(self, image: Image, pictures: Mapping[str, Image] | None = None) -> Image:
        """A copy of ``image`` with the classes and their scores; see :func:`runtime.images.draw.annotated`."""
        return annotated(image, self.label, self.ranking, pictures)

    def cells(self) -> tuple[str, str]:
        """The label, and its cosine score."""
        return self.label or "unknown", f"{self.score:.3f}"

    @property
    def ranking(self) -> tuple[Match, ...]:
        """The best classes with their scores, best first."""
        return tuple(map(Match, self.labels, self.scores))


@dataclass(frozen=True, slots=True)
class Identification:
    """The enrolled person that an image shows.

    Attributes:
        label: The best match; None when unknown: the gallery is empty or the score is below the open-set threshold.
        score: The best match's cosine score, -1..1; 0 when the gallery is empty.
        matches: The best matches, best first, as many as ``top_k``, whether above the threshold or not.
        speed_ms: Milliseconds that one image took: ``preprocess``, ``inference``, ``postprocess``.
    """

    label: str | None
    score: float
    matches: tuple[Match, ...]
    speed_ms: Mapping[str, float] = field(default_factory=dict, compare=False)

    def to_dict(self) -> dict[str, Any]:
        """Plain data for JSON."""
        matches = [match._asdict() for match in self.matches]
        return {"label": self.label, "score": self.score, "matches": matches, "speed_ms": dict(self.speed_ms)}

    def plot(self, image: Image, pictures: Mapping[str, Image] | None = None) -> Image:
        """A copy of ``image`` with the matches and their scores; see :func:`runtime.images.draw.annotated`."""
        return annotated(image, self.label, self.matches, pictures)

    def cells(self) -> tuple[str, str]:
        """The label, and its cosine score."""
        return self.label or "unknown", f"{self.score:.3f}"

    @property
    def ranking(self) -> tuple[Match, ...]:
        """The same as ``matches``."""
        return self.matches


@dataclass(frozen=True, slots=True, eq=False)
class Segmentation:
    """The label of each pixel of an image.

    Attributes:
        mask: (H, W) bool at the image's own size: where anything was found.
        probability: (H, W) float32, 0..1, of the most probable label besides the background.
        labels: The labels that the model can find, in the order of ``label_map``.
        label_map: (H, W) int16, each pixel's index into ``labels``; -1 is background.
        speed_ms: Milliseconds that one image took: ``preprocess``, ``inference``, ``postprocess``.
    """

    mask: npt.NDArray[np.bool_]
    probability: npt.NDArray[np.float32]
    labels: tuple[str, ...]
    label_map: npt.NDArray[np.int16]
    speed_ms: Mapping[str, float] = field(default_factory=dict)

    def to_supervision(self) -> Any:
        """``supervision.Detections`` with a box, a mask and the mean probability of each label that was found.

        Raises:
            MissingDependencyError: supervision is not installed.
        """
        found = [(index, self._summary(index)) for index, share in enumerate(self.shares) if share > 0]
        indices = np.array([index for index, _ in found], np.int64)
        return supervision_detections(
            np.array([box for _, (_, box) in found], np.float32),
            np.array([probability for _, (probability, _) in found], np.float32),
            [self.labels[index] for index in indices],
            indices,
            self.label_map[None] == indices[:, None, None],
        )

    def mask_of(self, label: str) -> npt.NDArray[np.bool_]:
        """(H, W) bool: the pixels of a label; UnknownLabelError when the model does not know it."""
        if label not in self.labels:
            raise UnknownLabelError(f"no label {label!r}; known: {', '.join(self.labels)}")
        return np.asarray(self.label_map == self.labels.index(label))

    @property
    def shares(self) -> tuple[float, ...]:
        """The share of the image's pixels that each label covers, 0..1."""
        counts = np.zeros(len(self.labels), np.int64)
        for rows in strips(self.mask.shape):
            counts += np.bincount(self.label_map[rows][self.mask[rows]], minlength=len(self.labels))
        return tuple(float(count) / max(self.mask.size, 1) for count in counts)

    def to_dict(self) -> dict[str, Any]:
        """Plain data for JSON: share, mean probability and box of each label that was found; no pixels."""
        summaries = []
        for index, (label, share) in enumerate(zip(self.labels, self.shares, strict=True)):
            if share > 0:
                probability, box = self._summary(index)
                summaries.append({"label": label, "share": share, "probability": probability, "box_xyxy": box})
        height, width = self.mask.shape
        return {
            "labels": list(self.labels),
            "height": height,
            "width": width,
            "found": summaries,
            "speed_ms": dict(self.speed_ms),
        }

    def cells(self) -> tuple[str, str]:
        """The labels that were found, and the share of the image that each covers."""
        shares = [(label, share) for label, share in zip(self.labels, self.shares, strict=True) if share > 0]
        return ", ".join(label for label, _ in shares) or "nothing", ", ".join(
            f"{share:.1%}" for _, share in shares
        ) or "–"

    def _summary(self, index: int) -> tuple[float, list[int]]:
        """The mean probability of a label, and its box x0, y0, x1, y1, the last two exclusive."""
        total, count, first_row, last_row = 0.0, 0, -1, -1
        columns = np.zeros(self.mask.shape[1], np.bool_)
        for rows in strips(self.mask.shape):
            area = self.label_map[rows] == index
            within = np.flatnonzero(area.any(axis=1))
            if len(within) == 0:
                continue
            values = self.probability[rows][area]
            total, count = total + float(values.sum(dtype=np.float64)), count + len(values)
            columns |= area.any(axis=0)
            first_row = rows.start + int(within[0]) if first_row < 0 else first_row
            last_row = rows.start + int(within[-1])
        across = np.flatnonzero(columns)
        return total / count, [int(across[0]), first_row, int(across[-1]) + 1, last_row + 1]

    def plot(self, image: Image) -> Image:
        """A copy of ``image`` with each label's pixels tinted and outlined in its colour, and the labels written.

        Raises:
            InputError: The image is not of the mask's size.
        """
        if image.shape[:2] != self.mask.shape:
            raise InputError(f"the image is {image.shape[:2]}, the mask {self.mask.shape}; give the image predicted on")
        picture = drawable(image)
        scale = tag_scale(picture)
        thickness = max(1, min(picture.shape[:2]) // 200)
        y = thickness
        for index, (label, share) in enumerate(zip(self.labels, self.shares, strict=True)):
            color = color_of(label)
            if share > 0:
                area = np.empty(self.mask.shape, np.uint8)
                for rows in strips(self.mask.shape):
                    np.equal(self.label_map[rows], index, out=area[rows], casting="unsafe")
                    seen = area[rows].view(np.bool_)
                    tint(picture[rows], seen, color)
                # Only corners: of straight runs the points between would take more memory than the picture.
                outline, _ = cv2.findContours(area, cv2.RETR_CCOMP, cv2.CHAIN_APPROX_SIMPLE)
                cv2.drawContours(picture, outline, -1, color, thickness)
            y += draw_tag(picture, f"{label} {share:.0%}", (thickness, y), color, scale)
        return picture


class Detection(NamedTuple):
    """One object of an image.

    Attributes:
        box_xyxy: x0, y0, x1, y1 in the image's pixels.
        score: The detector's score, 0..1.
        label: The class's name.
        class_id: The class's place among the model's labels.
    """

    box_xyxy: tuple[float, float, float, float]
    score: float
    label: str
    class_id: int


@dataclass(frozen=True, slots=True, eq=False)
class Detections:
    """The objects in an image, the best score first; there may be none.

    ``len`` is their number; an int index gives a :class:`Detection`, a slice, an array of indices or a mask (N,) bool
    gives the :class:`Detections` that it chooses.

    Attributes:
        boxes_xyxy: (N, 4) float32: x0, y0, x1, y1 in the image's own pixels, inside the image.
        scores: (N,) float32, 0..1, descending.
        labels: The class's name of each.
        class_ids: (N,) int64: each class's place among the model's labels.
        speed_ms: Milliseconds that one image took: ``preprocess``, ``inference``, ``postprocess``.
    """

    boxes_xyxy: npt.NDArray[np.float32]
    scores: npt.NDArray[np.float32]
    labels: tuple[str, ...]
    class_ids: npt.NDArray[np.int64]
    speed_ms: Mapping[str, float] = field(default_factory=dict)

    def __len__(self) -> int:
        return len(self.scores)

    def __iter__(self) -> Iterator[Detection]:
        rows = zip(self.boxes_xyxy.tolist(), self.scores.tolist(), self.labels, self.class_ids.tolist(), strict=True)
        return (Detection(tuple(box), score, label, class_id) for box, score, label, class_id in rows)

    @overload
    def __getitem__(self, index: int) -> Detection: ...

    @overload
    def __getitem__(self, index: slice | Sequence[int] | Sequence[bool] | npt.NDArray[Any]) -> Detections: ...

    def __getitem__(
        self, index: int | slice | Sequence[int] | Sequence[bool] | npt.NDArray[Any]
    ) -> Detection | Detections:
        if isinstance(index, (int, np.integer)):
            return next(iter(self[[range(len(self))[index]]]))
        return self._chosen(np.arange(len(self))[index if isinstance(index, slice) else _index_array(index)])

    def _chosen(self: SomeDetections, places: npt.NDArray[np.int64]) -> SomeDetections:
        """Those at some places."""
        return replace(
            self,
            boxes_xyxy=self.boxes_xyxy[places],
            scores=self.scores[places],
            labels=tuple(self.labels[place] for place in places),
            class_ids=self.class_ids[places],
        )

    def to_dict(self) -> dict[str, Any]:
        """Plain data for JSON: a list of the objects, each with label, class, score and box."""
        return {"detections": [detection._asdict() for detection in self], "speed_ms": dict(self.speed_ms)}

    def to_supervision(self) -> Any:
        """``supervision.Detections`` with the same boxes; the labels are its ``data["class_name"]``.

        Raises:
            MissingDependencyError: supervision is not installed.
        """
        return supervision_detections(self.boxes_xyxy, self.scores, self.labels, self.class_ids)

    def cells(self) -> tuple[str, str]:
        """How many there are of each label, and the highest and the lowest score."""
        counts = Counter(self.labels)
        if not counts:
            return "nothing", "–"
        first, last = float(self.scores[0]), float(self.scores[-1])
        scores = f"{first:.2f}" if len(self) == 1 else f"{first:.2f} to {last:.2f}"
        return ", ".join(f"{count} {label}" for label, count in counts.most_common()), scores

    def plot(self, image: Image) -> Image:
        """A copy of ``image`` with each box, its label and its score in the label's colour, the best on top."""
        picture = drawable(image)
        self._draw_boxes(picture)
        return picture

    def _draw_boxes(self, picture: Image) -> None:
        """Draw on the picture itself."""
        scale = tag_scale(picture)
        thickness = max(1, min(picture.shape[:2]) // 200)
        for detection in reversed(list(self)):
            left, top, right, bottom = (round(edge) for edge in detection.box_xyxy)
            color = color_of(detection.label)
            cv2.rectangle(picture, (left, top), (max(right - 1, left), max(bottom - 1, top)), color, thickness)
            text = f"{detection.label} {detection.score:.2f}"
            above = top - tag_height(text, scale)
            draw_tag(picture, text, (left, above if above >= 0 else top), color, scale)

    def crops(self, image: Image, margin: float = 0.0) -> list[Image]:
        """What the boxes show, each a copy of (h, w, 3) uint8 BGR with at least one pixel.

        Args:
            image: The image that was predicted on.
            margin: What is added on each side, as a share of the box's own width and height, inside the image.

        Raises:
            InputError: The margin is negative or no number, a box begins beyond the image, or it is no image.
        """
        image = as_image(image)
        if not 0 <= margin < np.inf:
            raise InputError(f"margin is {margin!r}; allowed: a share of the box from 0")
        rows, columns = image.shape[:2]
        boxes = self.boxes_xyxy.astype(np.float64)
        if ((boxes[:, :2] >= (columns, rows)) | (boxes[:, 2:] <= 0)).any():
            raise InputError(f"a box lies beyond the image, which is {(rows, columns)}; give the image predicted on")
        wider = margin * np.tile(boxes[:, 2:] - boxes[:, :2], 2) * (-1, -1, 1, 1)
        edges = np.clip(boxes + wider, 0, (columns, rows, columns, rows))
        places = np.concatenate([np.floor(edges[:, :2]), np.ceil(edges[:, 2:])], axis=1).astype(int).tolist()
        return [
            np.array(image[top : max(bottom, top + 1), left : max(right, left + 1)], np.uint8, order="C")
            for left, top, right, bottom in places
        ]


def _index_array(index: Sequence[int] | Sequence[bool] | npt.NDArray[Any]) -> npt.NDArray[Any]:
    """An array of indices or a mask; of an empty list, no index."""
    array = np.asarray(index)
    return array if array.size else array.astype(np.int64)
