"""What a build on the device says, who waits for it, and the kernels that are kept of it."""

from __future__ import annotations

import fcntl
import json
import os
import signal
import socket
import subprocess
import threading
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from runtime.backends._tensorrt import build_lock as locks
from runtime.backends._tensorrt import kernels, progress
from runtime.backends._tensorrt.build_lock import LockOwner, build_lock
from runtime.backends._tensorrt.cache import PlanCache
from runtime.backends._tensorrt.compiler import BuiltPlan, build_engine
from runtime.backends._tensorrt.kernels import KernelCache
from runtime.backends._tensorrt.plan import OpenPlan
from runtime.backends._tensorrt.progress import Phases
from runtime.backends._tensorrt.spec import BuildSpec
from runtime.errors import EngineError, UnavailableError

from bundles import HEIGHT, WIDTH, Tiny, float_onnx
from logs import ignored_warnings, logged_warnings
from plan_builder import KEY, Builder, same
from python_processes import python_command, python_environment


@pytest.fixture(params=[True, False], ids=["flock", "no flock"])
def flock(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> bool:
    """With the file system's locks, and as on a network drive that has none."""
    if not request.param:

        def refused(descriptor: int, operation: int) -> None:
            raise OSError(37, "No locks available")

        monkeypatch.setattr(fcntl, "flock", refused)
    return bool(request.param)


def owner_in(folder: Path, **changes: Any) -> Path:
    """Make the file of a holder, by default this process."""
    pid = changes.pop("pid", os.getpid())
    owner = LockOwner(socket.gethostname(), pid, locks._space(), locks._started(pid), "embed.onnx for Orin", "ab")
    path = folder / "build.owner"
    path.write_text(json.dumps({**{name: getattr(owner, name) for name in owner.__slots__}, **changes}))
    return path


def test_one_at_a_time(flock: bool, tmp_path: Path) -> None:
    inside: list[int] = []
    most: list[int] = []

    def work(index: int) -> None:
        with build_lock(tmp_path, what="a plan"):
            inside.append(index)
            most.append(len(inside))
            time.sleep(0.02)
            inside.remove(index)

    threads = [threading.Thread(target=work, args=(index,)) for index in range(5)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert most == [1] * 5
    assert [path.name for path in tmp_path.iterdir()] == ["build.lock"]


def test_the_timeout_names_who_builds_what(flock: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(locks, "_TELL_SECONDS", 0.1)
    host = socket.gethostname()
    with build_lock(tmp_path, what="embed.onnx for Orin"):
        said = f"process {os.getpid()} on {host}, which builds embed.onnx for Orin,"
        with (
            logged_warnings(match=f"waiting for {said} in .* since 0 s"),
            pytest.raises(UnavailableError, match=f"{said} holds .*EDGEVIS_BUILD_TIMEOUT"),
            build_lock(tmp_path, what="another", timeout_s=0.4),
        ):
            pass
    with build_lock(tmp_path, what="another", timeout_s=0.4):
        pass
    monkeypatch.setenv("EDGEVIS_BUILD_TIMEOUT", "soon")
    with pytest.raises(UnavailableError, match="'soon'; allowed: a number of seconds"), build_lock(tmp_path, what="x"):
        pass


def test_a_holder_of_another_machine_is_waited_for_as_long_as_it_lives(
    flock: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(locks, "_ABANDONED_SECONDS", 0.5)
    path = owner_in(tmp_path, host="jetson-3", pid=17, space="another boot")
    alive = threading.Event()

    def beat() -> None:
        for index in range(10):
            os.utime(path, (index, index))  # its clock is far from ours
            time.sleep(0.1)
        alive.set()

    thread = threading.Thread(target=beat)
    thread.start()
    with build_lock(tmp_path, what="x", timeout_s=30):
        assert alive.is_set(), "it was still touched"
    thread.join()
    owner_in(tmp_path, host="jetson-3", pid=17, space="another boot")
    with (
        pytest.raises(UnavailableError, match=r"process 17 on jetson-3, which builds embed\.onnx for Orin"),
        build_lock(tmp_path, what="x", timeout_s=0.2),
    ):
        pass


def test_a_dead_process_holds_nothing(flock: bool, tmp_path: Path) -> None:
    process = subprocess.Popen(["true"])
    started = locks._started(process.pid)
    process.wait()
    owner_in(tmp_path, pid=process.pid, started=started or "1")
    with build_lock(tmp_path, what="x", timeout_s=5):
        pass
    owner_in(tmp_path, started="1")  # this process's number, which another one had before
    with build_lock(tmp_path, what="x", timeout_s=5):
        pass


_KILLED = """
import sys, time
from pathlib import Path
from runtime.backends._tensorrt.build_lock import build_lock
with build_lock(Path(sys.argv[1]), what="a plan"):
    print("building", flush=True)
    time.sleep(60)
"""


def test_a_process_that_is_killed_holds_nothing(flock: bool, tmp_path: Path) -> None:
    command = python_command(_KILLED, tmp_path)
    process = subprocess.Popen(command, env=python_environment(), stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    assert process.stdout.readline().strip() == "building"
    process.send_signal(signal.SIGKILL)
    process.communicate(timeout=30)
    assert (tmp_path / "build.owner").exists()
    with build_lock(tmp_path, what="x", timeout_s=5):
        pass


def test_a_lock_that_another_took_meanwhile_is_put_back(tmp_path: Path) -> None:
    path = owner_in(tmp_path)
    locks._remove(path, "the one that was looked at before")
    assert '"token": "ab"' in path.read_text()
    locks._remove(path, "ab")
    assert list(tmp_path.iterdir()) == []


# --- progress


@pytest.fixture
def soon(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setattr(progress, "EVERY_SECONDS", 0.05)
    with ignored_warnings(match="building the plan"):
        yield


@pytest.mark.usefixtures("soon")
def test_a_build_says_how_long_it_has_taken_and_took_before(tmp_path: Path) -> None:
    cache, phases, builder = PlanCache(tmp_path), Phases(), Builder()

    def build(timing_cache: bytes) -> BuiltPlan:
        phases.start("Timing graph nodes", 120)
        phases.step("Timing graph nodes", 39)
        time.sleep(0.3)
        return builder(timing_cache)

    with logged_warnings(match=r"embed\.onnx for Orin for 0 s; it took minutes, the first time: Timing .* 40 of 120"):
        cache.get(KEY, build=build, open_plan=same, name="embed.onnx", phases=phases)
    for path in tmp_path.glob("*.json"):
        path.write_text(json.dumps({**json.loads(path.read_text()), "build_seconds": 187.4}))
    phases.finish("Timing graph nodes")
    with logged_warnings(match=r"for 0 s; it took 187 s before: Timing"):
        cache.get(replace(KEY, driver="a later one"), build=build, open_plan=same, name="embed.onnx", phases=phases)
    assert phases.text == "Timing graph nodes 40 of 120"


def test_a_fast_build_says_nothing(tmp_path: Path) -> None:
    PlanCache(tmp_path).get(KEY, build=Builder(), open_plan=same)


def test_the_builder_tells_its_phases() -> None:
    pytest.importorskip("tensorrt_rtx_bindings", reason="TensorRT-RTX has wheels for x86-64 only")
    told: list[str] = []

    class Told(Phases):
        def start(self, name: str, steps: int) -> None:
            super().start(name, steps)
            told.append(self.text)

    shapes = tuple((rows, 3, HEIGHT, WIDTH) for rows in (1, 2, 8))
    spec = BuildSpec({"image": (shapes[0], shapes[1], shapes[2])}, compute_capabilities=("SM86",))
    phases = Told()
    build_engine(float_onnx(Tiny()).SerializeToString(), spec, flavour="tensorrt_rtx", phases=phases)
    assert any(" 0 of " in text for text in told), told
    assert phases.text == ""


# --- the kernels of TensorRT-RTX


class RuntimeCache:
    """``IRuntimeCache``, whose content is text: a line for each kernel."""

    def __init__(self, release: bytes) -> None:
        self.release = release
        self.content = b""

    def deserialize(self, data: bytes) -> bool:
        if not data.startswith(self.release):
            return False
        self.content = data.removeprefix(self.release)
        return True

    def serialize(self) -> bytes:
        return self.release + self.content


class RuntimeConfig:
    """``IRuntimeConfig``."""

    release = b"1.7 "

    def create_runtime_cache(self) -> RuntimeCache:
        return RuntimeCache(self.release)

    def set_runtime_cache(self, cache: RuntimeCache) -> bool:
        self.cache = cache
        return True


def attached(cache: KernelCache, config: RuntimeConfig | None = None) -> RuntimeCache:
    config = config or RuntimeConfig()
    cache.attach(config)
    return config.cache


def test_kernels_are_compiled_once_for_all_processes(tmp_path: Path) -> None:
    first = KernelCache(b"plan", "Orin", tmp_path)
    cache = attached(first)
    assert attached(first) is cache, "the contexts of a plan share it"
    cache.content += b"a kernel\n"
    first.keep()
    assert attached(KernelCache(b"plan", "Orin", tmp_path)).content == b"a kernel\n"
    assert attached(KernelCache(b"another", "Orin", tmp_path)).content == b""
    assert attached(KernelCache(b"plan", "Thor", tmp_path)).content == b""
    (file,) = tmp_path.iterdir()
    os.utime(file, (5, 5))
    first.keep()
    assert file.stat().st_mtime == 5, "nothing new was compiled"


def test_kernels_of_another_release_are_compiled_again(tmp_path: Path) -> None:
    first = KernelCache(b"plan", "Orin", tmp_path)
    attached(first).content = b"a kernel"
    first.keep()
    config = RuntimeConfig()
    config.release = b"1.8 "
    later = KernelCache(b"plan", "Orin", tmp_path)
    cache = attached(later, config)
    assert cache.content == b""
    cache.content = b"another"
    later.keep()
    assert attached(KernelCache(b"plan", "Orin", tmp_path), config).content == b"another"


def test_kernels_are_bounded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(kernels, "MAX_BYTES", 250)
    for index in range(4):
        made = KernelCache(bytes([index]), "Orin", tmp_path)
        attached(made).content = b"x" * 96
        made.keep()
        assert made.path is not None
        os.utime(made.path, (index, index))
    assert len(list(tmp_path.glob("*.kernels"))) == 2
    large = KernelCache(b"large", "Orin", tmp_path)
    attached(large).content = b"x" * 300
    large.keep()
    assert large.path is not None
    assert not large.path.exists()


def test_kernels_that_cannot_be_kept_are_compiled_each_time(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("no folder")
    made = KernelCache(b"plan", "Orin", tmp_path / "file" / "cache")
    attached(made).content = b"a kernel"
    with logged_warnings(match="kernels cannot be kept in"):
        made.keep()


@pytest.mark.parametrize("chosen", ["", "eager", "lazy"])
def test_when_kernels_are_compiled(chosen: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """With the real enumerations: which settings a context gets. None is run: that needs a GPU."""
    trt = pytest.importorskip("tensorrt_rtx_bindings", reason="TensorRT-RTX has wheels for x86-64 only")
    monkeypatch.setenv("EDGEVIS_RTX_KERNELS", chosen)
    config = RuntimeConfig()
    strategies: list[Any] = []
    config.set_execution_context_allocation_strategy = strategies.append  # type: ignore[attr-defined]
    engine = SimpleNamespace(
        device_memory_size_v2=1, create_runtime_config=lambda: config, create_execution_context=lambda given: given
    )
    logger = SimpleNamespace(errors=[])
    plan = OpenPlan(trt, logger, None, engine, kernels=KernelCache(b"plan", "RTX", tmp_path))
    made: Any = plan.context()
    names = trt.DynamicShapesKernelSpecializationStrategy
    assert made.dynamic_shapes_kernel_specialization_strategy == (names.LAZY if chosen == "lazy" else names.EAGER)
    assert hasattr(made, "cuda_graph_strategy") == plan.captures == (chosen == "lazy")
    assert strategies == [trt.ExecutionContextAllocationStrategy.USER_MANAGED]
    assert isinstance(made.cache, RuntimeCache)
    monkeypatch.setenv("EDGEVIS_RTX_KERNELS", "never")
    with pytest.raises(EngineError, match="'never'; allowed: eager, lazy"):
        OpenPlan(trt, logger, None, engine)
