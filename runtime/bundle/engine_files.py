"""An engine's files in memory: the bytes that were hashed are opened, even if the files change meanwhile.

A vendor that is given a path reads the file again, or maps it: a bundle that is copied over would then change the
answers of an open predictor, or end the process by SIGBUS. So a backend is given contents.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath

from runtime.bundle.onnx_file import external_locations, non_finite_weight
from runtime.errors import EngineError, IntegrityError

ONNX = ".onnx"


@dataclass(frozen=True, slots=True)
class EngineFiles:
    """The contents of one engine's files.

    Attributes:
        name: The main file's name, for messages and for its suffix.
        main: The main file's content.
        companions: File name to content of the files beside it with the same stem and another suffix.
        external: Location, as the graph writes it, to content of its external data.
        batched: The inputs and outputs of the graph whose first axis is the batch, as the manifest declares them; a
            backend may run a batch with rows of padding. Empty where they are not known.
    """

    name: str
    main: bytes = field(repr=False)
    companions: Mapping[str, bytes] = field(default_factory=dict, repr=False)
    external: Mapping[str, bytes] = field(default_factory=dict, repr=False)
    batched: frozenset[str] = frozenset()

    def companion(self, suffix: str) -> bytes:
        """The content of the companion with that suffix; EngineError when there is none."""
        name = str(PurePosixPath(self.name).with_suffix(suffix))
        if name not in self.companions:
            raise EngineError(f"{name}, which belongs to {self.name}, is missing; build the bundle again")
        return self.companions[name]


def read_engine(path: Path, read: Callable[[Path], bytes] = Path.read_bytes) -> EngineFiles:
    """Read an engine: its main file, its companions, and its graph's external data.

    Args:
        path: The main file.
        read: Reads one file; a bundle's checks its hash.

    Raises:
        IntegrityError: External data lie outside of the file's folder, or ``read`` says so.
        EngineError: The file cannot be read, is no ONNX graph although it is called one, or a weight of the graph is
            not finite.
    """
    try:
        main = read(path)
        companions = {
            other.name: read(other)
            for other in sorted(path.parent.iterdir())
            if other != path and other.name.startswith(f"{path.stem}.")
        }
        external = {location: read(_inside(path, location)) for location in sorted(_external(path, main))}
    except OSError as error:
        raise EngineError(f"cannot open {path.name}: {error}") from error
    _check_weights(path, main, external)
    return EngineFiles(path.name, main, companions, external)


def _external(path: Path, main: bytes) -> frozenset[str]:
    if path.suffix != ONNX:
        return frozenset()
    try:
        return external_locations(main)
    except ValueError as error:
        raise _no_graph(path, error) from error


def _check_weights(path: Path, main: bytes, external: Mapping[str, bytes]) -> None:
    if path.suffix != ONNX:
        return
    try:
        name = non_finite_weight(main, external)
    except ValueError as error:
        raise _no_graph(path, error) from error
    if name is not None:
        raise EngineError(
            f"{path.name}: the weight {name!r} holds NaN or infinity: the training that it is of has failed; build the "
            "bundle from an earlier checkpoint"
        )


def _no_graph(path: Path, error: ValueError) -> EngineError:
    return EngineError(f"cannot open {path.name}, which is no ONNX graph: {error}; build the bundle again")


def _inside(path: Path, location: str) -> Path:
    """The path of external data. By ONNX's definition a location is relative to the graph and inside its folder."""
    parts = PurePosixPath(location)
    if not parts.parts or parts.is_absolute() or ".." in parts.parts or "\\" in location or "\0" in location:
        raise IntegrityError(
            f"{path.name} names external data at {location!r}, which is not a path inside its folder; "
            "save the graph with its data inside"
        )
    return path.parent / parts
