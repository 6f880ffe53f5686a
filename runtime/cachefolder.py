"""Where this machine keeps what it made itself: plans, kernel timings, proofs. All of it can be deleted at any time."""

from __future__ import annotations

import os
from pathlib import Path

VARIABLE = "EDGEVIS_CACHE"


def cache_folder() -> Path:
    """``$EDGEVIS_CACHE``, else ``$XDG_CACHE_HOME/edgevis``, else ``~/.cache/edgevis``; it need not exist yet."""
    own = os.environ.get(VARIABLE)
    if own:
        return Path(own)
    shared = os.environ.get("XDG_CACHE_HOME")
    # The XDG specification says that a relative path is to be ignored.
    return (Path(shared) if shared and Path(shared).is_absolute() else Path.home() / ".cache") / "edgevis"
