"""CUDA from Python: what is said without a driver, and memory, streams and graphs where there is a GPU."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from runtime.backends._cuda import Device, DeviceInfo, MemoryKind, kernel_driver, open_device
from runtime.errors import BackendError, DeviceMemoryError, EngineError, UnavailableError, UnknownBackendError

from bundles import installed
from host_device import NOTHING, HostDevice
from python_processes import run_python, succeeded


@pytest.fixture(scope="module", params=["cuda-bindings", "pycuda", "cuda-bindings on the host", "pycuda on the host"])
def gpu(request: pytest.FixtureRequest) -> Device:
    """Each package on the GPU, where there is one, and on :class:`host_driver.HostDriver`."""
    package, _, host = request.param.partition(" ")
    if host:
        return HostDevice(package=package).opened
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("EDGEVIS_CUDA", request.param)
        try:
            return open_device()
        except BackendError as error:
            pytest.skip(f"no GPU through {request.param}: {error}")


def test_another_package(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("EDGEVIS_CUDA", "cupy")
    with pytest.raises(UnknownBackendError, match=r"no CUDA package 'cupy'; known: .*\(EDGEVIS_CUDA\)"):
        open_device()


_OPEN = """
import sys

class Missing:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in sys.argv[1:]:
            raise ModuleNotFoundError(f"No module named {name!r}", name=name)

sys.meta_path.insert(0, Missing())
from runtime.backends._cuda import open_device
from runtime.errors import BackendError
try:
    open_device()
except BackendError as error:
    print(type(error).__name__, error)
