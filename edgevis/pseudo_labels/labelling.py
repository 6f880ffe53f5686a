"""Labels pictures by an ensemble of teachers and writes a data set in COCO's format."""

from __future__ import annotations

import json
import os
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from edgevis.pseudo_labels.pictures import PictureSource, UnlabelledPicture, pictures_of
from edgevis.pseudo_labels.teachers import TeacherEnsemble
from runtime.common.files import atomic_write
from runtime.common.json_data import parse_json
from runtime.errors import InputError, SchemaError

ANNOTATIONS = "annotations.json"
HELD_OUT = {"train": "annotations/instances_train.json", "val": "annotations/instances_val.json"}
"""What is written instead of :data:`ANNOTATIONS` where a part is held out."""
IMAGES = "images"
JOURNAL = "labels.jsonl"
"""One line for each picture that is done, after a first one with the request: what a resumed run goes on from."""

_DECIMALS = 2


@dataclass(frozen=True, slots=True)
class LabelRequest:
    """What is labelled, and how.

    Attributes:
        sources: In this order.
        score: A fused box with this score or a higher one is a label.
        ignore: One between this score and ``score`` is marked ``iscrowd``: neither a label nor background.
        every: Of videos, each how manieth frame is looked at.
        most: At most that many pictures of each source; None for all.
        change: By how much a video's frame must differ from the last one taken, see :func:`pictures_of`.
        hold_out: The share of each source, its last pictures, that goes into ``instances_val.json``: the last frames
            of a video, which its others do not show. 0 writes one file.
    """

    sources: tuple[PictureSource, ...]
    score: float = 0.5
    ignore: float = 0.3
    every: int = 5
    most: int | None = None
    change: float = 12.0
    hold_out: float = 0.0

    def __post_init__(self) -> None:
        if not self.sources:
            raise InputError("there is no source of pictures to label")
        if not 0 < self.ignore <= self.score < 1:
            raise InputError(
                f"labels have a score of at least {self.score}, ignored boxes one of {self.ignore}; allowed: "
                "above 0, below 1, and the second at most the first"
            )
        if self.every < 1 or (self.most is not None and self.most < 1):
            raise InputError(f"every {self.every}th frame, at most {self.most}: both are whole numbers above 0")
        if not 0 <= self.hold_out < 1:
            raise InputError(f"the share {self.hold_out} is to be held out; allowed: 0 and above, below 1")
        stems = [source.path.stem for source in self.sources]
        twice = [stem for stem, count in Counter(stems).items() if count > 1]
        if twice:
            raise InputError(f"several sources are called {twice[0]}: their pictures would take each other's names")


def label_pictures(
    request: LabelRequest,
    teachers: TeacherEnsemble,
    output: Path,
    *,
    resume: bool = False,
    progress: Callable[[str, int, int], object] | None = None,
) -> dict[str, dict[str, Any]]:
    """Label every picture; the folder then holds ``images/`` and ``annotations.json`` in COCO's format.

    With ``request.hold_out`` it holds :data:`HELD_OUT` instead.

    Each annotation has, besides COCO's fields, ``score`` and ``votes`` of the fused box; each image its ``source``.
    ``info`` names the teachers, their views and the sources. A picture without a person is in ``images`` without an
    annotation.

    Args:
        request: What is labelled, and how.
        teachers: Who labels.
        output: The folder; made where it is absent.
        resume: Go on with what an interrupted run of the same request has left there.
        progress: Called after each picture with its source, and the pictures and labels so far.

    Returns:
        The content of the annotation file of each split; ``all`` is the only one where nothing is held out.

    Raises:
        InputError: The folder holds labels already, or an interrupted run of another request.
        SourceError: A picture cannot be read.
        OSError: The disk is full. What is done stays, for ``resume``.
    """
    head = _head(request, teachers)
    journal = output / JOURNAL
    records = _done(output, head, resume)
    output.mkdir(parents=True, exist_ok=True)
    done = Counter(record["source"] for record in records)
    labels = sum(len(record["boxes"]) for record in records)
    with journal.open("ab") as file:
        if file.tell() == 0:
            _append(file, head)
        for source in request.sources:
            pictures = pictures_of(
                source, every=request.every, most=request.most, change=request.change, known=done[str(source)]
            )
            for picture in pictures:
                if picture is None:
                    continue
                record = _labelled(picture, str(source), teachers, request.ignore)
                _store(output / IMAGES / picture.name, picture.content)
                _append(file, record)
                records.append(record)
                labels += len(record["boxes"])
                if progress is not None:
                    progress(str(source), len(records), labels)
    parts = {"all": records} if not request.hold_out else _split(records, request.hold_out)
    result = {part: _coco(head, rows, request.score, teachers.classes) for part, rows in parts.items()}
    former = {ANNOTATIONS, *HELD_OUT.values()} - {HELD_OUT.get(part, ANNOTATIONS) for part in parts}
    for name in former:  # of the same labels with another share: a training would not know which to read
        (output / name).unlink(missing_ok=True)
    for part, content in result.items():
        path = output / HELD_OUT.get(part, ANNOTATIONS)
        path.parent.mkdir(exist_ok=True)
        with atomic_write(path) as target:
            target.write((json.dumps(content, ensure_ascii=False, allow_nan=False) + "\n").encode())
    return result


