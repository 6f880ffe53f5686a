"""gunicorn --preload opens a predictor in the master: its forked workers answer, and all stop when they are told to."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from bundles import Tiny, TinyEngine, needs_openvino, write_tiny_bundle
from python_processes import python_environment

_APP = """
import json, os
import numpy as np
from edgevis import Predictor

image = np.random.default_rng(0).integers(0, 256, (96, 48, 3), np.uint8)
predictor = Predictor(os.environ["BUNDLE"])
predictor.enroll("alice", image)
predictor.predict([image] * 8)

def app(environ, start):
    matches = predictor.predict([image] * 3)[0].matches
    start("200 OK", [("Content-Type", "application/json")])
    return [json.dumps([os.getpid(), matches[0].label, matches[0].score]).encode()]
"""


@contextmanager
def gunicorn(folder: Path, bundle: Path) -> Iterator[tuple[subprocess.Popen[bytes], str]]:
    (folder / "web.py").write_text(_APP)
    address, log = folder / "address", folder / "log"
    command = [sys.executable, "-m", "gunicorn", "--preload", "--workers", "2", "--bind", "127.0.0.1:0"]
    command += ["--log-file", str(log), "--worker-tmp-dir", str(folder), "web:app"]
    environment = {**python_environment(), "BUNDLE": str(bundle)}
    process = subprocess.Popen(command, cwd=folder, env=environment)
    try:
        deadline = time.monotonic() + 60
        while "Listening at: " not in (text := log.read_text() if log.exists() else ""):
            assert process.poll() is None, text
            assert time.monotonic() < deadline, text
            time.sleep(0.05)
        address.write_text(text.partition("Listening at: ")[2].split(" ")[0])
        yield process, address.read_text()
    finally:
        if process.poll() is None:
            process.kill()
            process.wait()


@pytest.mark.parametrize("backend", ["onnxruntime", pytest.param("openvino", marks=needs_openvino)])
def test_workers_answer_and_stop(tmp_path: Path, backend: str) -> None:
    bundle = write_tiny_bundle(tmp_path / "tiny.edgevis", Tiny(engines=[TinyEngine(backend)]))
    with gunicorn(tmp_path, bundle) as (process, address):
        workers = set()
        for _ in range(20):
            with urllib.request.urlopen(address, timeout=60) as response:  # noqa: S310  # our own server
                worker, label, score = json.load(response)
            assert (label, round(score, 3)) == ("alice", 1.0)
            workers.add(worker)
        assert process.pid not in workers
        process.send_signal(signal.SIGTERM)
        # One second on a machine with nothing else to do; a worker that hangs is killed after the 30 of gunicorn.
        assert process.wait(timeout=15) == 0
    assert "SIGKILL" not in (tmp_path / "log").read_text()
