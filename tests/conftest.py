"""Shared by all tests: strictness that also holds where no pyproject.toml is found, and open tiny predictors."""

from __future__ import annotations

import logging
import os
import shutil
import signal
import sys
import tempfile
import zlib
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import HealthCheck, settings
from hypothesis.configuration import set_hypothesis_home_dir

from runtime.predictor import Predictor

from bundles import GRAPHS, Tiny, write_tiny_bundle
from logs import WATCH

# The same examples in every run: a red build means a changed program. HYPOTHESIS_PROFILE=search looks for new ones.
for _name, _derandomize in (("repeatable", True), ("search", False)):
    settings.register_profile(
        _name,
        derandomize=_derandomize,
        deadline=None,
        database=None,
        # Nor may a busy machine, on which examples are made slowly, fail a test.
        suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
    )
settings.load_profile(os.environ.get("HYPOTHESIS_PROFILE", "repeatable"))


# A shell without job control starts what runs in the background with Ctrl-C ignored, and programs inherit that; with a
# handler here, those that the tests start and interrupt do not.
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)


def pytest_configure(config: pytest.Config) -> None:
    set_hypothesis_home_dir(Path(tempfile.gettempdir(), "edgevis-hypothesis"))  # not into the working folder
    # The installed package is tested from an empty folder, where no pyproject.toml says this.
    config.addinivalue_line("filterwarnings", "error")


@pytest.fixture(autouse=True)
def no_unexpected_warning_in_the_log(request: pytest.FixtureRequest) -> Iterator[None]:
    """As `filterwarnings = error` for Python's warnings; a test that takes `caplog` looks for itself."""
    log = logging.getLogger("edgevis")
    level = log.level
    WATCH.messages.clear()
    log.addHandler(WATCH)
    yield
    log.removeHandler(WATCH)
    log.setLevel(level)  # a page of the documentation shows how a program sets it
    if "caplog" not in request.fixturenames:
        assert WATCH.messages == []


@pytest.fixture(autouse=True, scope="session")
def own_cache(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """Plans and proofs of the tests do not go into the user's cache, nor come from it."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("EDGEVIS_CACHE", str(tmp_path_factory.mktemp("cache")))
        yield


def _seed_torch(name: str) -> None:
    """The same random weights and inputs in every run, whatever ran before; the runtime's tests run without PyTorch."""
    if torch := sys.modules.get("torch"):
        torch.manual_seed(zlib.crc32(name.encode()))


@pytest.hookimpl(tryfirst=True)
def pytest_fixture_setup(fixturedef: pytest.FixtureDef[object]) -> None:
    _seed_torch(fixturedef.argname)


@pytest.hookimpl(tryfirst=True)
def pytest_runtest_call(item: pytest.Item) -> None:
    _seed_torch(item.name)


@pytest.fixture(scope="session")
def built(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Task to a bundle with one ONNX Runtime engine, built once; nobody may write to it."""
    folder = tmp_path_factory.mktemp("built")
    return {task: write_tiny_bundle(folder / f"{task}.edgevis", Tiny(task)) for task in GRAPHS}


@pytest.fixture
def tiny_bundle(built: dict[str, Path], tmp_path: Path) -> Path:
    """The folder of a Re-ID bundle with one ONNX Runtime engine, the test's own."""
    return Path(shutil.copytree(built["reid"], tmp_path / "tiny.edgevis"))


@pytest.fixture
def predictor(built: dict[str, Path]) -> Iterator[Predictor]:
    """A Re-ID predictor on ONNX Runtime with an empty gallery."""
    with Predictor(built["reid"], threads=1) as opened:
        yield opened


@pytest.fixture
def classifier(built: dict[str, Path]) -> Iterator[Predictor]:
    """A few-shot classifier on ONNX Runtime with no class."""
    with Predictor(built["classify"], threads=1) as opened:
        yield opened
