"""Arrays at rest: an .npz file may be an attacker's; a write is whole or not at all."""

from __future__ import annotations

import io
import os
import stat
import struct
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from runtime.common.arrays import read_arrays, unit_rows, write_arrays
from runtime.common.files import atomic_write
from runtime.errors import EnrolmentError, IntegrityError

from bundles import Array
from python_processes import run_python, succeeded

ARRAYS: dict[str, Array] = {
    "embed/image": np.arange(24, dtype=np.float32).reshape(2, 3, 4),
    "labels": np.frombuffer('["é"]'.encode(), np.uint8),
    "counts": np.array([3, 1], np.int64),
    "empty": np.empty((0, 8), np.float32),
    "fortran": np.asfortranarray(np.arange(6).reshape(2, 3)),
}


@pytest.fixture
def path(tmp_path: Path) -> Path:
    """A sound file of arrays."""
    write_arrays(tmp_path / "some.npz", ARRAYS)
    return tmp_path / "some.npz"


def refused(path: Path) -> str:
    with pytest.raises(IntegrityError) as caught:
        read_arrays(path, error=IntegrityError)
    assert str(path) in str(caught.value)
    return str(caught.value)


def member(name: str, content: bytes, compression: int = zipfile.ZIP_DEFLATED) -> bytes:
    """A zip archive of one member."""
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", compression) as archive:
        archive.writestr(name, content)
    return buffer.getvalue()


def npy(header: str, data: bytes = b"", version: bytes = b"\x01\x00") -> bytes:
    text = header.encode().ljust(117) + b"\n"
    size = struct.pack("<H" if version == b"\x01\x00" else "<I", len(text))
    return b"\x93NUMPY" + version + size + text + data


def test_arrays_read_back_as_they_were_written(path: Path) -> None:
    found = read_arrays(path, error=IntegrityError)
    assert set(found) == set(ARRAYS)
    for name, array in ARRAYS.items():
        np.testing.assert_array_equal(found[name], array)
        assert found[name].dtype == array.dtype


def test_the_callers_error_class_is_raised(tmp_path: Path) -> None:
    with pytest.raises(EnrolmentError, match="there is no file"):
        read_arrays(tmp_path / "missing.npz", error=EnrolmentError)


def test_truncated_at_any_place(path: Path) -> None:
    whole = path.read_bytes()
    for size in range(0, len(whole), 7):
        path.write_bytes(whole[:size])
        assert "damaged or not an .npz" in refused(path)


@given(choice=st.data())
@settings(max_examples=200)
def test_altered_bytes_give_the_same_arrays_or_the_documented_error(path: Path, choice: st.DataObject) -> None:
    write_arrays(path, ARRAYS)
    damaged = bytearray(path.read_bytes())
    for _ in range(choice.draw(st.integers(1, 3))):
        damaged[choice.draw(st.integers(0, len(damaged) - 1))] = choice.draw(st.integers(0, 255))
    path.write_bytes(bytes(damaged))
    try:
        found = read_arrays(path, error=IntegrityError)
    except IntegrityError:
        return
    for name in set(found) & set(ARRAYS):  # zip checks each member's content by CRC-32, not its name
        np.testing.assert_array_equal(found[name], ARRAYS[name])


@given(header=st.text(st.sampled_from("{}()[]',: descrfotn_shapelTu1O<f84|"), max_size=100))
def test_fuzzed_array_headers(tmp_path: Path, header: str) -> None:
    path = tmp_path / "fuzzed.npz"
    path.write_bytes(member("a.npy", npy(header)))
    assert "damaged" in refused(path)


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("no array", b"just text"),
        ("another magic number", b"\x93NUMPX\x01\x00" + bytes(64)),
        (
            "a version of the future",
            npy("{'descr': '<f4', 'fortran_order': False, 'shape': ()}", bytes(4), b"\x09\x00"),
        ),
        ("a terabyte that is not there", npy("{'descr': '<f4', 'fortran_order': False, 'shape': (274877906944,)}")),
        ("a shape beyond memory", npy(f"{{'descr': '<f4', 'fortran_order': False, 'shape': ({2**62}, {2**62})}}")),
        ("more data than the shape", npy("{'descr': '<f4', 'fortran_order': False, 'shape': (1,)}", bytes(8))),
        ("less data than the shape", npy("{'descr': '<f4', 'fortran_order': False, 'shape': (2,)}", bytes(4))),
        ("a negative shape", npy("{'descr': '<f4', 'fortran_order': False, 'shape': (-2, -1)}", bytes(8))),
        ("objects", npy("{'descr': '|O', 'fortran_order': False, 'shape': ()}", b"cos\nsystem\n.")),
        ("objects in a record", npy("{'descr': [('a', '|O')], 'fortran_order': False, 'shape': ()}", bytes(8))),
        ("nested brackets", npy("(" * 100)),
    ],
)
def test_a_member_that_lies(tmp_path: Path, name: str, content: bytes) -> None:
    path = tmp_path / f"{name}.npz"
    path.write_bytes(member("embeddings.npy", content))
    assert "is damaged or not an .npz file of plain arrays" in refused(path)


