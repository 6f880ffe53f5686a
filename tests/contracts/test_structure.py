"""The shape of the source: no import circle, no public class name twice, no file over 450 lines."""

from __future__ import annotations

import ast
from collections import defaultdict
from collections.abc import Iterator
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
PACKAGES = ("runtime", "edgevis", "calibration", "export", "benchmarks")
MAX_LINES = 450


def sources() -> dict[str, Path]:
    """Each module's file by its name."""
    modules = {}
    for package in PACKAGES:
        for path in sorted((ROOT / package).rglob("*.py")):
            parts = path.relative_to(ROOT).with_suffix("").parts
            modules[".".join(parts[:-1] if parts[-1] == "__init__" else parts)] = path
    return modules


MODULES = sources()


def module_level(body: list[ast.stmt]) -> Iterator[ast.stmt]:
    """Statements that run when the module is imported or type-checked: not those inside functions and classes."""
    for statement in body:
        yield statement
        for field in ("body", "orelse", "finalbody"):
            if not isinstance(statement, (ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef)):
                yield from module_level(getattr(statement, field, []))


def imported(path: Path) -> set[str]:
    """The project's modules that a file imports at module level, under ``TYPE_CHECKING`` too."""
    names: set[str] = set()
    for statement in module_level(ast.parse(path.read_text(encoding="utf-8")).body):
        if isinstance(statement, ast.Import):
            names.update(alias.name for alias in statement.names)
        elif isinstance(statement, ast.ImportFrom) and statement.module:
            for alias in statement.names:
                submodule = f"{statement.module}.{alias.name}"
                names.add(submodule if submodule in MODULES else statement.module)
    return names & MODULES.keys()


def test_no_import_circle() -> None:
    graph = {name: imported(path) - {name} for name, path in MODULES.items()}
    try:
        TopologicalSorter(graph).prepare()
    except CycleError as error:
        pytest.fail(f"import circle: {' -> '.join(error.args[1])}")


def test_public_class_names_are_unique() -> None:
    places: dict[str, list[str]] = defaultdict(list)
    for name, path in MODULES.items():
        for statement in module_level(ast.parse(path.read_text(encoding="utf-8")).body):
            if isinstance(statement, ast.ClassDef) and not statement.name.startswith("_"):
                places[statement.name].append(name)
    assert {name: modules for name, modules in places.items() if len(modules) > 1} == {}


def test_benchmarks_do_not_import_the_command_line() -> None:
    benchmarks = {name: imported(path) for name, path in MODULES.items() if name.startswith("benchmarks")}
    assert {name: found for name, found in benchmarks.items() if any(x.startswith("edgevis.cli") for x in found)} == {}


def test_files_are_short() -> None:
    paths = [*MODULES.values(), *sorted((ROOT / "tests").rglob("*.py"))]
    lines = {path.relative_to(ROOT).as_posix(): len(path.read_text(encoding="utf-8").splitlines()) for path in paths}
    assert {path: count for path, count in lines.items() if count > MAX_LINES} == {}
