"""The manifest is known by its digest, and its encoder by what it is made of: no value changes without a word."""

from __future__ import annotations

import copy
import json
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from edgevis.cli import main
from runtime.bundle.bundle import MANIFEST, Bundle
from runtime.bundle.identity import DIGEST, NOT_COVERED, encoder_identity, manifest_digest
from runtime.bundle.manifest import ANSWERS, Manifest
from runtime.common.arrays import write_arrays
from runtime.errors import BundleError, InputError, IntegrityError, SchemaError
from runtime.predictor import Predictor
from runtime.verification.answers.compare import NO_PICTURES

from bundles import (
    Tiny,
    TinyEngine,
    edited_manifest,
    json_paths,
    mutate,
    picture,
    signed,
    write_bundle,
    write_tiny_bundle,
)
from logs import logged_warnings

WHOLE = Tiny(
    engines=[TinyEngine(), TinyEngine(precision="int8")], postprocess={"false_accept_rate": 0.05, "table": [[1.0, 2]]}
)


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    path = write_tiny_bundle(tmp_path_factory.mktemp("digest") / "tiny.edgevis", WHOLE)
    return dict(json.loads((path / MANIFEST).read_text()))


def changed(value: Any) -> Any:
    """A value of the same type, as like the old one as can be."""
    if isinstance(value, bool):
        return not value
    if isinstance(value, (int, float)):
        return value + 1 if isinstance(value, int) else value * 1.001 + 1e-9
    return f"{value}~" if isinstance(value, str) else 0.5


def test_every_single_value_is_covered(data: dict[str, Any]) -> None:
    count = 0
    for path in json_paths(data):
        edited = copy.deepcopy(data)
        holder: Any = edited
        for key in path:
            holder = holder[key]
        if isinstance(holder, (dict, list)):
            continue
        mutate(edited, path, changed)
        with pytest.raises((IntegrityError, SchemaError)):
            Manifest.loads(json.dumps(edited))
        count += 1
    assert count > 80


@pytest.mark.parametrize("path", ["deployment", "engines", "files", "candidates", "options", "tools", "machine"])
def test_nothing_is_left_out_or_added(data: dict[str, Any], path: str) -> None:
    less = {key: value for key, value in data.items() if key != path}
    with pytest.raises((IntegrityError, SchemaError)):
        Manifest.loads(json.dumps(less))
    more = copy.deepcopy(data)
    more["options"]["added"] = 1
    with pytest.raises(IntegrityError, match="has been altered since it was built"):
        Manifest.loads(json.dumps(more))


def test_how_the_text_is_laid_out_does_not_matter(data: dict[str, Any]) -> None:
    turned = dict(reversed(list(data.items())))
    for text in (json.dumps(turned), json.dumps(data, indent=8, ensure_ascii=False), json.dumps(data, sort_keys=True)):
        assert Manifest.loads(text).digest == data[DIGEST] == manifest_digest(data)


@pytest.mark.parametrize("value", ["", "0" * 64, "x" * 64])
def test_another_digest(data: dict[str, Any], value: str) -> None:
    with pytest.raises(IntegrityError, match=r"has been altered since it was built: copy the bundle again"):
        Manifest.loads(json.dumps({**data, DIGEST: value}))


@pytest.mark.parametrize("value", [None, 1, [], {}])
def test_a_digest_that_is_no_text(data: dict[str, Any], value: object) -> None:
    with pytest.raises(SchemaError, match="digest"):
        Manifest.loads(json.dumps({**data, DIGEST: value}))


def test_a_manifest_that_is_nested_as_deep_as_can_be_read(data: dict[str, Any]) -> None:
    for depth in range(700, 1000, 5):
        text = json.dumps({**data, "deployment": {**data["deployment"], "postprocess": {"x": "DEEP"}}})
        with pytest.raises(BundleError):
            Manifest.loads(text.replace('"DEEP"', "[" * depth + "]" * depth))


def test_what_is_written_again_gets_its_own_digest(tmp_path: Path) -> None:
    first = Bundle(write_tiny_bundle(tmp_path / "first.edgevis", WHOLE))

    def fill(folder: Path) -> Manifest:
        for name in first.manifest.files:
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(first.file(name), folder / name)
        return replace(first.manifest, machine="another")

    second = write_bundle(tmp_path / "second.edgevis", fill)
    assert second.manifest.digest != first.manifest.digest
    assert Bundle(second.path).manifest.digest == manifest_digest(json.loads((second.path / MANIFEST).read_text()))


# The encoder's identity


