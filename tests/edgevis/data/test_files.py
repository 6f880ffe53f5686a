"""Listings of folders and zips: the same names and bytes from both, and nothing of a hostile zip."""

from __future__ import annotations

import contextlib
import io
import os
import pickle
import struct
import subprocess
import sys
import zipfile
from pathlib import Path

import cv2
import numpy as np
import pytest

from calibration.data.samples import samples_from
from edgevis.data import files as files_module
from edgevis.data.files import open_files
from edgevis.data.masks import read_class_ids, read_mask
from edgevis.data.person_cutouts import persons_from_ccp
from runtime.errors import EdgevisError, InputError, SourceError
from runtime.images import folders as folders_module

from logs import ignored_warnings, logged_warnings

CONTENT = {"a/1.txt": b"one", "a/b/2.txt": b"two" * 1000, "index.csv": b"stem,split\nx,train\n\ny,val\n", "empty": b""}


def _zip(path: Path, content: dict[str, bytes], method: int = zipfile.ZIP_DEFLATED) -> Path:
    with zipfile.ZipFile(path, "w", method) as archive:
        for name, data in content.items():
            archive.writestr(name, data)
    return path


def _folder(path: Path, content: dict[str, bytes]) -> Path:
    for name, data in content.items():
        (path / name).parent.mkdir(parents=True, exist_ok=True)
        (path / name).write_bytes(data)
    return path


@pytest.fixture(params=["folder", "stored", "deflated"])
def source(request: pytest.FixtureRequest, tmp_path: Path) -> Path:
    content = CONTENT | {"a/.hidden": b"", "__MACOSX/a/1.txt": b"", ".git/x": b""}
    if request.param == "folder":
        return _folder(tmp_path / "data", content)
    method = zipfile.ZIP_STORED if request.param == "stored" else zipfile.ZIP_DEFLATED
    return _zip(tmp_path / "data.zip", content, method)


def test_a_folder_and_a_zip_give_the_same(source: Path) -> None:
    files = open_files(source)
    assert list(files.names) == sorted(CONTENT)
    assert {name: files.read(name) for name in files.names} == CONTENT
    assert files.below("a") == ["a/1.txt", "a/b/2.txt"]
    inside = open_files(source, inside="a/")
    assert list(inside.names) == ["1.txt", "b/2.txt"]
    assert inside.read("b/2.txt") == CONTENT["a/b/2.txt"]
    assert inside.where("1.txt") == f"a/1.txt in {source}"


def test_a_listing_can_be_sent_to_another_process(source: Path) -> None:
    assert pickle.loads(pickle.dumps(open_files(source))).read("a/1.txt") == b"one"  # noqa: S301 - our own bytes


def test_what_is_not_there(source: Path) -> None:
    files = open_files(source)
    with pytest.raises(SourceError, match=r"has no file a/3\.txt"):
        files.read("a/3.txt")
    with pytest.raises(SourceError, match=r"has no file \.\./data/index\.csv"):
        files.read("../data/index.csv")
    with pytest.raises(SourceError, match="has no folder c with files"):
        files.below("c")
    with pytest.raises(SourceError, match="holds no files in c/"):
        open_files(source, inside="c")


def test_a_file_too_large_is_not_read(source: Path) -> None:
    with pytest.raises(SourceError, match=r"a/b/2\.txt.* has 3000 bytes; at most 2999 are read"):
        open_files(source).read("a/b/2.txt", max_bytes=2999)


def test_tables(source: Path, tmp_path: Path) -> None:
    assert open_files(source).table("index.csv", ["split"]) == [
        {"stem": "x", "split": "train"},
        {"stem": "y", "split": "val"},
    ]
    for text, message in (
        ("a,b\n1,2\n3\n", "line 3 of t.csv .* has 1 columns; its first line has 2"),
        ("a,b\n1,2,3\n", "line 2 of t.csv .* has 3 columns; its first line has 2"),
        ("a,c\n1,2\n", "no column 'b'; its columns are a, c"),
        ("a,b,b\n1,2,3\n", "a column twice"),
        ("a,b\n", "has no rows"),
        ("", "no column 'a'"),
        ('a,b\n1,"2\n', "line 2 of t.csv"),
    ):
        files = open_files(_folder(tmp_path / "tables", {"t.csv": text.encode()}))
        with pytest.raises(SourceError, match=message):
            files.table("t.csv", ["a", "b"])
    files = open_files(_folder(tmp_path / "tables", {"t.csv": b"a,b\n\xff,1\n", "t.json": b"[NaN]"}))
    with pytest.raises(SourceError, match="not UTF-8"):
        files.table("t.csv", ["a", "b"])
    with pytest.raises(SourceError, match="not JSON"):
        files.json("t.json")


