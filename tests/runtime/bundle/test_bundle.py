"""A bundle comes from anywhere: every way in which it can lie has its error, and writing one is all or nothing."""

from __future__ import annotations

import os
import re
import shutil
import signal
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from runtime.bundle import bundle as bundle_module
from runtime.bundle import staging
from runtime.bundle.bundle import GOLDEN, MANIFEST, MAX_FILE_BYTES, Bundle
from runtime.bundle.manifest import Manifest
from runtime.bundle.staging import staged_bundle
from runtime.errors import BundleNotFoundError, IntegrityError, SchemaError
from runtime.predictor import Predictor

from bundles import (
    DIMENSION,
    HEIGHT,
    WIDTH,
    Tiny,
    TinyEngine,
    edited_manifest,
    expected_embeddings,
    needs_openvino,
    python_command,
    python_environment,
    replace_file,
    run_python,
    succeeded,
    tiny_weights,
    tree,
    write_bundle,
    write_tiny_bundle,
)

ENGINE = "engines/onnxruntime-fp32/embed.onnx"


def test_a_bundle_reads_back_as_it_was_written(tmp_path: Path) -> None:
    tiny = Tiny(engines=[TinyEngine(), TinyEngine(precision="int8", latency_ms=0.5, with_parity=False)])
    path = write_tiny_bundle(tmp_path / "whole.edgevis", tiny)
    bundle = Bundle(path)
    assert bundle.path == path
    assert bundle.manifest.deployment == tiny.deployment
    assert [engine.name for engine in bundle.manifest.engines] == ["onnxruntime-fp32", "onnxruntime-int8"]
    assert [engine.holds_parity for engine in bundle.manifest.engines] == [True, False]
    assert bundle.verify_files() == 3
    assert Manifest.loads(bundle.manifest.dumps()) == bundle.manifest
    assert set(bundle.manifest.files) == set(tree(path)) - {MANIFEST}


def test_golden_holds_real_arrays(tiny_bundle: Path) -> None:
    golden = Bundle(tiny_bundle).golden()
    assert golden["embed/image"].shape == (5, 3, HEIGHT, WIDTH)
    assert golden["embed/embedding"].shape == (5, DIMENSION)
    expected = expected_embeddings(golden["embed/image"], tiny_weights())
    np.testing.assert_allclose(golden["embed/embedding"], expected, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("path", ["missing.edgevis", "nul\0.edgevis"])
def test_no_bundle_there(tmp_path: Path, path: str) -> None:
    with pytest.raises(BundleNotFoundError, match=r"there is no bundle at .*python -m export\.build"):
        Bundle(tmp_path / path)


def test_a_path_longer_than_any(tmp_path: Path) -> None:
    with pytest.raises(BundleNotFoundError, match=r"cannot be read: .*File name too long"):
        Bundle(tmp_path / ("x" * 300))


def test_what_is_not_a_bundle(tmp_path: Path) -> None:
    file = tmp_path / "file.edgevis"
    file.write_bytes(b"not a folder")
    folder = tmp_path / "folder.edgevis"
    folder.mkdir()
    for path in (file, folder):
        with pytest.raises(BundleNotFoundError, match="is not a bundle"):
            Bundle(path)


def _truncate(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-1])


def _extend(path: Path) -> None:
    path.write_bytes(path.read_bytes() + b"\0")


def _empty(path: Path) -> None:
    path.write_bytes(b"")


def _alter(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(bytes(data))


def _become_folder(path: Path) -> None:
    path.unlink()
    path.mkdir()


def _become_pipe(path: Path) -> None:
    path.unlink()
    os.mkfifo(path)  # reading one would wait for ever


def _become_loop(path: Path) -> None:
    path.unlink()
    path.symlink_to(path)


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (_truncate, r"has \d+ bytes; the manifest says \d+"),
        (_extend, r"has \d+ bytes; the manifest says \d+"),
        (_empty, "has 0 bytes"),
        (_alter, "has been altered: its SHA-256 is"),
        (Path.unlink, "is missing; copy the bundle again"),
        (_become_folder, "is missing"),
        (_become_pipe, "is missing"),
        (_become_loop, "is missing"),
    ],
)
@pytest.mark.parametrize("name", [ENGINE, GOLDEN])
def test_a_damaged_file(tiny_bundle: Path, name: str, damage: Callable[[Path], None], message: str) -> None:
    bundle = Bundle(tiny_bundle)
    damage(tiny_bundle / name)
    with pytest.raises(IntegrityError, match=message) as caught:
        bundle.file(name)
    assert name in str(caught.value)
    with pytest.raises(IntegrityError, match=message):
        bundle.verify_files()


