"""Plans from ONNX: one compiler for TensorRT 10, TensorRT 11 and TensorRT-RTX.

The network is strongly typed: the arithmetic is what the graph's types say. TensorRT 11 has no other kind of network,
and no precision flags.

Written on the vendor's own interface. Polygraphy's loaders would save some forty lines and cost a dependency on the
device; 0.53 takes TensorRT-RTX instead of TensorRT by an environment variable that it reads when it is imported, so one
process could not have both, and what the parser says of a node goes to its log instead of the exception.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from runtime.backends._tensorrt import vendor
from runtime.backends._tensorrt.progress import Phases, monitor_of
from runtime.backends._tensorrt.spec import BuildSpec
from runtime.backends._tensorrt.vendor import Flavour
from runtime.errors import CompileError, UnavailableError


@dataclass(frozen=True, slots=True)
class BuiltPlan:
    """The result of a build.

    Attributes:
        plan: The serialised engine, as ``trtexec`` and DeepStream open it too.
        timing_cache: Measured kernel times, which make the next build on this machine faster; empty where the flavour
            has none: TensorRT-RTX measures nothing when it builds.
    """

    plan: bytes
    timing_cache: bytes


def build_engine(
    onnx: bytes, spec: BuildSpec, *, flavour: Flavour, timing_cache: bytes = b"", phases: Phases | None = None
) -> BuiltPlan:
    """Parse a graph and build its plan.

    Args:
        onnx: A serialised ONNX model; model-local functions are read as they are.
        spec: Shapes, memory, machines.
        flavour: The compiler: TensorRT or TensorRT-RTX.
        timing_cache: The timing cache of an earlier build on this machine. One of another version or device, or a
            damaged one, is ignored.
        phases: Told what the builder is doing.

    Raises:
        CompileError: The parser or the builder refused; the message has its words and the node's name. Or the
            specification asks for what this version has not.
        MissingDependencyError: The vendor's package is not installed.
        UnavailableError: TensorRT needs a GPU to build, and there is none.
    """
    trt = vendor.load(flavour)
    logger = vendor.logger(trt)
    who = f"{_TITLES[flavour]} {trt.__version__}"
    try:
        builder = trt.Builder(logger)
    except TypeError as error:  # pybind11's word for a factory that returned nothing
        reason = "; ".join(logger.errors) or str(error)
        raise UnavailableError(f"{who} cannot build here: {reason}") from error
    network = builder.create_network(_flag(trt, "NetworkDefinitionCreationFlag", "STRONGLY_TYPED"))
    parser = trt.OnnxParser(network, logger)
    if not parser.parse(onnx):
        problems = "; ".join(_problem(parser.get_error(index)) for index in range(parser.num_errors))
        raise CompileError(f"{who} cannot parse the graph: {problems or '; '.join(logger.errors)}")
    config = builder.create_builder_config()
    _configure(config, trt, spec, who)
    config.add_optimization_profile(_profile(builder, network, spec, who))
    # TensorRT-RTX measures no kernels when it builds: its 1.7 has these methods, deprecated and without effect.
    cache = _set_timing_cache(config, timing_cache, logger) if flavour == "tensorrt" else None
    monitor = None if phases is None else monitor_of(trt, phases)
    if monitor is not None:  # it lives as long as the build
        config.progress_monitor = monitor
    plan = builder.build_serialized_network(network, config)
    if plan is None:
        raise CompileError(f"{who} cannot build the graph: {'; '.join(logger.errors) or 'it gives no reason'}")
    return BuiltPlan(bytes(plan), bytes(cache.serialize()) if cache is not None else b"")


_TITLES: dict[Flavour, str] = {"tensorrt": "TensorRT", "tensorrt_rtx": "TensorRT-RTX"}


def _flag(trt: Any, enum: str, member: str) -> int:
    """The bit of a builder flag; 0 where the version has removed the flag because its behaviour is the only one."""
    value = getattr(getattr(trt, enum), member, None)
    return 0 if value is None else 1 << int(value)


def _configure(config: Any, trt: Any, spec: BuildSpec, who: str) -> None:
    if spec.workspace_bytes is not None:
        config.set_memory_pool_limit(trt.MemoryPoolType.WORKSPACE, spec.workspace_bytes)
    if not spec.tf32:
        config.clear_flag(trt.BuilderFlag.TF32)
    if spec.optimization_level is not None:
        _need(config, "builder_optimization_level", "optimization_level", who)
        config.builder_optimization_level = spec.optimization_level
    if spec.version_compatible:
        _need(trt.BuilderFlag, "VERSION_COMPATIBLE", "version_compatible", who)
        config.set_flag(trt.BuilderFlag.VERSION_COMPATIBLE)
    if spec.hardware_compatible:
        _need(trt, "HardwareCompatibilityLevel", "hardware_compatible", who)
        config.hardware_compatibility_level = trt.HardwareCompatibilityLevel.AMPERE_PLUS
    if spec.compute_capabilities:
        _need(trt, "ComputeCapability", "compute_capabilities", who)
        known = trt.ComputeCapability.__members__
        config.num_compute_capabilities = len(spec.compute_capabilities)
        for index, name in enumerate(spec.compute_capabilities):
            if name not in known:
                raise CompileError(f"{who} has no compute capability {name!r}; it has {', '.join(sorted(known))}")
            config.set_compute_capability(known[name], index)


def _need(owner: Any, member: str, field: str, who: str) -> None:
    if not hasattr(owner, member):
        raise CompileError(f"{who} has no setting for {field!r}; leave it out of the build spec")


def _profile(builder: Any, network: Any, spec: BuildSpec, who: str) -> Any:
    inputs = {network.get_input(index).name: network.get_input(index) for index in range(network.num_inputs)}
    if set(inputs) != set(spec.profiles):
        raise CompileError(
            f"the build spec has shapes for {sorted(spec.profiles)}; the graph's inputs are {sorted(inputs)}"
        )
    profile = builder.create_optimization_profile()
    for name, shapes in spec.profiles.items():
        declared = tuple(inputs[name].shape)
        for shape in shapes:
            if len(shape) != len(declared) or any(
                size not in (-1, requested) for size, requested in zip(declared, shape, strict=True)
            ):
                raise CompileError(
                    f"the build spec gives input {name!r} the shape {shape}; the graph takes {declared}, -1 being any"
                )
        profile.set_shape(name, *shapes)
    if not profile:
        raise CompileError(f"{who} refuses the shapes {dict(spec.profiles)}: they contradict each other")
    return profile


def _set_timing_cache(config: Any, data: bytes, logger: Any) -> Any:
    """Set the timing cache, filled with ``data`` if usable; returns None where timing caches are not supported."""
    cache = config.create_timing_cache(data)
    if cache is None or not config.set_timing_cache(cache, False):
        logger.errors.clear()
        cache = config.create_timing_cache(b"")
        if cache is None or not config.set_timing_cache(cache, False):
            return None
    return cache


def _problem(error: Any) -> str:
    return f"node {error.node_name()!r} ({error.node_operator()}): {error.desc()}"
