"""The documentation builds strictly and its pages load nothing from elsewhere."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest

from locations import ROOT

# What a browser fetches by itself; a link that a reader may follow is none of it.
_FETCHED = (
    r"<(?:script|img|iframe|source|video|audio|embed)\b[^>]*\bsrc=[\"']?(?P<src>(?:https?:)?//[^\"'\s>]+)",
    r"<link\b(?=[^>]*rel=[\"']?(?:stylesheet|preload|preconnect|icon|shortcut|manifest|dns-prefetch))"
    r"[^>]*\bhref=[\"']?(?P<href>(?:https?:)?//[^\"'\s>]+)",
)
_FETCHED_BY_STYLE = re.compile(r"url\(\s*[\"']?(?:https?:)?//|@import\s+[\"'](?:https?:)?//")
_FETCHED_BY_SCRIPT = re.compile(
    r"(?:fetch|importScripts|import|open|sendBeacon)\(\s*[\"'](?:https?:)?//|\.src\s*=\s*[\"'](?:https?:)?//"
)


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("site") / "site"
    process = subprocess.run(
        [sys.executable, "-m", "mkdocs", "build", "--strict", "--site-dir", str(folder)],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
    )
    assert process.returncode == 0, process.stderr
    return folder


def test_pages_fetch_nothing_from_elsewhere(site: Path) -> None:
    pages = list(site.rglob("*.html"))
    assert len(pages) > 20
    for page in pages:
        text = page.read_text()
        assert [match.group() for pattern in _FETCHED for match in re.finditer(pattern, text, re.IGNORECASE)] == [], (
            page
        )
    for style in site.rglob("*.css"):
        assert not _FETCHED_BY_STYLE.search(style.read_text()), style
    for script in site.rglob("*.js"):
        assert not _FETCHED_BY_SCRIPT.search(script.read_text()), script


def test_the_reference_describes_the_public_face(site: Path) -> None:
    import edgevis

    text = "".join(page.read_text() for page in (site / "reference").glob("*.html"))
    described = set(re.findall(r'id="([\w.]+)"', text))
    missing = {name for name in edgevis.__all__ if not any(anchor.endswith(f".{name}") for anchor in described)}
    assert missing - {"__version__"} == set()
