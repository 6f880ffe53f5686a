"""TensorRT-RTX on GPUs from Turing on.

It opens plans (``.plan``) that were built ahead of time without a GPU, and graphs as the backend ``tensorrt`` does.

A plan's arithmetic is in its graph: precision is not said again here.
"""

from __future__ import annotations

from runtime.backends._tensorrt import backend
from runtime.backends._tensorrt.cache import PlanResult
from runtime.backends._tensorrt.engine import PlanEngine
from runtime.bundle.engine_files import EngineFiles
from runtime.bundle.spec import Precision


def devices() -> tuple[str, ...]:
    return backend.devices("tensorrt_rtx")


def open_engine(files: EngineFiles, *, precision: Precision, device: str, threads: int | None) -> PlanEngine:
    return backend.open_engine(files, "tensorrt_rtx", device)


def fingerprint(device: str) -> dict[str, str]:
    return backend.fingerprint("tensorrt_rtx", device)


def build_on_device(files: EngineFiles) -> PlanResult[None]:
    return backend.build_on_device(files, "tensorrt_rtx")
