"""The shared part of the backends ``tensorrt`` and ``tensorrt_rtx``: find the GPU, get a plan, open it."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from pathlib import PurePosixPath
from typing import TypeVar

from runtime.backends._cuda import Device, DeviceInfo, open_device
from runtime.backends._tensorrt import vendor
from runtime.backends._tensorrt.cache import PlanCache, PlanKey, PlanResult
from runtime.backends._tensorrt.compiler import build_engine
from runtime.backends._tensorrt.engine import PlanEngine
from runtime.backends._tensorrt.kernels import KernelCache
from runtime.backends._tensorrt.plan import OpenPlan, open_plan
from runtime.backends._tensorrt.pool import lane_pool
from runtime.backends._tensorrt.progress import Phases
from runtime.backends._tensorrt.spec import MAX_SPEC_BYTES, SPEC, BuildSpec
from runtime.backends._tensorrt.vendor import Flavour
from runtime.bundle.engine_files import EngineFiles
from runtime.errors import CompileError, DeviceMemoryError, EngineError, SchemaError, UnknownBackendError

T = TypeVar("T")

PLAN = ".plan"
"""The suffix of a plan that was built ahead of time; any other file is a graph, and a plan is built from it here."""


def devices(flavour: Flavour) -> tuple[str, ...]:
    """``("cuda",)``; see :meth:`runtime.backends.Backend.devices`."""
    vendor.load(flavour)
    open_device()
    return ("cuda",)


def fingerprint(flavour: Flavour, device: str) -> dict[str, str]:
    """See :meth:`runtime.backends.BuildsOnDevice.fingerprint`."""
    _check_device(flavour, device)
    devices(flavour)
    info = open_device().info
    return {flavour: vendor.version(flavour), "gpu": f"{info.name} {info.sm}", "driver": info.driver}


def build_on_device(files: EngineFiles, flavour: Flavour) -> PlanResult[None]:
    """See :meth:`runtime.backends.BuildsOnDevice.build_on_device`."""
    device = open_device()
    with device.current():
        result = _open(files, flavour, device)
    return PlanResult(None, result.built, result.seconds, result.reason, result.size_bytes)


def open_engine(files: EngineFiles, flavour: Flavour, device: str) -> PlanEngine:
    """See :meth:`runtime.backends.Backend.open_engine`."""
    _check_device(flavour, device)
    vendor.load(flavour)
    gpu = open_device()
    with gpu.current():
        pool = lane_pool(gpu)
        while True:
            try:
                plan = _open(files, flavour, gpu).opened
                return PlanEngine(plan, gpu, pool, name=files.name, batched=files.batched)
            except DeviceMemoryError:
                if not pool.make_room():  # of the idle lanes of other engines
                    raise


def plan_bytes(files: EngineFiles, flavour: Flavour) -> bytes:
    """The plan of a graph for this machine, from the cache or built, for programs that open plans themselves.

    Raises:
        MissingDependencyError, UnavailableError: TensorRT or the GPU is missing.
        EngineError: The graph or its specification cannot be read, or was refused.
    """
    device = open_device()
    try:
        onnx, spec = _graph(files), _read_spec(files)
        with device.current():
            return _cached(onnx, spec, flavour, device, bytes, name=files.name).opened
    except (EngineError, CompileError, SchemaError) as error:
        raise EngineError(f"{flavour} cannot open {files.name}: {error}") from error


def plan_key(onnx: bytes, spec: BuildSpec, flavour: Flavour, gpu: DeviceInfo) -> PlanKey:
    """The cache key of a plan for this machine."""
    version, sm, name = vendor.version(flavour), gpu.sm, gpu.name
    if spec.version_compatible:
        version = version.partition(".")[0]  # an earlier release cannot open it: then it is built again by that one
    if spec.hardware_compatible and gpu.compute_capability >= (8, 0):
        sm, name = "SM80", "any from Ampere on"
    return PlanKey(
        onnx_sha256=hashlib.sha256(onnx).hexdigest(),
        spec=spec.dumps(),
        flavour=flavour,
        version=version,
        sm=sm,
        device=name,
        driver=gpu.driver,
    )


def _open(files: EngineFiles, flavour: Flavour, device: Device) -> PlanResult[OpenPlan]:
    try:
        if PurePosixPath(files.name).suffix == PLAN:
            kernels = _kernels(files.main, flavour, device)
            return PlanResult(open_plan(files.main, flavour, kernels=kernels), False, 0.0, "", len(files.main))
        spec = _read_spec(files)
        return _cached(
            _graph(files),
            spec,
            flavour,
            device,
            lambda plan: open_plan(
                plan, flavour, host_code=spec.version_compatible, kernels=_kernels(plan, flavour, device)
            ),
            name=files.name,
        )
    except DeviceMemoryError as error:
        raise DeviceMemoryError(f"{flavour} cannot open {files.name}: {error}") from error
    except (EngineError, CompileError, SchemaError) as error:
        raise EngineError(f"{flavour} cannot open {files.name}: {error}") from error


def _graph(files: EngineFiles) -> bytes:
    """The graph's bytes, part of the plan's key; EngineError if it has external data, which the parser cannot find."""
    if files.external:
        raise EngineError(f"it has external data ({', '.join(files.external)}); save the graph with its data inside")
    return files.main


def _cached(
    onnx: bytes, spec: BuildSpec, flavour: Flavour, device: Device, opened: Callable[[bytes], T], *, name: str
) -> PlanResult[T]:
    phases = Phases()
    return PlanCache().get(
        plan_key(onnx, spec, flavour, device.info),
        build=lambda timing_cache: build_engine(onnx, spec, flavour=flavour, timing_cache=timing_cache, phases=phases),
        open_plan=opened,
        name=name,
        phases=phases,
    )


def _kernels(plan: bytes, flavour: Flavour, device: Device) -> KernelCache | None:
    """Where the kernels of a plan are kept; None for TensorRT, whose plans hold them."""
    if flavour != "tensorrt_rtx":
        return None
    info = device.info
    return KernelCache(plan, f"{vendor.version(flavour)} {info.sm} {info.name} {info.driver}")


def _read_spec(files: EngineFiles) -> BuildSpec:
    data = files.companion(SPEC)
    if len(data) > MAX_SPEC_BYTES:
        raise SchemaError(f"the build specification has {len(data)} bytes; at most {MAX_SPEC_BYTES} are read")
    return BuildSpec.loads(data)


def _check_device(flavour: Flavour, device: str) -> None:
    if device != "cuda":
        raise UnknownBackendError(f"{flavour} has no device {device!r}; it has cuda")
