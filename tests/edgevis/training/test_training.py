"""Reading persons, their views, and a distillation small enough for a test."""

from __future__ import annotations

import json
import zipfile
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from edgevis import models
from edgevis.data.augment import HEIGHT, WIDTH, camera_view
from edgevis.data.persons import BACKGROUND, BODY, persons_from_ccp, persons_from_video
from edgevis.models.osnet import DEPLOYMENT, OSNet
from edgevis.training import distill
from runtime.errors import SourceError
from runtime.images.preprocess import Preprocessor


@pytest.fixture(scope="module")
def photos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A zip like Clothing Co-Parsing's: six photos of a person of three coloured rectangles, two of them held out."""
    path = tmp_path_factory.mktemp("photos") / "ccp.zip"
    rng = np.random.default_rng(0)
    rows = ["stem,width,height,split,present_ids"]
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("classes.json", json.dumps({"names": ["null", "coat", "hair", "jeans"]}))
        for index in range(6):
            image = rng.integers(0, 256, (160, 120, 3), np.uint8)
            mask = np.zeros((160, 120), np.uint8)
            for top, bottom, part in ((20, 40, 2), (40, 90, 1), (90, 150, 255)):
                image[top:bottom, 40:80] = rng.integers(0, 256, 3, np.uint8)
                mask[top:bottom, 40:80] = part
            archive.writestr(f"images/{index:04}.jpg", cv2.imencode(".jpg", image)[1].tobytes())
            archive.writestr(f"masks/{index:04}.png", cv2.imencode(".png", mask)[1].tobytes())
            rows.append(f"{index:04},120,160,{'val' if index > 3 else 'train'},1 2 255")
        archive.writestr("index.csv", "\n".join(rows))
    return path


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
    with pytest.raises(SourceError, match="cannot decode"):
        persons_from_video(broken)


def test_views_are_repeatable_and_whole(photos: Path) -> None:
    persons = persons_from_ccp(photos, split="train")
    first = distill.batch_of_views(persons, seed=3, step=7, size=24)
    assert first.shape == (24, HEIGHT, WIDTH, 3)
    assert first.dtype == np.uint8
    np.testing.assert_array_equal(first, distill.batch_of_views(persons, seed=3, step=7, size=24))
    assert not np.array_equal(first, distill.batch_of_views(persons, seed=3, step=8, size=24))
    assert first.std((1, 2, 3)).min() > 0
    same = camera_view(persons, 0, np.random.default_rng(5), same_clothes=True)
    assert same.shape == (HEIGHT, WIDTH, 3)


def test_training_sees_what_the_runtime_sees(photos: Path) -> None:
    views = distill.batch_of_views(persons_from_ccp(photos, split="train"), seed=1, step=0, size=8)
    found = distill.network_input(views, DEPLOYMENT.preprocess)
    assert found.is_contiguous(memory_format=torch.channels_last)
    expected = Preprocessor(DEPLOYMENT.preprocess)(list(views))
    # Float32 arithmetic against a float64 table: one rounding per operation.
    np.testing.assert_allclose(found.numpy(), expected, rtol=1e-5, atol=2e-6)


def test_loss_is_zero_for_the_teacher_itself() -> None:
    torch.manual_seed(0)
    model = models.create("osnet-x0-25")
    assert isinstance(model, OSNet)
    other = models.create("osnet-x0-25")
    assert isinstance(other, OSNet)
    image = torch.rand(2, 4, 3, 256, 128)
    with torch.inference_mode():
        seen = distill.activations(model, image[0], bf16=False)
        forced = distill.activations(model, image[1], bf16=False, forced=seen)
        same = distill.distillation_loss(seen, seen)
        different = distill.distillation_loss(distill.activations(other, image[0], bf16=False), seen)
    assert max(float(term) for term in same.values()) < 1e-5
    assert min(float(term) for term in different.values()) > 1e-2
    # Forced blocks see the other run's maps: all but the stem agree with it.
    torch.testing.assert_close(forced.maps[1:], seen.maps[1:])
    torch.testing.assert_close(forced.values, seen.values)


def test_learning_rate() -> None:
    rates = [distill.learning_rate(step, steps=100, peak=1.0, warm_up=10) for step in range(100)]
    assert rates[0] == pytest.approx(0.1)
    assert rates[9] == 1.0
    assert rates == sorted(rates[:10]) + sorted(rates[10:], reverse=True)
    assert rates[-1] < 1e-3


def test_an_interrupted_run_ends_as_an_uninterrupted_one(
    photos: Path, video: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    torch.manual_seed(0)
    teacher = tmp_path / "teacher.safetensors"
    save_file(models.create("osnet-x0-25").state_dict(), teacher)
    arguments = ["--teacher", str(teacher), "--photos", str(photos), "--video", str(video), "--batch", "4"]
    arguments += ["--epochs", "2", "--steps-per-epoch", "2", "--warm-up", "1", "--blockwise", "0.5", "--json"]
    threads = torch.get_num_threads()
    try:
        distill.main([*arguments, "--output", str(tmp_path / "whole.safetensors")])

        saved = distill._write

        def interrupt(*args: object) -> None:
            saved(*args)  # type: ignore[arg-type]
            raise KeyboardInterrupt

        with monkeypatch.context() as patch:
            patch.setattr(distill, "_write", interrupt)
            assert distill.main([*arguments, "--output", str(tmp_path / "parts.safetensors")]) == 130
        capsys.readouterr()
        distill.main([*arguments, "--output", str(tmp_path / "parts.safetensors")])
    finally:
        torch.set_num_threads(threads)
    printed = capsys.readouterr().out
    assert "resumed after epoch 1" in printed
    assert "epoch 2/2" in printed
    result = json.loads(printed.splitlines()[-1])
    assert -1 <= result["cosine"] <= 1
    whole, parts = (load_file(tmp_path / f"{name}.safetensors") for name in ("whole", "parts"))
    for name, tensor in whole.items():
        torch.testing.assert_close(tensor, parts[name], rtol=0, atol=0)
        assert tensor.dtype == (torch.float16 if tensor.ndim > 1 else torch.float32)
    models.load_weights(models.create("osnet-x0-25"), tmp_path / "whole.safetensors")
    assert distill.main([*arguments, "--seed", "1", "--output", str(tmp_path / "parts.safetensors")]) == 1
    assert "other arguments" in capsys.readouterr().err
