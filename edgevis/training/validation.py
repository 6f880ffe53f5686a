"""Refuses data without a part that validates: nothing would say which epoch's weights are the best."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from edgevis.models.recipe import Recipe
from edgevis.training.remaining import CountedEvaluations
from runtime.common.discovery import module_name
from runtime.errors import InputError

_IMAGES = (
    "rows of the split val beside train and test (COCO's JSON and VOC's lists name it so, too); or more images, of "
    "which a share, held_out, then only validates, such as --set held_out=0.3"
)
_ALLOWED: Mapping[str, str] = {
    "classify": "folders train/ and val/ (or rows of such splits in labels.csv) with two or more classes each; more "
    "classes; a higher held_out, such as --set held_out=0.4: two or more classes then only validate",
    "reid": "pictures by two cameras of four or more training persons, of whom two then only validate; rows of the "
    "split val, or a folder val with a folder for each person; --set held_out=0.2 where it is 0",
    "few_shot_segment": "more classes with two or more images each, of which a tenth validates; folds as of PASCAL-5i "
    "or COCO-20i, whose novel classes also validate",
    "segment": _IMAGES,
    "detect": _IMAGES,
    "instance_segment": _IMAGES,
}
"""What to do, by task."""


def require_validation(recipe: Recipe, task: object, *, data: Path, kind: str) -> None:
    """Refuse a training that is to validate, and has nothing to validate with.

    Args:
        recipe: Of the training.
        task: Its task; one that does not count its evaluations passes.
        data: The data.
        kind: The model's task, such as ``"reid"``.

    Raises:
        InputError: There is nothing; the message says what to do.
    """
    if not (recipe.epochs and recipe.validate_every and isinstance(task, CountedEvaluations)):
        return
    if not task.evaluation_images[0]:
        raise InputError(
            f"{data} has no part that validates, so that nothing would say which epoch's weights are the best; "
            f"allowed: {_ALLOWED.get(module_name(kind), 'more data')}; or --set validate_every=0, which keeps the last "
            "epoch's weights unseen"
        )
