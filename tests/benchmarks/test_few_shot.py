"""The few-shot benchmark: its shortcut gives what enrolling and predicting every image gives."""

from __future__ import annotations

import csv
import io
import json
import zipfile
from pathlib import Path

import cv2
import numpy as np
import pytest
from adapted_bundles import write_adapted_bundle

from benchmarks import few_shot
from edgevis import InputError, Predictor
from edgevis.data import read_class_table
from runtime.gallery.adapted import AdaptedGallery
from runtime.tasks._embedding import EmbeddingTask

from bundles import Tiny, expected_rows, picture, write_tiny_bundle

CLASSES, IMAGES = 6, 9


@pytest.fixture
def labelled_zip(tmp_path: Path) -> Path:
    """Six classes of nine pictures: one picture each, in other light."""
    path = tmp_path / "labelled.zip"
    table = io.StringIO()
    rows = csv.writer(table)
    rows.writerow(["path", "class_name"])
    with zipfile.ZipFile(path, "w") as archive:
        for label in range(CLASSES):
            for number in range(IMAGES):
                light = np.random.default_rng([label, number]).uniform(-90, 90)
                image = np.clip(picture(label).astype(np.float64) + light, 0, 255).astype(np.uint8)
                name = f"{label}/{number}.png"
                archive.writestr(name, cv2.imencode(".png", image)[1].tobytes())
                rows.writerow([name, f"class {label}"])
        archive.writestr("labels.csv", table.getvalue())
    return path


@pytest.fixture
def bundle(tmp_path: Path) -> Path:
    return write_tiny_bundle(tmp_path / "tiny.edgevis", Tiny("classify"))


@pytest.mark.parametrize("shot", [1, 3])
def test_embeddings_give_what_images_give(bundle: Path, labelled_zip: Path, shot: int) -> None:
    data = read_class_table(labelled_zip)
    images = [data[index][0] for index in range(len(data))]
    drawn = list(few_shot.episodes(data.labels, way=5, shot=shot, query=4, count=6, seed=3))
    with Predictor(bundle) as predictor:
        by_embedding = few_shot.from_embeddings(predictor.embed(images))
        by_image = few_shot.from_images(predictor, images)
        expected = [by_image(episode) for episode in drawn]
        assert [by_embedding(episode) for episode in drawn] == expected
    assert 0.2 < np.mean(expected) < 1.0, "neither chance nor trivial, so that a difference would show"


def test_adapted_prototypes_give_what_images_give(labelled_zip: Path, tmp_path: Path) -> None:
    data = read_class_table(labelled_zip)
    images = [data[index][0] for index in range(len(data))]
    drawn = list(few_shot.episodes(data.labels, way=5, shot=3, query=4, count=4, seed=3))
    with Predictor(write_adapted_bundle(tmp_path / "adapted.edgevis"), threads=1) as predictor:
        task = predictor.task
        assert isinstance(task, EmbeddingTask)
        assert isinstance(task.gallery, AdaptedGallery)
        by_embedding = few_shot.from_adapted(task.gallery, task.embeddings(images))
        found = [by_embedding(episode) for episode in drawn]
        by_image = few_shot.from_images(predictor, images)
        assert [by_image(episode) for episode in drawn] == found
    alone = few_shot.from_embeddings(np.asarray(expected_rows(images, Tiny("classify")), np.float32))
    assert [alone(episode) for episode in drawn] != found


def test_episodes_hold_the_protocol() -> None:
    labels = [f"class {index % CLASSES}" for index in range(CLASSES * IMAGES)]
    for episode in few_shot.episodes(labels, way=4, shot=2, query=5, count=20, seed=0):
        used = [index for group in (*episode.shots, *episode.queries) for index in group]
        assert len(used) == len(set(used)) == 4 * 7, "no image twice"
        classes = [{labels[index] for index in group} for group in episode.shots]
        assert all(len(group) == 1 for group in classes)
        assert len(set.union(*classes)) == 4, "no class twice"
        assert [{labels[index] for index in group} for group in episode.queries] == classes


def test_too_few_images_are_named() -> None:
    with pytest.raises(InputError, match="0 classes have 12 images or more; 5 are needed"):
        list(few_shot.episodes(["a"] * 9, way=5, shot=2, query=10, count=1, seed=0))


def test_the_command_prints_json(bundle: Path, labelled_zip: Path, capsys: pytest.CaptureFixture[str]) -> None:
    command = ["--bundle", str(bundle), "--data", str(labelled_zip), "--episodes", "20", "--query", "4", "--json"]
    assert few_shot.main(command) == 0
    found = json.loads(capsys.readouterr().out)
    assert [(item["shot"], item["episodes"]) for item in found] == [(1, 20), (5, 20)]
    assert all(0 < item["accuracy"][0] < 1 for item in found)
    assert all(item["accuracy"][1] > 0 for item in found)


def test_parts_of_the_classes_are_measured_apart(
    bundle: Path, labelled_zip: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    parts = [f"{labelled_zip}::even", f"{labelled_zip}::odd", str(labelled_zip)]
    command = ["--bundle", str(bundle), "--data", *parts, "--shot", "1", "--query", "4", "--episodes", "20", "--json"]
    assert few_shot.main([*command, "--way", "3"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert [item["data"] for item in found] == ["labelled.zip::even", "labelled.zip::odd", "labelled.zip"]
    assert len({item["accuracy"][0] for item in found}) == 3
    assert few_shot.main([*command, "--way", "4"]) == 1
    assert "3 classes" in capsys.readouterr().err


def test_a_zip_without_a_table_is_an_error(bundle: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "no.zip"
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("a.txt", "nothing")
    assert few_shot.main(["--bundle", str(bundle), "--data", str(path)]) == 1
    assert "no file labels.csv" in capsys.readouterr().err
