"""TensorRT-RTX engines from ONNX, built ahead of time on a machine that has no GPU.

The parser and the builder are those of the TensorRT family: what this compiler reads, the one on a Jetson reads too.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from onnx import ModelProto

from runtime.errors import CompileError, MissingDependencyError

COMPUTE_CAPABILITIES = ("SM80", "SM86", "SM89", "SM120")
"""The GPUs that an engine is built for unless it is told: Ampere (datacenter, desktop), Ada and Blackwell."""

Profile = Mapping[str, tuple[Sequence[int], Sequence[int], Sequence[int]]]
"""Input name to its smallest, usual and largest shape."""


def engine_from_onnx(
    model: ModelProto, profile: Profile, *, compute_capabilities: Sequence[str] = COMPUTE_CAPABILITIES
) -> bytes:
    """Parse a graph and build its engine, strongly typed: the arithmetic is what the graph's types say.

    Args:
        model: The graph; model-local functions are read as they are.
        profile: The shapes of every input with an open axis.
        compute_capabilities: GPUs that the engine shall run on, such as ``"SM86"``.

    Returns:
        The engine, as TensorRT-RTX 1.7 on a machine with such a GPU opens it.

    Raises:
        CompileError: The parser or the builder refused; the message has its words and the node's name.
        MissingDependencyError: TensorRT-RTX is not installed.
    """
    trt = _vendor()
    logger = _logger(trt)
    builder = trt.Builder(logger)
    network = builder.create_network(1 << int(trt.NetworkDefinitionCreationFlag.STRONGLY_TYPED))
    parser = trt.OnnxParser(network, logger)
    if not parser.parse(model.SerializeToString()):
        problems = "; ".join(_problem(parser.get_error(index)) for index in range(parser.num_errors))
        raise CompileError(f"TensorRT-RTX {trt.__version__} cannot parse the graph: {problems}")
    config = builder.create_builder_config()
    config.num_compute_capabilities = len(compute_capabilities)
    for index, name in enumerate(compute_capabilities):
        if name not in trt.ComputeCapability.__members__:
            allowed = ", ".join(sorted(trt.ComputeCapability.__members__))
            raise CompileError(f"TensorRT-RTX {trt.__version__} has no compute capability {name!r}; it has {allowed}")
        config.set_compute_capability(trt.ComputeCapability.__members__[name], index)
    shapes = builder.create_optimization_profile()
    for name, (smallest, usual, largest) in profile.items():
        shapes.set_shape(name, tuple(smallest), tuple(usual), tuple(largest))
    config.add_optimization_profile(shapes)
    engine = builder.build_serialized_network(network, config)
    if engine is None:
        problems = "; ".join(logger.errors) or "it gives no reason"
        raise CompileError(f"TensorRT-RTX {trt.__version__} cannot build the graph: {problems}")
    return bytes(engine)


def _logger(trt: Any) -> Any:
    class Logger(trt.ILogger):  # type: ignore[misc]  # the bindings carry no types
        """Keeps what went wrong for the exception's message."""

        def __init__(self) -> None:
            super().__init__()
            self.errors: list[str] = []

        def log(self, severity: Any, message: str) -> None:
            if severity in (trt.ILogger.Severity.ERROR, trt.ILogger.Severity.INTERNAL_ERROR):
                self.errors.append(message)

    return Logger()


def _problem(error: Any) -> str:
    return f"node {error.node_name()!r} ({error.node_operator()}): {error.desc()}"


def _vendor() -> Any:
    try:
        import tensorrt_rtx_bindings
    except ImportError as error:
        raise MissingDependencyError(
            "TensorRT-RTX is not installed: pip install tensorrt-rtx-cu13-libs tensorrt-rtx-cu13-bindings"
        ) from error
    return tensorrt_rtx_bindings