@pytest.mark.parametrize(
    "name", ["../x", "a/../../x", "/etc/x", "C:/x", "a\\..\\x", "a//x", "./x", "line\nbreak"], ids=repr
)
def test_names_that_could_lead_out_are_refused(tmp_path: Path, name: str) -> None:
    with pytest.raises(SourceError, match="names that could lead out of a zip are refused"):
        open_files(_zip(tmp_path / "hostile.zip", {"fine.txt": b"", name: b""}))


def test_a_name_twice_is_refused(tmp_path: Path) -> None:
    path = _zip(tmp_path / "twice.zip", {"a.txt": b"1"})
    with zipfile.ZipFile(path, "a") as archive, pytest.warns(UserWarning, match="Duplicate"):
        archive.writestr("a.txt", b"2")
    with pytest.raises(SourceError, match=r"holds a\.txt twice"):
        open_files(path)


def test_other_methods_and_encryption_are_refused(tmp_path: Path) -> None:
    with pytest.raises(SourceError, match="encrypted or packed by another method"):
        open_files(_zip(tmp_path / "b.zip", {"a.txt": b"1"}, zipfile.ZIP_BZIP2))
    path = _zip(tmp_path / "e.zip", {"a.txt": b"1"})
    data = bytearray(path.read_bytes())
    data[data.index(b"PK\x01\x02") + 8] |= 1
    path.write_bytes(data)
    with pytest.raises(SourceError, match="encrypted or packed by another method"):
        open_files(path)


def test_a_damaged_zip_is_an_error(tmp_path: Path) -> None:
    path = _zip(tmp_path / "d.zip", {"a.txt": b"0123456789" * 50})
    whole = path.read_bytes()
    files = open_files(path)
    start = whole.index(b"a.txt") + len(b"a.txt")
    for damaged in (
        whole[:start] + bytes(8) + whole[start + 8 :],  # the packed bytes
        b"PK\x05\x06" + whole[4:],  # the entry's own header
        whole[:20],
        b"",
    ):
        path.write_bytes(damaged)
        with pytest.raises(SourceError, match=r"a\.txt in .* cannot be read"):
            files.read("a.txt")
    path.write_bytes(whole[:-30])
    with pytest.raises(SourceError, match="neither a folder nor a zip"):
        open_files(path)


def test_a_zip_that_lies_about_sizes_unpacks_no_more_than_it_said(tmp_path: Path) -> None:
    path = _zip(tmp_path / "bomb.zip", {"a.txt": bytes(1 << 20)})
    data = bytearray(path.read_bytes())
    directory = data.index(b"PK\x01\x02")
    struct.pack_into("<I", data, directory + 24, 100)
    path.write_bytes(data)
    with pytest.raises(SourceError, match="checksum is wrong"):
        open_files(path).read("a.txt", max_bytes=100)
    struct.pack_into("<I", data, directory + 20, 1 << 30)
    path.write_bytes(data)
    with pytest.raises(SourceError, match="cut short"):
        open_files(path)


def test_no_data_at_all(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(SourceError, match="does not exist"):
        open_files(tmp_path / "none")
    with pytest.raises(SourceError, match="holds no files"):
        open_files(tmp_path)
    (tmp_path / "a.txt").write_text("not a zip")
    with pytest.raises(SourceError, match="neither a folder nor a zip"):
        open_files(tmp_path / "a.txt")
    (tmp_path / "b.txt").write_text("")
    monkeypatch.setattr(folders_module, "MAX_ENTRIES", 1)
    with pytest.raises(InputError, match="more than 1 files"):
        open_files(tmp_path)


def test_links_are_followed_but_not_in_circles(tmp_path: Path) -> None:
    _folder(tmp_path / "elsewhere", {"x.txt": b"x"})
    data = _folder(tmp_path / "data", {"a/1.txt": b"one"})
    (data / "a" / "linked").symlink_to(tmp_path / "elsewhere")
    (data / "a" / "up").symlink_to(data)
    (data / "a" / "dangling").symlink_to(tmp_path / "gone")
    assert set(open_files(data).names) >= {"a/1.txt", "a/linked/x.txt"}
    assert not [name for name in open_files(data).names if "/up/" in name]
    with pytest.raises(SourceError, match="has no file a/dangling"):
        open_files(data).read("a/dangling")


def test_a_pipe_is_not_read(tmp_path: Path) -> None:
    _folder(tmp_path, {"1.txt": b"one", "pipe.jpg": b""})
    files = open_files(tmp_path)
    (tmp_path / "pipe.jpg").unlink()
    os.mkfifo(tmp_path / "pipe.jpg")
    with pytest.raises(SourceError, match="not a file"):
        files.read("pipe.jpg")
    with logged_warnings(match=r"left out of .*: pipe\.jpg \(not a regular file\)"):
        assert list(open_files(tmp_path).names) == ["1.txt"]


MASK = np.random.default_rng(0).integers(0, 21, (37, 41)).astype(np.uint8)


def _png(pixels: np.ndarray) -> bytes:
    return bytes(cv2.imencode(".png", pixels)[1])


def _pil_png(image: object, **options: object) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, "PNG", **options)  # type: ignore[attr-defined]
    return buffer.getvalue()


