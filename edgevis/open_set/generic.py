"""Fits what is taken for weights of which nothing was measured, over scenes of several models.

    python -m edgevis.open_set.generic osnet-x0-25=W.safetensors=pku_reid_dev.zip:train \
        mobilenetv2=W.safetensors=grocery_dev.zip:base:odd

Each argument is MODEL=WEIGHTS=SCENE, the weights empty for those that ship. Scores are raw cosines: to the nearest
image for Re-ID, to the prototype for classification.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Sequence
from pathlib import Path

from edgevis import models
from edgevis.open_set.embeddings import Part, embedder_of, scene_of
from edgevis.open_set.enrolments import Scene
from edgevis.open_set.fit import fit, same_cosine
from runtime.common.command import run_command
from runtime.common.files import atomic_write
from runtime.common.json_data import to_json
from runtime.errors import InputError
from runtime.gallery.state import Scoring
from runtime.open_set.generic import PATH

_SCORINGS: dict[str, Scoring] = {"reid": "nearest", "classify": "prototype"}


def main(argv: Sequence[str] | None = None) -> int:
    """Fit and write; an error of ours becomes one line and exit status 1."""
    parser = argparse.ArgumentParser(
        prog="python -m edgevis.open_set.generic",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("scenes", metavar="MODEL=WEIGHTS=SCENE", nargs="+")
    parser.add_argument("--output", type=Path, default=PATH)
    arguments = parser.parse_args(argv)
    return run_command(lambda: _fit(arguments))


def _fit(arguments: argparse.Namespace) -> int:
    by_scoring: dict[Scoring, list[Scene]] = {scoring: [] for scoring in _SCORINGS.values()}
    for text in arguments.scenes:
        scoring, scene = _scene(text)
        by_scoring[scoring].append(scene)
    statistics = {
        scoring: to_json(
            fit(
                scenes,
                None,
                scoring,
                same=same_cosine(scenes, None),
                source=", ".join(scene.name for scene in scenes),
            )
        )
        for scoring, scenes in by_scoring.items()
        if scenes
    }
    with atomic_write(arguments.output) as file:
        file.write((json.dumps(statistics, allow_nan=False) + "\n").encode())
    return 0


def _scene(text: str) -> tuple[Scoring, Scene]:
    parts = text.split("=")
    if len(parts) != 3:
        raise InputError(f"{text!r} is not MODEL=WEIGHTS=SCENE")
    declared = models.entry(parts[0])
    weights = Path(parts[1]) if parts[1] else models.shipped_weights(declared)
    if weights is None:
        raise InputError(f"no weights of {declared.name} ship; name some")
    embed, _ = embedder_of(declared, weights)
    scene = scene_of(embed, Part.parse(parts[2]))
    # Scenes are told apart by name, and two models may look at the same one.
    return _SCORINGS[embed.task], Scene(f"{weights.stem} {scene.name}", scene.rows, scene.labels, scene.cameras)


if __name__ == "__main__":
    sys.exit(main())
