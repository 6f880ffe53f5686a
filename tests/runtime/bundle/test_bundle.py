"""A bundle comes from anywhere: every way in which it can lie has its error."""

from __future__ import annotations

import os
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from runtime.bundle import bundle as bundle_module
from runtime.bundle.bundle import GOLDEN, MANIFEST, MAX_FILE_BYTES, Bundle
from runtime.bundle.manifest import Manifest
from runtime.errors import BundleNotFoundError, IntegrityError, SchemaError

from bundles import (
    DIMENSION,
    HEIGHT,
    WIDTH,
    Tiny,
    TinyEngine,
    edited_manifest,
    expected_embeddings,
    needs_openvino,
    replace_file,
    tiny_weights,
    tree,
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


def test_what_lies_beside_a_bundle_is_told(tiny_bundle: Path) -> None:
    archive = tiny_bundle.with_suffix(".zip")
    archive.touch()
    for path, advice in (
        (tiny_bundle / "manifest.json", "name the folder that it lies in"),
        (tiny_bundle.parent, f"it holds {tiny_bundle.name}"),
        (archive, "unpack it"),
    ):
        with pytest.raises(BundleNotFoundError, match=f"is not a bundle: .*; {advice}"):
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
    with pytest.raises(SchemaError, match=rf"{tiny_bundle.name}: manifest\.json has {1 << 40} bytes; at most \d+ are"):
        Bundle(tiny_bundle)
