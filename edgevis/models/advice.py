"""Messages that say how a class of another package declares what edgevis must know of it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import MISSING, fields

from edgevis.models.recipe import (
    EpisodeRecipe,
    FewShotSegmentationRecipe,
    Recipe,
    ReIDRecipe,
    SegmentationRecipe,
)
from edgevis.models.recipe_detection import DetectionRecipe, InstanceRecipe, ObjectRecipe
from runtime.common.discovery import module_name, names_in

PAGE = "docs/extending.md"

_RECIPES: Mapping[str, tuple[type[Recipe], str]] = {
    "classify": (EpisodeRecipe, 'loss="local", '),
    "reid": (ReIDRecipe, ""),
    "few_shot_segment": (FewShotSegmentationRecipe, ""),
    "segment": (SegmentationRecipe, 'supervision="masks", '),
    "detect": (DetectionRecipe, ""),
    "instance_segment": (InstanceRecipe, ""),
}
"""The recipe of each task, and what its example states besides lengths and rates."""

_DEPLOYMENT = """\
from edgevis.models import Deployment, Graph, Preprocess, TensorSpec
image = TensorSpec("image", "float32", ("N", 3, 64, 64))
embedding = TensorSpec("embedding", "float32", ("N", 64))
pixels = Preprocess(height=64, width=64, mean=(0.5, 0.5, 0.5), std=(0.25, 0.25, 0.25))
DEPLOYMENT = Deployment("classify", (Graph("encode", inputs=(image,), outputs=(embedding,)),), pixels)"""


def deployment_advice(path: str) -> str:
    """A message on a class without a ``DEPLOYMENT``: its fields, an example, and the page."""
    tasks = ", ".join(names_in("runtime.tasks"))
    return (
        f"{path} has no DEPLOYMENT: declare one in the class or in its module, such as\n\n{_indented(_DEPLOYMENT)}\n\n"
        f"task is one of {tasks}; each of graphs is a method of the class, with its inputs and outputs; preprocess "
        f"makes the input 'image' of a picture; postprocess has the task's settings. {PAGE}, 'A model', has a whole "
        "file"
    )


def recipe_advice(path: str, task: str) -> str:
    """A message on a model without ``RECIPES``: the fields of its task's recipe, an example, and the page."""
    task = module_name(task)
    if task not in _RECIPES:
        return f"{path} has no recipe, and there is no training for its task {task!r}; allowed: {', '.join(_RECIPES)}"
    kind, values = _RECIPES[task]
    needed = [item.name for item in fields(kind) if item.default is MISSING]
    others = [item.name for item in fields(kind) if item.default is not MISSING]
    place = "edgevis.models.recipe_detection" if issubclass(kind, ObjectRecipe) else "edgevis.models"
    example = (
        f"from {place} import {kind.__name__}\nRECIPES = {{\n"
        f'    "paper": {kind.__name__}({values}epochs=30, optimizer="adamw", learning_rate=1e-3),\n}}'
    )
    return (
        f"{path} has no recipe: declare RECIPES in the class or in its module, such as\n\n{_indented(example)}\n\n"
        f"needed: {', '.join(needed)}; the other fields have defaults, and --set changes any: {', '.join(others)}. "
        f"{PAGE}, 'A model', has a whole file"
    )


def _indented(text: str) -> str:
    return "\n".join(f"    {line}" for line in text.splitlines())
