"""Prints detections as CSV, COCO JSON or MOT-challenge text, for ``edgevis predict --format``."""

from __future__ import annotations

import argparse
import csv
import sys
from collections.abc import Mapping, Sequence
from types import MappingProxyType, TracebackType
from typing import Any

from edgevis import Detection, InputError, Instance
from edgevis.cli._common import json_text
from edgevis.cli._results import Entry, Results, ResultsBase
from runtime.common.console import report
from runtime.interop.coco import CocoIds, coco_dataset, coco_results, read_coco_ids
from runtime.interop.mot import mot_lines

COLUMNS = ("image", "label", "class_id", "score", "x0", "y0", "x1", "y1")


class _Csv(ResultsBase):
    """One row for each object, with a header."""

    def __init__(self) -> None:
        self._writer = csv.writer(sys.stdout, lineterminator="\n")

    def __enter__(self) -> Results:
        self._writer.writerow(COLUMNS)
        return self

    def add(self, entry: Entry, cells: Sequence[str], size: tuple[int, int]) -> None:
        for item in _found(entry):
            box = [f"{edge:.2f}" for edge in item.box_xyxy]
            self._writer.writerow([_name(entry), item.label, item.class_id, f"{item.score:.6f}", *box])
        sys.stdout.flush()


class _Mot(ResultsBase):
    """One line for each object; images count as frames, in their order."""

    def __init__(self) -> None:
        self._frames = 0

    def add(self, entry: Entry, cells: Sequence[str], size: tuple[int, int]) -> None:
        for line in mot_lines(self._frames, _found(entry)):
            print(line)
        sys.stdout.flush()
        self._frames += 1

    def add_failure(self, name: str, error: Exception) -> None:
        report(error)
        self._frames += 1


class _Coco(ResultsBase):
    """One JSON document at the end: results for an annotation file, or a data set."""

    def __init__(self, labels: Sequence[str], ids: CocoIds | None) -> None:
        self._labels, self._ids = labels, ids
        self._results: list[dict[str, Any]] = []
        self._images: list[tuple[str, tuple[int, int], list[Detection | Instance]]] = []

    def add(self, entry: Entry, cells: Sequence[str], size: tuple[int, int]) -> None:
        found = _found(entry)
        if self._ids is None:
            self._images.append((_name(entry), size, found))
        else:
            self._results += coco_results(_name(entry), found, self._ids)

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        if error is None or isinstance(error, KeyboardInterrupt):
            print(json_text(self._results if self._ids else coco_dataset(self._images, self._labels)))


def format_writer(arguments: argparse.Namespace, labels: Sequence[str]) -> Results | None:
    """The writer for ``--format``; None for the formats of :mod:`edgevis.cli._results`.

    Raises:
        InputError: ``--annotations`` is given with another format than COCO's.
        SourceError: The annotation file cannot be read.
    """
    if arguments.annotations is not None and arguments.format != "coco":
        raise InputError("--annotations are for --format coco; give both")
    if arguments.format == "coco":
        return _Coco(labels, None if arguments.annotations is None else read_coco_ids(arguments.annotations))
    return _WRITERS[arguments.format]() if arguments.format in _WRITERS else None


_WRITERS: Mapping[str, type[_Csv] | type[_Mot]] = MappingProxyType({"csv": _Csv, "mot": _Mot})
DETECTION_FORMATS = (*_WRITERS, "coco")
"""The formats that only detections have."""


def _found(entry: Entry) -> list[Detection | Instance]:
    return [Instance(**item) if "polygon" in item else Detection(**item) for item in entry["detections"]]


def _name(entry: Entry) -> str:
    return str(entry["image"]) if "image" in entry else f"frame-{entry['frame']:06d}"
