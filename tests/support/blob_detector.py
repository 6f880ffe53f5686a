"""A detector with DETR's interface that finds the one white blob of a picture: a real ONNX file, made in code."""

from pathlib import Path

import numpy as np

SIDE = 64
SCORE = 0.9

_GRAPH = f"""
<ir_version: 8, opset_import: ["" : 17]>
blob (float[N,3,{SIDE},{SIDE}] images, int64[N,2] orig_target_sizes)
    => (int64[N,1] labels, float[N,1,4] boxes, float[N,1] scores)
<float[1] white = {{0.8}}, float[1] side = {{{float(SIDE)}}}, int64[1] one = {{1}}>
{{
    darkest = ReduceMin <axes = [1], keepdims = 0> (images)
    is_white = Greater (darkest, white)
    mask = Cast <to = 1> (is_white)
    columns = ReduceMax <axes = [1], keepdims = 0> (mask)
    rows = ReduceMax <axes = [2], keepdims = 0> (mask)
    right_steps = Mul (columns, up)
    x1 = ReduceMax <axes = [1], keepdims = 1> (right_steps)
    left_steps = Mul (columns, down)
    left = ReduceMax <axes = [1], keepdims = 1> (left_steps)
    x0 = Sub (side, left)
    lower_steps = Mul (rows, up)
    y1 = ReduceMax <axes = [1], keepdims = 1> (lower_steps)
    upper_steps = Mul (rows, down)
    upper = ReduceMax <axes = [1], keepdims = 1> (upper_steps)
    y0 = Sub (side, upper)
    corners = Concat <axis = 1> (x0, y0, x1, y1)
    sizes = Cast <to = 1> (orig_target_sizes)
    twice = Concat <axis = 1> (sizes, sizes)
    parts = Div (corners, side)
    scaled = Mul (parts, twice)
    boxes = Unsqueeze (scaled, one)
    any = ReduceMax <axes = [1], keepdims = 1> (columns)
    scores = Mul (any, certainty)
    none = Sub (any, any)
    labels = Cast <to = 7> (none)
}}
"""


def write_blob_detector(path: Path) -> Path:
    """Write the detector; its boxes are exact to a pixel of its 64 x 64 input."""
    import onnx
    import onnx.parser
    from onnx import numpy_helper

    model = onnx.parser.parse_model(_GRAPH)
    steps = np.arange(SIDE, dtype=np.float32)
    for name, values in (("up", steps + 1), ("down", SIDE - steps), ("certainty", np.array([SCORE], np.float32))):
        model.graph.initializer.append(numpy_helper.from_array(values, name))
    onnx.checker.check_model(model)
    onnx.save(model, str(path))
    return path
