"""Writing a bundle is all or nothing: what a failing or killed build leaves on the disk."""

from __future__ import annotations

import signal
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest

from runtime.bundle import staging
from runtime.bundle.bundle import GOLDEN, MANIFEST, Bundle
from runtime.bundle.manifest import Manifest
from runtime.bundle.staging import staged_bundle
from runtime.errors import BundleNotFoundError, SchemaError
from runtime.predictor import Predictor

from bundles import tree, write_bundle, write_tiny_bundle
from python_processes import python_command, python_environment, run_python, succeeded

ENGINE = "engines/onnxruntime-fp32/embed.onnx"


def _filler(content: bytes, manifest: Manifest) -> Callable[[Path], Manifest]:
    def fill(folder: Path) -> Manifest:
        for name in manifest.files:
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            (folder / name).write_bytes(content)
        return manifest

    return fill


def _failing(error: BaseException) -> Callable[[Path], Manifest]:
    def fill(folder: Path) -> Manifest:
        (folder / "half.onnx").write_bytes(b"half")
        raise error

    return fill


def test_a_bundle_replaces_another_as_a_whole(tiny_bundle: Path) -> None:
    old = Bundle(tiny_bundle).manifest
    (tiny_bundle / "stale.txt").write_bytes(b"of the old one")
    bundle = write_bundle(tiny_bundle, _filler(b"new", old))
    assert bundle.path == tiny_bundle
    assert bundle.verify_files() == 2
    assert set(tree(tiny_bundle)) == {MANIFEST, ENGINE, GOLDEN}
    assert (tiny_bundle / ENGINE).read_bytes() == b"new"
    assert list(tiny_bundle.parent.iterdir()) == [tiny_bundle]


def test_missing_parent_folders_are_made(tmp_path: Path) -> None:
    path = tmp_path / "a" / "b" / "deep.edgevis"
    assert Bundle(write_tiny_bundle(path)).verify_files() == 2


@pytest.mark.parametrize("error", [RuntimeError("the compiler failed"), KeyboardInterrupt()])
def test_a_failing_build_leaves_the_old_bundle(tiny_bundle: Path, error: BaseException) -> None:
    before = tree(tiny_bundle.parent)
    with pytest.raises(type(error)):
        write_bundle(tiny_bundle, _failing(error))
    assert tree(tiny_bundle.parent) == before


def test_a_failing_build_leaves_nothing_behind(tmp_path: Path) -> None:
    with pytest.raises(RuntimeError):
        write_bundle(tmp_path / "new.edgevis", _failing(RuntimeError()))
    assert list(tmp_path.iterdir()) == []


def test_a_manifest_that_names_a_file_that_was_not_written(tiny_bundle: Path) -> None:
    before = tree(tiny_bundle.parent)
    manifest = Bundle(tiny_bundle).manifest
    with pytest.raises(SchemaError, match="which is not under 'files'"):
        write_bundle(tiny_bundle, lambda folder: manifest)
    assert tree(tiny_bundle.parent) == before


def test_a_block_that_writes_no_manifest(tiny_bundle: Path) -> None:
    before = tree(tiny_bundle.parent)
    with pytest.raises(BundleNotFoundError, match="is not a bundle"), staged_bundle(tiny_bundle) as folder:
        (folder / "engine.onnx").write_bytes(b"alone")
    assert tree(tiny_bundle.parent) == before


def test_what_is_no_bundle_is_not_replaced(tiny_bundle: Path) -> None:
    manifest = Bundle(tiny_bundle).manifest
    precious = tiny_bundle.parent / "photos.edgevis"
    precious.mkdir()
    (precious / "wedding.jpg").write_bytes(b"the only copy")
    file = tiny_bundle.parent / "file.edgevis"
    file.write_bytes(b"text")
    for path in (precious, file):
        with pytest.raises(BundleNotFoundError, match="it is left as it is; name another output"):
            write_bundle(path, _filler(b"new", manifest))
    assert tree(precious) == {"wedding.jpg": b"the only copy"}
    assert file.read_bytes() == b"text"


@pytest.mark.parametrize("name", ["reid", "reid.onnx", ".edgevis", "reid.edgevis.zip"])
def test_a_name_that_is_not_a_bundles(tmp_path: Path, name: str) -> None:
    with pytest.raises(SchemaError, match=r"a bundle's name ends in \.edgevis"):
        write_bundle(tmp_path / name, _failing(AssertionError("must not be called")))
    assert list(tmp_path.iterdir()) == []


_KILLED_BUILD = """
import sys, time
from pathlib import Path
from runtime.bundle.staging import staged_bundle

with staged_bundle(Path(sys.argv[1])) as folder:
    (folder / "half.onnx").write_bytes(b"half")
    print("writing", flush=True)
    time.sleep(60)
"""


def test_a_killed_build_leaves_the_old_bundle_usable(tiny_bundle: Path) -> None:
    before = tree(tiny_bundle)
    with subprocess.Popen(
        python_command(_KILLED_BUILD, tiny_bundle), env=python_environment(), stdout=subprocess.PIPE, text=True
    ) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "writing\n"
        process.kill()
    assert process.returncode == -signal.SIGKILL
    assert tree(tiny_bundle) == before
    with Predictor(tiny_bundle) as predictor:
        predictor.warmup()
    # What the killed one left does not hinder the next.
    manifest = Bundle(tiny_bundle).manifest
    assert write_bundle(tiny_bundle, _filler(b"new", manifest)).verify_files() == 2


