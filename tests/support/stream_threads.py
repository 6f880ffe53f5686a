"""The threads of streams."""

from __future__ import annotations

import threading


def threads() -> list[str]:
    """The names of those that run."""
    return [thread.name for thread in threading.enumerate() if thread.name.startswith("edgevis-stream")]
