"""``--recipe distill``: reading persons, their views, and a blockwise distillation small enough for a test."""

from __future__ import annotations

import json
import sys
from collections.abc import Mapping
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from edgevis import models
from edgevis.data.person_cutouts import BACKGROUND, BODY, persons_from_ccp, persons_from_video, read_person_sources
from edgevis.models.osnet import DEPLOYMENT, OSNet
from edgevis.models.recipe import recipe_of
from edgevis.models.unlabelled_recipe import BlockwiseDistillationRecipe
from edgevis.train import main
from edgevis.training.blockwise import BlockwiseDistillationTask, activations, unexplained_terms
from edgevis.training.camera_views import HEIGHT, WIDTH, camera_view
from edgevis.training.progress import ConsoleProgress
from edgevis.training.request import TrainingRequest
from edgevis.training.run import train
from edgevis.training.teacher import open_teacher
from runtime.errors import SourceError

from training_data import write_dressed_persons


@pytest.fixture(scope="module")
def photos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_dressed_persons(tmp_path_factory.mktemp("photos") / "ccp.zip")


@pytest.fixture(scope="module")
def video(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Four empty seconds, then a dark figure walks through a bright room."""
    path = tmp_path_factory.mktemp("video") / "room.avi"
    writer = cv2.VideoWriter(str(path), cv2.VideoWriter.fourcc(*"MJPG"), 10, (320, 240))
    for index in range(80):
        frame = np.full((240, 320, 3), 200, np.uint8)
        if index >= 40:
            cv2.rectangle(frame, (4 * index - 100, 60), (4 * index - 50, 219), (30, 40, 60), -1)
        writer.write(frame)
    writer.release()
    return path


@pytest.fixture(scope="module")
def sources(photos: Path, video: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of the photographs and the video."""
    folder = tmp_path_factory.mktemp("sources") / "persons"
    folder.mkdir()
    for path in (photos, video):
        (folder / path.name).write_bytes(path.read_bytes())
    return folder


@pytest.fixture(scope="module")
def teacher(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Weights as others publish them."""
    torch.manual_seed(0)
    path = tmp_path_factory.mktemp("teacher") / "teacher.safetensors"
    save_file(models.create("osnet-x0-25").state_dict(), path)
    return path


def recipe(**values: object) -> BlockwiseDistillationRecipe:
    return recipe_of(BlockwiseDistillationRecipe, models.entry("osnet-x0-25").recipes["distill"].with_values(values))


def command(data: Path, output: Path, *more: object) -> list[str]:
    values = ("batch=4", "epochs=2", "steps_per_epoch=2", "blockwise=0.5")
    settings = [part for value in values for part in ("--set", value)]
    return [
        "osnet-x0-25",
        "--recipe",
        "distill",
        "--data",
        str(data),
        "--output",
        str(output),
        *settings,
        *map(str, more),
    ]


def test_persons_from_photos(photos: Path) -> None:
    persons = persons_from_ccp(photos, split="train")
    assert len(persons) == 4
    person = persons[0]
    x0, y0, x1, y1 = person.box
    assert (x1 - x0, y1 - y0) == (40, 130)
    assert person.image.shape == (*person.parts.shape, 3)
    # Hair is the body, the coat a part of its own, and the hidden classes one more.
    assert set(np.unique(person.parts)) == {BACKGROUND, BODY, 2, 255}
    assert (person.parts[y0 : y0 + 20, x0:x1] == BODY).all()
    assert len(persons_from_ccp(photos, split="val")) == 2
    with pytest.raises(SourceError, match="no photo of split 'test'"):
        persons_from_ccp(photos, split="test")
    with pytest.raises(SourceError, match="is not the Clothing Co-Parsing zip"):
        persons_from_ccp(photos.parent / "absent.zip", split="train")


def test_persons_from_video(video: Path) -> None:
    persons = persons_from_video(video, every=8)
    assert len(persons) == 5
    for person in persons:
        x0, y0, x1, y1 = person.box
        # Within the closing of the mask and JPEG.
        assert abs((x1 - x0) - 51) <= 8
        assert abs((y1 - y0) - 160) <= 8
        assert person.image[(y0 + y1) // 2, (x0 + x1) // 2].max() < 90
    with pytest.raises(SourceError, match="no video at"):
        persons_from_video(video.parent / "absent.mp4")
    broken = video.parent / "broken.mp4"
    broken.write_bytes(b"no video")
    with pytest.raises(SourceError, match="cannot be opened"):
        persons_from_video(broken)


def test_persons_from_a_folder(sources: Path, photos: Path, tmp_path: Path) -> None:
    persons = read_person_sources(sources)
    assert (len(persons.photos), len(persons.video), len(persons.held_out)) == (4, 5, 2)
    alone = read_person_sources(photos)
    assert (len(alone.photos), len(alone.video), len(alone.held_out)) == (4, 0, 2)
    with pytest.raises(SourceError, match="holds 0 zips"):
        read_person_sources(tmp_path)


def test_views_are_repeatable_and_whole(photos: Path) -> None:
    task = BlockwiseDistillationTask.read(photos, recipe(epochs=0, batch=24), DEPLOYMENT, None, seed=3)
    first = task.batch(0, 7, 0)["image"]
    assert first.shape == (24, 3, HEIGHT, WIDTH)
    assert first.dtype == torch.float32
    assert torch.equal(first, task.batch(0, 7, 0)["image"])
    for place in ((0, 8, 0), (1, 7, 0), (0, 7, 1)):
        assert not torch.equal(first, task.batch(*place)["image"])
    assert first.std((1, 2, 3)).min() > 0
    same = camera_view(persons_from_ccp(photos, split="train"), 0, np.random.default_rng(5), same_clothes=True)
    assert (same.shape, same.dtype) == ((HEIGHT, WIDTH, 3), np.uint8)


def test_loss_is_zero_for_the_teacher_itself() -> None:
    torch.manual_seed(0)
    model, other = models.create("osnet-x0-25"), models.create("osnet-x0-25")
    assert isinstance(model, OSNet)
    assert isinstance(other, OSNet)
    image = torch.rand(2, 4, 3, 256, 128)
    with torch.inference_mode():
        taught = activations(model, image[0])
        forced = activations(model, image[1], taught)
        same = unexplained_terms(taught, taught)
        different = unexplained_terms(activations(other, image[0]), taught)
        torch.testing.assert_close(taught.values.relu(), model.embed(image[0]))
    assert max(float(term) for term in same.values()) < 1e-5
    assert min(float(term) for term in different.values()) > 1e-2
    # Forced blocks see the other run's maps: all but the stem agree with it.
    torch.testing.assert_close(forced.maps[1:], taught.maps[1:])
    torch.testing.assert_close(forced.values, taught.values)


def test_a_new_student_varies_as_its_teacher_does(photos: Path, teacher: Path) -> None:
    opened = open_teacher(teacher, "osnet-x0-25", student=DEPLOYMENT)
    task = BlockwiseDistillationTask.read(photos, recipe(batch=4), DEPLOYMENT, opened, seed=0)
    torch.manual_seed(1)
    student = models.create("osnet-x0-25")
    with torch.no_grad():
        for scales in student.output_scales():
            for scale in scales:
                scale.mul_(7)
    task.prepare(student, new=True, progress=lambda done, total: None)
    image = task.batch(0, 0, 0)["image"]
    with torch.no_grad():
        taught = activations(opened.model, image)
        learned = activations(student, image, taught)
    for own, other in zip((*learned.maps, learned.values), (*taught.maps, taught.values), strict=True):
        # A shortcut without a convolution has no scale of its own.
        assert 0.5 < own.std() / other.std() < 2


def test_blocks_learn_alone_and_then_together(photos: Path, teacher: Path) -> None:
    """In the first epochs a block's gradient comes from its own map alone."""
    opened = open_teacher(teacher, "osnet-x0-25", student=DEPLOYMENT)
    task = BlockwiseDistillationTask.read(photos, recipe(batch=4, epochs=4, blockwise=0.5), DEPLOYMENT, opened, seed=0)
    torch.manual_seed(1)
    student = models.create("osnet-x0-25").train()
    batch = task.batch(0, 0, 0)
    stem = student.get_parameter("conv1.conv.weight")
    for epoch, reached in ((0, False), (1, False), (2, True), (3, True)):
        terms = task.loss(student, task.criterion(), batch, epoch)
        gradient = torch.autograd.grad(terms["cosine"], stem, allow_unused=True)[0]
        assert (gradient is not None) == reached


def test_a_resumed_distillation_is_an_unbroken_one(
    sources: Path, teacher: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    taught = ("--teacher", teacher, "--teacher-model", "osnet-x0-25")
    assert main(command(sources, tmp_path / "whole", *taught, "--json")) == 0
    report = json.loads(capsys.readouterr().out)
    assert list(report["evaluation"]["figures"]) == ["cosine", "rank-1", "teacher's rank-1"]
    assert report["data"]["persons in videos"] == 5
    log = (tmp_path / "whole" / "log.csv").read_text().splitlines()
    assert log[0].startswith("epoch,loss,cosine,centred,pairs,values,maps,learning_rate,validation cosine")
    request = TrainingRequest(
        "osnet-x0-25",
        sources,
        tmp_path / "parts",
        "distill",
        {"batch": 4, "epochs": 2, "steps_per_epoch": 2, "blockwise": 0.5},
        teacher=teacher,
        teacher_model="osnet-x0-25",
    )
    with pytest.raises(KeyboardInterrupt):
        train(request, Interrupts())
    assert main(command(sources, tmp_path / "parts", *taught, "--resume", "--quiet")) == 0
    for file in ("best.safetensors", "last.safetensors"):
        whole, parts = load_file(tmp_path / "whole" / file), load_file(tmp_path / "parts" / file)
        assert whole.keys() == parts.keys()
        assert all(torch.equal(tensor, parts[name]) for name, tensor in whole.items())
    models.load_weights(models.create("osnet-x0-25"), tmp_path / "whole" / "best.safetensors")
    assert main(command(sources, tmp_path / "parts", *taught, "--resume", "--quiet", "--seed", 1)) == 1
    assert "is of another training: seed" in capsys.readouterr().err


class Interrupts(ConsoleProgress):
    """Interrupts a training after its first epoch, as Ctrl-C does."""

    def __init__(self) -> None:
        super().__init__(sys.stderr, quiet=True)

    def epoch(self, row: Mapping[str, float], epochs: int, seconds: float, left_s: float) -> None:
        raise KeyboardInterrupt


def test_it_needs_a_teacher_of_the_same_blocks(
    photos: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    other = tmp_path / "other.safetensors"
    save_file(models.create("epri-net-baseline").state_dict(), other)
    cases: tuple[tuple[list[object], str], ...] = (
        ([], "this recipe learns from a teacher alone; add --teacher FILE"),
        (["--teacher", other, "--teacher-model", "epri-net-baseline"], "cannot be run block by block"),
        (["--teacher-model", "osnet-x0-25", "--set", "loss=reid"], "loss is 'reid'; allowed: unexplained"),
    )
    for more, message in cases:
        assert main(command(photos, tmp_path / "run", "--quiet", *more)) == 1
        assert message in capsys.readouterr().err
    # Without a teacher weights can be evaluated.
    assert main(command(photos, tmp_path / "run", "--quiet", "--json", "--epochs", 0)) == 0
    assert list(json.loads(capsys.readouterr().out)["evaluation"]["figures"]) == ["rank-1"]


def test_vectors_need_not_decay(photos: Path, teacher: Path, tmp_path: Path) -> None:
    """A decay that leaves nothing of the matrices leaves the scales and shifts of batch norm alone."""
    taught = ("--teacher", teacher, "--teacher-model", "osnet-x0-25", "--quiet", "--epochs", 1)
    still = ("--set", "learning_rate=1e-6", "--set", "weight_decay=1e6", "--set", "warm_up_epochs=0")
    assert main(command(photos, tmp_path / "run", *taught, *still, "--set", "clip_norm=1e-6")) == 0
    tensors = load_file(tmp_path / "run" / "best.safetensors")
    assert float(tensors["conv1.conv.weight"].abs().max()) < 1e-3
    assert float(tensors["conv1.bn.weight"].abs().min()) > 1e-2
