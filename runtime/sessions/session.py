"""A graph's session: input checks shared by all backends, chunking of large batches, resident inputs."""

from __future__ import annotations

import threading
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from types import MappingProxyType

import numpy as np

from runtime.backends import Engine
from runtime.bundle.spec import Graph, TensorSpec
from runtime.common.arrays import Array
from runtime.common.forking import fork_waits, leak, register
from runtime.errors import EngineError, InputError


@dataclass(frozen=True, slots=True)
class Resident:
    """Checked inputs of one graph that stay the same over many runs."""

    arrays: Mapping[str, Array]


NOTHING_RESIDENT = Resident(MappingProxyType({}))


class Session:
    """Runs one graph on one engine. Threads may share it.

    Backends are lenient in different ways (one casts float64 silently, another accepts an empty batch), so what
    reaches an engine is checked here, once, for all of them.

    Args:
        engine: The compiled graph; the session closes it.
        graph: The declared inputs and outputs.
        max_batch: Larger batches are run in chunks of this size.
        reopen: Opens the engine once more, in a forked child that wants to use the session; None where it cannot be.

    Raises:
        EngineError: The engine's inputs or outputs are not the graph's.
    """

    def __init__(
        self, engine: Engine, graph: Graph, *, max_batch: int, reopen: Callable[[], Engine] | None = None
    ) -> None:
        self.graph = graph
        self.max_batch = max_batch
        self._engine: Engine | None = engine
        self._reopen = reopen
        self._opening = threading.Lock()
        self._closed = False
        self._inputs = {tensor.name: tensor for tensor in graph.inputs}
        declared = ({tensor.name for tensor in graph.inputs}, {tensor.name for tensor in graph.outputs})
        actual = (set(engine.inputs), set(engine.outputs))
        if declared != actual:
            engine.close()
            raise EngineError(
                f"graph {graph.name!r}: the engine's inputs and outputs are {sorted(actual[0])} -> {sorted(actual[1])}"
                f"; the manifest says {sorted(declared[0])} -> {sorted(declared[1])}: build the bundle again"
            )
        register(self)

    def prepare(self, inputs: Mapping[str, Array]) -> Resident:
        """Check inputs that many runs share, such as support features, once: a backend need not copy them for each run.

        The arrays must not be written to as long as the result is used.

        Raises:
            InputError: One of them is unknown, or of another dtype or shape.
        """
        return Resident(MappingProxyType({name: self._check(name, array) for name, array in inputs.items()}))

    def run(
        self,
        feeds: Mapping[str, Array],
        resident: Resident = NOTHING_RESIDENT,
        *,
        finite: bool | tuple[str, ...] = True,
    ) -> dict[str, Array]:
        """Run the graph.

        Args:
            feeds: One array per input that is not resident; all batched inputs have the same number of rows.
            resident: The result of :meth:`prepare` of this session.
            finite: Refuse outputs with NaN or infinity, which would be taken for results, in all outputs or
                in those named; not where they are measured.

        Returns:
            One array per output; they belong to the caller.

        Raises:
            InputError: An input is missing, unknown, or of another dtype or shape; nothing has been run.
            EngineError: The engine failed, or an output is not finite.
        """
        arrays = {name: self._check(name, array) for name, array in feeds.items()}
        unchanged = {name: array for name, array in resident.arrays.items() if name not in arrays}
        every = {**unchanged, **arrays}
        missing = [name for name in self._inputs if name not in every]
        if missing:
            raise InputError(f"graph {self.graph.name!r}: input {missing[0]!r} is missing; got {sorted(every)}")
        rows = self._axis_sizes(every).get("N", 1)
        with fork_waits():
            engine = self._engine or self._open()
            if rows > self.max_batch:
                outputs = self._run_chunks(engine, arrays, unchanged, rows)
            else:
                outputs = engine.run(arrays, unchanged)
        for tensor in self.graph.outputs:
            self._check_output(tensor, outputs[tensor.name], rows)
            if finite is True or (finite and tensor.name in finite):
                self._check_finite(tensor, outputs[tensor.name])
        return outputs

    def warmup(self, rows: int = 1) -> None:
        """Run zeros in a batch of ``rows``, with every other open axis 1, to complete lazy initialisation."""
        sizes = {"N": rows}
        shapes = {
            name: tuple(sizes.get(size, 1) if isinstance(size, str) else size for size in tensor.shape)
            for name, tensor in self._inputs.items()
        }
        zeros = {name: np.zeros(shape, self._inputs[name].dtype) for name, shape in shapes.items()}
        self.run(zeros, finite=False)  # of an image that is none, anything may come

    def close(self) -> None:
        """Free the engine's memory; the session must not be used afterwards."""
        with fork_waits(), self._opening:
            self._closed = True
            if self._engine is not None:
                self._engine.close()

    def after_fork(self) -> None:
        """In a forked child: drop the parent's engine without destroying it, as its threads do not exist here.

        The first use opens the engine anew.
        """
        self._opening = threading.Lock()
        if self._engine is not None:
            leak(self._engine)
            self._engine = None

    def _open(self) -> Engine:
        with self._opening:
            if self._engine is None:
                if self._closed:
                    raise EngineError("this engine has been closed")
                if self._reopen is None:
                    raise EngineError(
                        f"graph {self.graph.name!r} was opened before this process was forked; open it in the child"
                    )
                self._engine = self._reopen()
            return self._engine

    def _run_chunks(
        self, engine: Engine, arrays: dict[str, Array], unchanged: dict[str, Array], rows: int
    ) -> dict[str, Array]:
        batched = {name for name, tensor in self._inputs.items() if tensor.batched}
        resident = {name: array for name, array in unchanged.items() if name not in batched}  # a slice is no such array
        chunks = [
            engine.run(
                {
                    name: array[start : start + self.max_batch] if name in batched else array
                    for name, array in {**unchanged, **arrays}.items()
                    if name not in resident
                },
                resident,
            )
            for start in range(0, rows, self.max_batch)
        ]
        return {
            tensor.name: np.concatenate([chunk[tensor.name] for chunk in chunks])
            if tensor.batched
            else chunks[-1][tensor.name]
            for tensor in self.graph.outputs
        }

    def _check(self, name: str, array: object) -> Array:
        tensor = self._inputs.get(name)
        if tensor is None:
            raise InputError(f"graph {self.graph.name!r} has no input {name!r}; it takes {', '.join(self._inputs)}")
        if not isinstance(array, np.ndarray):
            raise InputError(f"input {name!r} is a {type(array).__name__}; a NumPy array is needed")
        if array.dtype != tensor.dtype:
            raise InputError(
                f"input {name!r} has dtype {array.dtype}; the graph takes {tensor.dtype}: "
                f"convert it with .astype('{tensor.dtype}')"
            )
        if not tensor.fits(array.shape):
            raise InputError(
                f"input {name!r} has shape {array.shape}; the graph takes {_shown(tensor)}{_shape_hint(array, tensor)}"
            )
        return np.ascontiguousarray(array)

    def _check_output(self, tensor: TensorSpec, array: Array, rows: int) -> None:
        fits = tensor.fits(array.shape) and (not tensor.batched or len(array) == rows)
        if not fits or array.dtype != tensor.dtype:
            raise EngineError(
                f"graph {self.graph.name!r}: the engine's output {tensor.name!r} is {array.shape} {array.dtype}; the "
                f"manifest says {_shown(tensor)} {tensor.dtype}: build the bundle again"
            )

    def _check_finite(self, tensor: TensorSpec, array: Array) -> None:
        # 2 µs for embeddings, 20 µs for a map of 417 x 417.
        if array.dtype.kind == "f" and not np.isfinite(array).all():
            raise EngineError(
                f"graph {self.graph.name!r}: {np.count_nonzero(~np.isfinite(array))} of {array.size} numbers in the "
                f"engine's output {tensor.name!r} are NaN or infinite; `edgevis verify` shows whether it computes what "
                "was trained: open the bundle with another backend= or precision="
            )

    def _axis_sizes(self, arrays: Mapping[str, Array]) -> dict[str, int]:
        """The size of every symbolic axis; InputError when two inputs disagree."""
        sizes: dict[str, tuple[int, str]] = {}
        for name, tensor in self._inputs.items():
            for declared, size in zip(tensor.shape, arrays[name].shape, strict=True):
                if not isinstance(declared, str):
                    continue
                known, owner = sizes.setdefault(declared, (size, name))
                if known != size:
                    raise InputError(
                        f"inputs {owner!r} and {name!r} disagree on axis {declared}: {known} and {size}; "
                        "give both the same number"
                    )
        return {axis: size for axis, (size, _) in sizes.items()}


def _shown(tensor: TensorSpec) -> str:
    return "(" + ", ".join(map(str, tensor.shape)) + ("," if len(tensor.shape) == 1 else "") + ")"


def _shape_hint(array: Array, tensor: TensorSpec) -> str:
    if tensor.batched and array.ndim == len(tensor.shape) - 1:
        return "; add a batch axis: array[None]"
    if array.ndim and array.shape[0] == 0:
        return "; an empty batch cannot be run"
    return ""
