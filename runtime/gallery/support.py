"""Support sets by label: the tensors that few-shot segmentation stores for each shot, ready as resident inputs."""

from __future__ import annotations

import math
import threading
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np

from runtime.bundle.spec import TensorSpec
from runtime.common.arrays import Array
from runtime.errors import InputError, UnknownLabelError


@dataclass(frozen=True)
class Supports:
    """An immutable state: a writer replaces it by a new one, readers keep the one they took.

    Attributes:
        rows: Label to (K, D) float32: each shot's support tensors, flattened and one after the other.
        tensors: Name, and shape without the shots' axis, of each support tensor.
    """

    rows: Mapping[str, Array]
    tensors: tuple[tuple[str, tuple[int, ...]], ...]

    @cached_property
    def shots(self) -> tuple[int, ...]:
        """The number of shots of each label, in order."""
        return tuple(len(rows) for rows in self.rows.values())

    @cached_property
    def inputs(self) -> dict[str, Array]:
        """Each tensor with the shots of all labels, label after label: (K, ...) float32, C-contiguous."""
        inputs, start = {}, 0
        for name, shape in self.tensors:
            end = start + math.prod(shape)
            parts = [np.ascontiguousarray(rows[:, start:end]) for rows in self.rows.values()]
            inputs[name] = np.concatenate(parts).reshape(-1, *shape) if parts else np.empty((0, *shape), np.float32)
            start = end
        return inputs


class SupportSets:
    """Support sets by label, in memory. Threads may read while another one adds.

    Args:
        tensors: The support graph's outputs, batch axis first.
    """

    def __init__(self, tensors: Sequence[TensorSpec]) -> None:
        fixed = tuple((tensor.name, tuple(int(size) for size in tensor.shape[1:])) for tensor in tensors)
        self.dimension = sum(math.prod(shape) for _, shape in fixed)
        self._state = Supports({}, fixed)
        self._writing = threading.Lock()

    @property
    def state(self) -> Supports:
        """An immutable snapshot of the enrolled support tensors."""
        return self._state

    @property
    def labels(self) -> tuple[str, ...]:
        return tuple(self._state.rows)

    def add(self, label: str, rows: Array) -> None:
        """Add (K, D) float32 shots to a label, making it if it is new."""
        self._check(label, rows)
        with self._writing:
            known = self._state.rows.get(label)
            fresh = np.asarray(rows if known is None else np.concatenate([known, rows]), np.float32)
            self._state = Supports({**self._state.rows, label: fresh}, self._state.tensors)

    def remove(self, label: str) -> None:
        with self._writing:
            rows = dict(self._state.rows)
            if label not in rows:
                raise UnknownLabelError(f"{label!r} is not enrolled; enrolled: {', '.join(rows) or 'nothing'}")
            del rows[label]
            self._state = Supports(rows, self._state.tensors)

    def contents(self) -> dict[str, Array]:
        """Label to (K, D) float32, in order; the arrays must not be written to."""
        return dict(self._state.rows)

    def replace(self, rows: Mapping[str, Array]) -> None:
        """Replace all rows by ``rows`` in one step."""
        for label, shots in rows.items():
            self._check(label, shots)
        with self._writing:
            self._state = Supports(dict(rows), self._state.tensors)

    def _check(self, label: str, rows: Array) -> None:
        if rows.ndim != 2 or rows.shape[1] != self.dimension or not len(rows):
            raise InputError(f"support of shape {rows.shape}; this model's is (K, {self.dimension}), K >= 1")
        if not np.isfinite(rows).all():
            raise InputError(f"the support features for {label!r} are not finite: the model cannot use such an image")