_KILLED_AT_STEP = """
import os, signal, sys
from pathlib import Path
from runtime.bundle.bundle import Bundle
from runtime.bundle.staging import staged_bundle, write_manifest

path, steps_left = Path(sys.argv[1]), int(sys.argv[2])
manifest = Bundle(path).manifest
def count(event, arguments):
    global steps_left
    if event in ("os.rename", "os.remove", "os.rmdir"):
        steps_left -= 1
        if steps_left < 0:
            os.kill(os.getpid(), signal.SIGKILL)
with staged_bundle(path) as folder:
    for name in manifest.files:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(b"new")
    sys.addaudithook(count)
    write_manifest(folder, manifest)
"""


def test_a_build_killed_at_any_step_of_the_exchange_leaves_a_whole_bundle(tiny_bundle: Path) -> None:
    old = tree(tiny_bundle)
    seen_old, seen_new = 0, 0
    for steps in range(50):
        process = run_python(_KILLED_AT_STEP, tiny_bundle, steps)
        assert Bundle(tiny_bundle).verify_files() == 2, f"killed after {steps} steps"
        if tree(tiny_bundle) == old:
            seen_old += 1
        else:
            seen_new += 1
            assert (tiny_bundle / ENGINE).read_bytes() == b"new"
        if process.returncode == 0:
            break
        assert process.returncode == -signal.SIGKILL, process.stderr
    assert process.returncode == 0
    assert seen_old >= 1
    assert seen_new >= 2


@pytest.fixture
def no_exchange(monkeypatch: pytest.MonkeyPatch) -> None:
    """As on a system or a file system without renameat2's exchange."""
    monkeypatch.setattr(staging, "exchange_folders", lambda one, other: False)


@pytest.mark.usefixtures("no_exchange")
def test_a_bundle_is_replaced_where_folders_cannot_be_exchanged(tiny_bundle: Path) -> None:
    manifest = Bundle(tiny_bundle).manifest
    assert write_bundle(tiny_bundle, _filler(b"new", manifest)).verify_files() == 2
    assert (tiny_bundle / ENGINE).read_bytes() == b"new"
    assert list(tiny_bundle.parent.iterdir()) == [tiny_bundle]


@pytest.mark.usefixtures("no_exchange")
def test_the_old_bundle_comes_back_when_the_new_one_cannot_take_its_place(
    tiny_bundle: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = tree(tiny_bundle.parent)
    manifest = Bundle(tiny_bundle).manifest
    rename = Path.rename

    def fail_for_the_new(self: Path, target: Path) -> Path:
        if self.name == "new":
            raise OSError(5, "Input/output error")
        return rename(self, target)

    monkeypatch.setattr(Path, "rename", fail_for_the_new)
    with pytest.raises(OSError, match="Input/output error"):
        write_bundle(tiny_bundle, _filler(b"new", manifest))
    assert tree(tiny_bundle.parent) == before


_SLEEPING_BUILD = """
import sys, time
from pathlib import Path
from runtime.bundle.staging import staged_bundle

with staged_bundle(Path(sys.argv[1])) as folder:
    (folder / "engine.onnx").write_bytes(bytes(1000))
    print("building", flush=True)
    time.sleep(60)
"""


def test_the_folder_of_a_killed_build_is_swept_by_the_next_and_that_of_a_living_one_stays(tiny_bundle: Path) -> None:
    builds = [
        subprocess.Popen(
            python_command(_SLEEPING_BUILD, tiny_bundle), env=python_environment(), stdout=subprocess.PIPE, text=True
        )
        for _ in range(2)
    ]
    for build in builds:
        assert build.stdout is not None
        assert build.stdout.readline() == "building\n"
    builds[0].kill()
    builds[0].communicate()
    manifest = Bundle(tiny_bundle).manifest
    assert len(list(tiny_bundle.parent.glob(".*"))) == 2
    write_bundle(tiny_bundle, _filler(b"new", manifest))
    assert len(list(tiny_bundle.parent.glob(".*"))) == 1
    builds[1].kill()
    builds[1].communicate()
    write_bundle(tiny_bundle, _filler(b"newer", manifest))
    assert list(tiny_bundle.parent.iterdir()) == [tiny_bundle]


def test_a_bundle_that_a_killed_build_had_put_aside_comes_back(tiny_bundle: Path) -> None:
    manifest = Bundle(tiny_bundle).manifest
    aside = tiny_bundle.parent / f".{tiny_bundle.name}.abcd1234"
    aside.mkdir()
    tiny_bundle.rename(aside / "old")

    def fail(folder: Path) -> Manifest:
        raise ValueError("this build fails, too")

    with pytest.raises(ValueError, match="this build fails, too"):
        write_bundle(tiny_bundle, fail)
    assert Bundle(tiny_bundle).manifest == manifest
    assert list(tiny_bundle.parent.iterdir()) == [tiny_bundle]


_FULL_DISK_BUILD = """
import resource, sys
from pathlib import Path
from runtime.bundle.staging import staged_bundle

try:
    with staged_bundle(Path(sys.argv[1])) as folder:
        resource.setrlimit(resource.RLIMIT_FSIZE, (4096, 4096))
        (folder / "engine.onnx").write_bytes(bytes(8192))
except OSError as error:
    print(error.strerror)
"""


def test_a_full_disk_leaves_the_old_bundle(tiny_bundle: Path) -> None:
    before = tree(tiny_bundle.parent)
    assert succeeded(run_python(_FULL_DISK_BUILD, tiny_bundle)) == "File too large"
    assert tree(tiny_bundle.parent) == before
