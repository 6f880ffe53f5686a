"""Which TensorRT is used, and what is said of one that cannot be: these tests install packages of their own."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from edgevis.cli import main
from runtime import backends
from runtime.backends._tensorrt import vendor
from runtime.backends._tensorrt.versions import OLDEST, RELEASES, check_version, release_of
from runtime.errors import MissingDependencyError, UnavailableError

from bundles import Tiny, TinyEngine, write_tiny_bundle
from locations import ROOT


@pytest.fixture
def package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The file of a package ``tensorrt`` that comes before any other."""
    folder = tmp_path / "site" / "tensorrt"
    folder.mkdir(parents=True)
    monkeypatch.syspath_prepend(str(folder.parent))
    for name in [name for name in sys.modules if name.partition(".")[0] == "tensorrt"]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, "tensorrt", None)  # so that what this test imports is removed at its end
    del sys.modules["tensorrt"]
    return folder / "__init__.py"


@pytest.mark.parametrize(
    ("version", "message"),
    [
        ("8.5.2.2", "as JetPack 5.1 carries it; it has no strongly typed networks"),
        ("8.6.2.3", "TensorRT 8.6.2.3 is installed, as JetPack 6.0 carries it; .* or newer, on a Jetson JetPack 6.1"),
        ("9.3.0", "9.3.0 is installed; no JetPack carries it"),
        ("10.2.0", "10.2.0 is installed; no JetPack carries it"),
        ("7.1", "7.1 is installed; it has no strongly typed networks"),
        ("of no version", "install TensorRT 10.3 or newer"),
    ],
)
def test_a_version_that_cannot_work_names_the_jetpack_that_can(version: str, message: str) -> None:
    with pytest.raises(UnavailableError, match=message):
        check_version(version)


@pytest.mark.parametrize("version", ["10.3.0", "10.3.0.26", "10.7.0", "10.16.2.10", "11.5.0", "12.0"])
def test_a_version_that_works(version: str) -> None:
    check_version(version)


def test_the_table_is_in_order() -> None:
    versions = [release.version for release in RELEASES]
    assert versions == sorted(set(versions))
    assert OLDEST.version == (10, 3), "the extra's, in pyproject.toml, too"
    for release in RELEASES:
        assert release.refused or (release.strongly_typed and release.local_functions)
    assert (found := release_of("10.4.1")) is not None
    assert found.jetpack == "6.1 and 6.2"


@pytest.mark.parametrize(
    ("source", "error", "message"),
    [
        ("__version__ = '8.6.2'", UnavailableError, "JetPack 6.0 carries it"),
        ("raise RuntimeError('the wheel was not built')", UnavailableError, "RuntimeError: the wheel was not built"),
        ("1 / 0", UnavailableError, "ZeroDivisionError"),
        ("import libnvinfer_of_another_world", MissingDependencyError, "tensorrt is there and does not load: No mod"),
        ("raise OSError('libnvinfer.so.10: cannot open')", MissingDependencyError, "does not load: libnvinfer.so.10"),
        ("syntax error", UnavailableError, "SyntaxError"),
    ],
)
def test_whatever_an_import_raises_is_a_line_of_info(
    package: Path, source: str, error: type[Exception], message: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    package.write_text(source)
    with pytest.raises(error, match=message):
        vendor.load("tensorrt")
    with pytest.raises(error, match=message):
        backends.load("tensorrt").devices()
    engine = TinyEngine("tensorrt", latency_ms=None, with_parity=False, shares_enrolments=False, device="cuda")
    bundle = write_tiny_bundle(tmp_path / "gpu.edgevis", Tiny(engines=[engine]))
    assert main(["info", str(bundle)]) == 0
    assert message in capsys.readouterr().out


def test_the_documentation_has_the_table() -> None:
    text = (ROOT / "docs" / "targets.md").read_text()
    for release in RELEASES:
        words = [
            "{}.{}".format(*release.version),
            release.jetpack or "–",
            *("yes" if works else "no" for works in (release.strongly_typed, release.local_functions)),
            *("yes" if works else "no" for works in (release.lends_memory, not release.refused)),
        ]
        assert f"| {' | '.join(words)} |" in text
