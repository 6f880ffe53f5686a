"""Plans on disk: built once by however many processes, never a damaged one used, nothing lost on a full disk."""

from __future__ import annotations

import hashlib
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import fields, replace
from pathlib import Path

import pytest

from runtime.backends._cuda import DeviceInfo
from runtime.backends._tensorrt.backend import plan_key
from runtime.backends._tensorrt.cache import PlanCache, PlanKey
from runtime.backends._tensorrt.compiler import BuiltPlan, build_engine
from runtime.backends._tensorrt.plan import failure
from runtime.backends._tensorrt.spec import BuildSpec
from runtime.common.cache_folder import cache_folder
from runtime.errors import CompileError, DeviceMemoryError, EngineError

from bundles import HEIGHT, WIDTH, Tiny, float_onnx, installed
from logs import logged_warnings
from plan_builder import KEY, Builder, same
from python_processes import python_command, python_environment


def must_not_build(timing_cache: bytes) -> BuiltPlan:
    raise CompileError("the cached plan should have been used")


@pytest.fixture
def cache(tmp_path: Path) -> PlanCache:
    return PlanCache(tmp_path / "cache")


def plan_file(cache: PlanCache, key: PlanKey = KEY) -> Path:
    return cache.folder / f"{key.digest}.plan"


def test_a_plan_is_built_once_and_then_found(cache: PlanCache) -> None:
    first = cache.get(KEY, build=Builder(), open_plan=same)
    assert (first.opened, first.built, first.reason, first.size_bytes) == (b"a plan", True, "", 6)
    second = cache.get(KEY, build=must_not_build, open_plan=same)
    assert (second.opened, second.built, second.seconds, second.reason) == (b"a plan", False, 0.0, "")
    assert plan_file(cache).read_bytes() == b"a plan"  # nothing prepended: trtexec opens it


def test_whatever_a_plan_depends_on_makes_another_key(cache: PlanCache) -> None:
    cache.get(KEY, build=Builder(), open_plan=same)
    keys = {KEY.digest}
    for field in fields(PlanKey):
        changed = replace(KEY, **{field.name: "other"})
        keys.add(changed.digest)
        assert cache.get(changed, build=Builder(field.name.encode()), open_plan=same).built, field.name
    assert len(keys) == 1 + len(fields(PlanKey))
    assert not cache.get(KEY, build=must_not_build, open_plan=same).built


def test_fields_of_a_key_do_not_run_into_each_other() -> None:
    assert replace(KEY, sm="SM8", device="7Orin").digest != replace(KEY, sm="SM87", device="Orin").digest


def truncate(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-1])


