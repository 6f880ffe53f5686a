"""The split for tasks of base and novel classes.

Paper: "Task-Specific Few-Shot Image Classification by Balancing Sample-Level and Class-Level Generalization", section
4, *reconstructed* miniImageNet: real tasks mix classes that the model was trained with (base) and others (novel), so
evaluation draws its classes from both, with base images that training has not seen.
Provenance: our own code, from the text. Licence: as the rest of edgevis.
"""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike

from edgevis.data.checks import Label, at_least, positions_by_label
from edgevis.data.rng import draw_at, sample, shuffled
from runtime.errors import InputError


@dataclass(frozen=True, slots=True)
class MixedSplit:
    """Positions of images, sorted; no image is in two parts.

    Attributes:
        train: Images of all base classes.
        validation, test: Images of the part's novel classes and of as many base classes.
        validation_base, test_base: These base classes; no class is in both.
    """

    train: tuple[int, ...]
    validation: tuple[int, ...]
    test: tuple[int, ...]
    validation_base: tuple[Label, ...]
    test_base: tuple[Label, ...]


def mixed_split(
    labels: ArrayLike,
    *,
    base: Collection[Label],
    validation: Collection[Label],
    test: Collection[Label],
    images: int | None = None,
    seed: int = 0,
) -> MixedSplit:
    """Divide labelled images for training on base classes and evaluation on tasks that mix base and novel ones.

    Half of the images of each base class train. The other half is kept for evaluation: as many base classes as a part
    has novel ones, drawn at random, join that part; the rest of them is left unused, so that all base classes train on
    the same share. Then ``EpisodeSampler(labels, among=split.test, …)`` draws tasks of all compositions.

    With miniImageNet's 64, 16 and 20 classes of 600 images and ``images=300`` these are the paper's 64, 32 and 40
    classes of 300 images.

    Args:
        labels: (I,) strings or integers, one for each image; images of classes that are not named are left out.
        base: Classes to train on.
        validation, test: Novel classes of either part; ``validation`` may be empty.
        images: At most this many images of a class in each part; None for no limit.
        seed: Another one divides differently.

    Raises:
        InputError: A class is named twice or has no images, a base class has fewer than two, or there are fewer base
            classes than novel ones.
    """
    positions = positions_by_label(labels)
    at_least("seed", seed, 0)
    most = None if images is None else at_least("images", images, 1)
    named: list[Label] = np.asarray([*base, *validation, *test]).tolist()
    if len(set(named)) != len(named):
        twice = next(label for label in named if named.count(label) > 1)
        raise InputError(f"class {twice!r} is named twice; base, validation and test have no class in common")
    lacking = [label for label in named if label not in positions]
    if lacking:
        raise InputError(f"no image has the label {lacking[0]!r}")
    if not test or len(base) < len(validation) + len(test):
        raise InputError(
            f"{len(base)} base classes for {len(validation)} + {len(test)} novel ones; allowed: one or more to "
            "test, and a base class of its own for each novel one"
        )
    base_labels = named[: len(base)]
    small = [label for label in base_labels if len(positions[label]) < 2]
    if small:
        raise InputError(f"base class {small[0]!r} has one image; two are needed, to train and to evaluate")
    # One generator per class: its draw does not depend on the other classes.
    order = {label: shuffled(draw_at(seed, place), positions[label]) for place, label in enumerate(named)}
    half = {label: (len(order[label]) + 1) // 2 for label in base_labels}
    chosen = sample(draw_at(seed, len(named)), base_labels, len(validation) + len(test))
    novel = named[len(base) :]
    parts = []
    for part in (slice(0, len(validation)), slice(len(validation), None)):
        selected = [order[label][half[label] :][:most] for label in chosen[part]]
        selected += [order[label][:most] for label in novel[part]]
        parts.append(tuple(sorted(place for places in selected for place in places)))
    train = sorted(place for label in base_labels for place in order[label][: half[label]][:most])
    count = len(validation)
    return MixedSplit(tuple(train), parts[0], parts[1], tuple(chosen[:count]), tuple(chosen[count:]))
