"""Several processes and threads that change one enrolment file: what was acknowledged stays."""

from __future__ import annotations

import subprocess
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest

from runtime.enrolment.file import load_enrolment
from runtime.errors import EnrolmentError, EnrolmentMismatchError
from runtime.predictor import Predictor

from bundles import Tiny, picture, tiny_weights, write_tiny_bundle
from python_processes import python_command, python_environment


@pytest.fixture
def path(predictor: Predictor, tmp_path: Path) -> Path:
    """A sound enrolment of one label."""
    predictor.enroll("anna", picture(1))
    predictor.save(tmp_path / "lobby.enrolment")
    return tmp_path / "lobby.enrolment"


def test_an_update_keeps_what_others_wrote_meanwhile(built: dict[str, Path], tmp_path: Path) -> None:
    path = tmp_path / "lobby.enrolment"
    with Predictor(built["reid"], threads=1) as one, Predictor(built["reid"], threads=1) as two:
        one.enroll("anna", picture(1))
        one.update(path)
        two.load(path)
        two.enroll("björn", picture(2))
        two.enroll("anna", picture(3))
        one.enroll("carla", picture(4))
        one.enroll("anna", picture(5))
        one.update(path)
        two.update(path)
        counts = {label: len(rows) for label, rows in load_enrolment(path).rows.items()}
        assert counts == {"anna": 3, "carla": 1, "björn": 1}
        assert two.labels == ("anna", "carla", "björn")
        two.update(path)  # nothing new: nothing twice
        one.update(path)
        assert {label: len(rows) for label, rows in load_enrolment(path).rows.items()} == counts
        assert one.labels == two.labels
        two.forget("anna")
        two.update(path)
        two.enroll("anna", picture(6))
        one.enroll("anna", picture(7))
        one.update(path)
        two.update(path)
        counts = {label: len(rows) for label, rows in load_enrolment(path).rows.items()}
        assert counts == {"carla": 1, "björn": 1, "anna": 2}
        two.forget("anna")
        two.enroll("anna", picture(8))  # anew: the former rows go
        two.update(path)
        rows = load_enrolment(path).rows["anna"]
        np.testing.assert_allclose(rows, two.embed(picture(8)), atol=1e-6)


def test_an_update_leaves_the_file_its_threshold_unless_another_was_set(built: dict[str, Path], tmp_path: Path) -> None:
    path = tmp_path / "lobby.enrolment"
    with Predictor(built["reid"], threads=1) as one, Predictor(built["reid"], threads=1) as two:
        one.threshold = 0.25
        one.enroll("anna", picture(1))
        one.update(path)
        two.enroll("björn", picture(2))
        two.update(path)
        assert load_enrolment(path).threshold == two.threshold == 0.25
        two.threshold = 0.5
        two.update(path)
        one.update(path)
        assert load_enrolment(path).threshold == one.threshold == 0.5


def test_an_update_of_another_encoders_file_changes_nothing(path: Path, tmp_path: Path) -> None:
    before = path.read_bytes()
    other = Tiny(weights=tiny_weights(1))
    with Predictor(write_tiny_bundle(tmp_path / "other.edgevis", other)) as predictor:
        predictor.enroll("dora", picture(1))
        with pytest.raises(EnrolmentMismatchError):
            predictor.update(path)
        assert predictor.labels == ("dora",)
    assert path.read_bytes() == before


_ENROL_MANY = """
import sys
from runtime.predictor import Predictor
from bundles import picture
print("begun", flush=True)
with Predictor(sys.argv[1], threads=1) as predictor:
    for number in range(8):
        predictor.enroll(f"{sys.argv[3]} {number}", picture(number))
        predictor.update(sys.argv[2])
"""


def test_processes_that_enrol_into_one_file_lose_nothing(built: dict[str, Path], tmp_path: Path) -> None:
    path, link = tmp_path / "real" / "lobby.enrolment", tmp_path / "link"
    path.parent.mkdir()
    link.symlink_to(path)
    commands = [python_command(_ENROL_MANY, built["reid"], link if name == "b" else path, name) for name in "abcd"]
    processes = [subprocess.Popen(command, env=python_environment(), stdout=subprocess.DEVNULL) for command in commands]
    assert [process.wait(timeout=120) for process in processes] == [0, 0, 0, 0]
    assert sorted(load_enrolment(path).rows) == sorted(f"{name} {number}" for name in "abcd" for number in range(8))
    assert list(path.parent.iterdir()) == [path]


def test_threads_that_enrol_while_others_update_lose_nothing(predictor: Predictor, tmp_path: Path) -> None:
    path = tmp_path / "lobby.enrolment"

    def enrol(name: str) -> None:
        for number in range(8):
            predictor.enroll(f"{name} {number}", picture(number))
            predictor.update(path)

    with ThreadPoolExecutor(4) as pool:
        list(pool.map(enrol, "abcd"))
    assert len(predictor.labels) == len(load_enrolment(path).rows) == 32


_HOLDER = """
import sys, time
from runtime.enrolment.file import enrolment_lock
with enrolment_lock(sys.argv[1]):
    print("held", flush=True)
    time.sleep(60)
"""


def test_a_lock_that_is_not_given_back_is_a_clear_error_and_that_of_the_dead_is_none(
    path: Path, predictor: Predictor
) -> None:
    before = path.read_bytes()
    holder = subprocess.Popen(
        python_command(_HOLDER, path), env=python_environment(), stdout=subprocess.PIPE, text=True
    )
    assert holder.stdout is not None
    assert holder.stdout.readline() == "held\n"
    predictor.enroll("dora", picture(1))
    with pytest.raises(EnrolmentError, match=r"being changed by another process, .* for 0\.1 s; .* is unchanged"):
        predictor.update(path, timeout_s=0.1)
    assert path.read_bytes() == before
    holder.kill()
    holder.communicate()
    predictor.update(path, timeout_s=5)
    assert "dora" in load_enrolment(path).rows
