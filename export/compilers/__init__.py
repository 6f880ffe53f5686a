"""Compilers from ONNX to the files that a backend opens. Each module is one compiler, named after its backend."""

from __future__ import annotations

from pathlib import Path
from typing import Protocol, cast

from onnx import ModelProto

from runtime.backends._tensorrt.spec import BuildSpec
from runtime.bundle.spec import Precision
from runtime.common.discovery import load_from, names_in
from runtime.errors import ExportError

GRAPHS = "graphs"
ENGINES = "engines"


class Compiler(Protocol):
    """The members of a module in this package."""

    def check(self) -> None:
        """Raise MissingDependencyError if the compiler is not installed, before minutes of other work."""
        ...

    def engine_from_onnx(
        self, model: ModelProto, *, graph: str, precision: Precision, bundle: Path, spec: BuildSpec | None = None
    ) -> Path:
        """Make the engine of one graph.

        Args:
            model: The graph in that precision: float32, with casts to float16, or quantised.
            graph: The graph's name; ``graphs/NAME.onnx`` in the bundle already holds the float graph.
            precision: The arithmetic that the engine shall run in.
            bundle: The bundle's folder; files go where :func:`engine_path` says.
            spec: Shapes and limits, for those whose engines have such.

        Returns:
            The engine's main file. Two precisions may name the same one.

        Raises:
            CompileError: The vendor's compiler refused the graph.
            MissingDependencyError: Its package is not installed.
        """
        ...


def graph_path(bundle: Path, graph: str) -> Path:
    """The portable graph in a bundle."""
    return bundle / GRAPHS / f"{graph}.onnx"


def engine_path(bundle: Path, backend: str, precision: Precision, graph: str, suffix: str) -> Path:
    """The path of an engine's main file; creates its folder."""
    path = bundle / ENGINES / f"{backend}-{precision}" / f"{graph}{suffix}"
    path.parent.mkdir(parents=True, exist_ok=True)
    return path


def names() -> tuple[str, ...]:
    """The names of all compilers, installed or not."""
    return names_in(__name__)


def load(name: str) -> Compiler:
    """The compiler of a name; ExportError lists the known ones."""
    return cast(Compiler, load_from(__name__, name, what="compiler", error=ExportError))
