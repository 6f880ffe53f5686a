"""The versions of TensorRT that edgevis runs on, and the JetPack that carries each.

From NVIDIA's release notes and support matrices; L4T is Jetson's Linux, whose release is in ``/etc/nv_tegra_release``.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

from runtime.errors import UnavailableError


@dataclass(frozen=True, slots=True)
class Release:
    """A version of TensorRT.

    Attributes:
        version: Major and minor.
        jetpack: The JetPack releases that carry it; empty where none does.
        strongly_typed: Whether networks take their arithmetic from the graph's types.
        local_functions: Whether the ONNX importer reads operators that the graph defines, and int64.
        lends_memory: Whether a context may be given the memory that its own shapes need.
        refused: Why edgevis does not use it; empty where it does.
    """

    version: tuple[int, int]
    jetpack: str
    strongly_typed: bool
    local_functions: bool
    lends_memory: bool
    refused: str = ""


_OLD = "it has no strongly typed networks and no ONNX functions, which came with TensorRT 9"
_UNTRIED = "no JetPack carries it, and edgevis has not been tried on it"

RELEASES = (
    Release((8, 5), "5.1", False, False, False, _OLD),
    Release((8, 6), "6.0", False, False, False, _OLD),
    Release((9, 0), "", True, True, False, _UNTRIED),
    Release((10, 0), "", True, True, False, _UNTRIED),
    Release((10, 3), "6.1 and 6.2", True, True, True),
    Release((10, 13), "7.0", True, True, True),
    Release((10, 16), "7.2", True, True, True),
    Release((11, 0), "", True, True, True),
)
"""Ascending; a version counts as the last one that is not newer."""

OLDEST = next(release for release in RELEASES if not release.refused)
"""The first one that works."""


def release_of(version: str) -> Release | None:
    """The release that a version, such as ``"10.3.0.26"``, counts as; None for one before all, or no version."""
    numbers = re.match(r"(\d+)\.(\d+)", version)
    if numbers is None:
        return None
    actual = (int(numbers[1]), int(numbers[2]))
    return next((release for release in reversed(RELEASES) if release.version <= actual), None)


def check_version(version: str) -> None:
    """Refuse a version of TensorRT that cannot work.

    Raises:
        UnavailableError: The message names what it lacks, and the JetPack that carries one that works.
    """
    release = release_of(version)
    if release is not None and not release.refused:
        return
    came = f", as JetPack {release.jetpack} carries it" if release is not None and release.jetpack else ""
    reason = _OLD if release is None else release.refused
    oldest = "{}.{}".format(*OLDEST.version)
    raise UnavailableError(
        f"TensorRT {version} is installed{came}; {reason}: install TensorRT {oldest} or newer, on a Jetson JetPack "
        f"{OLDEST.jetpack.split(' and ')[0]} or newer"
    )
