"""edgevis's own operators, one file each: the PyTorch operator and the ONNX function of the same meaning.

In PyTorch each is a ``torch.library`` operator with a shape function and a gradient: it works in eager mode and under
``torch.compile`` and ``torch.export``. Exported to ONNX it is one node of the domain ``edgevis``, version 1, and the
model carries its definition in standard operators as a model-local function: any runtime can run it, and one that has
its own kernel for the node may use that instead.
"""

from edgevis.ops.cross_attention import cross_attention
from edgevis.ops.group_norm import group_norm
from edgevis.ops.hybrid_mask import hybrid_mask

__all__ = ["cross_attention", "group_norm", "hybrid_mask"]
