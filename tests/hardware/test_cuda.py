"""CUDA from Python: what is said without a driver, and memory, streams and graphs where there is a GPU."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from runtime.backends._cuda import Device, DeviceInfo, MemoryKind, kernel_driver, open_device
from runtime.errors import BackendError, EngineError, UnavailableError, UnknownBackendError

from bundles import installed
from python_processes import run_python, succeeded


@pytest.fixture(scope="module", params=["cuda-bindings", "pycuda"])
def gpu(request: pytest.FixtureRequest) -> Device:
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
    with gpu.current(), pytest.raises(EngineError):
        gpu.allocate(1 << 50, "device")


def kinds(*names: MemoryKind) -> tuple[MemoryKind, ...]:
    return names
