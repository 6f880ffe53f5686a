"""The splits that a table's rows belong to: known names in any case, each with its synonyms."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from typing import Literal

from edgevis.data.files import Files
from runtime.errors import InputError, SourceError

Role = Literal["train", "val", "test", "query", "gallery"]

EVALUATED: tuple[Role, ...] = ("train", "val", "test")
"""Splits of tasks that evaluate images by themselves."""

RANKED: tuple[Role, ...] = ("train", "val", "query", "gallery")
"""Splits of tasks that rank a gallery for each query."""

NO_SPLIT = "allowed: both train and val or test, or no column split and --split-by folder, image or another column"
"""What to do about images whose splits do not suffice."""

_SYNONYMS: Mapping[Role, tuple[str, ...]] = {
    "train": ("train", "training", "trn", "base", "bounding_box_train"),
    "val": ("val", "valid", "validation", "dev"),
    "test": ("test", "testing", "novel"),
    "query": ("query", "queries", "probe", "probes"),
    "gallery": ("gallery", "galleries", "bounding_box_test"),
}
_ROLE_OF: dict[str, Role] = {name: role for role, names in _SYNONYMS.items() for name in names}
_SHOWN = 8


def role_of(name: str) -> Role | None:
    """The split that a name means, ignoring case and surrounding blanks; None for an unknown name."""
    return _ROLE_OF.get(_plain(name))


def require_other_side(data: object, names: Iterable[str]) -> None:
    """Refuse data whose pictures all lie in a folder named like the split ``train``.

    Raises:
        InputError: They do: what lies beside it is missing or empty.
    """
    folders = [name.split("/")[:-1] for name in names]
    depth = min((len(folder) for folder in folders), default=0)
    for place in range(depth):
        shared = {folder[place] for folder in folders}
        if len(shared) > 1:
            return
        (name,) = shared
        if role_of(name) == "train":
            raise InputError(
                f"{data} has pictures in the folder {name} alone; allowed: others in val or test beside it; or name "
                f"{name} itself as --data, and what validates and evaluates is drawn from it"
            )


def roles_of_rows(
    files: Files, table: str, rows: Sequence[Mapping[str, str]], allowed: Sequence[Role]
) -> tuple[Role, ...] | None:
    """The split of each row by its column ``split``; None for a table without that column.

    Args:
        files: The folder or zip that holds the table, for messages.
        table: The table's name.
        rows: As of :meth:`edgevis.data.files.Files.table`.
        allowed: The splits that the task knows.

    Raises:
        SourceError: A row has no split, or one that the task does not know; the message lists both kinds of names. Or
            another column holds nothing but names of splits: it would be passed over.
    """
    if not rows or "split" not in rows[0]:
        for column in rows[0] if rows else ():
            meant = {role_of(row[column]) for row in rows}
            if "train" in meant and len(meant) > 1 and None not in meant:
                raise SourceError(
                    f"{files.where(table)} has the names of splits in its column {column!r}; call it 'split'"
                )
        return None
    roles: list[Role] = []
    unknown: Counter[str] = Counter()
    for row in rows:
        role = role_of(row["split"])
        if role is None or role not in allowed:
            unknown[row["split"]] += 1
        else:
            roles.append(role)
    if unknown:
        listed = [f"{name!r} ({count} rows)" if name else f"none ({count} rows)" for name, count in unknown.items()]
        known = "; ".join(f"{role} ({', '.join(_SYNONYMS[role][1:])})" for role in allowed)
        more = f" and {len(listed) - _SHOWN} more" if len(listed) > _SHOWN else ""
        raise SourceError(
            f"{files.where(table)} has the unknown splits {', '.join(listed[:_SHOWN])}{more}; "
            f"known, in any case: {known}"
        )
    return tuple(roles)


def rows_of_split(files: Files, table: str, columns: Sequence[str], split: str | None) -> list[dict[str, str]]:
    """The rows of a table with this value in the column ``split``, or all.

    Case does not count. Where no row is spelled like ``split``, those do that mean the same, such as ``training``.

    Raises:
        SourceError: The table cannot be read, lacks a column, or no row fits; the message names the splits there are.
    """
    if split is None:
        return files.table(table, columns)
    rows = files.table(table, (*columns, "split"))
    for key in (_plain, _meaning):
        if chosen := [row for row in rows if key(row["split"]) == key(split)]:
            return chosen
    known = ", ".join(sorted({row["split"] for row in rows}))
    raise SourceError(f"{files.where(table)} has no row of split {split!r}; its splits are {known}")


def rows_having(rows: Sequence[Mapping[str, str]], places: Sequence[int], where: str) -> tuple[int, ...]:
    """Those of ``places`` whose row has a value in a column.

    Args:
        rows: Of ``index.csv``, by position.
        places: Positions.
        where: ``column=value``; empty for all.

    Raises:
        InputError: ``where`` has another form, or there is no such column.
    """
    if not where:
        return tuple(places)
    column, equals, value = (part.strip() for part in where.partition("="))
    column = column.casefold()
    if not (column and equals) or not rows or column not in rows[0]:
        known = ", ".join(rows[0]) if rows else "none"
        raise InputError(f"recipe: where is {where!r}; allowed: column=value, of the columns of index.csv: {known}")
    return tuple(place for place in places if rows[place][column] == value)


def same_split(first: str, second: str) -> bool:
    """Whether two names mean the same split."""
    return _meaning(first) == _meaning(second)


def _plain(name: str) -> str:
    return name.strip().casefold()


def _meaning(name: str) -> str:
    return role_of(name) or _plain(name)
