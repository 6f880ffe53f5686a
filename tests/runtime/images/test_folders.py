"""Folders as people have them: what is read, what is left out without a word, and what a warning names."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

import cv2
import pytest

from runtime.errors import EdgevisError, InputError, SourceError
from runtime.images import folders
from runtime.images.decode import SUFFIXES, UNREAD_SUFFIXES
from runtime.images.folders import image_files, is_hidden
from runtime.streams.reader import frames

from bundles import picture
from logs import logged_warnings

APPLE = b"\x00\x05\x16\x07\x00\x02\x00\x00Mac OS X        " + bytes(80)


@pytest.fixture
def door(tmp_path: Path) -> Path:
    folder = tmp_path / "door"
    folder.mkdir()
    for name in ("IMG_1.JPG", "IMG_2.jpeg", "IMG_3.png"):
        assert cv2.imwrite(str(folder / name), picture(1, 24, 20))
    return folder


THREE = ["IMG_1.JPG", "IMG_2.jpeg", "IMG_3.png"]


def names(folder: Path) -> list[str]:
    return [path.relative_to(folder).as_posix() for path in image_files(folder)]


def put(folder: Path, name: str, content: bytes = b"") -> None:
    (folder / name).parent.mkdir(parents=True, exist_ok=True)
    (folder / name).write_bytes(content)


DROPPINGS: dict[str, Callable[[Path], object]] = {
    ".DS_Store": lambda folder: put(folder, ".DS_Store", b"\0\0\0\1Bud1"),
    "Thumbs.db": lambda folder: put(folder, "Thumbs.db", b"\xd0\xcf\x11\xe0"),
    "AppleDouble": lambda folder: put(folder, "._IMG_1.JPG", APPLE),
    "a Mac's zip": lambda folder: put(folder, "__MACOSX/door/._IMG_1.JPG", APPLE),
    "thumbnails": lambda folder: put(folder, ".thumbnails/t.jpg", b"x"),
    "Synology": lambda folder: put(folder, "@eaDir/IMG_1.JPG/SYNOPHOTO_THUMB_M.jpg", b"x"),
    "Windows": lambda folder: put(folder, "$RECYCLE.BIN/IMG_9.jpg", b"x"),
    "git": lambda folder: put(folder, ".git/a.png", b"x"),
    "text": lambda folder: put(folder, "notes.txt", b"x"),
    "a folder called a picture": lambda folder: (folder / "album.jpg").mkdir(),
    "a link to itself": lambda folder: os.symlink(folder, folder / "loop"),
    "a link to what is above": lambda folder: os.symlink(folder.parent, folder / "up"),
}


@pytest.mark.parametrize("name", DROPPINGS)
def test_what_is_left_out_without_a_word(door: Path, name: str) -> None:
    DROPPINGS[name](door)
    assert [name for name in names(door) if not name.startswith("up/")] == THREE
    if name != "a link to what is above":
        assert len(list(frames(door))) == 3


NAMED: dict[str, tuple[Callable[[Path], object], str]] = {
    "HEIC": (lambda folder: put(folder, "IMG_4.HEIC"), r"IMG_4\.HEIC \(OpenCV does not read \.heic here: convert"),
    "raw": (lambda folder: put(folder, "deep/DSC_1.NEF"), r"deep/DSC_1\.NEF \(OpenCV does not read \.nef"),
    "dangling": (lambda folder: os.symlink("/nonexistent/x.jpg", folder / "IMG_9.jpg"), r"IMG_9\.jpg \(a link that"),
    "in a circle": (lambda folder: os.symlink(folder / "a.png", folder / "a.png"), r"a\.png \(a link that leads"),
    "a pipe": (lambda folder: os.mkfifo(folder / "IMG_0.png"), r"IMG_0\.png \(not a regular file\)"),
}


@pytest.mark.parametrize("name", NAMED)
def test_what_a_warning_names(door: Path, name: str) -> None:
    make, message = NAMED[name]
    make(door)
    with logged_warnings(match=rf"left out of .*door: {message}"):
        assert names(door) == THREE
    with logged_warnings(match=message):
        assert len(list(frames(door))) == 3


def test_many_names_are_counted_and_odd_ones_escaped(door: Path) -> None:
    for index in range(8):
        put(door, f"{index}.heic")
    put(door, "0\n.heic")
    with logged_warnings(match=r"'0\\n\.heic \(.*', .* and 4 more$"):
        image_files(door)


def test_a_folder_of_nothing_that_is_read(tmp_path: Path) -> None:
    put(tmp_path / "phone", "IMG_1.HEIC")
    with pytest.raises(SourceError, match=r"holds no images; left out: IMG_1\.HEIC \(OpenCV does not read \.heic"):
        image_files(tmp_path / "phone")
    (tmp_path / "empty").mkdir()
    with pytest.raises(SourceError, match=r"holds no images \(.*\.jpg"):
        image_files(tmp_path / "empty")
    with pytest.raises(SourceError, match="cannot be listed"):
        image_files(tmp_path / "none")
    with pytest.raises(SourceError, match="is not a folder"):
        image_files(tmp_path / "phone" / "IMG_1.HEIC")


def test_folders_in_folders_in_the_order_of_paths(door: Path) -> None:
    for name in ("b/1.png", "a/2.png", "a.png", "a/b/3.png"):
        put(door, name)
    assert names(door) == ["IMG_1.JPG", "IMG_2.jpeg", "IMG_3.png", "a/2.png", "a/b/3.png", "a.png", "b/1.png"]
    assert [path.name for path in image_files(door, recursive=False)] == [*THREE, "a.png"]


def test_links_are_followed_once(door: Path, tmp_path: Path) -> None:
    put(tmp_path / "elsewhere", "x.png")
    os.symlink(tmp_path / "elsewhere", door / "linked")
    os.symlink(door, tmp_path / "elsewhere" / "back")
    os.symlink(door / "IMG_3.png", door / "z.png")
    assert names(door) == [*THREE, "linked/x.png", "z.png"]


def test_a_mistake_in_the_path_ends(door: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(folders, "MAX_ENTRIES", 2)
    with pytest.raises(InputError, match="holds more than 2 files"):
        image_files(door)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "is empty"),
        (cv2.imencode(".jpg", picture(1, 24, 20))[1].tobytes()[:100], "JPEG ends before its pixels begin"),
        (cv2.imencode(".jpg", picture(1, 64, 64))[1].tobytes()[:900], "the JPEG is cut short"),
        (b"<!DOCTYPE html>", "is HTML, SVG or XML"),
        (b"\0\0\0\x18ftypheic\0\0\0\0mif1heic" + bytes(500), "is HEIC"),
    ],
)
def test_a_damaged_picture_is_named_and_a_stream_can_go_on(door: Path, content: bytes, message: str) -> None:
    put(door, "IMG_2b.jpg", content)
    with pytest.raises(SourceError, match=rf"IMG_2b\.jpg .*{message}"):
        list(frames(door))
    errors: list[EdgevisError] = []
    assert len(list(frames(door, on_error=errors.append))) == 3
    assert "IMG_2b.jpg" in str(errors[0])


def test_names_of_systems() -> None:
    for name in (".a.png", "a/.b/c.png", "__MACOSX/a.png", "x/@eaDir/a.png", "__macosx/a", "._a.png"):
        assert is_hidden(name)
    for name in ("a.png", "a/b.png", "MACOSX/a.png", "a.b/c.d.png"):
        assert not is_hidden(name)
    assert not SUFFIXES & UNREAD_SUFFIXES
    assert {".jpg", ".jfif", ".jpe", ".mpo", ".png"} <= SUFFIXES
    assert {".heic", ".heif", ".dng"} <= UNREAD_SUFFIXES


@pytest.mark.parametrize("folder", ["masks", "instances"])
def test_label_images_beside_images_are_no_pictures(tmp_path: Path, folder: str) -> None:
    for name in (
        f"images/{folder}.png",
        f"{folder}/a.png",
        f"{folder}/deep/b.png",
        "set/images/c.png",
        f"set/{folder}/c.png",
    ):
        put(tmp_path, name)
    put(tmp_path, f"other/{folder}/d.png")
    assert names(tmp_path) == [f"images/{folder}.png", f"other/{folder}/d.png", "set/images/c.png"]
    assert names(tmp_path / folder) == ["a.png", "deep/b.png"]
