"""The targets of a build. Each module is one target, named like it; a target is data."""

from __future__ import annotations

import platform
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import cast

from calibration.quantize.config import QuantizationConfig
from export.profiles import Profiles
from runtime import backends
from runtime.backends._tensorrt.spec import BuildSpec
from runtime.bundle.spec import Precision
from runtime.common.discovery import load_from, names_in
from runtime.errors import ExportError


@dataclass(frozen=True, slots=True)
class PlanSettings:
    """The settings of plans besides shapes; the fields are :class:`runtime.backends._tensorrt.spec.BuildSpec`'s.

    None and False are what the target or TensorRT does unasked.
    """

    workspace_bytes: int | None = None
    optimization_level: int | None = None
    version_compatible: bool = False
    hardware_compatible: bool = False

    @property
    def asked(self) -> dict[str, int | bool]:
        """The settings that were set."""
        values = {name: getattr(self, name) for name in self.__slots__}
        return {name: value for name, value in values.items() if value is not None and value is not False}


DEFAULT_SETTINGS = PlanSettings()


@dataclass(frozen=True, slots=True)
class Target:
    """The engines and settings for one kind of machine.

    Attributes:
        summary: The machines it is for, in one line.
        device: The kind of device in the manifest.
        compilers: The compilers for each precision that the target has; a compiler makes one engine.
        default_precisions: What a build makes unless it is told.
        quantization: How INT8 graphs are quantised for it.
        machine: What ``platform.machine()`` says where its engines run; elsewhere none is proved, even if there is
            such a device. Empty is any.
        autocast: The precisions whose graphs compute in float16 what is safe and not in int8.
        profiled: Whether its engines are built for a range of shapes.
        usual_batch: The batch that engines are tuned for unless the build is told.
        workspace_bytes: The most device memory that an engine's layer may take for scratch; None is all there is.
        settings: The fields of :class:`PlanSettings` that have an effect on its plans.
        triton: Whether the bundle also holds a model repository for Triton Inference Server.
        compute_capabilities: The GPUs that engines are built for ahead of time; empty where they are built on them.
    """

    summary: str
    device: str
    compilers: Mapping[Precision, tuple[str, ...]]
    default_precisions: tuple[Precision, ...]
    quantization: QuantizationConfig = field(default_factory=QuantizationConfig)
    machine: str = ""
    autocast: tuple[Precision, ...] = ()
    profiled: bool = False
    usual_batch: int = 1
    workspace_bytes: int | None = None
    settings: tuple[str, ...] = ()
    triton: bool = False
    compute_capabilities: tuple[str, ...] = ()

    def spec(self, profiles: Profiles, precision: Precision, settings: PlanSettings = DEFAULT_SETTINGS) -> BuildSpec:
        """The build specification of one graph's engine.

        Raises:
            SchemaError: A setting is out of range.
        """
        spec = BuildSpec(
            profiles,
            workspace_bytes=self.workspace_bytes,
            compute_capabilities=self.compute_capabilities,
            tf32=precision != "fp32",  # with TF32 an FP32 engine would miss its tolerance
        )
        return replace(spec, **settings.asked)  # type: ignore[arg-type]  # the names are the same, and so the types

    def check(self, settings: PlanSettings) -> None:
        """Raise ExportError for a setting that the target does not have."""
        for name in settings.asked:
            if name not in self.settings:
                raise ExportError(
                    f"{name.replace('_', ' ')} cannot be set for this target; it has "
                    + (", ".join(self.settings).replace("_", " ") or "no such settings")
                )

    def runs_here(self, backend: str) -> bool:
        """Whether engines of that backend can be run and measured on this machine."""
        return self.machine in ("", platform.machine()) and backends.runs_here(backend, self.device)


def names() -> tuple[str, ...]:
    """The names of all targets."""
    return names_in(__name__)


def load(name: str) -> Target:
    """The target of a name; ExportError lists the known ones."""
    return cast(Target, load_from(__name__, name, what="target", error=ExportError).TARGET)
