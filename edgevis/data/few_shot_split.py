"""Few-shot segmentation: which classes train, which validate, and which are novel.

Data, told apart by their folders:

- PASCAL-5i (``JPEGImages``) and COCO-20i (``annotations``): a ``fold`` says which classes are novel. As in the papers,
  these classes also choose the checkpoint.
- FSS-1000's class folders: a fifth of the classes, drawn from the seed, is novel, and another tenth validates.
- ``images/`` and ``masks/`` of class ids, with classes drawn in the same way. With a column ``split`` in ``index.csv``,
  training classes are shown by images of ``train``, novel ones by images of ``test``, or of ``val`` where there is no
  ``test``. Without it an image that shows a novel class only evaluates, and so do its copies and the other images of
  its ``volume``, ``patient``, ``subject`` or ``person``.
- The same with a file ``classes.json`` that has ``novel`` and ``validation``, lists of class ids: these are novel and
  validate, on images of ``test`` and ``val``, and all others train on images of ``train``; pixels of theirs there are
  marked as to be ignored.
- A sample of COCO (:mod:`edgevis.data.few_shot_instances`): a fifth of the categories, or those of a fold of COCO-20i,
  is novel; images that show one of these only evaluate.

Of FSS-1000 and of masks of class ids a ``fold`` of 0 to 3 makes every fourth class novel instead.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from edgevis.data.few_shot_instances import ANNOTATIONS, FOLDER, has_instance_classes, read_instance_classes
from edgevis.data.few_shot_masks import (
    FOLDS,
    ClassMasks,
    Visible,
    check_fold,
    examples_of,
    read_coco20i,
    read_fss1000,
    read_pascal5i,
    shown_classes,
    some_examples,
)
from edgevis.data.files import Files, open_files
from edgevis.data.image_split import groups_of, is_blank
from edgevis.data.leakage import Side, SplitCheck, listed
from edgevis.data.mask_split import rows_once
from edgevis.data.masks import IGNORE
from edgevis.data.rng import draw_at, sample
from edgevis.data.segmentation import MaskedImages, masked_images
from edgevis.data.segmentation_episodes import Queries
from edgevis.data.splits import rows_having
from runtime.errors import InputError, SourceError

CLASS_DRAW = 0
"""The number of this use of the seed; each use of the same seed has another."""

_NOVEL, _VALIDATION = 0.2, 0.1
# The least share of pixels that makes an image an example of a class.
_MIN_SHARE = 0.01
_TRAINING_SHOTS = 1
_CLASSES = "classes.json"


@dataclass(frozen=True, slots=True, eq=False)
class FewShotSplit:
    """Images by class.

    Attributes:
        train, validation, test: What each does; ``validation`` is None where there are no classes for it.
        queries: How the data's benchmark draws its queries.
        notes: What the report must say of the data, by name.
    """

    train: ClassMasks
    validation: ClassMasks | None
    test: ClassMasks
    queries: Queries
    notes: dict[str, object] = field(default_factory=dict)


def split_masked_classes(
    data: Path,
    *,
    fold: int | None,
    shots: int,
    size: tuple[int, int],
    seed: int,
    check: SplitCheck,
    where: str = "",
) -> FewShotSplit:
    """Read a data set's listing and divide it.

    Args:
        data: A folder or zip, as the module says.
        fold: Which classes are novel; None draws them, where the data has no folds of its own.
        shots: The most support images of an evaluation's episode: a novel class needs one more.
        size: The network's (height, width), where something of a class must be left of its mask.
        seed: Draws the classes.
        check: Refuses what both sides share, or reports it.
        where: ``column=value`` of ``index.csv``: the value that images of a sample of COCO must have to train or
            validate, such as ``commercial_ok=1``; empty for all.

    Raises:
        SourceError: The data cannot be read, or a row has an unknown split.
        InputError: ``where`` is given for other data, too few classes have images enough, or the sides share what they
            must not.
    """
    files = open_files(data)
    names = files.names
    if fold is not None:
        check_fold(fold)
    if has_instance_classes(files):
        return _of_instances(data, fold, shots, size, seed, check, where)
    if where:
        raise InputError(f"recipe: where is {where!r}; {data} is no sample of COCO with {ANNOTATIONS} and {FOLDER}/")
    if any(name.startswith(("JPEGImages/", "annotations/")) for name in names):
        split = _of_fold(data, files, fold)
    elif any(name.startswith("masks/") for name in names):
        return _of_masks(data, files, fold, shots, size, seed, check)
    else:
        split = _of_folders(data, files, fold, shots, seed)
    sides = [Side(name, part.files, part.images) for name, part in (("training", split.train), ("test", split.test))]
    if split.validation not in (None, split.test):
        sides.append(Side("validation", split.validation.files, split.validation.images))
    if leaks := check.shared(sides):
        split.notes["leakage"] = list(check.refuse(data, leaks))
    _require(data, "training", split.train, _TRAINING_SHOTS)
    _require(data, "novel", split.test, shots)
    return split


def _of_fold(data: Path, files: Files, fold: int | None) -> FewShotSplit:
    if fold is None:
        raise InputError(f"{data} is divided into folds: --set fold=0 to {FOLDS - 1}")
    read = read_pascal5i if any(name.startswith("JPEGImages/") for name in files.names) else read_coco20i
    test = read(data, fold=fold, split="val")
    queries: Queries = "in turn" if read is read_pascal5i else "by class"
    return FewShotSplit(read(data, fold=fold, split="train"), test, test, queries)


def _of_folders(data: Path, files: Files, fold: int | None, shots: int, seed: int) -> FewShotSplit:
    sizes = Counter(name.partition("/")[0] for name in files.names if name.endswith(".jpg") and name.count("/") == 1)
    names = sorted(sizes)
    known = [index for index, name in enumerate(names) if sizes[name] > shots]
    small = _too_small({name: sizes[name] for name in names if sizes[name] <= shots}, shots)
    groups = _divided(data, known, fold, seed, f"with {shots + 1} images or more", small)
    train, held, novel = ([names[index] for index in group] for group in groups)
    return FewShotSplit(
        read_fss1000(data, classes=train),
        read_fss1000(data, classes=held) if held else None,
        read_fss1000(data, classes=novel),
        "in turn",
        _noted(small),
    )


def _of_masks(
    data: Path, files: Files, fold: int | None, shots: int, size: tuple[int, int], seed: int, check: SplitCheck
) -> FewShotSplit:
    rows, roles, repeated = rows_once(files)
    images = masked_images(files, rows)
    assigned = _assigned(files)
    visible = Visible(min_share=_MIN_SHARE, size=size)
    shown = shown_classes(images, visible)
    groups = groups_of(rows)
    every = range(len(rows))
    notes: dict[str, object] = {"repeated rows left out": repeated} if repeated else {}
    if roles is None:
        sides: Mapping[str, Sequence[int]] = {"train": every, "test": every}
    else:
        sides = {name: [i for i in every if roles[i] == name] for name in ("train", "val", "test")}
        leaks = check.shared(
            [
                Side(
                    name,
                    files,
                    [images.images[i] for i in places],
                    {k: [v[i] for i in places] for k, v in groups.items()},
                )
                for name, places in sides.items()
            ],
            blank=is_blank,
        )
        if leaks:
            notes["leakage"] = list(check.refuse(data, leaks))
        if assigned is not None:
            return _of_roles(data, images, shown, sides, assigned, shots, notes)
        if not sides["test"]:
            sides = {"train": sides["train"], "test": sides["val"]}
    counts = {name: Counter(value for i in places for value in shown[i]) for name, places in sides.items()}
    least = {value: min(counts["train"][value], counts["test"][value]) for value in counts["train"] | counts["test"]}
    known = sorted(value for value, count in least.items() if count > shots)
    small = _too_small({f"class {value}": n for value, n in sorted(least.items()) if n <= shots}, shots)
    needed = f"of which {shots + 1} or more images of each split show {visible} or more"
    trained, held, novel = _divided(data, known, fold, seed, needed, small)
    train = sides["train"]
    if roles is None:
        together = check.linked([(files, name) for name in images.images], groups.values(), blank=is_blank)
        novel_groups = {together[i] for i in every if not shown[i].isdisjoint(novel)}
        train = [i for i in every if together[i] not in novel_groups]
        left = Counter(value for i in train for value in shown[i])
        few = {f"class {value}": left[value] for value in (*trained, *held) if left[value] <= _TRAINING_SHOTS}
        small += _too_small(few, _TRAINING_SHOTS)
        trained, held = ([v for v in part if left[v] > _TRAINING_SHOTS] for part in (trained, held))
        notes["images kept from training for their novel classes"] = len(images) - len(train)
        if not trained:
            raise InputError(
                f"{data}: images that show a novel class ({', '.join(map(str, novel))}) do not train, and the others "
                "show no class twice; give index.csv with a column split, so that other images of these classes train"
            )
    judging = sides.get("val", train)
    held = [value for value in held if sum(value in shown[i] for i in judging) > _TRAINING_SHOTS]
    return FewShotSplit(
        examples_of(images, shown, class_ids=trained, among=train),
        examples_of(images, shown, class_ids=held, among=judging) if held else None,
        examples_of(images, shown, class_ids=novel, among=sides["test"]),
        "by class",
        {**notes, **_noted(small)},
    )


def _assigned(files: Files) -> tuple[list[int], list[int]] | None:
    """The novel classes and those that validate, if ``classes.json`` says."""
    if _CLASSES not in files.names:
        return None
    said = files.json(_CLASSES)
    if not isinstance(said, dict) or "novel" not in said:
        return None
    novel, held = (said.get(name, []) for name in ("novel", "validation"))
    for name, ids in (("novel", novel), ("validation", held)):
        if not isinstance(ids, list) or not all(type(value) is int and 0 < value < IGNORE for value in ids):
            raise SourceError(f"{files.where(_CLASSES)}: {name} is {ids!r}; allowed: a list of class ids, 1 to 254")
    return novel, held


def _of_roles(
    data: Path,
    images: MaskedImages,
    shown: Sequence[frozenset[int]],
    sides: Mapping[str, Sequence[int]],
    assigned: tuple[Sequence[int], Sequence[int]],
    shots: int,
    notes: dict[str, object],
) -> FewShotSplit:
    novel, held = assigned
    judging = sides["val"] or sides["train"]

    def often(places: Sequence[int], least: int) -> list[int]:
        counts = Counter(value for place in places for value in shown[place])
        return sorted(value for value, count in counts.items() if count > least)

    trained = [value for value in often(sides["train"], _TRAINING_SHOTS) if value not in (*novel, *held)]
    judged = [value for value in often(judging, _TRAINING_SHOTS) if value in held]
    found = [value for value in often(sides["test"] or sides["val"], shots) if value in novel]
    if not trained or not found:
        raise InputError(
            f"{data}: {len(trained)} classes train and {len(found)} of the novel ones have {shots + 1} images that "
            "evaluate; allowed: one or more of each"
        )
    return FewShotSplit(
        examples_of(images, shown, class_ids=trained, among=sides["train"], set_aside=(*novel, *held)),
        examples_of(images, shown, class_ids=judged, among=judging) if judged else None,
        examples_of(images, shown, class_ids=found, among=sides["test"] or sides["val"]),
        "by class",
        notes,
    )


def _of_instances(
    data: Path, fold: int | None, shots: int, size: tuple[int, int], seed: int, check: SplitCheck, where: str
) -> FewShotSplit:
    found = read_instance_classes(data, visible=Visible(min_share=_MIN_SHARE, size=size))
    examples = found.examples
    known = [class_id for class_id, places in examples.members.items() if len(places) > shots]
    in_fold = None if fold is None else [value for value in known if (value - 1) % FOLDS == fold]
    trained, held, novel = _divided(data, known, None, seed, f"with {shots + 1} images or more", (), novel=in_fold)
    judged = {place for class_id in novel for place in examples.members[class_id]}
    images = rows_having(found.rows, [place for place in range(len(examples)) if place not in judged], where)
    sides = [
        Side(name, examples.files, [examples.images[place] for place in sorted(places)])
        for name, places in (("training", images), ("test", judged))
    ]
    notes: dict[str, object] = {
        "novel categories": [found.names[class_id - 1] for class_id in novel],
        "images kept from training for their novel classes": len(judged),
    }
    if leaks := check.shared(sides):
        notes["leakage"] = list(check.refuse(data, leaks))
    train, validation = (
        some_examples(examples, [value for value in ids if len(set(examples.members[value]) & set(images)) > 1], images)
        for ids in (trained, held)
    )
    _require(data, "training", train, _TRAINING_SHOTS)
    return FewShotSplit(
        train, validation if validation.members else None, some_examples(examples, novel, judged), "by class", notes
    )


def _divided(
    data: Path,
    classes: Sequence[int],
    fold: int | None,
    seed: int,
    needed: str,
    small: Sequence[str],
    *,
    novel: Sequence[int] | None = None,
) -> tuple[list[int], list[int], list[int]]:
    """Classes for training, validation and evaluation; ``small`` are those that do not meet ``needed``."""
    order = sample(draw_at(seed, CLASS_DRAW), list(classes), len(classes))
    if novel is None:
        novel = order[: max(1, round(_NOVEL * len(order)))] if fold is None else list(classes[fold::FOLDS])
    rest = [value for value in order if value not in novel]
    held = rest[: round(_VALIDATION * len(classes))]
    trained = [value for value in rest if value not in held]
    if not trained or not novel:
        few = f"; too small are {listed(small)}" if small else ""
        raise InputError(
            f"{data} has {len(classes)} classes {needed}; allowed: 2 or more classes, one to train and one to "
            f"evaluate{few}"
        )
    return sorted(trained), sorted(held), sorted(novel)


def _too_small(counts: Mapping[str, int], shots: int) -> list[str]:
    return [f"{name} ({count} images; {shots}-shot needs {shots + 1})" for name, count in counts.items()]


def _noted(small: list[str]) -> dict[str, object]:
    return {"too small classes left out": small} if small else {}


def _require(data: Path, what: str, part: ClassMasks, shots: int) -> None:
    small = [f"{class_id} ({len(places)})" for class_id, places in part.members.items() if len(places) <= shots]
    if small:
        raise InputError(
            f"{data}: these {what} classes have fewer than the {shots + 1} images of a {shots}-shot episode: "
            f"{listed(small)}"
        )
