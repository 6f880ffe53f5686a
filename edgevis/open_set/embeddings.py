"""Embeddings of the images that an open-set fit needs, by a PyTorch model."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path

import numpy as np
import torch
from torch import nn

from edgevis import models
from edgevis.data import read_class_table, read_pku_reid
from edgevis.data.person_cutouts import persons_from_ccp
from edgevis.open_set.enrolments import Scene
from edgevis.open_set.views import camera_look, plain_look
from edgevis.provenance import read_provenance
from runtime.common.arrays import Array, unit_rows
from runtime.errors import InputError
from runtime.images.decode import Image
from runtime.images.preprocess import Preprocessor

_BATCH = 32


@dataclass(frozen=True, slots=True)
class Part:
    """A part of a data set: ``FILE[:SPLIT[+SPLIT][:even|odd]]``; ``even`` and ``odd`` take every second label.

    Attributes:
        path: A zip or folder with ``labels.csv``, or Clothing Co-Parsing's zip.
        splits: Values of the column ``split``; None for all.
        parity: 0 or 1: every second label from there; None for all.
    """

    path: Path
    splits: tuple[str, ...] | None
    parity: int | None

    @classmethod
    def parse(cls, text: str) -> Part:
        """Parse a command-line argument; InputError if it has another form."""
        path, *rest = text.split(":")
        if len(rest) > 2 or (len(rest) == 2 and rest[1] not in ("even", "odd")):
            raise InputError(f"{text!r} is not FILE[:SPLIT[+SPLIT][:even|odd]]")
        parity = ("even", "odd").index(rest[1]) if rest[1:] else None
        return cls(Path(path), tuple(rest[0].split("+")) if rest and rest[0] else None, parity)

    def __str__(self) -> str:
        parts = [
            self.path.name,
            "+".join(self.splits or ()),
            "" if self.parity is None else ("even", "odd")[self.parity],
        ]
        return ":".join(parts).rstrip(":")

    def takes(self, labels: Array) -> Array:
        """(N,) bool: the images whose labels are taken."""
        classes, owners = np.unique(labels, return_inverse=True)
        return np.ones(len(owners), bool) if self.parity is None else np.arange(len(classes))[owners] % 2 == self.parity


class Embedder:
    """A model on one thread, so that the same images give the same rows on every machine.

    Args:
        declared: The model's declaration.
        module: With its weights.
    """

    def __init__(self, declared: models.ModelEntry, module: nn.Module) -> None:
        deployment = models.deployment_of(declared, module)
        self.task = deployment.task
        if self.task not in ("reid", "classify"):
            raise InputError(f"{declared.name} makes no embeddings: its task is {self.task}")
        self._run = getattr(module, deployment.graphs[0].name)
        self._preprocess = Preprocessor(deployment.preprocess)

    def __call__(self, images: Iterator[Image]) -> Array:
        """(N, D) float32 unit rows."""
        threads = torch.get_num_threads()
        torch.set_num_threads(1)
        try:
            with torch.inference_mode():
                return unit_rows(in_batches(self._embed, images))
        finally:
            torch.set_num_threads(threads)

    def _embed(self, images: list[Image]) -> Array:
        return np.asarray(self._run(torch.from_numpy(self._preprocess(images))).numpy())


def in_batches(embed: Callable[[list[Image]], Array], images: Iterator[Image]) -> Array:
    """(N, D) embeddings of images; at most one batch of images is in memory."""
    parts: list[Array] = []
    while batch := list(islice(images, _BATCH)):
        parts.append(embed(batch))
    return np.concatenate(parts)


def embedder_of(declared: models.ModelEntry, weights: Path) -> tuple[Embedder, nn.Module]:
    """An embedder, and its module with these weights, created with the options that they were trained with."""
    provenance = read_provenance(weights)
    module = models.module_from(declared, {} if provenance is None else provenance.options)
    models.load_weights(module, weights)
    return Embedder(declared, module), module


def labelled_images(part: Part, task: str) -> tuple[Iterator[Image], Array, Array | None]:
    """Images with (N,) labels and, of Re-ID, (N,) cameras; an image is decoded when its turn comes.

    Raises:
        SourceError: The data cannot be read, or hold no such images.
    """
    if task == "reid":
        sets = [read_pku_reid(part.path, split) for split in part.splits or (None,)]
        names = np.array([label for data_set in sets for label in data_set.ids])
        cameras: Array | None = np.array([camera for data_set in sets for camera in data_set.cameras])
    else:
        tables = [read_class_table(part.path, split=split) for split in part.splits or (None,)]
        names = np.array([label for data_set in tables for label in data_set.labels])
        sets, cameras = tables, None  # type: ignore[assignment]
    taken = np.flatnonzero(part.takes(names))
    places = [(data_set, index) for data_set in sets for index in range(len(data_set))]
    images = (data_set[index][0] for data_set, index in (places[place] for place in taken.tolist()))
    labels = np.unique(names[taken], return_inverse=True)[1]
    return images, labels, None if cameras is None else cameras[taken]


def scene_of(embed: Embedder, part: Part) -> Scene:
    """A scene with known labels: persons under two or more cameras (Re-ID), or classes."""
    images, labels, cameras = labelled_images(part, embed.task)
    return Scene(str(part), embed(images), labels, cameras)


def background_of(embed: Embedder, parts: Sequence[Part], *, views: int, seed: int) -> tuple[Array, Array]:
    """The embeddings of images that are never enrolled, and (N,) the owner of each.

    Of persons on single photographs (Clothing Co-Parsing) ``views`` random views each are made, as two cameras might
    show them (:mod:`edgevis.open_set.views`).
    """
    rows, owners = [], []
    first = 0
    for part in parts:
        if embed.task == "reid":
            persons = persons_from_ccp(part.path, split=part.splits[0] if part.splits else "train")
            random = np.random.default_rng(seed)
            views_of_persons = (
                camera_look(person, random, mirrored=view % 2 == 1) if view else plain_look(person, random)
                for person in persons
                for view in range(views)
            )
            rows.append(embed(views_of_persons))
            labels = np.repeat(np.arange(len(persons)), views)
        else:
            scene = scene_of(embed, part)
            rows.append(scene.rows)
            labels = np.unique(scene.labels, return_inverse=True)[1]
        owners.append(labels + first)
        first += int(labels.max()) + 1
    return np.concatenate(rows), np.concatenate(owners)
