"""The release of ready bundles: of the weights that ship, verified, small."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import pytest
from safetensors.torch import save_file

from edgevis import models
from export import release
from runtime import ready
from runtime.bundle.bundle import GOLDEN, Bundle
from runtime.common.arrays import write_arrays
from runtime.common.levels import compact
from runtime.errors import ExportError, IntegrityError

from bundles import edited_manifest, needs_openvino, replace_file
from tiny_models import tiny_entry, tiny_net

pytestmark = [pytest.mark.torch, needs_openvino]


def test_what_is_released_is_in_the_package() -> None:
    assert set(ready.names()) == set(release.RELEASED)


@pytest.mark.parametrize("name", release.RELEASED)
def test_ready_bundles_are_of_the_weights_that_ship(name: str) -> None:
    bundle = release.check(name, ready.FOLDER)
    assert bundle.manifest.model == name
    assert tuple(dict.fromkeys(engine.precision for engine in bundle.manifest.engines)) == release.RELEASED[name]


def test_a_bundle_of_other_weights_or_altered_is_refused(tmp_path: Path) -> None:
    copy = shutil.copytree(ready.bundle_path("osnet-x0-25"), tmp_path / "osnet-x0-25.edgevis")
    with edited_manifest(copy) as data:
        data["weights"]["sha256"] = "0" * 64
    with pytest.raises(ExportError, match=r"python -m export\.release osnet-x0-25"):
        release.check("osnet-x0-25", tmp_path)
    with (copy / "golden.npz").open("r+b") as file:
        file.write(b"x")
    with pytest.raises(IntegrityError):
        release.check("osnet-x0-25", tmp_path)


@pytest.mark.parametrize("change", ["outputs", "postprocess"])
def test_a_bundle_of_another_code_is_refused(change: str, tmp_path: Path) -> None:
    copy = shutil.copytree(ready.bundle_path("person-detector"), tmp_path / "person-detector.edgevis")
    if change == "outputs":
        golden = Bundle(copy).golden()
        golden["detect/boxes"] = golden["detect/boxes"] * np.float32(1.001)
        write_arrays(copy / GOLDEN, compact(golden))
        replace_file(copy, GOLDEN, (copy / GOLDEN).read_bytes())
    else:
        with edited_manifest(copy) as data:
            data["deployment"]["postprocess"]["labels"] = ["people"]
    changed = {"outputs": "output detect/boxes", "postprocess": "labels"}[change]
    with pytest.raises(ExportError, match=rf"{changed} changed: run python -m export\.release person-detector"):
        release.check("person-detector", tmp_path)


def test_a_release(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    weights = tmp_path / "tiny.safetensors"
    save_file(tiny_net(seed=3).state_dict(), weights)
    monkeypatch.setattr(models, "entry", lambda name: tiny_entry(name=name))
    monkeypatch.setattr(models, "shipped_weights", lambda entry, options=None: weights)
    monkeypatch.setattr(release, "RELEASED", {"tiny": ("fp32",)})
    command = ["tiny", "--output", str(tmp_path / "ready")]
    assert release.main(command) == 0
    bundle = Bundle(tmp_path / "ready" / "tiny.edgevis")
    assert str(bundle.manifest.digest) in capsys.readouterr().out
    assert bundle.manifest.weights.trained
    assert [path.name for path in (tmp_path / "ready").iterdir()] == ["tiny.edgevis"]
    assert release.main([*command, "--check", "-q"]) == 0
    assert capsys.readouterr() == ("", "")

    monkeypatch.setattr(release, "MAX_BYTES", bundle.size_bytes - 1)
    assert release.main([*command, "--check"]) == 1
    assert "are released" in capsys.readouterr().err
    assert release.main(["enet", "--check"]) == 1
    assert capsys.readouterr().err == "error: no ready bundle is made of enet; known: tiny\n"
    monkeypatch.setattr(models, "shipped_weights", lambda entry, options=None: None)
    assert release.main(command) == 1
    assert "no weights of tiny ship" in capsys.readouterr().err
