"""The smallest failing part on the disk: both graphs, their inputs, and what repeats it."""

from __future__ import annotations

import csv
import io
import json
import shlex
from dataclasses import dataclass, fields
from pathlib import Path

from export.debug.graphs import write_files
from export.debug.runners import EngineSide
from export.debug.search import Culprit, GraphComparison, TensorError, relative_error
from export.debug.sides import load_graph, runner_of
from export.failed import GRAPH
from runtime.bundle.spec import Precision
from runtime.common.arrays import Array, read_arrays, write_arrays
from runtime.common.files import atomic_write
from runtime.common.json_data import from_json, parse_json, to_json
from runtime.errors import InputError, IntegrityError

_RECORD, _INPUTS, _TABLE = "reduced.json", "inputs.npz", "tensors.csv"
_MAX_BYTES = 1 << 20


@dataclass(frozen=True, slots=True)
class PartFile:
    """One side of a reduced part.

    Attributes:
        name: The engine's name, or ``graph``.
        backend, precision: What runs it.
        file: The main file, in the folder of the record.
    """

    name: str
    backend: str
    precision: Precision
    file: str


@dataclass(frozen=True, slots=True)
class ReducedPart:
    """The record of a reduced part, ``reduced.json``.

    Attributes:
        tensor: The output that is wrong.
        error, tolerance: Its relative error when it was written, and what was allowed.
        engine, reference: The sides.
    """

    tensor: str
    error: float
    tolerance: float
    engine: PartFile
    reference: PartFile


def write_reduced(
    folder: Path, culprit: Culprit, engine: EngineSide, reference: EngineSide, *, tolerance: float
) -> ReducedPart:
    """Write the part: both graphs, ``inputs.npz`` and ``reduced.json``; returns the record."""
    folder.mkdir(parents=True, exist_ok=True)
    sides = []
    for role, side in (("engine", engine), ("reference", reference)):
        part = side.graph.cut(culprit.feeds, [culprit.tensor])
        file = write_files(part.files(role), folder)
        backend = GRAPH if side.name == GRAPH else side.name.rpartition("-")[0]
        sides.append(PartFile(side.name, backend, side.precision, file))
    record = ReducedPart(culprit.tensor, culprit.error, tolerance, *sides)
    write_arrays(folder / _INPUTS, dict(culprit.feeds))
    with atomic_write(folder / _RECORD) as opened:
        opened.write((json.dumps(to_json(record), indent=2) + "\n").encode())
    return record


def is_reduced(folder: Path) -> bool:
    """Whether a folder holds a reduced part."""
    return (folder / _RECORD).is_file()


def repeat(folder: Path) -> tuple[ReducedPart, float]:
    """Run both sides of a reduced part again; returns its record and the relative error now.

    Raises:
        InputError: The record is none.
        IntegrityError: A file is not in the folder, or the inputs cannot be read.
        EngineError: A side cannot be run here.
    """
    path = folder / _RECORD
    if path.stat().st_size > _MAX_BYTES:
        raise InputError(f"{path} has more than {_MAX_BYTES} bytes")
    record = from_json(ReducedPart, parse_json(path.read_bytes()), _RECORD)
    feeds = read_arrays(folder / _INPUTS, error=IntegrityError)
    values: list[Array] = []
    for part in (record.engine, record.reference):
        if Path(part.file).name != part.file:
            raise IntegrityError(f"{path} names {part.file!r}, which is not a file beside it")
        graph = load_graph(folder / part.file)
        side = EngineSide(part.name, part.precision, graph, runner_of(part.backend, part.precision))
        values.append(side.run({name: feeds[name] for name in graph.inputs}, [record.tensor])[record.tensor])
    actual, expected = values
    return record, relative_error(actual, expected)


def write_table(folder: Path, comparison: GraphComparison) -> Path:
    """Write the errors of all tensors as ``tensors.csv``; returns its path."""
    folder.mkdir(parents=True, exist_ok=True)
    text = io.StringIO()
    writer = csv.writer(text)
    names = [field.name for field in fields(TensorError)]
    writer.writerow(names)
    writer.writerows([getattr(item, name) for name in names] for item in comparison.tensors)
    with atomic_write(folder / _TABLE) as file:
        file.write(text.getvalue().encode())
    return folder / _TABLE


def command_of(folder: Path) -> str:
    """The command that repeats a reduced part."""
    return f"python -m export.debug {shlex.quote(str(folder))}"
