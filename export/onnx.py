"""From a PyTorch module to ONNX: one self-contained model for each graph that the module declares."""

from __future__ import annotations

import importlib
import logging
import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager

import onnx
import torch
from onnx import FunctionProto, ModelProto, ValueInfoProto
from onnxscript import ir, optimizer
from torch import Tensor, nn

from edgevis import ops
from runtime.bundle.onnx_file import non_finite_weight
from runtime.bundle.spec import Graph, TensorSpec
from runtime.common.discovery import names_in
from runtime.errors import ExportError

# The opset that torch 2.13's exporter writes without its version converter, which inlines model-local functions and
# fails on optional inputs. ONNX Runtime >= 1.19, OpenVINO 2026 and TensorRT 10.3 all read it.
OPSET = 18
# ONNX Runtime 1.19 reads no later one.
IR_VERSION = 10
DOMAIN = "edgevis"

_MAX_FOLDED = 1 << 26

# Any size but 0 and 1, which torch.export would take for constants; two axes must not share one.
_FIRST_EXAMPLE_SIZE = 2


def onnx_from_module(module: nn.Module, graph: Graph) -> ModelProto:
    """Export the module's method named like ``graph`` to ONNX.

    Weights are inside, batch norms are folded into convolutions, and nothing tells of the machine it was made on.

    Args:
        module: It is put into evaluation mode.
        graph: Names, dtypes and shapes of the inputs and outputs; a symbolic axis stays open in the ONNX model.

    Raises:
        ExportError: There is no such method, PyTorch cannot export it, or what came out is not what ``graph`` says.
    """
    if not callable(getattr(module, graph.name, None)):
        raise ExportError(
            f"{type(module).__name__} has no method {graph.name!r}; the graph {graph.name!r} is the method of that name"
        )
    wrapper = _Method(module, graph.name).eval()
    axes = _axes(graph)
    examples = _examples(graph, {axis: _FIRST_EXAMPLE_SIZE + i for i, axis in enumerate(axes)})
    dims = {axis: torch.export.Dim(axis) for axis in axes}
    shapes = tuple(
        {i: dims[size] for i, size in enumerate(tensor.shape) if isinstance(size, str)} for tensor in graph.inputs
    )
    try:
        with torch.no_grad(), _silence():
            program = torch.onnx.export(
                wrapper,
                examples,
                dynamo=True,
                input_names=[tensor.name for tensor in graph.inputs],
                output_names=[tensor.name for tensor in graph.outputs],
                dynamic_shapes=(shapes,),
                opset_version=OPSET,
                optimize=True,
                verbose=False,
            )
    except torch.onnx.OnnxExporterError as error:
        # Its own message is a page of advice; what went wrong is in the cause.
        reason = str(error.__cause__ or error).strip().splitlines() or [type(error).__name__]
        raise ExportError(f"graph {graph.name!r} cannot be exported to ONNX: {reason[0]}") from error
    if program is None:
        raise ExportError(f"graph {graph.name!r}: the exporter returned nothing")
    fold_constants(program.model)
    model = program.model_proto
    model.ir_version = min(model.ir_version, IR_VERSION)
    strip_metadata(model)
    _define_operators(model)
    onnx.checker.check_model(model, full_check=True)
    check_io(model, graph)
    # Finite weights may still make infinite ones, such as a batch norm whose variance is negative.
    if (name := non_finite_weight(model.SerializeToString(), {})) is not None:
        raise ExportError(
            f"graph {graph.name!r}: the weight {name!r} holds NaN or infinity; take weights of a training that has not "
            "failed"
        )
    return model


def fold_constants(model: ir.Model) -> None:
    """Fold nodes that depend on weights alone: the exporter of torch 2.13 leaves them where a weight is large.

    Engines do so when they load; quantisation would take such a weight for an activation.
    """
    optimizer.fold_constants(model, input_size_limit=_MAX_FOLDED, output_size_limit=_MAX_FOLDED)
    optimizer.remove_unused_nodes(model)


def _define_operators(model: ModelProto) -> None:
    """Append the definition, in standard operators, of each edgevis operator that the graph uses."""
    used = {node.op_type for node in model.graph.node if node.domain == DOMAIN}
    for name in names_in(ops.__name__):
        module = importlib.import_module(f"{ops.__name__}.{name}")
        if module.NODE in used:
            model.functions.append(with_own_names(module.onnx_function()))


def with_own_names(function: FunctionProto) -> FunctionProto:
    """The function with each of its tensors named after it, such as ``_HybridMask_mask``.

    TensorRT's importer looks the tensors of a function up among all that are known by then: one of the graph with the
    name of a formal input would silently take the place of the argument.
    """

    def own(name: str) -> str:
        return f"_{function.name}_{name}" if name else ""  # an empty one is an optional input that is left out

    renamed = FunctionProto()
    renamed.CopyFrom(function)
    for names in (renamed.input, renamed.output):
        names[:] = [own(name) for name in names]
    _rename(renamed.node, own)
    return renamed


