"""A folder for each person: cameras, splits, copies, and what is refused."""

from __future__ import annotations

import shutil
import zipfile
from pathlib import Path

import pytest

from edgevis.data.leakage import SplitCheck
from edgevis.data.person_folders import read_person_folders
from edgevis.data.person_split import PersonSplit, split_persons
from runtime.errors import EdgevisError

from split_data import ALLOWED, write_image

PERSONS = ("anna", "bob", "cleo", "dan", "eve", "finn", "gil", "hana")


def write_persons(
    folder: Path, names: tuple[str, ...] = PERSONS, *, form: str = "{person}/cam{camera}_{index}.png"
) -> Path:
    for person in names:
        for camera in (1, 2):
            for index in range(2):
                path = folder / form.format(person=person, camera=camera, index=2 * camera + index)
                write_image(path, 100 * PERSONS.index(person) + 10 * camera + index)
    return folder


def split_of(folder: Path, check: SplitCheck | None = None) -> PersonSplit:
    return split_persons(folder, held_out=0.2, seed=0, check=check or SplitCheck())


@pytest.mark.parametrize(
    "form",
    [
        "{person}/cam{camera}_{index}.png",
        "{person}/{index}-Camera-0{camera}.png",
        "{person}/000{index}_c{camera}s1.png",
        "{person}/door {camera}/{index}.png",
        "persons/{person}/{camera}/{index}.png",
    ],
)
def test_cameras_are_in_the_names_of_files_or_folders(form: str, tmp_path: Path) -> None:
    if form.endswith("s1.png"):
        form = form.replace("s1", "_s1")
    found = read_person_folders(write_persons(tmp_path, form=form), check=SplitCheck())
    assert found.persons == PERSONS
    assert (found.roles, found.notes) == (None, {})
    assert set(zip(found.images.ids, found.images.cameras, strict=True)) == {
        (person, camera) for person in range(1, 9) for camera in (1, 2)
    }


def test_without_cameras_a_persons_pictures_are_halved(tmp_path: Path) -> None:
    write_persons(tmp_path, form="{person}/{index}.png")
    write_image(tmp_path / "anna" / "6.png", 999)
    found = read_person_folders(tmp_path, check=SplitCheck())
    assert found.images.cameras[:5] == (1, 1, 1, 2, 2)
    assert found.images.cameras[5:9] == (1, 1, 2, 2)
    assert found.notes == {"cameras": "none named: each person's pictures, by name, are halved"}


def test_persons_are_drawn_and_none_is_on_two_sides(tmp_path: Path) -> None:
    split = split_of(write_persons(tmp_path / "persons"))
    train, tested = set(split.train.ids), set(split.query.ids)
    assert (len(train), len(split.held), len(tested)) == (6, 2, 2)
    assert split.held < train
    assert not train & tested
    assert set(split.gallery.ids) == tested
    assert (set(split.query.cameras), set(split.gallery.cameras)) == ({1}, {2})
    # A zip is the same data.
    with zipfile.ZipFile(tmp_path / "persons.zip", "w") as archive:
        for path in (tmp_path / "persons").rglob("*.png"):
            archive.write(path, path.relative_to(tmp_path))
    packed = split_of(tmp_path / "persons.zip")
    assert (packed.train.ids, packed.query.ids, packed.held) == (split.train.ids, split.query.ids, split.held)


def test_folders_may_name_splits(tmp_path: Path) -> None:
    write_persons(tmp_path / "train", PERSONS[:4])
    write_persons(tmp_path / "Validation", PERSONS[4:6])
    split = split_of(tmp_path)
    assert (set(split.train.ids), set(split.query.ids)) == ({1, 2, 3, 4}, {5, 6}), "without test, val evaluates"
    assert len(split.held) == 2
    write_persons(tmp_path / "test", PERSONS[6:])
    split = split_of(tmp_path)
    assert (set(split.train.ids), split.held, set(split.query.ids)) == ({1, 2, 3, 4, 5, 6}, {5, 6}, {7, 8})
    write_image(tmp_path / "test" / "anna" / "cam1_9.png", 998)
    with pytest.raises(EdgevisError, match="1 person in both train and query"):
        split_of(tmp_path)


def test_copies_of_one_person_count_once_and_of_two_are_refused(tmp_path: Path) -> None:
    write_persons(tmp_path)
    shutil.copy(tmp_path / "anna" / "cam1_2.png", tmp_path / "anna" / "cam1_copy.png")
    found = read_person_folders(tmp_path, check=SplitCheck())
    assert (len(found.images), found.notes) == (32, {"repeated images left out": 1})
    shutil.copy(tmp_path / "anna" / "cam1_2.png", tmp_path / "bob" / "cam1_copy.png")
    with pytest.raises(
        EdgevisError, match=r"1 picture in two persons' folders \(anna/cam1_2\.png = bob/cam1_copy\.png\)"
    ):
        split_of(tmp_path)
    assert split_of(tmp_path, ALLOWED).notes["leakage"]


def _stray(folder: Path) -> None:
    write_image(folder / "a.png", 1)


def _deep(folder: Path) -> None:
    write_image(folder / "anna" / "door" / "monday" / "a.png", 1)


def _case(folder: Path) -> None:
    write_image(folder / "Anna" / "cam1_a.png", 1)


def _camera(folder: Path) -> None:
    write_image(folder / "anna" / "a.png", 1)


def _few(folder: Path) -> None:
    for person in PERSONS[4:]:
        shutil.rmtree(folder / person)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (_stray, r"a\.png in .* lies in no person's folder; allowed: a folder for each person, PERSON/1\.jpg"),
        (_deep, r"anna/door/monday/a\.png in .* lies in 3 folders; allowed"),
        (_case, r"1 person spelled in two ways \('Anna' = 'anna'\); correct the data"),
        (_camera, r"anna/a\.png in .* names no camera, and anna/cam1_2\.png does; allowed: all of them do"),
        (_few, "has 4 persons, 4 of them with pictures by two cameras .*; allowed: 6 or more such persons"),
    ],
)
def test_what_is_refused(change: object, message: str, tmp_path: Path) -> None:
    write_persons(tmp_path)
    assert callable(change)
    change(tmp_path)
    with pytest.raises(EdgevisError, match=message):
        split_of(tmp_path)


def test_a_folder_without_pictures(tmp_path: Path) -> None:
    (tmp_path / "readme.txt").write_text("nothing")
    with pytest.raises(EdgevisError, match="holds no pictures; allowed: a folder for each person"):
        split_of(tmp_path)