def _masks(tmp_path: Path, **content: bytes) -> files_module.Files:
    return open_files(_folder(tmp_path, {f"{name}.png": data for name, data in content.items()}))


def test_masks_keep_their_numbers(tmp_path: Path) -> None:
    instances = np.array([[0, 300], [65535, 1]], np.uint16)
    files = _masks(tmp_path, grey=_png(MASK), equal=_png(cv2.merge([MASK] * 3)), instances=_png(instances))
    np.testing.assert_array_equal(read_mask(files, "grey.png").numbers, MASK)
    np.testing.assert_array_equal(read_mask(files, "equal.png").numbers, MASK)
    np.testing.assert_array_equal(read_mask(files, "instances.png").numbers, instances)
    with pytest.raises(SourceError, match="16 bits a pixel"):
        read_class_ids(files, "instances.png")


def test_a_palettes_indices_and_few_bits_are_kept(tmp_path: Path) -> None:
    """PASCAL VOC's masks have a palette; colours of unused entries are equal, so colours could not be turned back."""
    pil = pytest.importorskip("PIL.Image")
    content = {}
    expected = {}
    for bits in (8, 4, 2, 1):
        expected[f"p{bits}"] = MASK % min(21, 2**bits)
        image = pil.fromarray(expected[f"p{bits}"])
        image.putpalette([0, 0, 0, 128, 0, 0] + [7] * (3 * 254))
        content[f"p{bits}"] = _pil_png(image, bits=bits)
    expected["g1"] = MASK % 2
    content["g1"] = _pil_png(pil.fromarray(MASK % 2 * 255).convert("1"))
    files = _masks(tmp_path, **content)
    for name, mask in expected.items():
        np.testing.assert_array_equal(read_mask(files, f"{name}.png").numbers, mask, err_msg=name)


def test_what_is_no_mask(tmp_path: Path) -> None:
    colour = np.random.default_rng(0).integers(0, 256, (8, 8, 3)).astype(np.uint8)
    jpeg = bytes(cv2.imencode(".jpg", MASK)[1])
    files = _masks(tmp_path, colour=_png(colour), jpeg=jpeg, cut=_png(MASK)[:40], nothing=b"")
    for name, message in (
        ("colour", "holds colours"),
        ("jpeg", "is a JPEG, which does not keep a mask's values"),
        ("cut", "damaged"),
        ("nothing", "is empty"),
    ):
        with pytest.raises(SourceError, match=rf"{name}\.png in .* {message}"):
            read_mask(files, f"{name}.png")


def test_data_and_measures_need_neither_pytorch_nor_nibabel() -> None:
    """They run beside the runtime, on a device without either."""
    code = "import sys, edgevis.data, edgevis.metrics; print({'torch', 'nibabel', 'torchmetrics'} & set(sys.modules))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "set()"


def _mutated(whole: bytes, random: np.random.Generator) -> bytes:
    data = bytearray(whole)
    for _ in range(random.choice([1, 2, 8])):
        data[random.integers(len(data))] = random.integers(256)
    return bytes(data[: random.integers(len(data))] if random.random() < 0.1 else data)


@pytest.mark.parametrize("method", [zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED, zipfile.ZIP_BZIP2, zipfile.ZIP_LZMA])
@pytest.mark.filterwarnings("ignore:Duplicate name")
def test_a_zip_with_wrong_bytes_raises_nothing_but_ours(tmp_path: Path, method: int) -> None:
    """zipfile raises zlib.error, NotImplementedError, UnicodeDecodeError and more of such a file."""
    picture = cv2.imencode(".png", np.random.default_rng(0).integers(0, 255, (40, 20, 3), np.uint8))[1].tobytes()
    whole = _zip(tmp_path / "w.zip", {**{f"a/{i}.png": picture[:300] for i in range(3)}, "é.csv": b"a,b"}, method)
    random = np.random.default_rng(method)
    for number in range(150):
        path = tmp_path / f"{number}.zip"
        path.write_bytes(_mutated(whole.read_bytes(), random))
        with contextlib.suppress(EdgevisError), ignored_warnings(match="left out of"):
            files = open_files(path)
            for name in files.names:
                files.read(name)
        with contextlib.suppress(EdgevisError), ignored_warnings(match="left out of"):
            samples_from(path)
        with pytest.raises(EdgevisError):
            persons_from_ccp(path, split="train")


@pytest.mark.parametrize("content", [b"[]", b"{}", b"no JSON", b'{"names": 3}'])
def test_a_zip_of_other_persons_is_an_error(tmp_path: Path, content: bytes) -> None:
    with pytest.raises(SourceError, match="is not the Clothing Co-Parsing zip"):
        persons_from_ccp(_zip(tmp_path / "p.zip", {"classes.json": content, "index.csv": b"stem"}), split="train")
