"""Which nodes of a graph may become int8, and which stay float whatever is measured, because a decision hangs on them.

Four rules keep a node float:

- what the comparison of ``edgevis::HybridMask`` depends on. ``feature * mask > 0`` is a discontinuity: a rounding error
  moves a place from one branch to the other. So the whole path to it stays float, not only the comparison; it runs when
  a shot is enrolled, and a frame does not pay for it;
- the gate of ``edgevis::CrossAttention``: its two matrix products work on one vector, and a sigmoid spreads their error
  over all places of a channel;
- the matrix products that make the logits of a softmax or weigh by it: attention's probabilities are far from evenly
  spread, and seven bits of them lose the small ones;
- convolutions that make a single place, as in squeeze-and-excitation: they are a thousandth of the work, and every
  place of a channel is multiplied by the error of their result.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass

from onnx import ModelProto, NodeProto, inliner, shape_inference

_DOMAIN = "edgevis"
_MASK, _GATE = "HybridMask", "CrossAttention"
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
        macs: Multiplications for one image, as far as shapes tell; 0 where they do not.
    """

    name: str
    operator: str
    weight: str
    macs: int


@dataclass(frozen=True, slots=True)
class Prepared:
    """A float graph that is ready for quantisation.

    Attributes:
        model: Functions are inlined, shapes inferred, every node named.
        layers: What may become int8, in the graph's order.
        excluded_by_rule: The nodes that would be layers and stay float, and why.
    """

    model: ModelProto
    layers: tuple[Layer, ...]
    excluded_by_rule: Mapping[str, str]


def prepare(model: ModelProto, operators: tuple[str, ...]) -> Prepared:
    """Inline, infer shapes, name the nodes and apply the rules.

    Args:
        model: It is not changed.
        operators: Those whose nodes become int8.
    """
    whole, of_masks = _inlined(model, _MASK)
    whole, of_gates = _inlined(whole, _GATE)
    whole = shape_inference.infer_shapes(inliner.inline_local_functions(whole))
    _name_nodes(whole)
    nodes = list(whole.graph.node)
    decisions = [node for node in nodes if node.op_type == "Greater" and node.output[0] in of_masks]
    decided = _ancestors(nodes, [name for node in decisions for name in node.input])
    attention = _attention(nodes)
    shapes = _shapes(whole)
    constants = {tensor.name: tensor.dims for tensor in whole.graph.initializer}
    layers, excluded_by_rule = [], {}
    for node in nodes:
        if node.op_type not in operators:
            continue
        if node.name in decided:
            excluded_by_rule[node.name] = "a mask's comparison depends on it"
        elif node.output[0] in of_gates:
            excluded_by_rule[node.name] = "gate of cross-attention"
        elif node.name in attention:
            excluded_by_rule[node.name] = "beside a softmax"
        elif node.op_type == "Conv" and shapes.get(node.output[0], ())[2:] == (1, 1):
            excluded_by_rule[node.name] = "works on a single place"
        else:
            weight = next((name for name in node.input[:2] if name in constants), "")
            macs = _macs(node, constants.get(weight), shapes)
            layers.append(Layer(node.name, node.op_type, weight, macs))
    return Prepared(whole, tuple(layers), excluded_by_rule)


def _inlined(model: ModelProto, operator: str) -> tuple[ModelProto, frozenset[str]]:
    """The model with one function inlined, and the tensors that were inside it."""
    if not any(node.domain == _DOMAIN and node.op_type == operator for node in model.graph.node):
        return model, frozenset()
    before = {name for node in model.graph.node for name in node.output}
    made = inliner.inline_selected_functions(model, [(_DOMAIN, operator)])
    return made, frozenset(name for node in made.graph.node for name in node.output if name not in before)


def _name_nodes(model: ModelProto) -> None:
    """A name for each node that has none of its own."""
    taken: set[str] = set()
    for node in model.graph.node:
        if not node.name or node.name in taken:
            node.name = f"{node.op_type}_{node.output[0]}"
        taken.add(node.name)


def _ancestors(nodes: Iterable[NodeProto], tensors: Iterable[str]) -> frozenset[str]:
    """The names of all nodes that the tensors depend on."""
    made_by = {name: node for node in nodes for name in node.output}
    open_tensors, found = list(tensors), set()
    while open_tensors:
        node = made_by.get(open_tensors.pop())
        if node is not None and node.name not in found:
            found.add(node.name)
            open_tensors += node.input
    return frozenset(found)


def _attention(nodes: list[NodeProto]) -> frozenset[str]:
    """The matrix products that feed a softmax or read one, whatever scales or reshapes stands between."""
    made_by = {name: node for node in nodes for name in node.output}
    readers: dict[str, list[NodeProto]] = {}
    for node in nodes:
        for name in node.input:
            readers.setdefault(name, []).append(node)
    found: set[str] = set()
    for softmax in (node for node in nodes if node.op_type == "Softmax"):
        found |= _products(softmax, lambda node: [made_by[name] for name in node.input if name in made_by])
        found |= _products(softmax, lambda node: [reader for name in node.output for reader in readers.get(name, [])])
    return frozenset(found)


def _products(start: NodeProto, neighbours: Callable[[NodeProto], list[NodeProto]]) -> set[str]:
    found: set[str] = set()
    seen: set[str] = set()
    open_nodes = neighbours(start)
    while open_nodes:
        node = open_nodes.pop()
        if node.name in seen:
            continue
        seen.add(node.name)
        if node.op_type in ("MatMul", "Gemm"):
            found.add(node.name)
        elif node.op_type in _PASSING:
            open_nodes += neighbours(node)
    return found


def _shapes(model: ModelProto) -> dict[str, tuple[int, ...]]:
    """Tensor to its sizes; 0 is an open one."""
    graph = model.graph
    return {
        value.name: tuple(size.dim_value for size in value.type.tensor_type.shape.dim)
        for value in (*graph.input, *graph.output, *graph.value_info)
    }


def _macs(node: NodeProto, weight: Sequence[int] | None, shapes: Mapping[str, tuple[int, ...]]) -> int:
    """Multiplications of a layer for one image."""
    made = shapes.get(node.output[0], ())
    if weight is None:  # each value of a product of activations is a sum over the first one's last axis
        return math.prod(made[1:]) * (shapes.get(node.input[0]) or (0,))[-1]
    # A weight is applied once for every place of the result.
    return math.prod(weight) * math.prod(made[2:] if node.op_type == "Conv" else made[1:-1])
