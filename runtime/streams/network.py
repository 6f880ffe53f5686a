"""Opens cameras and addresses: addresses with PyAV where it is installed, everything else with OpenCV."""

from __future__ import annotations

from importlib.util import find_spec

from runtime.streams.capture import Capture
from runtime.streams.opencv import open_opencv


def has_pyav() -> bool:
    """Whether PyAV, of the extra ``[video]``, is installed; it is not imported."""
    return find_spec("av") is not None


def open_network(target: int | str, *, timeout_s: float, pyav: bool) -> Capture:
    """Open a camera's index, or an address: with PyAV or with OpenCV.

    Raises:
        SourceError: It cannot be opened within the time.
    """
    if isinstance(target, str) and pyav:
        from runtime.streams.pyav import open_pyav  # imports FFmpeg

        return open_pyav(target, timeout_s=timeout_s)
    return open_opencv(target, timeout_s=timeout_s)
