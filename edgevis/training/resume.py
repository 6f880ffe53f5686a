"""Resumes a training: only with the same identity, and by one process at a time."""

from __future__ import annotations

import errno
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import MISSING, fields, replace
from pathlib import Path
from typing import Any

from edgevis.models.recipe import Recipe
from edgevis.precision import TRAINING_PRECISIONS
from edgevis.provenance import read_provenance
from edgevis.training.checkpoint import TrainingState, read_training_state
from edgevis.training.finite import TrainingError
from edgevis.training.identity import (
    DATA,
    DataFile,
    changed_files,
    differences,
    list_data,
    read_listing,
    summary_of,
)
from runtime.common.files import write_lock
from runtime.common.json_data import to_json
from runtime.errors import EdgevisError, InputError

LAST, BEST, REPORT = "last.safetensors", "best.safetensors", "report.json"

FILES = "data files"
"""The key of an identity's digest of the data."""

_EPOCHS = "epochs"
_NO_ROOM = frozenset({errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EROFS})


@contextmanager
def only_training(output: Path) -> Iterator[None]:
    """Create the training's folder and lock it until the end of the block.

    A folder that nothing was written to is removed again.

    The lock is the kernel's: it ends with this process, however that ends.

    Raises:
        InputError: Another process is training there.
        OSError: The folder cannot be made.
    """
    new = not output.exists()
    output.mkdir(parents=True, exist_ok=True)
    try:
        with write_lock(output / LAST, timeout_s=0):
            yield
            new = False
    except TimeoutError as error:
        raise InputError(
            f"another training is running in {output}: wait for its end, or name another --output"
        ) from error
    finally:
        if new:
            with suppress(OSError):  # there is something in it
                output.rmdir()


def begin(
    output: Path, identity: Mapping[str, Any], data: Path | None, *, recipe: type[Recipe], resume: bool
) -> tuple[TrainingState, tuple[DataFile, ...]]:
    """The state of the folder's training, and the files of its data.

    Args:
        output: The training's folder.
        identity: What must be the same; of the recipe's ``epochs`` there may be more than before.
        data: The data, whose contents must be the same, too; None where another process looks at them.
        recipe: The kind of the recipe. What a checkpoint's recipe lacks, because it was begun before there was such a
            field, counts as the default.
        resume: Whether to go on where there is something to go on from. Otherwise a folder with a training is
            refused, so that a command given twice destroys nothing.

    Raises:
        InputError: The folder holds another training; the message names what differs. Or one that cannot go on.
        SourceError: The data cannot be read.
        WeightsError, SchemaError: The checkpoint is damaged.
    """
    path = output / LAST
    state = None
    if not path.exists():
        _require_unfinished(output, identity, resume=resume)
    elif not resume:
        raise InputError(f"{path} is of a training that was begun: go on with --resume, or name another --output")
    else:
        state = read_training_state(path)
    listing: tuple[DataFile, ...] = ()
    known: dict[str, DataFile] = {}
    if data is not None:
        known = read_listing(output / DATA)
        listing = list_data(data, output=output, known=known)
        identity = {**identity, FILES: summary_of(listing)}
    if state is None:
        return TrainingState(identity, 0, 0.0, None, ()), listing
    was = {name: state.identity.get(name) for name in identity}
    was["recipe"] = {**_defaults(recipe), **(was["recipe"] or {})}
    changes = list(differences(_compared(was), _compared(identity)))
    if was.get(FILES) != identity.get(FILES):
        changed = changed_files(known, listing) if known else "the files have changed"
        changes.append(f"data files: {changed}")
    begun_with, asked_for = planned_epochs(state.identity), planned_epochs(identity)
    if asked_for < begun_with:
        changes.append(f"recipe.{_EPOCHS} was {begun_with}, is {asked_for}; it may only grow")
    if changes:
        raise InputError(
            f"{path} is of another training: {'; '.join(changes)}. Go on with what it was begun with, or name another "
            "--output"
        )
    if state.best is not None and not (output / BEST).exists():
        raise InputError(
            f"{BEST}, the weights that validated best ({state.best:.4g}), is missing in {output}: put it back, or "
            "begin again in another --output"
        )
    return replace(state, identity=identity), listing


def no_room(output: Path, error: OSError) -> TrainingError | None:
    """The error that ends a training whose folder takes no more; None where that is not what the system says."""
    if error.errno not in _NO_ROOM:
        return None
    left, go_on = "there is no checkpoint yet", "begin again"
    with suppress(EdgevisError):
        left = f"its checkpoint of {read_training_state(output / LAST).place} is whole"
        go_on = "the same command with --resume goes on from there"
    return TrainingError(
        f"{error.strerror}: nothing more can be written in {output}; {left}: free some space, then {go_on}"
    )


def planned_epochs(identity: Mapping[str, Any]) -> int:
    """The epochs of an identity's recipe."""
    return int(identity["recipe"][_EPOCHS])


def growth_note(recipe: Recipe, was: int, done: int) -> str:
    """A note on how more epochs change the learning rate of a training planned for ``was``, after ``done``."""
    note = f"epochs grow from {was} to {recipe.epochs}"
    if recipe.schedule != "cosine":
        return f"{note}; the schedule {recipe.schedule!r} does not depend on them"
    before = recipe.with_values({_EPOCHS: was}).rate(float(done))
    return (
        f"{note}: from here on the learning rate follows the cosine over {recipe.epochs} epochs, which is at "
        f"{recipe.rate(float(done)):.3g} where the shorter one had come down to {before:.3g}; a training begun with "
        f"{recipe.epochs} epochs is another one"
    )


def _defaults(recipe: type[Recipe]) -> dict[str, Any]:
    """The default of each field that has one, as a checkpoint gives it back."""
    return {item.name: to_json(item.default) for item in fields(recipe) if item.default is not MISSING}


def _compared(identity: Mapping[str, Any]) -> dict[str, Any]:
    """The identity without epochs, data files (which have separate messages) and the data's name (which may change)."""
    recipe = {name: value for name, value in (identity.get("recipe") or {}).items() if name != _EPOCHS}
    data = {name: value for name, value in (identity.get("data") or {}).items() if name != "source"}
    precision = identity.get("precision")  # Fabric's name; the command line has another one
    precision = next((name for name, value in TRAINING_PRECISIONS.items() if value == precision), precision)
    compared = {**identity, "recipe": recipe, "data": data, "precision": precision}
    return {name: value for name, value in compared.items() if name != FILES}


def _require_unfinished(output: Path, identity: Mapping[str, Any], *, resume: bool) -> None:
    """Refuse to start in a folder with the weights of another training."""
    best, report = (output / BEST).exists(), (output / REPORT).exists()
    provenance = read_provenance(output / BEST) if best else None
    if not best and not report:
        return
    if provenance is not None and provenance.epoch == 0:  # weights that were evaluated, not trained: so they are again
        return
    if not resume:
        raise InputError(f"{output} holds the weights or the report of a training: name another --output")
    # A training that was killed between its first best weights and its first checkpoint begins again.
    first = int(identity["recipe"].get("validate_every") or 1)
    if report or provenance is None or provenance.epoch > first:
        raise InputError(
            f"{output} holds a training without its {LAST}, so that it cannot go on: put the file back, or name "
            "another --output"
        )
