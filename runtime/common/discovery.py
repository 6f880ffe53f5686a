"""A folder of modules as a registry: a file's name is its key, and a new file needs no list to be edited."""

from __future__ import annotations

import importlib
import pkgutil
from functools import cache
from typing import Any

from runtime.errors import EdgevisError


@cache
def names_in(package: str) -> tuple[str, ...]:
    """The modules of a package, sorted; those whose names start with an underscore are its own business."""
    path = importlib.import_module(package).__path__
    return tuple(sorted(module.name for module in pkgutil.iter_modules(path) if not module.name.startswith("_")))


def load_from(package: str, name: str, *, what: str, error: type[EdgevisError], hint: str = "") -> Any:
    """The module ``name`` of a package.

    Raises:
        error: There is none; the message lists the known ones.
    """
    known = names_in(package)
    if name not in known:
        raise error(f"there is no {what} {name!r}; known: {', '.join(known)}{hint}")
    return importlib.import_module(f"{package}.{name}")