def test_a_file_that_may_not_be_read(tiny_bundle: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    # Root reads everything, so that a failing disk stands in for a missing permission.
    def refuse(path: Path) -> str:
        raise PermissionError(13, "Permission denied", str(path))

    monkeypatch.setattr(bundle_module, "sha256", refuse)
    with pytest.raises(IntegrityError, match=r"cannot be read: .*Permission denied") as caught:
        Bundle(tiny_bundle).file(ENGINE)
    assert isinstance(caught.value.__cause__, PermissionError)


def test_a_hash_that_lies(tiny_bundle: Path) -> None:
    with edited_manifest(tiny_bundle) as data:
        data["files"][ENGINE]["sha256"] = "0" * 64
    with pytest.raises(IntegrityError, match="the manifest says " + "0" * 64):
        Bundle(tiny_bundle).file(ENGINE)


@pytest.mark.parametrize("size", [0, 1, 10**30])
def test_a_size_that_lies(tiny_bundle: Path, size: int) -> None:
    with edited_manifest(tiny_bundle) as data:
        data["files"][ENGINE]["size_bytes"] = size
    with pytest.raises(IntegrityError, match=f"the manifest says {size} "):
        Bundle(tiny_bundle).file(ENGINE)


def test_a_file_of_absurd_size_is_not_hashed(tiny_bundle: Path) -> None:
    size = MAX_FILE_BYTES + 1
    os.truncate(tiny_bundle / ENGINE, size)  # sparse: takes no space
    with edited_manifest(tiny_bundle) as data:
        data["files"][ENGINE] = {"size_bytes": size, "sha256": "0" * 64}
    with pytest.raises(IntegrityError, match=rf"at most {MAX_FILE_BYTES} are read"):
        Bundle(tiny_bundle).file(ENGINE)


def test_a_file_that_the_manifest_does_not_list(tiny_bundle: Path) -> None:
    (tiny_bundle / "extra.onnx").write_bytes(b"x")
    with pytest.raises(IntegrityError, match=r"lists no file 'extra\.onnx'"):
        Bundle(tiny_bundle).file("extra.onnx")


@pytest.mark.parametrize(
    "name",
    [
        "../outside.onnx",
        "engines/../../outside.onnx",
        "..",
        "/etc/passwd",
        "//etc/passwd",
        "C:/windows",
        "C:evil",
        "a\\..\\b",
        "nul\0.onnx",
        "",
        ".",
        "./",
    ],
)
def test_a_path_that_is_not_inside(tiny_bundle: Path, name: str) -> None:
    (tiny_bundle.parent / "outside.onnx").write_bytes((tiny_bundle / ENGINE).read_bytes())
    with edited_manifest(tiny_bundle) as data:
        data["files"][name] = data["files"][ENGINE]
        data["engines"][0]["files"]["embed"] = name
    with pytest.raises(IntegrityError, match=re.escape(f"the file {name!r}, which is not a path inside the bundle")):
        Bundle(tiny_bundle)


@pytest.mark.parametrize("name", ["x" * 300, "a/" * 3000 + "b", "\ud800"])
def test_a_path_that_no_disk_has(tiny_bundle: Path, name: str) -> None:
    with edited_manifest(tiny_bundle) as data:
        data["files"][name] = data["files"][ENGINE]
    with pytest.raises(IntegrityError):
        Bundle(tiny_bundle).file(name)


def test_a_link_to_a_file_outside(tiny_bundle: Path) -> None:
    outside = tiny_bundle.parent / "outside.onnx"
    shutil.move(tiny_bundle / ENGINE, outside)
    (tiny_bundle / ENGINE).symlink_to(outside)
    with pytest.raises(IntegrityError, match="outside of the bundle"):
        Bundle(tiny_bundle).file(ENGINE)


def test_a_link_to_a_folder_outside(tiny_bundle: Path) -> None:
    outside = tiny_bundle.parent / "outside"
    shutil.move(tiny_bundle / "engines", outside)
    (tiny_bundle / "engines").symlink_to(outside)
    with pytest.raises(IntegrityError, match="outside of the bundle"):
        Bundle(tiny_bundle).file(ENGINE)


def test_a_link_that_stays_inside_is_followed(tiny_bundle: Path) -> None:
    (tiny_bundle / "moved.onnx").write_bytes((tiny_bundle / ENGINE).read_bytes())
    (tiny_bundle / ENGINE).unlink()
    (tiny_bundle / ENGINE).symlink_to(tiny_bundle / "moved.onnx")
    assert Bundle(tiny_bundle).file(ENGINE) == tiny_bundle / ENGINE


def test_a_bundle_may_be_reached_through_a_link(tiny_bundle: Path) -> None:
    link = tiny_bundle.parent / "link.edgevis"
    link.symlink_to(tiny_bundle)
    assert Bundle(link).verify_files() == 2


@needs_openvino
def test_the_weights_beside_an_ir_are_checked_with_it(tmp_path: Path) -> None:
    path = write_tiny_bundle(tmp_path / "ir.edgevis", Tiny(engines=[TinyEngine("openvino")]))
    ir = "engines/openvino-fp32/embed.xml"
    assert Bundle(path).engine_file(ir) == path / ir
    _alter(path / "engines/openvino-fp32/embed.bin")
    assert Bundle(path).file(ir) == path / ir
    with pytest.raises(IntegrityError, match=r"embed\.bin' has been altered"):
        Bundle(path).engine_file(ir)


@needs_openvino
def test_weights_beside_an_ir_that_the_manifest_does_not_list(tmp_path: Path) -> None:
    # OpenVINO opens the .bin unasked, so that leaving it out of the manifest must not leave it unchecked.
    path = write_tiny_bundle(tmp_path / "ir.edgevis", Tiny(engines=[TinyEngine("openvino")]))
    with edited_manifest(path) as data:
        del data["files"]["engines/openvino-fp32/embed.bin"]
    with pytest.raises(IntegrityError, match=r"lists no file 'engines/openvino-fp32/embed\.bin'"):
        Bundle(path).engine_file("engines/openvino-fp32/embed.xml")


def test_other_files_beside_an_engine_are_left_alone(tiny_bundle: Path) -> None:
    for name in ("README.txt", "embedding.bin", "other.onnx"):
        (tiny_bundle / ENGINE).with_name(name).write_text("not for any engine")
    assert Bundle(tiny_bundle).engine_file(ENGINE) == tiny_bundle / ENGINE


def test_an_engine_whose_file_is_not_listed(tiny_bundle: Path) -> None:
    with edited_manifest(tiny_bundle) as data:
        data["engines"][0]["files"]["embed"] = "engines/other.onnx"
    with pytest.raises(SchemaError, match=r"names 'engines/other\.onnx', which is not under 'files'"):
        Bundle(tiny_bundle)


class _Trap:
    """Makes a file when it is unpickled."""

    def __init__(self, witness: Path) -> None:
        self.witness = witness

    def __reduce__(self) -> tuple[Any, ...]:
        return Path.touch, (self.witness,)


def test_pickled_objects_in_golden_are_not_loaded(tiny_bundle: Path) -> None:
    witness = tiny_bundle.parent / "unpickled"
    np.savez(tiny_bundle / GOLDEN, **{"embed/image": np.array([_Trap(witness)], object)})
    replace_file(tiny_bundle, GOLDEN, (tiny_bundle / GOLDEN).read_bytes())
    with pytest.raises(IntegrityError, match=r"damaged or not an \.npz file of plain arrays"):
        Bundle(tiny_bundle).golden()
    assert not witness.exists()


def test_a_manifest_of_absurd_size_is_not_read(tiny_bundle: Path) -> None:
    os.truncate(tiny_bundle / MANIFEST, 1 << 40)
    with pytest.raises(SchemaError, match=rf"has {1 << 40} bytes; at most \d+ are read"):
        Bundle(tiny_bundle)


# Writing


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
    monkeypatch.setattr(staging, "_exchange", lambda one, other: False)


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
