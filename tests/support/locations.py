"""Folders that tests read from."""

from __future__ import annotations

from pathlib import Path

ROOT = Path(__file__).parents[2]
"""The repository."""

GOLDEN_FOLDER = ROOT / "tests" / "golden"
"""Reference values; see its README."""
