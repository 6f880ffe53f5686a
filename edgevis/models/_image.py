"""What models that take images of many sizes ask of them.

Provenance: our own code.
Licence: this file, as the rest of edgevis.
"""

from __future__ import annotations

from torch import Tensor

from runtime.errors import InputError


def require_image(image: Tensor, *, multiple: int, channels: int = 3) -> None:
    """InputError unless the image is (N, ``channels``, H, W) with sides that are multiples of ``multiple``."""
    if image.ndim != 4 or image.shape[1] != channels or any(size % multiple for size in image.shape[2:]):
        raise InputError(
            f"image has shape {tuple(image.shape)}; the model takes (N, {channels}, H, W), H and W multiples of "
            f"{multiple}"
        )
