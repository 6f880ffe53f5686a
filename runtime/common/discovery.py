"""A folder of modules as a registry: a file's name is its key, and a new file needs no list to be edited.

Other packages add modules by entry points. Their metadata is read only where a name is not among the files, because
that costs more than opening a small bundle.
"""

from __future__ import annotations

import importlib
import pkgutil
from functools import cache
from typing import Any

from runtime.errors import EdgevisError


@cache
def names_in(package: str) -> tuple[str, ...]:
    """The modules of a package, sorted, without those whose names start with an underscore."""
    path = importlib.import_module(package).__path__
    return tuple(sorted(module.name for module in pkgutil.iter_modules(path) if not module.name.startswith("_")))


def module_name(name: str) -> str:
    """The module name of a name: ``-`` and ``_`` are equivalent."""
    return name.replace("-", "_")


def known_names(package: str, group: str) -> tuple[str, ...]:
    """The modules of a package and the entry points of ``group``, sorted."""
    return tuple(sorted({*names_in(package), *(point.name for point in _entry_points(group))}))


def load_from(
    package: str, name: str, *, what: str, error: type[EdgevisError], hint: str = "", group: str | None = None
) -> Any:
    """The module ``name`` of a package, or else the entry point ``name`` of ``group``.

    Raises:
        error: There is none; the message lists the known ones.
    """
    known = names_in(package)
    module = module_name(name) if isinstance(name, str) else name
    if module in known:
        return importlib.import_module(f"{package}.{module}")
    points = () if group is None else _entry_points(group)
    for point in points:
        if isinstance(name, str) and module_name(point.name) == module:
            return point.load()
    names = sorted({*known, *(point.name for point in points)})
    raise error(f"there is no {what} {name!r}; known: {', '.join(names)}{hint}")


def _entry_points(group: str) -> tuple[Any, ...]:
    from importlib.metadata import entry_points  # slow to import

    return tuple(entry_points(group=group))
