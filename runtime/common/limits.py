"""Limits on input sizes, so that a small file cannot expand to gigabytes; environment variables, read per call.

``EDGEVIS_MAX_PIXELS``
    Pixels of one picture or mask: 200 million. The largest sensors of telephones have that many; a picture takes 3
    bytes a pixel once it is decoded, and up to 16 while it is (16 bits, four channels).
``EDGEVIS_MAX_FILE_BYTES``
    Bytes of one image file: 256 MiB.
``EDGEVIS_MAX_ENROLMENT_BYTES``
    Bytes of an enrolment's arrays once unpacked: 4 GiB.
``EDGEVIS_MAX_GOLDEN_BYTES``
    Bytes of a bundle's ``golden.npz``, and of its ``answers.npz``, once unpacked: 1 GiB.
"""

from __future__ import annotations

import os

from runtime.errors import InputError


def max_pixels() -> int:
    """The largest number of pixels of a picture or mask."""
    return _bound("EDGEVIS_MAX_PIXELS", 200_000_000)


def max_file_bytes() -> int:
    """The largest size of an image file in bytes."""
    return _bound("EDGEVIS_MAX_FILE_BYTES", 256 << 20)


def max_enrolment_bytes() -> int:
    """The largest size of an enrolment's arrays in bytes."""
    return _bound("EDGEVIS_MAX_ENROLMENT_BYTES", 4 << 30)


def max_golden_bytes() -> int:
    """The largest size of the arrays of ``golden.npz`` or ``answers.npz`` in bytes."""
    return _bound("EDGEVIS_MAX_GOLDEN_BYTES", 1 << 30)


def too_many_pixels(width: int, height: int) -> str | None:
    """The error text for a picture with more than :func:`max_pixels`; None when it has no more."""
    most = max_pixels()
    if width * height <= most:
        return None
    return f"has {width} x {height} pixels; at most {most} are read: shrink it, or raise EDGEVIS_MAX_PIXELS"


def _bound(name: str, default: int) -> int:
    text = os.environ.get(name)
    if text is None:
        return default
    if not (text.isascii() and text.isdigit() and 0 < int(text) < 1 << 62):
        raise InputError(f"the environment variable {name} is {text!r}; allowed: a whole number above 0")
    return int(text)