def flip(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[0] ^= 1
    path.write_bytes(data)


@pytest.mark.parametrize(
    ("damage", "reason"),
    [
        (truncate, "it is damaged: its SHA-256"),
        (flip, "it is damaged: its SHA-256"),
        (lambda path: path.write_bytes(b""), "it is damaged: its SHA-256"),
        (lambda path: path.with_suffix(".json").unlink(), "its record cannot be read"),
        (lambda path: path.with_suffix(".json").write_text("{}"), "its record cannot be read"),
        (lambda path: path.with_suffix(".json").write_bytes(b"x" * (1 << 17)), "its record cannot be read"),
        (lambda path: (path.unlink(), path.mkdir()), "it cannot be read"),
    ],
)
def test_a_damaged_plan_is_built_again_and_the_reason_said(
    cache: PlanCache, damage: Callable[[Path], object], reason: str
) -> None:
    cache.get(KEY, build=Builder(), open_plan=same)
    damage(plan_file(cache))
    with logged_warnings(match=f"is built again: {reason}") as said:
        found = cache.get(KEY, build=Builder(b"another"), open_plan=same)
    assert found.opened == b"another"
    assert found.reason.startswith(reason)
    assert f"is built again: {reason}" in said[0]
    if plan_file(cache).is_file():
        assert cache.get(KEY, build=must_not_build, open_plan=same).opened == b"another"


def test_a_record_of_another_plan_is_not_believed(cache: PlanCache) -> None:
    cache.get(KEY, build=Builder(), open_plan=same)
    record = plan_file(cache).with_suffix(".json")
    data = json.loads(record.read_text())
    data["key"]["driver"] = "CUDA 13.0"
    record.write_text(json.dumps(data))
    with logged_warnings(match="its record is of another plan"):
        assert cache.get(KEY, build=Builder(b"another"), open_plan=same).opened == b"another"


def test_a_plan_that_comes_to_nothing_is_built_again(cache: PlanCache) -> None:
    """As TensorRT does with a plan that it cannot use, although it is what was written."""

    def deserialise(plan: bytes) -> bytes:
        if plan == b"a plan":
            raise EngineError("tensorrt 10.3.0 cannot use the plan: version tag does not match")
        return plan

    cache.get(KEY, build=Builder(), open_plan=same)
    with logged_warnings(match="is built again: .*version tag does not match"):
        assert cache.get(KEY, build=Builder(b"another"), open_plan=deserialise).opened == b"another"


@pytest.mark.parametrize(
    "message",
    [
        "[defaultAllocator.cpp::allocate::31] Error Code 1: Cuda Runtime (out of memory)",
        "Error Code 2: OutOfMemory (Requested size was 1342177280 bytes.)",
        "Requested amount of GPU memory (8 bytes) could not be allocated.",
    ],
)
def test_too_little_memory_to_open_a_plan_says_nothing_about_the_plan(cache: PlanCache, message: str) -> None:
    def deserialise(plan: bytes) -> bytes:
        raise failure("tensorrt 10.3.0 cannot use the plan", [message])

    cache.get(KEY, build=Builder(), open_plan=same)
    with pytest.raises(DeviceMemoryError, match="cannot use the plan"):
        cache.get(KEY, build=must_not_build, open_plan=deserialise)
    assert cache.get(KEY, build=must_not_build, open_plan=same).opened == b"a plan", "it has stayed"


def test_a_new_plan_that_comes_to_nothing_is_an_error(cache: PlanCache) -> None:
    def deserialise(plan: bytes) -> bytes:
        raise EngineError("no")

    with pytest.raises(EngineError, match="no"):
        cache.get(KEY, build=Builder(), open_plan=deserialise)


def test_a_build_that_fails_leaves_nothing_and_lets_go_of_the_lock(cache: PlanCache) -> None:
    with pytest.raises(CompileError, match="should have been used"):
        cache.get(KEY, build=must_not_build, open_plan=same)
    assert not plan_file(cache).exists()
    assert cache.get(KEY, build=Builder(), open_plan=same).built


def test_kernel_times_go_from_build_to_build_of_one_machine(cache: PlanCache) -> None:
    builder = Builder()
    for key in (KEY, replace(KEY, onnx_sha256="cd" * 32), replace(KEY, spec="{1}")):
        cache.get(key, build=builder, open_plan=same)
    assert builder.given == [b"", b"kernel times", b"kernel times"]
    for change in ({"device": "Thor"}, {"version": "11.0"}, {"sm": "SM110"}):
        other = Builder()
        cache.get(replace(KEY, **change), build=other, open_plan=same)
        assert other.given == [b""], change


def test_the_plans_unused_for_longest_are_deleted_first(cache: PlanCache) -> None:
    keys = [replace(KEY, driver=str(index)) for index in range(4)]
    for index, key in enumerate(keys):
        cache.get(key, build=Builder(b"x" * 100), open_plan=same)
        os.utime(plan_file(cache, key), (index, index))
    cache.get(keys[0], build=must_not_build, open_plan=same)  # now used last
    assert cache.prune(250) == 200
    assert [plan_file(cache, key).exists() for key in keys] == [True, False, False, True]
    assert not plan_file(cache, keys[1]).with_suffix(".json").exists()
    assert cache.get(keys[1], build=Builder(), open_plan=same).built


def test_a_new_plan_stays_however_large_it_is(tmp_path: Path) -> None:
    cache = PlanCache(tmp_path, max_bytes=10)
    cache.get(replace(KEY, driver="old"), build=Builder(b"12345678"), open_plan=same)
    cache.get(KEY, build=Builder(b"x" * 100), open_plan=same)
    assert [path.name for path in tmp_path.glob("*.plan")] == [plan_file(cache).name]


def test_what_a_crash_left_is_cleared_away_when_it_is_old(cache: PlanCache) -> None:
    cache.get(KEY, build=Builder(), open_plan=same)
    old, new = cache.folder / ".x.plan.0123", cache.folder / ".y.plan.4567"
    for path in (old, new):
        path.write_bytes(b"half a plan")
    os.utime(old, (0, 0))
    cache.prune()
    assert (old.exists(), new.exists()) == (False, True)  # the new one may be another process's, being written


def test_where_nothing_can_be_kept_it_works_and_says_so(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("no folder")
    cache = PlanCache(tmp_path / "file" / "cache")
    with logged_warnings(match="cannot keep what was built"):
        assert cache.get(KEY, build=Builder(), open_plan=same).opened == b"a plan"


_FULL = """
import resource, sys
from pathlib import Path
from runtime.backends._tensorrt.cache import PlanCache
from plan_builder import KEY, Builder, same
resource.setrlimit(resource.RLIMIT_FSIZE, (4096, 4096))  # as a full disk: a write fails in the middle
found = PlanCache(Path(sys.argv[1])).get(KEY, build=Builder(b"x" * 100_000), open_plan=same)
print(len(found.opened), found.built)
"""


def test_a_full_disk_loses_nothing(cache: PlanCache) -> None:
    other = replace(KEY, device="another")
    cache.get(other, build=Builder(b"kept"), open_plan=same)
    before = {path.name for path in cache.folder.iterdir()}
    done = run(_FULL, cache.folder)
    assert done.stdout.split() == ["100000", "True"], done.stderr
    assert "cannot keep what was built" in done.stderr
    left = {path.name for path in cache.folder.iterdir()} - before
    assert left <= {f"{KEY.digest}.json"}, "half a plan was left"
    assert cache.get(other, build=must_not_build, open_plan=same).opened == b"kept"
    assert cache.get(KEY, build=Builder(b"now it fits"), open_plan=same).opened == b"now it fits"


_AT_ONCE = """
import sys, time
from pathlib import Path
from runtime.backends._tensorrt.cache import PlanCache
from runtime.backends._tensorrt.compiler import BuiltPlan
from plan_builder import KEY, same

def build(timing_cache):
    with open(sys.argv[2], "a") as file:
        file.write("built\\n")
    time.sleep(0.5)
    return BuiltPlan(b"x" * 5_000_000, b"")

while time.time() < float(sys.argv[3]):
    pass
found = PlanCache(Path(sys.argv[1])).get(KEY, build=build, open_plan=same)
print(len(found.opened), found.built)
"""


def test_of_many_processes_one_builds_and_all_have_the_plan(cache: PlanCache, tmp_path: Path) -> None:
    start = str(time.time() + 2.0)
    arguments = (cache.folder, tmp_path / "log", start)
    processes = [started(_AT_ONCE, *arguments) for _ in range(5)]
    printed = sorted(process.communicate(timeout=60)[0].split()[-1] for process in processes)
    assert printed == ["False"] * 4 + ["True"]
    assert (tmp_path / "log").read_text() == "built\n"


_KILLED = """
import sys, time
from pathlib import Path
from runtime.backends._tensorrt.cache import PlanCache
from plan_builder import KEY, same

def build(timing_cache):
    print("building", flush=True)
    time.sleep(60)

PlanCache(Path(sys.argv[1])).get(KEY, build=build, open_plan=same)
"""


def test_a_builder_that_is_killed_stops_nobody(cache: PlanCache) -> None:
    process = started(_KILLED, cache.folder)
    assert process.stdout is not None
    assert process.stdout.readline().strip() == "building"
    process.send_signal(signal.SIGKILL)
    process.communicate(timeout=30)
    assert cache.get(KEY, build=Builder(), open_plan=same).built


@pytest.mark.skipif(not installed("tensorrt_rtx_bindings"), reason="TensorRT-RTX has wheels for x86-64 only")
def test_a_real_plan_survives_the_cache(cache: PlanCache) -> None:
    tiny = Tiny()
    onnx = float_onnx(tiny).SerializeToString()
    shapes = tuple((rows, 3, HEIGHT, WIDTH) for rows in (1, 2, 8))
    spec = BuildSpec({"image": (shapes[0], shapes[1], shapes[2])}, compute_capabilities=("SM86",))
    key = replace(KEY, onnx_sha256=hashlib.sha256(onnx).hexdigest(), spec=spec.dumps(), flavour="tensorrt_rtx")
    built = cache.get(
        key,
        build=lambda times: build_engine(onnx, spec, flavour="tensorrt_rtx", timing_cache=times),
        open_plan=same,
    )
    again = cache.get(key, build=must_not_build, open_plan=same)
    assert again.opened == built.opened
    assert again.size_bytes > 10_000


@pytest.mark.skipif(not installed("tensorrt_rtx_bindings"), reason="TensorRT-RTX has wheels for x86-64 only")
def test_compatible_plans_are_shared() -> None:
    """By the GPUs and the versions that can open them, and by no others."""
    a100, l4, t4 = (
        DeviceInfo(name, capability, "CUDA 13.0", integrated=False)
        for name, capability in (("A100", (8, 0)), ("L4", (8, 9)), ("T4", (7, 5)))
    )

    def key(gpu: DeviceInfo, **flags: bool) -> PlanKey:
        shapes = ((1, 4), (1, 4), (8, 4))
        return plan_key(b"onnx", BuildSpec({"x": shapes}, **flags), "tensorrt_rtx", gpu)  # type: ignore[arg-type]

    assert key(a100) != key(l4)
    assert key(a100, hardware_compatible=True) == key(l4, hardware_compatible=True) != key(a100)
    assert key(t4, hardware_compatible=True) != key(l4, hardware_compatible=True), "Turing is before Ampere"
    assert key(t4, hardware_compatible=True).device == "T4"
    assert key(a100).version.startswith("1.7")
    assert key(a100, version_compatible=True).version == "1"


@pytest.mark.parametrize(
    ("own", "shared", "wanted"),
    [
        ("/somewhere/own", "/somewhere/shared", "/somewhere/own"),
        ("", "/somewhere/shared", "/somewhere/shared/edgevis"),
        ("", "relative/is/ignored", "/home/of/somebody/.cache/edgevis"),
        ("", "", "/home/of/somebody/.cache/edgevis"),
    ],
)
def test_where_the_cache_lies(monkeypatch: pytest.MonkeyPatch, own: str, shared: str, wanted: str) -> None:
    monkeypatch.setenv("HOME", "/home/of/somebody")
    monkeypatch.setenv("EDGEVIS_CACHE", own)
    monkeypatch.setenv("XDG_CACHE_HOME", shared)
    assert cache_folder() == Path(wanted)


def started(code: str, *arguments: object) -> subprocess.Popen[str]:
    return subprocess.Popen(
        python_command(code, *arguments),
        env=python_environment(),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def run(code: str, *arguments: object) -> subprocess.CompletedProcess[str]:
    """Without ``-W error``: a warning is what is looked for."""
    return subprocess.run(
        [sys.executable, "-c", code, *map(str, arguments)],
        env=python_environment(),
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
