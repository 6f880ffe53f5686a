"""A forked child can use a predictor that it inherits, and ends, whatever other threads did at the fork."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from bundles import Tiny, TinyEngine, needs_openvino, write_tiny_bundle
from python_processes import run_python, succeeded

pytestmark = [
    pytest.mark.skipif(not hasattr(os, "fork"), reason="there is no fork here"),
]

BACKENDS = ["onnxruntime", pytest.param("openvino", marks=needs_openvino)]


@pytest.fixture(scope="module", params=BACKENDS)
def backend(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture
def bundle(backend: str, tmp_path: Path) -> Path:
    return write_tiny_bundle(tmp_path / "tiny.edgevis", Tiny(engines=[TinyEngine(backend)]))


_COMMON = """
import gc, os, signal, sys, threading, time, warnings
import numpy as np
from edgevis import EdgevisError, Predictor

warnings.filterwarnings("ignore", "This process .* is multi-threaded", DeprecationWarning)
bundle, backend, threads = sys.argv[1], sys.argv[2], int(sys.argv[3]) or None
image = np.random.default_rng(0).integers(0, 256, (96, 48, 3), np.uint8)
predictor = Predictor(bundle, backend=backend, threads=threads)
predictor.enroll("alice", image)
expected = predictor.embed([image] * 3)

def ended(child, seconds=60.0):
    \"\"\"The child's exit status, or -1 when it hangs.\"\"\"
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        done, status = os.waitpid(child, os.WNOHANG)
        if done:
            return os.waitstatus_to_exitcode(status)
        time.sleep(0.02)
    os.kill(child, signal.SIGKILL)
    os.waitpid(child, 0)
    return -1
"""

_CHILDREN = (
    _COMMON
    + """
def use():
    assert predictor.labels == ("alice",)
    assert np.allclose(predictor.embed([image] * 3), expected, atol=1e-5)
    predictor.enroll("bob", image[:, ::-1])
    assert predictor.predict(image).matches[0].label == "alice"

def close():
    predictor.close()
    gc.collect()
    try:
        predictor.predict(image)
    except EdgevisError:
        return
    raise AssertionError("a closed predictor answered")

def use_and_close():
    use()
    close()

for child in (lambda: None, use, close, use_and_close):
    pid = os.fork()
    if not pid:
        child()
        sys.exit(7)  # destructors run
    print(ended(pid))
assert predictor.labels == ("alice",)
assert np.allclose(predictor.embed([image] * 3), expected, atol=1e-5)
predictor.close()
"""
)


@pytest.mark.parametrize("threads", [0, 1, 4])
def test_a_child_uses_and_closes_what_it_inherits_and_ends(bundle: Path, backend: str, threads: int) -> None:
    assert succeeded(run_python(_CHILDREN, bundle, backend, threads, timeout_s=300)).split() == ["7"] * 4


_BUSY = (
    _COMMON
    + """
stop = threading.Event()

def ask():
    while not stop.is_set():
        predictor.embed([image] * 2)

def enrol():
    while not stop.is_set():
        predictor.enroll("carol", image[::-1])
        predictor.predict(image)
        predictor.forget("carol")

workers = [threading.Thread(target=task) for task in (ask, enrol)]
for worker in workers:
    worker.start()
for _ in range(4):
    time.sleep(0.1)
    pid = os.fork()
    if not pid:
        assert np.allclose(predictor.embed([image] * 3), expected, atol=1e-5)
        predictor.enroll("dave", image)
        assert predictor.predict(image).matches[0].score > 0.999
        sys.exit(7)
    print(ended(pid))
stop.set()
for worker in workers:
    worker.join()
predictor.close()
"""
)


@pytest.mark.parametrize("threads", [0, 4])
def test_a_fork_while_other_threads_predict_and_enrol(bundle: Path, backend: str, threads: int) -> None:
    assert succeeded(run_python(_BUSY, bundle, backend, threads, timeout_s=300)).split() == ["7"] * 4


_GRANDCHILD = (
    _COMMON
    + """
pid = os.fork()
if not pid:
    predictor.embed(image)
    inner = os.fork()
    if not inner:
        assert np.allclose(predictor.embed([image] * 3), expected, atol=1e-5)
        sys.exit(7)
    sys.exit(ended(inner))
print(ended(pid))
"""
)


def test_a_child_of_a_child(bundle: Path, backend: str) -> None:
    assert succeeded(run_python(_GRANDCHILD, bundle, backend, 1, timeout_s=120)).split() == ["7"]


_POOL = (
    _COMMON
    + """
import multiprocessing
def score(_):
    return predictor.predict(image).matches[0].score
with multiprocessing.get_context("fork").Pool(2) as pool:
    print(min(pool.map(score, range(6))) > 0.999)
"""
)


def test_a_pool_of_processes(bundle: Path, backend: str) -> None:
    assert succeeded(run_python(_POOL, bundle, backend, 1, timeout_s=120)).split() == ["True"]


_MOVED = (
    _COMMON
    + """
import shutil
os.chdir("/")
if threads == 2:
    shutil.rmtree(bundle)
pid = os.fork()
if not pid:
    try:
        predictor.embed(image)
    except EdgevisError as error:
        print(type(error).__name__, error)
    else:
        print("works")
    sys.stdout.flush()
    sys.exit(0)
ended(pid)
"""
)


def test_a_child_reads_the_bundle_again(bundle: Path, backend: str) -> None:
    arguments = (bundle.name, backend)
    process = run_python(_MOVED, *arguments, 1, cwd=bundle.parent, timeout_s=120)
    assert succeeded(process).strip() == "works"
    process = run_python(_MOVED, bundle, backend, 2, timeout_s=120)
    assert succeeded(process).startswith("IntegrityError")
