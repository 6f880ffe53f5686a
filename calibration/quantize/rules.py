"""The rules that select the nodes of a graph that may become int8; nodes that decisions depend on stay float.

Five rules exclude a node:

- what the comparison of ``edgevis::HybridMask`` depends on. ``feature * mask > 0`` is a discontinuity: a rounding error
  moves a place from one branch to the other. So the whole path to it stays float, not only the comparison; it runs when
  a shot is enrolled, and a frame does not pay for it;
- the gate of ``edgevis::CrossAttention``: its two matrix products work on one vector, and a sigmoid spreads their error
  over all places of a channel;
- the matrix products that make the logits of a softmax or weigh by it: attention's probabilities are far from evenly
  spread, and seven bits of them lose the small ones. So do those of a soft maximum, the logarithm of a sum of
  exponentials, which divides similarities by a temperature;
- products of two activations of which one is a single vector, such as the similarity to a mean: little work as well;
- convolutions that make a single place, as in squeeze-and-excitation: they are a thousandth of the work, and every
  place of a channel is multiplied by the error of their result.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass

import onnx_ir as ir
from onnx import ModelProto, inliner, shape_inference

from runtime.tasks import LayerKind

_DOMAIN = "edgevis"
_MASK, _GATE = "HybridMask", "CrossAttention"
PRODUCTS = frozenset(("Conv", "ConvTranspose", "Gemm", "MatMul"))
# What stands between a softmax and the matrix products beside it.
_PASSING = frozenset(
    (
        *("Add", "Cast", "Clip", "Div", "Expand", "Identity", "Mul", "Reshape", "Slice", "Squeeze", "Sub"),
        *("Transpose", "Unsqueeze", "Where"),
    )
)


@dataclass(frozen=True, slots=True)
class Layer:
    """One node that may become int8.

    Attributes:
        name: The node's name in the graph.
        operator: Its ONNX operator.
        weight: The name of its weight; empty for a product of two activations.
        macs: Multiplications for one image, as far as shapes are known; 0 where they are not.
        kinds: See :data:`runtime.tasks.LayerKind`.
    """

    name: str
    operator: str
    weight: str
    macs: int
    kinds: frozenset[LayerKind] = frozenset()


@dataclass(frozen=True, slots=True)
class Prepared:
    """A float graph that is ready for quantisation.

    Attributes:
        model: The graph with functions inlined and every node named; it must not be changed.
        activations: The names of the float inputs and outputs of all layers, each once, in the graph's order.
        layers: What may become int8, in the graph's order.
        excluded_by_rule: Maps the name of each node that stays float by rule to the rule.
    """

    model: ir.Model
    activations: tuple[str, ...]
    layers: tuple[Layer, ...]
    excluded_by_rule: Mapping[str, str]


def prepare(model: ModelProto, operators: tuple[str, ...], float32_outputs: Collection[str] = frozenset()) -> Prepared:
    """Inline, infer shapes, name the nodes and apply the rules.

    Args:
        model: A float graph; it is not changed.
        operators: The operators whose nodes become int8.
        float32_outputs: See :attr:`runtime.bundle.spec.Graph.float32_outputs`.
    """
    inlined, mask_tensors = _inline(model, _MASK)
    inlined, gate_tensors = _inline(inlined, _GATE)
    whole = ir.from_proto(shape_inference.infer_shapes(inliner.inline_local_functions(inlined)))
    _name_nodes(whole.graph)
    nodes = list(whole.graph)
    comparisons = [node for node in nodes if node.op_type == "Greater" and node.outputs[0].name in mask_tensors]
    before_comparison = _reached(comparisons, ir.Node.predecessors)
    attention = _attention(nodes)
    last = last_products(whole.graph, float32_outputs)
    layers, excluded = [], {}
    for node in nodes:
        if node.op_type not in operators:
            continue
        name = node.name or ""
        if node in before_comparison:
            excluded[name] = "a mask's comparison depends on it"
        elif node.outputs[0].name in gate_tensors:
            excluded[name] = "gate of cross-attention"
        elif node in attention:
            excluded[name] = "beside a softmax"
        elif _is_with_vector(node):
            excluded[name] = "a product with one vector"
        elif node.op_type == "Conv" and _sizes(node.outputs[0])[2:] == (1, 1):
            excluded[name] = "works on a single place"
        else:
            weight = next((value for value in node.inputs[:2] if value is not None and value.is_initializer()), None)
            weight_name = "" if weight is None else weight.name or ""
            macs, kinds = _macs(node, weight), _kinds(node, weight, is_last=node in last)
            layers.append(Layer(name, node.op_type, weight_name, macs, kinds))
    activations = _activations(whole.graph, {layer.name for layer in layers})
    _forget_inner_types(nodes)
    return Prepared(whole, activations, tuple(layers), excluded)


def _kinds(node: ir.Node, weight: ir.Value | None, *, is_last: bool) -> frozenset[LayerKind]:
    sizes = _sizes(weight)
    # One input channel in each group; a convolution of a grey image has one, too, and no groups.
    depthwise = sizes[1:2] == (1,) and node.attributes.get_int("group", 1) > 1
    kinds: dict[LayerKind, bool] = {"depthwise": depthwise, "last": is_last}
    return frozenset(kind for kind, holds in kinds.items() if holds)


def last_products(graph: ir.Graph, outputs: Collection[str]) -> frozenset[ir.Node]:
    """The convolutions and matrix products from which the outputs follow without another one between."""
    return frozenset(node for node in _backwards(graph, outputs) if node.op_type in PRODUCTS)


def after_last_products(graph: ir.Graph, outputs: Collection[str]) -> frozenset[ir.Node]:
    """The nodes between the last convolutions and matrix products and the outputs."""
    return frozenset(node for node in _backwards(graph, outputs) if node.op_type not in PRODUCTS)


def _backwards(graph: ir.Graph, outputs: Collection[str]) -> set[ir.Node]:
    reached: set[ir.Node] = set()
    waiting = [value for value in graph.outputs if value.name in outputs]
    while waiting:
        node = waiting.pop().producer()
        if node is not None and node not in reached:
            reached.add(node)
            if node.op_type not in PRODUCTS:
                waiting += [value for value in node.inputs if value is not None]
    return reached


def _inline(model: ModelProto, operator: str) -> tuple[ModelProto, frozenset[str]]:
    """The model with one function inlined, and the names of the tensors that were inside it."""
    if not any(node.domain == _DOMAIN and node.op_type == operator for node in model.graph.node):
        return model, frozenset()
    before = {name for node in model.graph.node for name in node.output}
    inlined = inliner.inline_selected_functions(model, [(_DOMAIN, operator)])
    return inlined, frozenset(name for node in inlined.graph.node for name in node.output if name not in before)


def _name_nodes(graph: ir.Graph) -> None:
    """Give each node a name of its own."""
    taken: set[str] = set()
    for node in graph:
        if not node.name or node.name in taken:
            node.name = f"{node.op_type}_{node.outputs[0].name}"
        taken.add(node.name)


def _activations(graph: ir.Graph, layers: Collection[str]) -> tuple[str, ...]:
    values = (value for node in graph if node.name in layers for value in (*node.inputs, *node.outputs))
    return tuple(
        value.name
        for value in dict.fromkeys(values)
        if value is not None
        and value.name
        and value.dtype == ir.DataType.FLOAT
        and ir.convenience.get_const_tensor(value) is None
    )


def _forget_inner_types(nodes: Iterable[ir.Node]) -> None:
    """Drop the inferred types and shapes of inner tensors: Q/DQ would make them stale, and copies are faster."""
    for node in nodes:
        for value in node.outputs:
            if not value.is_graph_output():
                value.type = value.shape = None


def _attention(nodes: Sequence[ir.Node]) -> frozenset[ir.Node]:
    """The matrix products before or after a softmax, through scales and reshapes, and before a soft maximum."""
    softmaxes = [node for node in nodes if node.op_type == "Softmax"]
    exponentials = [
        node
        for node in nodes
        if node.op_type == "Exp" and any(after.op_type == "ReduceSum" for after in node.successors())
    ]
    reached = _reached([*softmaxes, *exponentials], ir.Node.predecessors, passing=_PASSING)
    reached |= _reached(softmaxes, ir.Node.successors, passing=_PASSING)
    return frozenset(node for node in reached if node.op_type in ("MatMul", "Gemm"))


def _is_with_vector(node: ir.Node) -> bool:
    """Whether a node multiplies two activations, one of which has a single row or column."""
    if node.op_type != "MatMul" or any(value is None or value.is_initializer() for value in node.inputs):
        return False
    return 1 in (*_sizes(node.inputs[0])[-2:-1], *_sizes(node.inputs[1])[-1:])


def _reached(
    start: Iterable[ir.Node],
    neighbours: Callable[[ir.Node], Sequence[ir.Node]],
    *,
    passing: frozenset[str] | None = None,
) -> set[ir.Node]:
    """All nodes reachable over neighbours; only through the operators ``passing``, if given."""
    reached: set[ir.Node] = set()
    waiting = [neighbour for node in start for neighbour in neighbours(node)]
    while waiting:
        node = waiting.pop()
        if node not in reached:
            reached.add(node)
            if passing is None or node.op_type in passing:
                waiting += neighbours(node)
    return reached


def _sizes(value: ir.Value | None) -> tuple[int, ...]:
    """A tensor's sizes, 0 for an open axis; empty where the shape is unknown."""
    if value is None or value.shape is None:
        return ()
    return tuple(size if isinstance(size, int) else 0 for size in value.shape)


def _macs(node: ir.Node, weight: ir.Value | None) -> int:
    """The number of multiplications of a layer for one image."""
    result = _sizes(node.outputs[0])
    if weight is None:  # each value of a product of activations is a sum over the first one's last axis
        return math.prod(result[1:]) * (_sizes(node.inputs[0]) or (0,))[-1]
    # A weight is applied once for every place of the result.
    return math.prod(_sizes(weight)) * math.prod(result[2:] if node.op_type == "Conv" else result[1:-1])
