"""The graphs of engines, cut at any of their tensors.

An engine's inner tensors keep the names that its ONNX graph gave them, in OpenVINO's IR too. So two engines of one
graph can be compared tensor by tensor, whatever each of them adds or fuses between two names.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from runtime.bundle.engine_files import EngineFiles
from runtime.common.arrays import Array

GIVEN = "__given"


@dataclass(frozen=True, slots=True)
class GraphLayer:
    """One operation of a graph.

    Attributes:
        kind: The operator, as its format names it.
        inputs, outputs: Tensors, without constants. One that has no name is called ``#NUMBER``.
        weights: The names of the constants that it reads.
    """

    kind: str
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]
    weights: tuple[str, ...] = ()


class CuttableGraph(Protocol):
    """A graph as an engine's file holds it."""

    @property
    def inputs(self) -> tuple[str, ...]: ...

    @property
    def outputs(self) -> tuple[str, ...]: ...

    @property
    def layers(self) -> tuple[GraphLayer, ...]:
        """The layers, each after those that it reads."""
        ...

    @property
    def float_tensors(self) -> frozenset[str]:
        """The named inner tensors and outputs that are not known to hold integers."""
        ...

    def cut(self, feeds: Mapping[str, Array], outputs: Sequence[str]) -> CuttableGraph:
        """The part that computes ``outputs`` from the tensors of ``feeds``.

        A tensor may be in both: what reads it then reads the new input :func:`given_name`, and what made it is still
        made. With all tensors in both, every layer stands alone.

        Raises:
            ExportError: A tensor is not in the graph, or ``outputs`` need one that ``feeds`` has not.
        """
        ...

    def files(self, name: str) -> EngineFiles:
        """The contents of an engine's files with this graph; ``name`` is the main file's, without its suffix."""
        ...


def given_name(tensor: str, outputs: Iterable[str]) -> str:
    """The name of the input that stands for a tensor in a graph with these outputs."""
    return f"{tensor}{GIVEN}" if tensor in outputs else tensor


def write_files(files: EngineFiles, folder: Path) -> str:
    """Write an engine's files into a folder; returns the main file's name."""
    for name, content in {files.name: files.main, **files.companions}.items():
        (folder / name).write_bytes(content)
    return files.name


def parents_among(graph: CuttableGraph, tensors: frozenset[str]) -> dict[str, tuple[str, ...]]:
    """Of each tensor, the nearest ones of ``tensors`` or of the graph's inputs that it is computed from.

    The order is that of the layers: each tensor comes after those that it is computed from.
    """
    nearest: dict[str, tuple[str, ...]] = {}
    parents: dict[str, tuple[str, ...]] = {}
    stops = tensors | set(graph.inputs)
    for layer in graph.layers:
        found: dict[str, None] = {}
        for name in layer.inputs:
            found.update(dict.fromkeys([name] if name in stops else nearest.get(name, ())))
        for name in layer.outputs:
            nearest[name] = tuple(found)
            if name in tensors:
                parents[name] = tuple(found)
    return parents