def test_a_file_that_would_unpack_to_more_than_allowed(tmp_path: Path) -> None:
    path = tmp_path / "bomb.npz"
    np.savez_compressed(path, zeros=np.zeros(10_000_000, np.uint8))
    assert path.stat().st_size < 20_000
    with pytest.raises(IntegrityError, match=r"would unpack to 10000128 bytes; at most 1000000 are read"):
        read_arrays(path, error=IntegrityError, max_bytes=1_000_000)


def test_a_bomb_that_understates_its_size(tmp_path: Path) -> None:
    """The directory of the archive says 128 bytes; the data unpack to ten million."""
    path = tmp_path / "bomb.npz"
    np.savez_compressed(path, zeros=np.zeros(10_000_000, np.uint8))
    true_size, stated = struct.pack("<I", 10_000_128), struct.pack("<I", 128)
    assert path.read_bytes().count(true_size) >= 1
    path.write_bytes(path.read_bytes().replace(true_size, stated))
    assert "damaged" in refused(path)


def test_an_encrypted_member(path: Path) -> None:
    content = bytearray(path.read_bytes())
    for marker, offset in ((b"PK\x03\x04", 6), (b"PK\x01\x02", 8)):
        start = 0
        while (start := content.find(marker, start)) >= 0:
            content[start + offset] |= 1
            start += 4
    path.write_bytes(bytes(content))
    assert "damaged" in refused(path)


def test_an_unknown_compression(path: Path) -> None:
    content = bytearray(path.read_bytes())
    for marker, offset in ((b"PK\x03\x04", 8), (b"PK\x01\x02", 10)):
        start = 0
        while (start := content.find(marker, start)) >= 0:
            content[start + offset] = 99
            start += 4
    path.write_bytes(bytes(content))
    assert "damaged" in refused(path)


def test_a_folder_is_not_a_file_of_arrays(tmp_path: Path) -> None:
    assert "cannot be read: Is a directory" in refused(tmp_path)


def test_a_single_array_is_not_an_npz(tmp_path: Path) -> None:
    np.save(tmp_path / "one.npy", np.zeros(3))
    assert "damaged" in refused(tmp_path / "one.npy")


def test_writing_refuses_objects(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="array 'a' holds objects"):
        write_arrays(tmp_path / "objects.npz", {"a": np.array([object()])})
    assert list(tmp_path.iterdir()) == []


def test_only_the_given_arrays_are_written(path: Path) -> None:
    with zipfile.ZipFile(path) as archive:
        assert sorted(archive.namelist()) == sorted(f"{name}.npy" for name in ARRAYS)


def test_a_failing_write_leaves_what_was_there(path: Path) -> None:
    before = path.read_bytes()

    def write_half() -> None:
        with atomic_write(path) as file:
            file.write(b"half")
            raise RuntimeError("in the middle")

    with pytest.raises(RuntimeError, match="in the middle"):
        write_half()
    assert path.read_bytes() == before
    assert list(path.parent.iterdir()) == [path]


def test_an_unfinished_write_is_not_seen(path: Path) -> None:
    before = path.read_bytes()
    with atomic_write(path) as file:
        file.write(b"new")
        file.flush()
        assert path.read_bytes() == before
    assert path.read_bytes() == b"new"


_FULL_DISK = """
import resource, sys
from pathlib import Path
import numpy as np
from runtime.common.arrays import write_arrays

resource.setrlimit(resource.RLIMIT_FSIZE, (4096, 4096))
try:
    write_arrays(Path(sys.argv[1]), {"noise": np.random.default_rng(0).random(10_000)})
except OSError as error:
    print(error.strerror)
"""


def test_a_full_disk_leaves_what_was_there(path: Path) -> None:
    before = path.read_bytes()
    assert succeeded(run_python(_FULL_DISK, path)) == "File too large"
    assert path.read_bytes() == before
    assert list(path.parent.iterdir()) == [path]


@pytest.mark.parametrize("umask", [0o022, 0o077])
def test_files_have_the_permissions_that_the_user_asks_for(path: Path, umask: int) -> None:
    before = os.umask(umask)
    try:
        write_arrays(path, ARRAYS)
    finally:
        os.umask(before)
    assert stat.S_IMODE(path.stat().st_mode) == 0o666 & ~umask


def rows_of(values: Any) -> Array:
    return np.array(values, np.float32)


def test_unit_rows() -> None:
    found = unit_rows(rows_of([[3, 4], [0, 0], [-2e-20, 0], [3e38, 3e38]]))
    assert found.dtype == np.float32
    np.testing.assert_allclose(found[[0, 3]], [[0.6, 0.8], [0.5**0.5, 0.5**0.5]], rtol=1e-6)
    assert np.linalg.norm(found[1:3], axis=1).max() < 1e-6  # no direction is made up


def test_unit_rows_do_not_hide_what_is_not_finite() -> None:
    found = unit_rows(rows_of([[np.nan, 1], [np.inf, 1], [3, 4]]))
    assert np.isnan(found[0]).any()
    assert np.isnan(found[1]).any()
    np.testing.assert_allclose(found[2], [0.6, 0.8], rtol=1e-6)
