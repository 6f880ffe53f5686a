"""Refuses data without a part that validates: nothing would say which epoch's weights are the best."""

from __future__ import annotations

from edgevis.models.recipe import Recipe
from runtime.errors import InputError

MORE_IMAGES = (
    "rows of the split val beside train and test (COCO's JSON and VOC's lists name it so, too); or more images, of "
    "which a share, held_out, then only validates, such as --set held_out=0.3"
)
"""What to do for tasks that train on single images."""


def require_validation(recipe: Recipe, images: int, *, data: str, allowed: str) -> None:
    """Refuse a training that is to validate, and has nothing to validate with.

    Args:
        recipe: Of the training.
        images: How many validate.
        data: The data's name.
        allowed: What to do, a list of phrases.

    Raises:
        InputError: There are none.
    """
    if recipe.epochs and recipe.validate_every and not images:
        raise InputError(
            f"{data} has no part that validates, so that nothing would say which epoch's weights are the best; "
            f"allowed: {allowed}; or --set validate_every=0, which keeps the last epoch's weights unseen"
        )
