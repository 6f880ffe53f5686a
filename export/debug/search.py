"""Find the first layer at which two sides leave each other, and the smallest part that still does."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from export.debug.graphs import GraphLayer, parents_among
from export.debug.runners import EngineSide
from runtime.common.arrays import Array
from runtime.errors import EngineError

# A tensor that is zero everywhere has no scale of its own: that of the other tensors, times this, is used.
_FLOOR = 1e-3
# Single layers that are tried to leave out of the smallest part, each for the price of compiling it.
_LEFT_OUT = 48


@dataclass(frozen=True, slots=True)
class TensorError:
    """How far a tensor is off.

    Attributes:
        tensor, kind: Its name, and the operator that makes it.
        error: The distance by the Euclidean norm, relative to the reference, of the engine run as a whole.
        alone: The same where each layer is given what the reference computed: its own share.
        channel: The channel that is furthest off.
    """

    tensor: str
    kind: str
    error: float
    alone: float
    channel: int | None = None


@dataclass(frozen=True, slots=True, eq=False)
class Culprit:
    """The smallest part found that still leaves the tolerance.

    Attributes:
        tensor: What it computes wrong.
        error: By how much, when given what the reference computed.
        feeds: The tensors that it is given.
        layers: The engine's layers of it.
        weights: The names of the weights in it, as the reference's graph has them.
        how: A sentence about how it was found.
    """

    tensor: str
    error: float
    feeds: Mapping[str, Array]
    layers: tuple[GraphLayer, ...]
    weights: tuple[str, ...]
    how: str


@dataclass(frozen=True, slots=True, eq=False)
class GraphComparison:
    """The outcome for one graph.

    Attributes:
        outputs: Output to relative error, of the engine as it is.
        tolerance: What was allowed.
        tensors: All tensors that both sides have, in order; empty where the outputs agree.
        culprit: None where the outputs agree.
    """

    outputs: Mapping[str, float]
    tolerance: float
    tensors: tuple[TensorError, ...] = ()
    culprit: Culprit | None = None

    @property
    def agrees(self) -> bool:
        return all(error <= self.tolerance for error in self.outputs.values())


def compare(
    engine: EngineSide,
    reference: EngineSide,
    feeds: Mapping[str, Array],
    *,
    tolerance: float,
    progress: Callable[[str], None] = lambda _: None,
) -> GraphComparison:
    """Compare two sides on real inputs; where an output is further off than ``tolerance``, find where that begins.

    Every layer is run alone with what the reference computed: one that is off then is at fault by itself. Where none
    is, what fuses several layers is, or small errors add up: the part before the first tensor that is off grows until
    it fails too. Engines fuse other layers when an inner tensor is asked for; if the fault goes away with all of them
    asked for, they are asked for one at a time.

    Args:
        engine, reference: The sides; of the latter's values everything is relative.
        feeds: Input name to array, real data.
        tolerance: Relative, by the Euclidean norm over a tensor.
        progress: Called with what is done next.

    Raises:
        EngineError: A side cannot run a part of its graph.
        ExportError: A graph cannot be cut.
    """
    search = _Search(engine, reference, feeds, tolerance, progress)
    outputs = search.of_outputs()
    if all(error <= tolerance for error in outputs.values()):
        return GraphComparison(outputs, tolerance)
    return GraphComparison(outputs, tolerance, search.tensors(), search.culprit())


def model_errors(reference: EngineSide, feeds: Mapping[str, Array], expected: Mapping[str, Array]) -> dict[str, float]:
    """Output to the relative error of a side against the trained model's own outputs for the same inputs."""
    actual = reference.run(feeds, list(expected))
    return {name: relative_error(actual[name], array) for name, array in expected.items()}


