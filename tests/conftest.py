"""Shared by all tests: strictness that also holds where no pyproject.toml is found, and open tiny predictors."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest
from bundles import Tiny, write_tiny_bundle
from hypothesis import HealthCheck, settings

from runtime.predictor import Predictor

# The same examples in every run: a red build means a changed program. HYPOTHESIS_PROFILE=search looks for new ones.
for _name, _derandomize in (("repeatable", True), ("search", False)):
    settings.register_profile(
        _name,
        derandomize=_derandomize,
        deadline=None,
        database=None,
        suppress_health_check=[HealthCheck.function_scoped_fixture],
    )
settings.load_profile(os.environ.get("HYPOTHESIS_PROFILE", "repeatable"))


def pytest_configure(config: pytest.Config) -> None:
    # The installed package is tested from an empty folder, where no pyproject.toml says this.
    config.addinivalue_line("filterwarnings", "error")


@pytest.fixture
def tiny_bundle(tmp_path: Path) -> Path:
    """The folder of a Re-ID bundle with one ONNX Runtime engine."""
    return write_tiny_bundle(tmp_path / "tiny.edgevis")


@pytest.fixture
def predictor(tmp_path: Path) -> Iterator[Predictor]:
    """A Re-ID predictor on ONNX Runtime with an empty gallery."""
    with Predictor(write_tiny_bundle(tmp_path / "reid.edgevis"), threads=1) as opened:
        yield opened


@pytest.fixture
def classifier(tmp_path: Path) -> Iterator[Predictor]:
    """A few-shot classifier on ONNX Runtime with no class."""
    with Predictor(write_tiny_bundle(tmp_path / "classify.edgevis", Tiny("classify")), threads=1) as opened:
        yield opened
