"""The cache folder of this machine: plans, kernel timings, parity reports. It can be deleted at any time."""

from __future__ import annotations

import os
from pathlib import Path

from runtime.errors import UnavailableError

VARIABLE = "EDGEVIS_CACHE"


def cache_folder() -> Path:
    """``$EDGEVIS_CACHE``, else ``$XDG_CACHE_HOME/edgevis``, else ``~/.cache/edgevis``; it need not exist yet.

    Raises:
        UnavailableError: None of them is known: the user has no home folder. No other place is guessed: a user who may
            write there could have an engine run what they like.
    """
    configured = os.environ.get(VARIABLE)
    if configured:
        return Path(configured)
    shared = os.environ.get("XDG_CACHE_HOME")
    # The XDG specification says that a relative path is to be ignored.
    if shared and Path(shared).is_absolute():
        return Path(shared) / "edgevis"
    try:
        return Path.home() / ".cache" / "edgevis"
    except RuntimeError as error:
        raise UnavailableError(
            f"this user has no home folder, so there is no place for a cache: set {VARIABLE} to a folder of its own"
        ) from error