def relative_error(actual: Array, expected: Array, scale: float = 0.0) -> float:
    """``|actual - expected| / |expected|`` by the Euclidean norm; infinite for another shape or for NaN.

    Args:
        actual, expected: Any shape.
        scale: The least root mean square that ``expected`` counts as having.
    """
    if actual.shape != expected.shape:
        return float("inf")
    wide = expected.astype(np.float64)
    distance = float(np.linalg.norm(actual.astype(np.float64) - wide))
    if not np.isfinite(distance):
        return float("inf")
    return distance / max(float(np.linalg.norm(wide)), scale * math.sqrt(wide.size), 1e-30)


class _Search:
    def __init__(
        self,
        engine: EngineSide,
        reference: EngineSide,
        feeds: Mapping[str, Array],
        tolerance: float,
        progress: Callable[[str], None],
    ) -> None:
        self._engine, self._reference = engine, reference
        self._tolerance, self._progress = tolerance, progress
        shared = engine.graph.float_tensors & reference.graph.float_tensors
        self._order = [name for layer in engine.graph.layers for name in layer.outputs if name in shared]
        self._outputs = [name for name in engine.graph.outputs if name in shared]
        if not self._outputs:
            raise EngineError(
                f"{engine.name} and {reference.name} have no output in common: {', '.join(engine.graph.outputs)}; "
                f"{', '.join(reference.graph.outputs)}"
            )
        self._feeds = dict(feeds)
        progress(f"{reference.name}: {len(self._order)} tensors")
        self._expected = reference.run(self._feeds, self._order)
        squares = [float(np.mean(np.square(array, dtype=np.float64))) for array in self._expected.values()]
        self._scale = _FLOOR * float(np.median(squares)) ** 0.5
        self._given = {**self._feeds, **self._expected}
        self._parents = parents_among(engine.graph, frozenset(self._order))
        self._kinds = {name: layer.kind for layer in engine.graph.layers for name in layer.outputs}
        self._alone: dict[str, float] = {}
        self._marked: dict[str, float] = {}

    def of_outputs(self) -> dict[str, float]:
        self._progress(f"{self._engine.name}: the whole graph")
        return self._errors(self._feeds, self._outputs)

    def tensors(self) -> tuple[TensorError, ...]:
        self._progress(f"{self._engine.name}: every layer alone")
        self._alone = self._errors(self._given, self._order)
        self._progress(f"{self._engine.name}: all inner tensors")
        actual = self._engine.run(self._feeds, self._order)
        self._marked = {name: self._error(actual[name], name) for name in self._order}
        return tuple(
            TensorError(
                name,
                self._kinds[name],
                self._marked[name],
                self._alone[name],
                _worst_channel(actual[name], self._expected[name]) if self._marked[name] > self._tolerance else None,
            )
            for name in self._order
        )

    def culprit(self) -> Culprit:
        for name in self._order:
            if self._alone[name] > self._tolerance:
                return self._smallest(name, "the layer is off by itself")
        if any(self._marked[name] > self._tolerance for name in self._outputs):
            first = next(name for name in self._order if self._marked[name] > self._tolerance)
            return self._smallest(first, "each layer holds the tolerance alone, together they do not")
        self._progress("the fault goes away when all inner tensors are asked for: one at a time")
        first = first_wrong(self._outputs, self._parents, self._is_wrong)
        return self._smallest(first, "it appears only where the engine is free to fuse")

    def _is_wrong(self, tensor: str) -> bool:
        """Whether a tensor is off when it is the only inner one that is asked for."""
        asked = list(dict.fromkeys([tensor, *self._outputs]))
        return self._errors(self._feeds, asked)[tensor] > self._tolerance

    def _smallest(self, tensor: str, how: str) -> Culprit:
        self._progress(f"the smallest part that computes {tensor} wrong")
        order = {name: number for number, name in enumerate(self._order)}
        before = sorted(_ancestors(tensor, self._parents), key=order.__getitem__)

        def fails(part: Sequence[str]) -> bool:
            inside = frozenset(part)
            return self._errors(self._boundary(inside), [tensor])[tensor] > self._tolerance

        part = smallest_part(tensor, before, fails)
        feeds = self._boundary(frozenset(part))
        error = self._errors(feeds, [tensor])[tensor]
        layers = self._engine.graph.cut(feeds, [tensor]).layers
        weights = dict.fromkeys(
            name for layer in self._reference.graph.cut(feeds, [tensor]).layers for name in layer.weights
        )
        if len(part) == len(before) + 1 and len(part) > 1:
            how += "; no smaller part fails: small errors of many layers add up"
        return Culprit(tensor, error, feeds, layers, tuple(weights), how)

    def _boundary(self, inside: frozenset[str]) -> dict[str, Array]:
        """What a part is given: the tensors that it reads and does not compute."""
        read = {parent for name in inside for parent in self._parents[name]} - inside
        return {name: array for name, array in self._given.items() if name in read}

    def _errors(self, feeds: Mapping[str, Array], outputs: Sequence[str]) -> dict[str, float]:
        actual = self._engine.run(feeds, outputs)
        return {name: self._error(actual[name], name) for name in outputs}

    def _error(self, actual: Array, name: str) -> float:
        return relative_error(actual, self._expected[name], self._scale)