def _rename(nodes: Iterable[onnx.NodeProto], own: Callable[[str], str]) -> None:
    """Rename all tensors of nodes, and of the graphs inside them."""
    for node in nodes:
        for names in (node.input, node.output):
            names[:] = [own(name) for name in names]
        for graph in (graph for attribute in node.attribute for graph in _graphs(attribute)):
            for value in (*graph.input, *graph.output, *graph.value_info, *graph.initializer):
                value.name = own(value.name)
            _rename(graph.node, own)


def _graphs(attribute: onnx.AttributeProto) -> list[onnx.GraphProto]:
    return [*([attribute.g] if attribute.HasField("g") else []), *attribute.graphs]


def strip_metadata(model: ModelProto) -> None:
    """Drop all comments: stack traces with this machine's paths, Python class names, inferred shapes.

    The exporter of torch 2.13 writes them beside every node; half of a small model's file is such text.
    """
    model.ClearField("doc_string")
    del model.metadata_props[:]
    del model.graph.value_info[:]
    for function in model.functions:
        function.ClearField("doc_string")
        del function.metadata_props[:]
        del function.value_info[:]
        for node in function.node:
            _strip_node(node)
    _strip_graph(model.graph)


class _Method(nn.Module):
    """A module whose ``forward`` is a method of another."""

    def __init__(self, module: nn.Module, method: str) -> None:
        super().__init__()
        self.model = module
        self.method = method

    def forward(self, *inputs: Tensor) -> Tensor | tuple[Tensor, ...]:
        result: Tensor | tuple[Tensor, ...] = getattr(self.model, self.method)(*inputs)
        return result


def _axes(graph: Graph) -> list[str]:
    """The symbolic axes of the inputs, each once, in order."""
    return list(dict.fromkeys(size for tensor in graph.inputs for size in tensor.shape if isinstance(size, str)))


def _examples(graph: Graph, sizes: Mapping[str, int]) -> tuple[Tensor, ...]:
    """One tensor per input. Only its dtype and shape matter: the exporter traces with symbols, not with values."""
    return tuple(
        torch.zeros(
            [sizes[size] if isinstance(size, str) else size for size in tensor.shape],
            dtype=getattr(torch, tensor.dtype),
        )
        for tensor in graph.inputs
    )


@contextmanager
def _silence() -> Iterator[None]:
    """Suppress the exporter's log messages; problems of a model are raised as exceptions."""
    # torch 2.13 logs one line for each torchvision operator when torchvision is not installed.
    logger = logging.getLogger("torch.onnx._internal.exporter._registration")
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            # torch 2.13 uses its own deprecated class while it copies an exported program.
            warnings.filterwarnings("ignore", r"`isinstance\(treespec, LeafSpec\)`", FutureWarning)
            # Two inputs share an axis on purpose; the second one's name "will not be used", and is the same.
            warnings.filterwarnings("ignore", r"# The axis name: \w+ will not be used", UserWarning)
            yield
    finally:
        logger.setLevel(level)


def _strip_graph(graph: onnx.GraphProto) -> None:
    graph.ClearField("doc_string")
    del graph.metadata_props[:]
    for value in (*graph.input, *graph.output, *graph.initializer):
        value.ClearField("doc_string")
        del value.metadata_props[:]
    for node in graph.node:
        _strip_node(node)


def _strip_node(node: onnx.NodeProto) -> None:
    node.ClearField("doc_string")
    del node.metadata_props[:]
    for attribute in node.attribute:
        attribute.ClearField("doc_string")
        for graph in _graphs(attribute):
            _strip_graph(graph)


def check_io(model: ModelProto, graph: Graph) -> None:
    """ExportError unless the model has the inputs and outputs that ``graph`` declares."""
    for what, values, specs in (
        ("input", model.graph.input, graph.inputs),
        ("output", model.graph.output, graph.outputs),
    ):
        exported = [_shown(value) for value in values]
        declared = [_declared(tensor) for tensor in specs]
        if exported != declared:
            raise ExportError(
                f"graph {graph.name!r}: the exported {what}s are {', '.join(exported)}; "
                f"the model declares {', '.join(declared)}: correct its DEPLOYMENT or the method"
            )


def _shown(value: ValueInfoProto) -> str:
    tensor = value.type.tensor_type
    sizes = [
        size.dim_param or (str(size.dim_value) if size.HasField("dim_value") else "?") for size in tensor.shape.dim
    ]
    dtype = onnx.helper.tensor_dtype_to_np_dtype(tensor.elem_type)
    return f"{value.name} {dtype} ({', '.join(sizes)})"


def _declared(tensor: TensorSpec) -> str:
    return f"{tensor.name} {tensor.dtype} ({', '.join(map(str, tensor.shape))})"
