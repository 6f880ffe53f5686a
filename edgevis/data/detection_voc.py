"""PASCAL VOC's annotations of objects: an XML file for each image.

Format: Everingham et al., "The PASCAL Visual Object Classes (VOC) Challenge", IJCV 2010: ``JPEGImages/``,
``Annotations/`` and ``ImageSets/Main/{train,val,test}.txt``. Boxes count pixels from 1, ends included; objects that are
``difficult`` are ignored in training and evaluation. Provenance: our own code. Licence: as the rest of edgevis.
"""

from __future__ import annotations

import math
import xml.parsers.expat
from dataclasses import dataclass, field
from pathlib import PurePosixPath

from edgevis.data.detection import MAX_BOXES, MAX_CLASSES, BoxLabels, DetectionImages, box_labels
from edgevis.data.files import Files, by_stem
from edgevis.data.splits import Role
from runtime.errors import SourceError

ANNOTATIONS, IMAGES, LISTS = "Annotations", "JPEGImages", "ImageSets/Main"

MAX_XML_BYTES = 4 << 20
_MAX_DEPTH = 16
_LARGEST = 1e6
_ROLES: tuple[tuple[str, Role], ...] = (("train", "train"), ("trainval", "train"), ("val", "val"), ("test", "test"))


@dataclass(slots=True)
class _Element:
    name: str
    text: str = ""
    children: list[_Element] = field(default_factory=list)

    def first(self, name: str) -> _Element | None:
        return next((child for child in self.children if child.name == name), None)

    def value(self, name: str) -> str | None:
        child = self.first(name)
        return None if child is None else child.text.strip()


def read_voc(files: Files) -> DetectionImages:
    """The images of ``Annotations/*.xml``, sorted by name.

    With lists in ``ImageSets/Main`` the data are what these name, with their split; ``trainval`` is used where there is
    no ``train``.

    Raises:
        SourceError: A file cannot be read or is not in this format, a list names what is not there, or an image has no
            file in ``JPEGImages/``.
    """
    pictures = by_stem(files, IMAGES)
    annotations = {PurePosixPath(name).stem: name for name in files.below(ANNOTATIONS) if name.lower().endswith(".xml")}
    listed = _listed(files)
    stems = sorted(annotations) if listed is None else [stem for stem, _ in listed]
    objects: list[list[tuple[str, list[float], bool]]] = []
    for stem in stems:
        if stem not in annotations or stem not in pictures:
            lacking = f"{ANNOTATIONS}/{stem}.xml" if stem not in annotations else f"{IMAGES}/{stem}.*"
            raise SourceError(f"{files.path} has no {files.inside}{lacking}; each image needs it")
        where = files.where(annotations[stem])
        objects.append(_objects(parse_xml(files.read(annotations[stem], max_bytes=MAX_XML_BYTES), where), where))
    classes = tuple(sorted({name for rows in objects for name, _, _ in rows}))
    if not 0 < len(classes) <= MAX_CLASSES:
        raise SourceError(f"{files.path} has {len(classes)} classes of objects; allowed: 1 to {MAX_CLASSES}")
    position = {name: index for index, name in enumerate(classes)}

    def labels(rows: list[tuple[str, list[float], bool]]) -> BoxLabels:
        return box_labels(
            [box for _, box, _ in rows], [position[name] for name, _, _ in rows], ignored=[hard for _, _, hard in rows]
        )

    return DetectionImages(
        files,
        tuple(pictures[stem] for stem in stems),
        tuple(labels(rows) for rows in objects),
        classes,
        None if listed is None else tuple(role for _, role in listed),
    )


def parse_xml(data: bytes, where: str) -> _Element:
    """The root element of an XML file without a document type, so that nothing in it can expand or load.

    Args:
        data: The file.
        where: For messages.

    Raises:
        SourceError: It is not well formed, declares a document type, or is nested more than 16 deep.
    """
    root = _Element("")
    open_elements = [root]
    parser = xml.parsers.expat.ParserCreate()
    parser.buffer_text = True

    def start(name: str, _: object) -> None:
        if len(open_elements) > _MAX_DEPTH:
            raise SourceError(f"{where} is nested more than {_MAX_DEPTH} deep; VOC's annotations are not")
        element = _Element(name)
        open_elements[-1].children.append(element)
        open_elements.append(element)

    def end(_: str) -> None:
        open_elements.pop()

    def text(characters: str) -> None:
        open_elements[-1].text += characters

    def refuse(*_: object) -> None:
        raise SourceError(f"{where} declares a document type or entities; VOC's annotations have none: it is refused")

    parser.StartElementHandler, parser.EndElementHandler, parser.CharacterDataHandler = start, end, text
    parser.StartDoctypeDeclHandler = parser.EntityDeclHandler = refuse
    try:
        parser.Parse(data, True)
    except xml.parsers.expat.ExpatError as error:
        raise SourceError(f"{where} is not XML: {error}") from error
    return root.children[0]


def _objects(root: _Element, where: str) -> list[tuple[str, list[float], bool]]:
    """Class, box and whether it is difficult, of each object."""
    if root.name != "annotation":
        raise SourceError(f"{where} is a <{root.name}>; allowed: VOC's <annotation>")
    rows = []
    for element in root.children:
        if element.name != "object":
            continue
        name, box = element.value("name"), element.first("bndbox")
        if not name or not name.isprintable() or box is None:
            raise SourceError(f"{where} has an object without a name or bndbox")
        x1, y1, x2, y2 = (_number(box.value(key), key, where) for key in ("xmin", "ymin", "xmax", "ymax"))
        if x2 < x1 or y2 < y1:
            raise SourceError(f"{where} has the box {x1:g}, {y1:g}, {x2:g}, {y2:g}, whose end is before its start")
        rows.append((name, [x1 - 1, y1 - 1, x2, y2], element.value("difficult") == "1"))
    if len(rows) > MAX_BOXES:
        raise SourceError(f"{where} has {len(rows)} boxes; allowed: {MAX_BOXES}")
    return rows


def _number(text: str | None, key: str, where: str) -> float:
    try:
        value = float(text or "")
    except ValueError:
        value = math.nan
    if not abs(value) <= _LARGEST:
        raise SourceError(f"{where} has {key} {text!r}; allowed: a number of pixels")
    return value


def _listed(files: Files) -> list[tuple[str, Role]] | None:
    """Stems and splits of ``ImageSets/Main``; None where that has no lists, or only one split."""
    lists = {stem: f"{LISTS}/{stem}.txt" for stem, _ in _ROLES if f"{LISTS}/{stem}.txt" in files.names}
    if "train" in lists:
        lists.pop("trainval", None)
    if len(lists) < 2:
        return None
    rows: list[tuple[str, Role]] = []
    for stem, role in _ROLES:
        if stem in lists:
            rows += [(line.split()[0], role) for line in files.text(lists[stem]).splitlines() if line.strip()]
    return rows