def first_wrong(outputs: Sequence[str], parents: Mapping[str, Sequence[str]], is_wrong: Callable[[str], bool]) -> str:
    """The first wrong tensor of a graph with a wrong output, found by halving: what it is computed from is right.

    What is computed from a wrong tensor is taken to be wrong, and what a right one is computed from to be right.

    Args:
        outputs: At least one is wrong.
        parents: Tensor to those that it is computed from; those that are no keys are the graph's inputs.
        is_wrong: Tells whether a tensor is; called about log2(number of tensors) times.
    """
    wrong = next(name for name in outputs if is_wrong(name))
    suspects = _ancestors(wrong, parents)
    while suspects:
        before = {name: _ancestors(name, parents) & suspects for name in suspects}
        middle = min(suspects, key=lambda name: (abs(2 * (len(before[name]) + 1) - len(suspects)), name))
        if is_wrong(middle):
            wrong, suspects = middle, before[middle]
        else:
            suspects = suspects - before[middle] - {middle}
    return wrong


def smallest_part(tensor: str, before: Sequence[str], fails: Callable[[Sequence[str]], bool]) -> list[str]:
    """The tensors of a small part that ends with ``tensor`` and fails.

    Args:
        tensor: The last one.
        before: Those that it is computed from, in order. With all of them the part fails.
        fails: Tells whether the part that computes these tensors does; each call compiles it.
    """
    size = 0
    while size < len(before) and not fails([*before[len(before) - size :], tensor]):
        size = min(max(1, 2 * size), len(before))
    lower = size // 2  # is right
    while size - lower > 1:
        middle = (size + lower) // 2
        if fails([*before[len(before) - middle :], tensor]):
            size = middle
        else:
            lower = middle
    part = [*before[len(before) - size :], tensor]
    for name in part[:-1][:_LEFT_OUT]:
        smaller = [other for other in part if other != name]
        if fails(smaller):
            part = smaller
    return part


def _ancestors(tensor: str, parents: Mapping[str, Sequence[str]]) -> set[str]:
    """The tensors that one is computed from, without the graph's inputs."""
    found: set[str] = set()
    waiting = list(parents[tensor])
    while waiting:
        name = waiting.pop()
        if name in parents and name not in found:
            found.add(name)
            waiting += parents[name]
    return found


def _worst_channel(actual: Array, expected: Array) -> int | None:
    """The channel, of axis 1, that is furthest off."""
    if actual.ndim < 2 or actual.shape != expected.shape:
        return None
    apart = np.square(actual.astype(np.float64) - expected).swapaxes(0, 1).reshape(actual.shape[1], -1).sum(axis=1)
    return int(np.nan_to_num(apart, nan=np.inf).argmax())
