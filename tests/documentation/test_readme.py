"""What the README shows is what happens: its code runs, its links lead somewhere, its commands exist."""

from __future__ import annotations

import re
from pathlib import Path

import cv2
import numpy as np
import pytest

from benchmarks import parameters
from benchmarks.video_scenes import PhotoPan
from calibration.data.samples import samples_from_photographs
from edgevis import cli, models

from built import built_bundle, small_bundle
from locations import ROOT

README = (ROOT / "README.md").read_text()


def _code(language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```$", README, re.MULTILINE | re.DOTALL)


def test_the_camera_example_recognises_who_is_enrolled(
    tmp_path: Path,
    tmp_path_factory: pytest.TempPathFactory,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    example = next(code for code in _code("python") if "reid.stream" in code)
    assert len([line for line in example.splitlines() if line.strip()]) <= 12
    (tmp_path / "bundles").mkdir()
    (tmp_path / "bundles" / "osnet-x0-25.edgevis").symlink_to(built_bundle(tmp_path_factory, "osnet-x0-25"))
    portraits = dict(PhotoPan().examples())
    for name, person in (("alice", "Eileen Collins"), ("bob", "Grace Hopper")):
        for number in (1, 2):
            assert cv2.imwrite(str(tmp_path / f"{name}-{number}.jpg"), portraits[person][number])
    frames = [cv2.resize(image, (240, 480)) for image in portraits["Grace Hopper"][3:7]]
    writer = cv2.VideoWriter(str(tmp_path / "door.mp4"), cv2.VideoWriter.fourcc(*"mp4v"), 10.0, (240, 480))
    for frame in frames:
        writer.write(frame)
    writer.release()
    monkeypatch.chdir(tmp_path)
    exec(compile(example, "README.md", "exec"), {})  # noqa: S102 - the README's code is what is tested
    printed = capsys.readouterr().out.splitlines()
    assert len(printed) == len(frames)
    assert all(line.startswith("bob ") for line in printed), printed
    assert (tmp_path / "door.enrolment").is_file()
    assert cv2.imread("last.jpg") is not None


@pytest.mark.xdist_group("hsnet-hm")
def test_the_few_shot_example_finds_something_to_draw(
    tmp_path: Path, tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With a small build of random weights: what it prints and writes, not what it finds."""
    example = next(code for code in _code("python") if "finder.enroll" in code)
    (tmp_path / "bundles").mkdir()
    (tmp_path / "bundles" / "hsnet-hm.edgevis").symlink_to(small_bundle(tmp_path_factory, "hsnet-hm"))
    samples = samples_from_photographs(height=120, width=160, count=3).with_masks()
    for name, image, mask in zip(("mug-1", "mug-2", "desk"), samples.images, samples.masks, strict=True):
        assert cv2.imwrite(str(tmp_path / f"{name}.jpg"), image)
        assert cv2.imwrite(str(tmp_path / f"{name}.png"), mask.astype(np.uint8) * 255)
    monkeypatch.chdir(tmp_path)
    exec(compile(example, "README.md", "exec"), {})  # noqa: S102 - the README's code is what is tested
    drawn = cv2.imread("found.jpg")
    assert drawn is not None
    assert drawn.shape == samples.images[2].shape


def test_the_parameters_are_those_that_the_benchmark_counts() -> None:
    names = [name for name in models.names() if name not in parameters.ALIASES]
    for line in parameters.markdown(parameters.counted(names)).splitlines():
        assert line in README


def test_the_declaration_of_a_model_is_valid() -> None:
    declaration = next(code for code in _code("python") if code.startswith("DEPLOYMENT"))
    names: dict[str, object] = {}
    exec("from runtime.bundle.spec import *\n" + declaration, names)  # noqa: S102 - as above
    assert names["DEPLOYMENT"]


def test_every_link_leads_to_a_file() -> None:
    targets = [target for target in re.findall(r"\]\(([^)#]+)\)", README) if "://" not in target]
    assert "docs/demo.jpg" in targets
    missing = [target for target in targets if not (ROOT / target).is_file()]
    assert missing == []


def test_every_verb_that_is_named_exists(capsys: pytest.CaptureFixture[str]) -> None:
    named = set(re.findall(r"^edgevis ([a-z-]+)", README, re.MULTILINE))
    named |= set(re.findall(r"\| ([a-z]+)(?= [|b])", "\n".join(re.findall(r"^edgevis .*$", README, re.MULTILINE))))
    assert {"enroll", "predict", "info", "verify", "bench"} <= named
    for verb in named:
        with pytest.raises(SystemExit, match="0"):
            cli.main([verb, "--help"])
    assert "--json" in capsys.readouterr().out


@pytest.mark.parametrize("module", sorted(set(re.findall(r"python -m ([a-z_.]+)", README))))
def test_every_module_that_is_named_exists(module: str) -> None:
    path = ROOT / Path(*module.split("."))
    assert path.with_suffix(".py").is_file() or (path / "__main__.py").is_file()
