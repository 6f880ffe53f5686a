"""The training recipe of momentum contrast: an encoder learns from pictures without labels, before labels are used."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

from edgevis.models.allowed import Allowed, number, one_of, whole
from edgevis.models.entry import ModelEntry
from edgevis.models.recipe import LARGEST, MOST, Recipe

NAME = "moco"
TASKS = ("classify", "reid")
"""The tasks whose models are encoders."""


@dataclass(frozen=True, slots=True, kw_only=True)
class MomentumContrastRecipe(Recipe):
    """Momentum contrast, version 2 unless values say otherwise.

    Attributes:
        loss: ``momentum-contrast`` is :class:`edgevis.losses.MomentumContrast`.
        batch: Pictures, two views of each.
        dimension, queue, key_momentum, temperature, groups: Of the loss. The paper's queue of 65,536 and momentum of
            0.999 are for a million pictures; the queue is to be smaller than the data.
        head_layers: Of the head that is dropped afterwards: 2, or 1 as version 1 has it.
        crop: The smallest share of the area that a random crop keeps.
        jitter: Strength of colour jitter, 0..1.
        grey, blur: How likely a view has no colour, or is blurred.
        held_out: The share of the pictures that only validates.
    """

    loss: str = "momentum-contrast"
    batch: int = 64
    dimension: int = 128
    queue: int = 1024
    key_momentum: float = 0.99
    temperature: float = 0.2
    groups: int = 8
    head_layers: int = 2
    crop: float = 0.2
    jitter: float = 0.4
    grey: float = 0.2
    blur: float = 0.5
    held_out: float = 0.1

    ALLOWED: ClassVar[Mapping[str, Allowed]] = {
        "loss": one_of("momentum-contrast"),
        "batch": whole(2, MOST),
        "dimension": whole(1, MOST),
        "queue": whole(1, MOST),
        "key_momentum": number(0, 1, below=True),
        "temperature": number(0, LARGEST, above=True),
        "groups": whole(1, MOST),
        "head_layers": whole(1, 2),
        "crop": number(0, 1, above=True),
        **dict.fromkeys(("jitter", "grey", "blur"), number(0, 1)),
        "held_out": number(0, 1, below=True),
    }


MOCO = MomentumContrastRecipe(
    epochs=30, optimizer="sgd", learning_rate=0.03, weight_decay=1e-4, schedule="cosine", warm_up_epochs=1
)


def recipes_of(entry: ModelEntry) -> dict[str, Recipe]:
    """The recipes of a model by name: its own, and momentum contrast where it is an encoder."""
    encoder = entry.deployment.task.replace("-", "_") in TASKS
    return {**entry.recipes, **({NAME: MOCO} if encoder and NAME not in entry.recipes else {})}