def _split(records: Sequence[dict[str, Any]], share: float) -> dict[str, list[dict[str, Any]]]:
    """Divides each source's pictures in their order."""
    counts = Counter(record["source"] for record in records)
    seen: Counter[str] = Counter()
    parts: dict[str, list[dict[str, Any]]] = {"train": [], "val": []}
    for record in records:
        source = record["source"]
        seen[source] += 1
        parts["val" if seen[source] > round(counts[source] * (1 - share)) else "train"].append(record)
    return parts


def _head(request: LabelRequest, teachers: TeacherEnsemble) -> dict[str, Any]:
    return {
        "description": "Boxes by detectors, not by people",
        "teachers": [teacher.name for teacher in teachers.teachers],
        "fusion": "weighted boxes fusion, arXiv:1910.13302",
        "views": {"flip": teachers.views.flip, "scales": list(teachers.views.scales), "iou": teachers.views.iou},
        "sources": [str(source) for source in request.sources],
        "classes": list(teachers.classes),
        "score": request.score,
        "ignore": request.ignore,
        "frames": {"every": request.every, "most": request.most, "change": request.change},
    }


def _done(output: Path, head: Mapping[str, Any], resume: bool) -> list[dict[str, Any]]:
    """The records of the journal; a last line that was cut short is removed from it."""
    journal = output / JOURNAL
    if not journal.exists():
        if any((output / name).exists() for name in (ANNOTATIONS, *HELD_OUT.values())):
            raise InputError(f"{output} holds annotations already; name a folder of its own for the labels")
        return []
    if not resume:
        raise InputError(f"{output} holds labels already: go on with --resume, or name another folder")
    content = journal.read_bytes()
    whole = content[: content.rfind(b"\n") + 1]
    if len(whole) != len(content):
        os.truncate(journal, len(whole))
    try:
        lines = [parse_json(line) for line in whole.splitlines()]
    except SchemaError as error:
        raise InputError(f"{journal} is damaged: {error}; remove it") from error
    if lines and lines[0] != head:
        raise InputError(f"{output} is of another request: {_difference(head, lines[0])}; name another folder")
    return lines[1:]


def _difference(head: Mapping[str, Any], former: Any) -> str:
    keys = [key for key in head if not isinstance(former, dict) or former.get(key) != head[key]]
    key = keys[0] if keys else "request"
    return f"{key} was {former.get(key) if isinstance(former, dict) else former!r}, now {head.get(key)!r}"


def _labelled(picture: UnlabelledPicture, source: str, teachers: TeacherEnsemble, ignore: float) -> dict[str, Any]:
    detections = teachers.detect(picture.image)
    rows = [
        [*(round(float(value), _DECIMALS) for value in box), int(class_id), *(round(float(value), 4) for value in rest)]
        for box, class_id, *rest in zip(
            detections.boxes_xyxy, detections.class_ids, detections.scores, detections.votes, strict=True
        )
        if rest[0] >= ignore
    ]
    height, width = picture.image.shape[:2]
    return {"source": source, "file_name": picture.name, "width": width, "height": height, "boxes": rows}


def _store(path: Path, content: bytes) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    with atomic_write(path, durable=False) as file:
        file.write(content)


def _append(file: Any, record: Mapping[str, Any]) -> None:
    file.write((json.dumps(record, ensure_ascii=False, allow_nan=False) + "\n").encode())
    file.flush()


def _coco(
    head: Mapping[str, Any], records: Sequence[Mapping[str, Any]], score: float, classes: Sequence[str]
) -> dict[str, Any]:
    images: list[dict[str, Any]] = []
    annotations: list[dict[str, Any]] = []
    for number, record in enumerate(records, 1):
        images.append({"id": number, **{key: record[key] for key in ("file_name", "width", "height", "source")}})
        for x0, y0, x1, y1, class_id, certainty, votes in record["boxes"]:
            annotations.append(
                {
                    "id": len(annotations) + 1,
                    "image_id": number,
                    "category_id": class_id + 1,
                    "bbox": [x0, y0, round(x1 - x0, _DECIMALS), round(y1 - y0, _DECIMALS)],
                    "area": round((x1 - x0) * (y1 - y0), _DECIMALS),
                    "iscrowd": int(certainty < score),
                    "score": certainty,
                    "votes": votes,
                }
            )
    categories = [{"id": number, "name": name} for number, name in enumerate(classes, 1)]
    return {"info": dict(head), "images": images, "annotations": annotations, "categories": categories}
