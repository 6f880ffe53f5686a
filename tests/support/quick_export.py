"""ONNX exports in less time: no rewrite rule of onnxscript is tried where it cannot match."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any


def skip_other_operators() -> None:
    """Ask rules with several output nodes about nodes of their first one's operator alone.

    For each node of a graph such a rule (onnxscript 0.5 to 0.7 have one, ``SlicesSplit``) lists all nodes before it
    looks at the operator, which takes a third of the time of a large graph's export. What it finds stays the same.
    """
    from onnxscript import rewriter

    for rule in getattr(rewriter, "_DEFAULT_REWRITE_RULES", ()):
        if not rule._target_pattern.has_single_output_node:
            matcher, first = rule._matcher, rule._target_pattern.output_nodes[0]
            matcher.match = functools.partial(_match, matcher.match, first.op_type)


def _match(match: Callable[..., Any], op_type: str, model: Any, graph: Any, node: Any, **options: Any) -> Any:
    return match(model, graph, node, **options) if node.op_type == op_type else None
