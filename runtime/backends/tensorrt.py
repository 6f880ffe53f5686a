"""TensorRT 10.3 and newer, on Jetson and datacenter GPUs.

It opens a graph (``.onnx`` with its build specification beside it) through the plan that was built from it on this
machine, or a plan (``.plan``) that was built on a machine like it.

A plan's arithmetic is in its graph: precision is not said again here.
"""

from __future__ import annotations

from runtime.backends._tensorrt import backend
from runtime.backends._tensorrt.cache import PlanResult
from runtime.backends._tensorrt.engine import PlanEngine
from runtime.bundle.engine_files import EngineFiles
from runtime.bundle.spec import Precision


def devices() -> tuple[str, ...]:
    return backend.devices("tensorrt")


def open_engine(files: EngineFiles, *, precision: Precision, device: str, threads: int | None) -> PlanEngine:
    return backend.open_engine(files, "tensorrt", device)


def fingerprint(device: str) -> dict[str, str]:
    return backend.fingerprint("tensorrt", device)


def build_on_device(files: EngineFiles) -> PlanResult[None]:
    return backend.build_on_device(files, "tensorrt")
