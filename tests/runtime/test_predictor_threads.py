"""Predictors used by several threads, and several predictors at once."""

from __future__ import annotations

import gc
import threading
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from runtime.predictor import Predictor

from bundles import ORT, Tiny, needs_openvino, picture, write_tiny_bundle

PICTURES = [picture(seed) for seed in range(6)]


def opened(folder: Path, tiny: Tiny | None = None) -> Predictor:
    return Predictor(write_tiny_bundle(folder / "made.edgevis", tiny), threads=1)


@pytest.mark.parametrize("backend", ["onnxruntime", pytest.param("openvino", marks=needs_openvino)])
def test_threads_predict_while_others_enroll_and_forget(tmp_path: Path, backend: str) -> None:
    """Each thread looks for its own person, who is always enrolled, while strangers come and go."""
    count = 4
    wrong: list[Any] = []
    done = [0] * (count + 1)
    with opened(tmp_path, Tiny(engines=[replace(ORT, backend=backend)])) as predictor:
        for index in range(count):
            predictor.enroll(f"person {index}", PICTURES[index])
        predictor.threshold = 0.9999
        end = time.perf_counter() + 1.0  # what is slow to open on a busy machine has opened

        def look(index: int) -> None:
            while time.perf_counter() < end:
                batch = [PICTURES[index]] * (1 + done[index] % 6)
                wrong.extend(r for r in predictor.predict(batch) if r.label != f"person {index}")
                done[index] += 1

        def come_and_go() -> None:
            while time.perf_counter() < end:
                predictor.enroll("stranger", [PICTURES[4], PICTURES[5]])
                predictor.forget("stranger")
                done[-1] += 1

        threads = [threading.Thread(target=look, args=(index,)) for index in range(count)]
        threads.append(threading.Thread(target=come_and_go))
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert wrong == []
        assert min(done) > 0
        assert predictor.labels == tuple(f"person {index}" for index in range(count))


def test_predictors_do_not_hold_each_other(tmp_path: Path) -> None:
    with opened(tmp_path) as one, opened(tmp_path) as two:
        one.enroll("anna", PICTURES[0])
        assert two.labels == ()
        one.close()
        assert two.predict(PICTURES[0]).label is None
    del one
    gc.collect()
