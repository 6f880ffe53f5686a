"""Ready bundles: small bundles for the CPU that are part of the package, so that a name is enough to open one.

``python -m export.release`` builds them into this folder from the weights that ship.
"""

from __future__ import annotations

import os
from pathlib import Path

from runtime.common.discovery import module_name

FOLDER = Path(__file__).parent
"""The folder with the ready bundles, ``NAME.edgevis`` each."""

_SUFFIX = ".edgevis"


def names() -> tuple[str, ...]:
    """The names of the ready bundles, sorted."""
    return tuple(sorted(path.name.removesuffix(_SUFFIX) for path in FOLDER.glob(f"*{_SUFFIX}")))


def bundle_path(bundle: str | os.PathLike[str]) -> Path:
    """The path of a bundle that is given as a path or by the name of a ready one.

    Whatever exists at the path wins. Otherwise a name without a folder, in which ``-`` and ``_`` are equivalent, stands
    for the ready bundle of that name.

    Args:
        bundle: A path, or one of :func:`names`.
    """
    path = Path(bundle)
    if isinstance(bundle, str) and path.name == bundle and not os.path.lexists(path):
        for name in names():
            if module_name(name) == module_name(bundle):
                return FOLDER / f"{name}{_SUFFIX}"
    return path
