"""The target of docs/extending.md: one new file, and a build makes what it says."""

from __future__ import annotations

import platform
from collections.abc import Iterator
from pathlib import Path

import pytest

from export import targets
from runtime.bundle.bundle import Bundle
from runtime.common.discovery import names_in

import doc_pages
from bundles import needs_openvino

pytestmark = [pytest.mark.torch, needs_openvino]

_NAME = "tests/contracts/test_target_example.py"
BLOCKS = [block for block in doc_pages.blocks("docs/extending.md") if block.reason == _NAME]


@pytest.fixture
def kiosk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """The page's file ``kiosk.py``, as if it lay beside the other targets."""
    (source,) = (block.code for block in BLOCKS if block.language == "python")
    folder = tmp_path / "targets"
    folder.mkdir()
    (folder / "kiosk.py").write_text(source)
    monkeypatch.setattr(targets, "__path__", [*targets.__path__, str(folder)])
    names_in.cache_clear()
    yield
    names_in.cache_clear()


@pytest.mark.skipif(platform.machine() != "x86_64", reason="the example's target is x86-64")
def test_a_build_for_the_page_s_target(kiosk: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert "kiosk" in targets.names()
    (command,) = (block.code for block in BLOCKS if block.language == "sh")
    assert doc_pages.run(command) == 0
    manifest = Bundle(tmp_path / "bundles" / "kiosk.edgevis").manifest
    assert manifest.target == "kiosk"
    assert [(engine.backend, engine.precision) for engine in manifest.engines] == [("openvino", "fp32")]
