"""Bundles that the exporter builds, once for all tests of a run, whichever worker asks first."""

from __future__ import annotations

import fcntl
import hashlib
import os
from pathlib import Path

import pytest

from export.build import main


def built_bundle(factory: pytest.TempPathFactory, model: str, *arguments: str, data: Path | None = None) -> Path:
    """The folder of a ``cpu`` bundle of ``model``, built by the command line with these further arguments.

    ``data`` goes to ``--calibration-data``; each worker may have a copy of its own, all with the same images.
    """
    base = factory.getbasetemp()
    # Under pytest-xdist every worker has a folder of its own inside the run's.
    root = base.parent if "PYTEST_XDIST_WORKER" in os.environ else base
    key = hashlib.sha256("\0".join(arguments).encode()).hexdigest()[:8]
    path = root / f"built-{key}" / f"{model}.edgevis"
    given = [] if data is None else ["--calibration-data", str(data)]
    with (root / f"{model}-{key}.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not path.exists():
            assert (
                main(["--model", model, "--target", "cpu", "--quiet", "--output", str(path), *arguments, *given]) == 0
            )
    return path
