"""Makes a training's weights small enough to ship, and says where they come from.

    python -m edgevis.training.publish runs/NAME --data DATA --sources sources.json --output NAME.safetensors

Writes the weights with their provenance, matrices in float16, and beside them NAME.json: what was trained on what by
which command, the licences of what it learned from, and the task's measure of the file itself, after rounding.

``sources.json`` lists what the training used, ``[{"name": ..., "authors": ..., "licence": ..., "source": ...,
"sha256": ...}, ...]``; each file of the training's report must be among them, by its hash.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Mapping, Sequence
from dataclasses import replace
from datetime import datetime, timezone
from pathlib import Path
from types import MappingProxyType
from typing import Any

from edgevis.models import entry, load_weights, module_from, read_weights
from edgevis.provenance import Provenance, read_provenance
from edgevis.settings import setting
from edgevis.training.checkpoint import HALVED, write_halved
from edgevis.training.identity import DATA, list_data, read_listing, summary_of
from edgevis.training.progress import ConsoleProgress
from edgevis.training.request import TrainingRequest
from edgevis.training.resume import BEST, REPORT
from edgevis.training.run import train
from runtime.bundle.bundle import sha256
from runtime.common.command import run_command
from runtime.common.files import atomic_write, scratch_folder
from runtime.common.json_data import parse_json
from runtime.errors import InputError


def publish(
    run: Path,
    *,
    data: Path,
    sources: Sequence[Mapping[str, Any]],
    licence: str,
    output: Path,
    options: Mapping[str, int | str] = MappingProxyType({}),
) -> dict[str, Any]:
    """Write the weights and what is known of them; returns the latter.

    Args:
        run: A finished training's folder.
        data: What it was trained on; evaluates the file.
        sources: What it learned from, with licences.
        licence: Of the weights.
        output: The weights to write.
        options: The model's options that are other ones than in the training, such as the size of the images; they
            change no parameter.

    Raises:
        InputError: The folder holds no finished training, or a file that it used is not among the sources, or ``data``
            is not what it was trained on.
        ModelError: The model has no such option.
        WeightsError: A tensor is not finite, or beyond float16, or an option changes parameters.
        OSError: The disk is full; nothing half-written is left.
    """
    report = _read(run / REPORT)
    provenance = read_provenance(run / BEST)
    if provenance is None or not isinstance(report, dict):
        raise InputError(f"{run} holds no finished training: {REPORT} and {BEST} with its provenance")
    if sha256(run / BEST) != report["weights"]["sha256"]:
        raise InputError(f"{run / REPORT} is of other weights than {BEST}: finish the training with --resume")
    known = {source.get("sha256") for source in sources}
    for use, file in report["files"].items():
        if file["sha256"] not in known:
            raise InputError(f"the sources do not name the training's {use}, {file['name']} ({file['sha256']})")
    listing = list_data(data, output=run, known=read_listing(run / DATA))
    if summary_of(listing) != report["data_files"]:
        raise InputError(
            f"{data} is not what {provenance.model!r} was trained on: its files differ; give the training's data"
        )
    provenance = replace(provenance, options={**provenance.options, **options})
    load_weights(module_from(entry(provenance.model), provenance.options), run / BEST)  # no option changes them
    write_halved(output, read_weights(run / BEST), provenance)
    evaluation = _evaluated(output, provenance, data, report)
    record = {
        "model": provenance.model,
        "options": dict(provenance.options),
        "file": {
            "name": output.name,
            "bytes": output.stat().st_size,
            "sha256": sha256(output),
            "content": HALVED,
        },
        "licence": licence,
        "made_on": datetime.now(timezone.utc).date().isoformat(),
        "command": report["command"],
        "sources": list(sources),
        "training": {
            name: report[name] for name in ("data", "recipe", "seed", "epochs", "seconds", "machine", "versions")
        },
        "evaluation": evaluation,
    }
    with atomic_write(output.with_suffix(".json")) as file:
        file.write((json.dumps(record, indent=2, ensure_ascii=False, allow_nan=False) + "\n").encode())
    return record


def _evaluated(weights: Path, provenance: Provenance, data: Path, report: Mapping[str, Any]) -> Any:
    """The task's measure of the file as it is."""
    recipe = {name: value for name, value in report["recipe"].items() if name != "name"}
    with scratch_folder("edgevis-publish-") as folder:
        request = TrainingRequest(
            provenance.model,
            data,
            folder / "evaluation",
            recipe=report["recipe"]["name"],
            values={**recipe, "epochs": 0},
            options=provenance.options,
            weights=weights,
            seed=report["seed"],
            allow_leakage="leakage" in report["data"],
        )
        result = train(request, ConsoleProgress(sys.stderr, quiet=True))
    return None if result is None else result["evaluation"]


def _read(path: Path) -> Any:
    try:
        return parse_json(path.read_bytes())
    except OSError as error:
        raise InputError(f"cannot read {path}: {error.strerror}") from error


def main(argv: Sequence[str] | None = None) -> int:
    """Publish; an error of ours becomes one line and exit status 1."""
    parser = argparse.ArgumentParser(
        prog="python -m edgevis.training.publish", description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("run", type=Path, help="a finished training's folder")
    parser.add_argument("--data", type=Path, required=True, help="what it was trained on; evaluates the file")
    parser.add_argument("--sources", type=Path, required=True, help="JSON: what it learned from, with licences")
    parser.add_argument("--licence", default="Apache-2.0", help="of the weights (default: Apache-2.0)")
    parser.add_argument(
        "--option",
        metavar="NAME=VALUE",
        action="append",
        type=setting,
        default=[],
        help="of the model, if it differs",
    )
    parser.add_argument("--output", type=Path, required=True, help="the weights to write, .safetensors")
    arguments = parser.parse_args(argv)
    return run_command(lambda: _publish(arguments))


def _publish(arguments: argparse.Namespace) -> int:
    sources = _read(arguments.sources)
    record = publish(
        arguments.run,
        data=arguments.data,
        sources=sources,
        licence=arguments.licence,
        output=arguments.output,
        options=dict(arguments.option),
    )
    sys.stdout.write(json.dumps(record, indent=2) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
