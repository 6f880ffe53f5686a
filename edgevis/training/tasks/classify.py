"""Few-shot classification: by episodes, a classifier or both, by the projection of a frozen encoder, or by
prototypes that are adapted to each other.

Data: a folder or zip with one folder for each class, or with ``labels.csv`` (``path``, ``class_name`` and ``split``);
:mod:`edgevis.data.class_split` says what trains and what evaluates.
"""

from __future__ import annotations

from edgevis.data.class_split import split_classes
from edgevis.models.recipe import EpisodeRecipe, recipe_of
from edgevis.models.recipe_adaptation import AdaptationRecipe
from edgevis.models.recipe_projection import ProjectionRecipe
from edgevis.training.adaptation import AdaptationTrainingTask
from edgevis.training.episodes import EpisodeTrainingTask
from edgevis.training.projection import ProjectionTrainingTask
from edgevis.training.task import TaskRequest


def training_task(request: TaskRequest) -> EpisodeTrainingTask:
    """See :class:`edgevis.training.task.TaskFactory`."""
    recipe = recipe_of(EpisodeRecipe, request.recipe)
    split = split_classes(
        request.data, held_out=recipe.held_out, mixed=recipe.mixed, seed=request.seed, check=request.check
    )
    if isinstance(recipe, AdaptationRecipe):
        return AdaptationTrainingTask(split, recipe, request.deployment, data=request.data.name, seed=request.seed)
    if isinstance(recipe, ProjectionRecipe):
        return ProjectionTrainingTask(split, recipe, request.deployment, data=request.data.name, seed=request.seed)
    return EpisodeTrainingTask(split, recipe, request.deployment, data=request.data.name, seed=request.seed)
