"""Measure weights for open-set identification.

    python -m edgevis.open_set osnet-x0-25 --background ccp_dev.zip:train --scenes pku_reid_dev.zip:train
    python -m edgevis.open_set mobilenetv2 --weights W.safetensors --background grocery_dev.zip:base:even \
        --scenes grocery_dev.zip:base:odd

Writes the weights' name with .open_set.npz: the score space, threshold models, and what the rates came to be. A build
takes it from beside the checkpoint. Images are given as FILE[:SPLIT[+SPLIT][:even|odd]], the last every second label.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from edgevis import models
from edgevis.open_set.embeddings import Part, background_of, embedder_of, scene_of
from edgevis.open_set.enrolments import STRANGERS_BY, add_strangers_by
from edgevis.open_set.fit import choose_space, fit, same_cosine
from edgevis.open_set.sidecar import SUFFIX, SidecarHeader, weights_digest, write_sidecar
from runtime.common.command import run_command
from runtime.common.console import add_verbosity, log_to_stderr
from runtime.errors import InputError
from runtime.gallery.state import Scoring
from runtime.open_set.statistics import OpenSetStatistics


def main(argv: Sequence[str] | None = None) -> int:
    """Measure and write; an error of ours becomes one line and exit status 1."""
    parser = argparse.ArgumentParser(
        prog="python -m edgevis.open_set", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("model", help="the model's name")
    parser.add_argument("--weights", type=Path, help="its weights (default: those that ship)")
    parser.add_argument("--background", type=Part.parse, nargs="+", required=True, help="images that nobody enrols")
    parser.add_argument("--scenes", type=Part.parse, nargs="+", required=True, help="images with labels to enrol")
    add_strangers_by(parser)
    parser.add_argument("--views", type=int, default=6, help="views of each person of the background (default: 6)")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--output", type=Path, help="a file, or a folder for NAME.DIGEST.open_set.npz")
    add_verbosity(parser, progress=True)
    arguments = parser.parse_args(argv)
    command = " ".join(["python -m edgevis.open_set", *_shown(sys.argv[1:] if argv is None else argv)])
    with log_to_stderr(arguments):
        return run_command(lambda: _run(arguments, command))


def _run(arguments: argparse.Namespace, command: str) -> int:
    begun = time.monotonic()

    def say(text: str) -> None:
        if arguments.quiet:
            return
        sys.stderr.write(f"{time.monotonic() - begun:7.1f} s  {text}\n")
        sys.stderr.flush()

    declared = models.entry(arguments.model)
    weights = arguments.weights or models.shipped_weights(declared)
    if weights is None:
        raise InputError(f"no weights of {declared.name} ship; name some with --weights")
    embed, module = embedder_of(declared, weights)
    scoring: Scoring = "blend" if embed.task == "reid" else "prototype"
    scenes = [replace(scene_of(embed, part), strangers_by=arguments.strangers_by) for part in arguments.scenes]
    say(f"{sum(len(scene.labels) for scene in scenes)} images of {len(scenes)} scenes embedded")
    rows, owners = background_of(embed, arguments.background, views=arguments.views, seed=arguments.seed)
    say(f"{len(rows)} images of the background embedded")
    space = choose_space(rows, owners, scenes, scoring, whiten=embed.task == "reid")
    say(f"score space: {space.neighbours} neighbours, strength {space.strength}")
    source = _source(arguments)
    same = same_cosine(scenes, space)
    statistics = fit(scenes, space, scoring, same=same, source=source, seed=arguments.seed)
    digest = weights_digest(module)
    output = arguments.output or weights.with_name(weights.stem + SUFFIX)
    if output.is_dir():
        output = output / f"{declared.name}.{digest[:16]}{SUFFIX}"
    write_sidecar(output, SidecarHeader(declared.name, digest, command, statistics), space)
    say(f"written: {output}, {output.stat().st_size} bytes")
    if not arguments.quiet:
        _report(statistics)
    return 0


def _source(arguments: argparse.Namespace) -> str:
    """On what was measured; ``strangers_by`` where it is not the default, as in files from before there was any."""
    text = f"background {', '.join(map(str, arguments.background))}; scenes {', '.join(map(str, arguments.scenes))}"
    if arguments.strangers_by != STRANGERS_BY:
        text += f"; strangers by {arguments.strangers_by}"
    return text


def _report(statistics: OpenSetStatistics) -> None:
    lines = ["labels  images   asked   FPIR  (95 % of enrolments)   TPIR  (95 % of enrolments)"]
    lines += [
        f"{item.labels:6d}  {item.images:6d}  {item.rate:6.3f}  {item.fpir:5.3f}  ({item.fpir_low:.3f} to "
        f"{item.fpir_high:.3f})        {item.tpir:5.3f}  ({item.tpir_low:.3f} to {item.tpir_high:.3f})"
        for item in statistics.measured
    ]
    sys.stdout.write("\n".join(lines) + "\n")


def _shown(argv: Sequence[str]) -> list[str]:
    """The command's words without the folders of this machine."""
    return [word if "/" not in word else Path(word).name for word in argv]


if __name__ == "__main__":
    sys.exit(main())
