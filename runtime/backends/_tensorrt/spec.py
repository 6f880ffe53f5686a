"""The specification of a plan: shapes, memory, machines; the file ``GRAPH.json`` beside the graph."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from runtime.bundle.spec import MAX_RANK
from runtime.common.json_data import from_json, parse_json, shown, to_json
from runtime.errors import SchemaError

SCHEMA = 1
MAX_SPEC_BYTES = 1 << 20

_MAX_SIZE = (1 << 31) - 1
_CAPABILITY = re.compile(r"SM[0-9]{2,3}")

Shape = tuple[int, ...]


@dataclass(frozen=True, slots=True)
class BuildSpec:
    """The settings that a plan is built with. Precision is not one of them: the graph's types define it.

    Attributes:
        profiles: Input name to its smallest, usual and largest shape; every input of the graph has them. The usual
            one is what the plan is tuned for.
        workspace_bytes: The most device memory that a layer may take for scratch; None is all there is.
        compute_capabilities: GPUs that a plan is built for ahead of time, such as ``"SM86"``; TensorRT-RTX only. Empty
            is the GPU that the plan is built on.
        tf32: Whether float32 convolutions and matrix products may round their inputs to TF32's ten bits of mantissa,
            as TensorRT does unasked. An FP32 engine then misses its tolerance.
        version_compatible: Whether later releases of the same major version of TensorRT may load the plan.
        hardware_compatible: Whether the plan may run on every NVIDIA GPU from Ampere on, not just on the kind that it
            was built on; it costs speed.
        optimization_level: The effort of TensorRT's search for fast kernels, 0..5; None is TensorRT's default.
    """

    profiles: Mapping[str, tuple[Shape, Shape, Shape]]
    workspace_bytes: int | None = None
    compute_capabilities: tuple[str, ...] = ()
    tf32: bool = False
    version_compatible: bool = False
    hardware_compatible: bool = False
    optimization_level: int | None = None
    schema: int = SCHEMA

    def __post_init__(self) -> None:
        if not self.profiles:
            raise SchemaError("build spec: profiles is empty; every input of the graph needs its shapes")
        for name, profile in self.profiles.items():
            _check_profile(name, profile)
        if self.workspace_bytes is not None and self.workspace_bytes <= 0:
            raise SchemaError(f"build spec: workspace_bytes is {self.workspace_bytes}, allowed > 0 or null")
        if self.optimization_level is not None and not 0 <= self.optimization_level <= 5:
            raise SchemaError(f"build spec: optimization_level is {self.optimization_level}, allowed 0..5 or null")
        for capability in self.compute_capabilities:
            if not _CAPABILITY.fullmatch(capability):
                raise SchemaError(f"build spec: compute capability {shown(capability)}, allowed: such as 'SM86'")

    def dumps(self) -> str:
        """The specification as JSON text; equal specifications give equal text."""
        return json.dumps(to_json(self), indent=2, sort_keys=True) + "\n"

    @classmethod
    def loads(cls, text: str | bytes) -> BuildSpec:
        """Parse a specification from JSON text.

        Raises:
            SchemaError: Not JSON, another schema version, an unknown or missing field, a value out of range.
        """
        if len(text) > MAX_SPEC_BYTES:
            raise SchemaError(f"a build spec has at most {MAX_SPEC_BYTES} bytes, got {len(text)}")
        data = parse_json(text)
        if not isinstance(data, Mapping) or data.get("schema") != SCHEMA:
            raise SchemaError(f"build spec: schema {SCHEMA} is needed, got {shown(data)}; build the bundle again")
        return from_json(cls, data, "build spec")


SPEC = ".json"
"""The suffix of a graph's build specification."""


def spec_path(graph: Path) -> Path:
    """The path of a graph's specification: beside the graph, with the same stem."""
    return graph.with_suffix(SPEC)


def _check_profile(name: str, profile: tuple[Shape, Shape, Shape]) -> None:
    smallest, usual, largest = profile
    text = f"{smallest} <= {usual} <= {largest}"
    if not 1 <= len(usual) <= MAX_RANK or len({len(shape) for shape in profile}) > 1:
        raise SchemaError(f"build spec: input {shown(name)} has shapes {text}; allowed: one rank, 1..{MAX_RANK}")
    for low, middle, high in zip(smallest, usual, largest, strict=True):
        if not 1 <= low <= middle <= high <= _MAX_SIZE:
            raise SchemaError(
                f"build spec: input {shown(name)} has shapes {text}; allowed: on every axis 1 <= min <= opt <= max"
            )
