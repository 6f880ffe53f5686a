"""Bundles that the exporter builds, once for all tests of a run, whichever worker asks first."""

from __future__ import annotations

import fcntl
import hashlib
import os
from collections.abc import Callable, Mapping
from pathlib import Path

import cv2
import pytest

from calibration.data.samples import samples_from_photographs
from edgevis import models
from export.build import main


def built_bundle(
    factory: pytest.TempPathFactory, model: str, *arguments: str, data: Callable[[], Path] | None = None
) -> Path:
    """The folder of a ``cpu`` bundle of ``model``, built by the command line with these further arguments.

    ``data`` makes what goes to ``--calibration-data``: the same in each worker.
    """
    base = factory.getbasetemp()
    # Under pytest-xdist every worker has a folder of its own inside the run's.
    root = base.parent if "PYTEST_XDIST_WORKER" in os.environ else base
    key = hashlib.sha256("\0".join(arguments).encode()).hexdigest()[:8]
    path = root / f"built-{key}" / f"{model}.edgevis"
    with (root / f"{model}-{key}.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not path.exists():
            given = [] if data is None else ["--calibration-data", str(data())]
            assert (
                main(
                    [
                        "--model",
                        model,
                        "--target",
                        "cpu",
                        "--quiet",
                        "--no-cache",
                        "--output",
                        str(path),
                        *arguments,
                        *given,
                    ]
                )
                == 0
            )
    return path


# Builds small enough that all models fit into a test run; their structure is the default build's. A model that is not
# named is tested as it is.
SMALL: Mapping[str, Mapping[str, int | str]] = {
    "asnet-hm": {"width": 4, "side": 257, "pooled_from": 33},
    "vat-hm": {"width": 4, "side": 65, "grid": 4},
    "enet": {"side": 64},
    # Of its points all that its engines compute without them is a part, but for the last stage up.
    "residual-unet": {"side": 64, "points": 64},
    "dy-mobilenetv2": {"side": 64, "kernels": 2},
    "efficientnet-b0": {"side": 64},
    "efficientnet-lite0": {"side": 64},
    "ghostnet": {"side": 64},
    "mobilenetv2": {"side": 64},
    "regnet": {"variant": "regnetx_002", "side": 64},
    "pointrend": {"backbone": "regnetx_002", "side": 64, "points": 64},
    "prior-net": {"side": 65},
    "person-segmenter": {"side": 64},
    "efficientdet-d0": {"num_classes": 2, "size": 128},
    "person-detector": {"height": 64, "width": 96},
    "polarmask": {"num_classes": 2, "height": 128, "width": 128, "tower": 1},
    "yolox-nano": {"num_classes": 2, "height": 64, "width": 96},
    **{name: {"width": 4, "side": 65} for name in models.names() if name.startswith("hsnet")},
    # The weights that ship, on a mobile backbone.
    "hsnet-hm": {"side": 65},
    # Ten rows in three stripes of 4, 4 and 2.
    **{name: {"height": 160} for name in models.names() if name.startswith("epri-net")},
}


def small_bundle(factory: pytest.TempPathFactory, model: str) -> Path:
    """The FP32 bundle of a model in its small build, proved on sixteen photographs."""
    options = [f"--option={key}={value}" for key, value in SMALL.get(model, {}).items()]
    return built_bundle(factory, model, "--precision=fp32", *options, data=lambda: _photographs(factory))


def _photographs(factory: pytest.TempPathFactory) -> Path:
    """Sixteen photographs in a folder for each label."""
    data = factory.mktemp("photographs") / "photographs"
    photographs = samples_from_photographs(height=160, width=160, count=16)
    for index, (image, label) in enumerate(zip(photographs.images, photographs.labels, strict=True)):
        path = data / label / f"{index:02}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        assert cv2.imwrite(str(path), image)
    return data


class Recorder:
    """A progress that remembers, and stops the build at a stage if it is told to."""

    def __init__(self, *, interrupt_at: str = "") -> None:
        self.stages: list[str] = []
        self.details: dict[str, str] = {}
        self.warnings: list[str] = []
        self._interrupt_at = interrupt_at

    def begin(self, stage: str) -> None:
        if stage == self._interrupt_at:
            raise KeyboardInterrupt
        self.stages.append(stage)

    def advance(self, done: int, total: int) -> None:
        assert 0 < done <= total

    def end(self, detail: str, *, size_bytes: int | None = None) -> None:
        self.details[self.stages[-1]] = detail
        assert size_bytes is None or size_bytes > 0

    def warn(self, message: str) -> None:
        self.warnings.append(message)
