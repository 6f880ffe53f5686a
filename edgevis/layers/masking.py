"""Ways to apply the support mask to the support features: the paper's hybrid masking and its baselines.

Paper: Moon, Sohn, Kim, et al., "HM: Hybrid Masking for Few-Shot Segmentation", ECCV 2022, sections 3.2 and 3.3 and the
ablation of the merging strategies.
Provenance: our own code.
Licence: this file, as the rest of edgevis.

``fm`` feature masking: features times the resized mask. ``im`` input masking: features of the masked image. ``hm``
hybrid: FM where it is greater than zero, else IM. ``add``: FM + IM. ``reverse``: IM where it is greater than zero,
else FM.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Literal, get_args

import torch
from torch import Tensor

from edgevis.layers.resize import resize
from edgevis.ops import hybrid_mask
from runtime.errors import InputError, ModelError

Masking = Literal["hm", "fm", "im", "add", "reverse"]

Maps = list[list[Tensor]]
"""Feature maps (B, C, h, w): one list per stage, shallow to deep; within a stage one size."""


def check_masking(masking: str) -> None:
    """ModelError unless it is one of :data:`Masking`."""
    if masking not in get_args(Masking):
        raise ModelError(f"masking is {masking!r}; allowed: {', '.join(get_args(Masking))}")


def masked_pyramid(extract: Callable[[Tensor], Maps], image: Tensor, mask: Tensor, *, masking: Masking = "hm") -> Maps:
    """The masked features of support images; the backbone runs only on what the kind of masking needs.

    Args:
        extract: The frozen backbone: image (B, 3, H, W) to its feature maps. For ``hm``, ``add`` and ``reverse`` it
            is given the images and the masked images as one batch of 2 B.
        image: (B, 3, H, W) float, normalised: where the mask makes it 0, that is the mean colour, not black.
        mask: (B, H, W) float, 1 on the object, 0 elsewhere.
        masking: See the head of this file.

    Returns:
        Maps of the shapes that ``extract`` gives.

    Raises:
        InputError: The mask is not of the image's batch and size.
        ModelError: There is no such masking.
    """
    check_masking(masking)
    if mask.dim() != 3 or image.dim() != 4 or mask.shape[0] != image.shape[0] or mask.shape[1:] != image.shape[2:]:
        raise InputError(
            f"mask is {tuple(mask.shape)} and image {tuple(image.shape)}; "
            "allowed: mask (B, H, W) of the batch and size of the image (B, 3, H, W)"
        )
    if masking == "fm":
        return mask_maps(extract(image), None, mask, masking=masking)
    masked_image = image * mask.unsqueeze(1)
    if masking == "im":
        return mask_maps(None, extract(masked_image), mask, masking=masking)
    # One pass over both: two would put the backbone's nodes into an exported graph twice.
    both = [
        [maps.reshape(2, -1, *maps.shape[1:]) for maps in stage] for stage in extract(torch.cat([image, masked_image]))
    ]
    features, masked_image_features = ([[maps[half] for maps in stage] for stage in both] for half in (0, 1))
    return mask_maps(features, masked_image_features, mask, masking=masking)


def mask_maps(
    features: Sequence[Sequence[Tensor]] | None,
    masked_image_features: Sequence[Sequence[Tensor]] | None,
    mask: Tensor,
    *,
    masking: Masking,
) -> Maps:
    """As :func:`masked_pyramid`, from feature maps that are already computed.

    Args:
        features: Maps of the support image; ``im`` does not read them.
        masked_image_features: Maps of the masked support image; ``fm`` does not read them.
        mask: (B, H, W) float at the image's size.
        masking: See the head of this file.

    Raises:
        InputError: Maps that the kind of masking needs are None.
        ModelError: There is no such masking.
    """
    check_masking(masking)
    if masking == "im":
        return [list(stage) for stage in _given(masked_image_features, "masked_image_features", masking)]
    stages = _given(features, "features", masking)
    if masking == "fm":
        return [_times_mask(stage, mask) for stage in stages]
    other = _given(masked_image_features, "masked_image_features", masking)
    if masking == "hm":
        return [
            [hybrid_mask(feature, masked, mask) for feature, masked in zip(stage, masked_stage, strict=True)]
            for stage, masked_stage in zip(stages, other, strict=True)
        ]
    return [
        [
            feature + masked if masking == "add" else torch.where(masked > 0, masked, feature)
            for feature, masked in zip(_times_mask(stage, mask), masked_stage, strict=True)
        ]
        for stage, masked_stage in zip(stages, other, strict=True)
    ]


def _times_mask(stage: Sequence[Tensor], mask: Tensor) -> list[Tensor]:
    """Feature masking of maps of one size."""
    height, width = stage[0].shape[2:]
    weight = resize(mask.unsqueeze(1), (height, width))
    return [feature * weight for feature in stage]


def _given(maps: Sequence[Sequence[Tensor]] | None, name: str, masking: str) -> Sequence[Sequence[Tensor]]:
    if maps is None:
        raise InputError(f"{name} is None; masking {masking!r} needs these maps")
    return maps