"""


@pytest.mark.parametrize(
    ("package", "module", "cure"),
    [("cuda-bindings", "cuda", "pip install cuda-bindings"), ("pycuda", "pycuda", "pip install pycuda")],
)
def test_a_missing_package_names_its_cure(
    monkeypatch: pytest.MonkeyPatch, package: str, module: str, cure: str
) -> None:
    monkeypatch.setenv("EDGEVIS_CUDA", package)
    said = succeeded(run_python(_OPEN, module))
    assert said.startswith("MissingDependencyError")
    assert cure in said


@pytest.mark.skipif(not installed("cuda"), reason="cuda-bindings is not installed")
@pytest.mark.skipif(Path("/dev/nvidia0").exists(), reason="there is a GPU here")
def test_without_a_driver_it_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("EDGEVIS_CUDA", raising=False)
    with pytest.raises(UnavailableError, match="NVIDIA"):
        open_device()


def test_how_a_device_is_written() -> None:
    assert DeviceInfo("Orin", (8, 7), "CUDA 12.6", integrated=True).sm == "SM87"
    assert DeviceInfo("RTX PRO", (12, 0), "CUDA 13.0", integrated=False).sm == "SM120"
    assert all(part.isdigit() for part in kernel_driver().split(".") if part)


def test_what_the_gpu_is(gpu: Device) -> None:
    info = gpu.info
    assert info.name
    assert info.compute_capability >= (7, 5)
    assert info.driver.startswith("CUDA ")


@pytest.mark.parametrize("size", [1, 1000, 1 << 20])
def test_memory_there_and_back(gpu: Device, size: int) -> None:
    data = np.random.default_rng(size).integers(0, 256, size).astype(np.uint8)
    with gpu.current():
        stream = gpu.stream()
        there, here, back = (gpu.allocate(size, kind) for kind in kinds("device", "pinned", "pinned"))
        assert here.host is not None
        assert back.host is not None
        here.host[...] = data
        stream.copy(there, here)
        stream.copy(back, there)
        stream.synchronize()
        np.testing.assert_array_equal(back.host, data)
        for memory in (there, here, back):
            memory.close()
            memory.close()
        stream.close()


def test_mapped_memory_has_an_address_for_both(gpu: Device) -> None:
    with gpu.current():
        memory = gpu.allocate(64, "mapped")
        assert memory.host is not None
        assert memory.address
        assert len(memory.host) == 64
        memory.close()


def test_a_captured_graph_runs_when_it_is_launched(gpu: Device) -> None:
    with gpu.current():
        stream = gpu.stream()
        there, here, back = (gpu.allocate(64, kind) for kind in kinds("device", "pinned", "pinned"))
        assert here.host is not None
        assert back.host is not None

        def work() -> None:
            stream.copy(there, here)
            stream.copy(back, there)

        try:
            graph = stream.capture(work)
        except EngineError as error:
            pytest.skip(str(error))  # PyCUDA has no graphs
        for value in (1, 2, 3):
            here.host[...] = value
            assert not (back.host == value).all()
            graph.launch()
            stream.synchronize()
            assert (back.host == value).all()
        graph.close()
        for memory in (there, here, back):
            memory.close()
        stream.close()


def test_a_capture_that_fails_leaves_a_stream_that_works(gpu: Device) -> None:
    with gpu.current():
        stream = gpu.stream()

        def work() -> None:
            stream.synchronize()  # not allowed while capturing

        with pytest.raises(EngineError):
            stream.capture(work)
        there, here = (gpu.allocate(8, kind) for kind in kinds("device", "pinned"))
        stream.copy(there, here)
        stream.synchronize()
        for memory in (there, here):
            memory.close()
        stream.close()


def test_more_memory_than_there_is(gpu: Device) -> None:
    with gpu.current(), pytest.raises(DeviceMemoryError, match="memory"):
        gpu.allocate(1 << 50, "device")


def test_a_copy_on_the_gpu(gpu: Device) -> None:
    with gpu.current():
        stream = gpu.stream()
        first, second, here, back = (gpu.allocate(64, kind) for kind in kinds("device", "device", "pinned", "pinned"))
        assert here.host is not None
        assert back.host is not None
        here.host[...] = 7
        stream.copy(first, here)
        stream.copy(second, first)
        stream.copy(back, second)
        stream.synchronize()
        assert (back.host == 7).all()
        for memory in (first, second, here, back):
            memory.close()
        stream.close()


@pytest.mark.parametrize("package", ["cuda-bindings", "pycuda"])
@pytest.mark.parametrize("before", [[], ["primary 1"], ["primary 0"], ["a context of PyTorch", "primary 1"]])
def test_the_thread_s_device_is_what_it_was(package: str, before: list[str]) -> None:
    device = HostDevice(package=package)
    assert device.contexts == [], "opening changes nothing either"
    device.contexts.extend(before)
    with device.opened.current():
        assert device.contexts == [*before, "primary 0"]
        with device.opened.current():
            device.opened.allocate(8, "device").close()
    assert device.contexts == before
    with pytest.raises(ZeroDivisionError), device.opened.current():
        raise ZeroDivisionError
    assert device.contexts == before
    assert device.violations == []


def test_a_failed_capture_leaves_no_graph() -> None:
    device = HostDevice()
    with device.opened.current():
        stream = device.opened.stream()
        there, here = (device.opened.allocate(8, kind) for kind in kinds("device", "pinned"))

        def work() -> None:
            stream.copy(there, here)
            raise ZeroDivisionError

        with pytest.raises(ZeroDivisionError):
            stream.capture(work)
        assert device.graphs == set()
        device.failing.add("cudaGraphInstantiate")
        with pytest.raises(EngineError, match="cudaGraphInstantiate"):
            stream.capture(lambda: stream.copy(there, here))
        assert device.graphs == set()
        assert not device.pending_error
        device.failing.clear()
        graph = stream.capture(lambda: stream.copy(there, here))
        graph.launch()
        stream.synchronize()
        for resource in (graph, there, here, stream):
            resource.close()
    assert device.left == NOTHING


def test_mapped_memory_without_an_address_is_freed() -> None:
    device = HostDevice(integrated=True)
    device.failing.add("cudaHostGetDevicePointer")
    with device.opened.current(), pytest.raises(EngineError, match="cudaHostGetDevicePointer"):
        device.opened.allocate(8, "mapped")
    assert device.left == NOTHING


def kinds(*names: MemoryKind) -> tuple[MemoryKind, ...]:
    return names