@pytest.mark.parametrize(
    "edit",
    [
        lambda data: data["deployment"]["preprocess"].update(color="BGR"),
        lambda data: data["deployment"]["preprocess"].update(pad_value=115),
        lambda data: data["deployment"]["graphs"][0].update(max_flipped=0.001),
        lambda data: data["weights"].update(sha256="2e" * 32),
        lambda data: data.update(model="tiny2"),
        lambda data: data.update(encoder_identity="1d" * 32),
    ],
)
def test_the_identity_is_recomputed(data: dict[str, Any], edit: Callable[[dict[str, Any]], None]) -> None:
    edited = copy.deepcopy(data)
    edit(edited)
    edited[DIGEST] = manifest_digest(edited)
    with pytest.raises(IntegrityError, match=r"encoder_identity is .* one of them has been altered"):
        Manifest.loads(json.dumps(edited))


def test_the_identity_of_a_manifest_of_another_version(data: dict[str, Any]) -> None:
    """It is that of the fields which were written: one that was added since counts for nothing."""
    old = copy.deepcopy(data)
    for graph in old["deployment"]["graphs"]:
        del graph["max_flipped"]
    old["encoder_identity"] = encoder_identity(old["model"], old["deployment"], old["weights"]["sha256"])
    del old[DIGEST]
    manifest = Manifest.loads(json.dumps(old))
    assert manifest.encoder_identity != data["encoder_identity"]
    # Whole numbers where floats are declared are read as floats, and are the same numbers.
    old["deployment"]["preprocess"]["mean"] = [0, 0, 0]
    old["encoder_identity"] = encoder_identity(
        old["model"],
        {**old["deployment"], "preprocess": {**old["deployment"]["preprocess"], "mean": [0, 0, 0]}},
        old["weights"]["sha256"],
    )
    assert Manifest.loads(json.dumps(old)).deployment.preprocess.mean == (0.0, 0.0, 0.0)


# Bundles of an earlier edgevis, and a digest that was noted down


def test_a_bundle_without_a_digest_opens_and_says_so(tiny_bundle: Path, capsys: pytest.CaptureFixture[str]) -> None:
    data = json.loads((tiny_bundle / MANIFEST).read_text())
    del data[DIGEST]
    (tiny_bundle / MANIFEST).write_text(json.dumps(data))
    with logged_warnings(match="build it again: python -m export.build"):
        predictor = Predictor(tiny_bundle)
    with predictor:
        assert predictor.info.digest == ""
        assert predictor.embed(picture(1)).shape == (1, 8)
    assert main(["verify", str(tiny_bundle)]) == 0
    text = capsys.readouterr().out
    assert f"manifest: not covered: {NOT_COVERED}" in text
    assert f"preprocessing: not covered: {NO_PICTURES}" in text
    with pytest.raises(IntegrityError, match="it has none: an earlier edgevis built it"):
        Bundle(tiny_bundle, digest="ab" * 32)


def test_a_bundle_with_answers_cannot_lose_its_digest(tiny_bundle: Path) -> None:
    write_arrays(tiny_bundle / ANSWERS, {})
    with edited_manifest(tiny_bundle) as data:
        data["files"][ANSWERS] = data["files"]["golden.npz"]
    Bundle(tiny_bundle)
    unsigned = {key: value for key, value in json.loads((tiny_bundle / MANIFEST).read_text()).items() if key != DIGEST}
    (tiny_bundle / MANIFEST).write_text(json.dumps(unsigned))
    with pytest.raises(IntegrityError, match="has lost its field 'digest'"):
        Bundle(tiny_bundle)


def test_a_digest_that_was_noted_down(tiny_bundle: Path, capsys: pytest.CaptureFixture[str]) -> None:
    digest = Bundle(tiny_bundle).manifest.digest
    with Predictor(tiny_bundle, digest=digest.upper()) as predictor:
        assert predictor.info.digest == digest
    assert main(["verify", str(tiny_bundle), "--digest", digest]) == 0
    assert f"digest {digest}" in capsys.readouterr().out
    data = json.loads((tiny_bundle / MANIFEST).read_text())
    (tiny_bundle / MANIFEST).write_text(json.dumps(signed({**data, "machine": "of somebody who knows how"})))
    Bundle(tiny_bundle)
    with pytest.raises(
        IntegrityError, match=rf"is not the bundle that was asked for: digest {digest}; it has [0-9a-f]"
    ):
        Predictor(tiny_bundle, digest=digest)
    assert main(["verify", str(tiny_bundle), "--digest", digest]) == 1
    assert "is not the bundle that was asked for" in capsys.readouterr().err


@pytest.mark.parametrize("digest", ["", "abc", "g" * 64, "ab" * 33, 7, b"ab" * 32])
def test_what_is_no_digest(tiny_bundle: Path, digest: Any) -> None:
    with pytest.raises(InputError, match=r"digest is .*; allowed: .* 64 hexadecimal digits"):
        Bundle(tiny_bundle, digest=digest)
