"""Few-shot classification: by episodes, a classifier or both, by the projection of a frozen encoder, or by
prototypes that are adapted to each other.

Data: a folder or zip with one folder for each class, or with ``labels.csv`` (``path``, ``class_name`` and ``split``);
:mod:`edgevis.data.class_split` says what trains and what evaluates.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from edgevis.data.class_split import split_classes
from edgevis.data.leakage import SplitCheck
from edgevis.models.recipe import EpisodeRecipe, Recipe, recipe_of
from edgevis.models.recipe_adaptation import AdaptationRecipe
from edgevis.models.recipe_projection import ProjectionRecipe
from edgevis.training.adaptation import AdaptationTrainingTask
from edgevis.training.episodes import EpisodeTrainingTask
from edgevis.training.projection import ProjectionTrainingTask
from runtime.bundle.spec import Deployment


def training_task(
    data: Path,
    recipe: Recipe,
    deployment: Deployment,
    *,
    options: Mapping[str, int | str],
    seed: int,
    check: SplitCheck | None = None,
) -> EpisodeTrainingTask:
    """See :class:`edgevis.training.task.TaskFactory`."""
    episode_recipe = recipe_of(EpisodeRecipe, recipe)
    split = split_classes(
        data, held_out=episode_recipe.held_out, mixed=episode_recipe.mixed, seed=seed, check=check or SplitCheck()
    )
    if isinstance(episode_recipe, AdaptationRecipe):
        return AdaptationTrainingTask(split, episode_recipe, deployment, data=data.name, seed=seed)
    if isinstance(episode_recipe, ProjectionRecipe):
        return ProjectionTrainingTask(split, episode_recipe, deployment, data=data.name, seed=seed)
    return EpisodeTrainingTask(split, episode_recipe, deployment, data=data.name, seed=seed)
