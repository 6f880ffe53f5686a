"""The vocabulary of a bundle: frozen data that a model declares, export serialises and the runtime interprets.

Types are checked where JSON is read (:mod:`runtime.common.json_data`); ranges and names are checked here, in every
class's ``__post_init__``, so that a wrong declaration fails where it is written, too.
"""

from __future__ import annotations

import re
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, get_args

from runtime.errors import SchemaError

Color = Literal["RGB", "BGR", "GRAY"]
Fit = Literal["stretch", "letterbox", "center-crop"]
Align = Literal["center", "top-left"]
Interpolation = Literal["nearest", "linear", "cubic", "area"]
Precision = Literal["fp32", "fp16", "bf16", "int8"]

DTYPES = ("float32", "float16", "int64", "int32", "uint8", "bool")
MAX_SIDE = 8192
MAX_RANK = 8
MAX_BATCH = 4096
_MAX_FLOAT32 = 3.4e38

_NAME = re.compile(r"[A-Za-z][A-Za-z0-9_.-]{0,63}")


@dataclass(frozen=True, slots=True)
class TensorSpec:
    """One input or output of a graph.

    Attributes:
        name: The tensor's name in the graph.
        dtype: NumPy's name of the element type, one of :data:`DTYPES`.
        shape: One entry per axis: a positive int, or the name of an axis whose size is known at run time
            (``"N"`` is the batch).
    """

    name: str
    dtype: str
    shape: tuple[int | str, ...]

    def __post_init__(self) -> None:
        _check_name("tensor", self.name)
        _check_choice(f"tensor {self.name!r}: dtype", self.dtype, DTYPES)
        _check(0 < len(self.shape) <= MAX_RANK, f"tensor {self.name!r}: rank {len(self.shape)}, allowed 1..{MAX_RANK}")
        for size in self.shape:
            if isinstance(size, str):
                _check_name(f"tensor {self.name!r}: axis", size)
            else:
                _check(_is_int(size) and size > 0, f"tensor {self.name!r}: axis of size {size!r}, allowed >= 1")

    @property
    def batched(self) -> bool:
        """Whether the first axis is the batch ``"N"``."""
        return self.shape[0] == "N"

    def fits(self, shape: tuple[int, ...]) -> bool:
        """Whether an array of that shape matches this tensor; a named axis accepts any size from 1."""
        return len(shape) == len(self.shape) and all(
            size >= 1 if isinstance(declared, str) else size == declared
            for size, declared in zip(shape, self.shape, strict=True)
        )


HYBRID_MASK_FLIPS = 1e-5
"""What hybrid masking needs as :attr:`Graph.max_flipped`: measured 0 to 1.2e-7 with ONNX Runtime and OpenVINO."""


LABELS = "labels"
"""The open axis of a graph that is a function of a set, see :attr:`Graph.set_of`."""

MAX_LABELS = 1024
"""The largest set that such a graph takes: engines are built for a range, and its time grows with the square."""


@dataclass(frozen=True, slots=True)
class Graph:
    """One function of a model, exported as one ONNX file: the module's method of the same name.

    Attributes:
        name: The method's name.
        inputs, outputs: In the method's order.
        max_flipped: The share of an output's elements, 0..1, that may be far from the reference model's although the
            engine is right: where a graph decides for each element between two values, as hybrid masking does by the
            sign of a feature, a rounding error decides the few whose feature is nearly zero.
        float32_outputs: Outputs that are computed in float32 in every precision from the last convolution or matrix
            product on, such as boxes: the exponential of a rounded number is off by far more.
        set_of: ``GRAPH/OUTPUT`` of an earlier graph, for a function of a set of that output's rows: one input and one
            output, both (1, :data:`LABELS`, D). It is run when what is enrolled changes, not for an image, and computes
            in float32 in every precision.
    """

    name: str
    inputs: tuple[TensorSpec, ...]
    outputs: tuple[TensorSpec, ...]
    max_flipped: float = 0.0
    float32_outputs: tuple[str, ...] = ()
    set_of: str = ""

    def __post_init__(self) -> None:
        _check_name("graph", self.name)
        _check(bool(self.inputs) and bool(self.outputs), f"graph {self.name!r} needs inputs and outputs")
        names = [tensor.name for tensor in (*self.inputs, *self.outputs)]
        _check(
            _is_real(self.max_flipped) and 0 <= self.max_flipped < 0.01,
            f"graph {self.name!r}: max_flipped is {self.max_flipped!r}, allowed: a share from 0 to below 0.01",
        )
        _check(len(names) == len(set(names)), f"graph {self.name!r} names a tensor twice: {names}")
        outputs = [tensor.name for tensor in self.outputs]
        _check(
            all(name in outputs for name in self.float32_outputs),
            f"graph {self.name!r}: float32_outputs is {self.float32_outputs!r}, allowed: {', '.join(outputs)}",
        )
        shapes = {tensor.shape for tensor in (*self.inputs, *self.outputs)}
        one_each = len(self.inputs) == len(self.outputs) == 1
        _check(
            not self.set_of or (one_each and all(shape[:2] == (1, LABELS) and len(shape) == 3 for shape in shapes)),
            f"graph {self.name!r}: set_of is {self.set_of!r}, and its tensors are {list(shapes)}; allowed: one input "
            f"and one output, (1, {LABELS!r}, D)",
        )


@dataclass(frozen=True, slots=True)
class Preprocess:
    """The preprocessing of an image, (H, W, 3) uint8 BGR, to a graph's input, (channels, height, width) float32.

    The value of a channel is ``(pixel * scale - mean) / std``; ``mean`` and ``std`` are in the order of ``color``.

    Attributes:
        height, width: Size of the graph's input in pixels.
        color: The channel order that the model was trained with; ``GRAY`` is one channel, the luma of BT.601.
        scale: Factor applied to the 0..255 pixel, usually 1/255.
        mean, std: Per channel, after scaling: three numbers, or one for ``GRAY``. Left out, they are 0 and 1.
        fit: ``stretch`` resizes both sides freely; ``letterbox`` keeps the aspect ratio and pads to the right size
            with ``pad_value``; ``center-crop`` shows the largest centred part that has the input's
            proportions: of an image that shrinks it is cut on whole pixels and resized, one that grows is resized to
            cover the input and then cut.
        interpolation: The resampling, by OpenCV's definition of the name.
        pad_value: Grey level, 0..255, around a letterboxed image.
        align: The place of a letterboxed image in the input: in its centre, with sides rounded to whole pixels, or in
            its top left corner, with sides cut to whole pixels, as YOLOX and EfficientDet were trained.
    """

    height: int
    width: int
    color: Color = "RGB"
    scale: float = 1.0 / 255.0
    mean: tuple[float, ...] = ()
    std: tuple[float, ...] = ()
    fit: Fit = "stretch"
    interpolation: Interpolation = "linear"
    pad_value: int = 114
    align: Align = "center"

    @property
    def channels(self) -> int:
        """The number of channels of the graph's input."""
        return 1 if self.color == "GRAY" else 3

    @property
    def input(self) -> TensorSpec:
        """The output of preprocessing: a batch of the input named ``image``."""
        return TensorSpec("image", "float32", ("N", self.channels, self.height, self.width))

    def __post_init__(self) -> None:
        for name, side in (("height", self.height), ("width", self.width)):
            _check(_is_int(side) and 1 <= side <= MAX_SIDE, f"preprocess: {name} is {side!r}, allowed 1..{MAX_SIDE}")
        _check_choice("preprocess: color", self.color, get_args(Color))
        _check_choice("preprocess: fit", self.fit, get_args(Fit))
        _check_choice("preprocess: interpolation", self.interpolation, get_args(Interpolation))
        _check(_is_real(self.scale) and self.scale > 0, f"preprocess: scale is {self.scale!r}, allowed > 0")
        # Frozen, so that defaults which depend on another field are set around the guard.
        object.__setattr__(self, "mean", self.mean or (0.0,) * self.channels)
        object.__setattr__(self, "std", self.std or (1.0,) * self.channels)
        for name, values in (("mean", self.mean), ("std", self.std)):
            _check(
                len(values) == self.channels and all(_is_real(value) for value in values),
                f"preprocess: {name} is {values!r}, allowed for {self.color}: {self.channels} finite numbers",
            )
        _check(all(value > 0 for value in self.std), f"preprocess: std is {self.std!r}, allowed > 0")
        channels = tuple(zip(self.mean, self.std, strict=True))
        ends = [(pixel * float(self.scale) - mean) / std for pixel in (0, 255) for mean, std in channels]
        _check(
            all(abs(value) <= _MAX_FLOAT32 for value in ends),
            f"preprocess: scale {self.scale!r}, mean {self.mean!r} and std {self.std!r} make values beyond float32",
        )
        _check(
            _is_int(self.pad_value) and 0 <= self.pad_value <= 255,
            f"preprocess: pad_value is {self.pad_value!r}, allowed 0..255",
        )
        _check_choice("preprocess: align", self.align, get_args(Align))
        _check(
            self.fit == "letterbox" or self.align == "center",
            f"preprocess: align is {self.align!r} with fit {self.fit!r}; only 'letterbox' has it",
        )


@dataclass(frozen=True, slots=True)
class Deployment:
    """The declaration of a model for the runtime, written beside its ``nn.Module``.

    Attributes:
        task: The file in ``runtime/tasks/`` that runs it.
        graphs: The functions that are exported.
        preprocess: The preprocessing of an image to the input named ``image``.
        postprocess: The task's settings as JSON data; the task reads them with its ``settings_from``.
        max_batch: The largest batch that an engine is given at once; larger ones are run in chunks.
    """

    task: str
    graphs: tuple[Graph, ...]
    preprocess: Preprocess
    postprocess: Mapping[str, Any] = field(default_factory=dict)
    max_batch: int = 32

    def __post_init__(self) -> None:
        _check_name("task", self.task)
        names = [graph.name for graph in self.graphs]
        _check(bool(names) and len(names) == len(set(names)), f"graphs must be named and distinct, got {names}")
        _check(bool(self.image_graphs), f"none of the graphs {names} takes an image")
        _check(self.graphs == (*self.image_graphs, *self.set_graphs), f"graphs over a set must be the last of {names}")
        made = {
            f"{graph.name}/{tensor.name}": tensor.shape[-1] for graph in self.image_graphs for tensor in graph.outputs
        }
        for graph in self.set_graphs:
            _check(
                graph.set_of in made and made[graph.set_of] == graph.inputs[0].shape[-1],
                f"graph {graph.name!r}: set_of is {graph.set_of!r} for an input {graph.inputs[0].shape}; allowed: an "
                f"output of this size among {', '.join(made)}",
            )
        _check(_is_int(self.max_batch) and 1 <= self.max_batch <= MAX_BATCH, f"max_batch is {self.max_batch!r}")
        _check(
            isinstance(self.postprocess, Mapping) and all(isinstance(key, str) for key in self.postprocess),
            f"postprocess is {self.postprocess!r}, allowed: a JSON object",
        )

    def graph(self, name: str) -> Graph:
        """The graph of a name; SchemaError if the model has none."""
        for graph in self.graphs:
            if graph.name == name:
                return graph
        raise SchemaError(f"no graph {name!r}; this model has {[graph.name for graph in self.graphs]}")

    @property
    def image_graphs(self) -> tuple[Graph, ...]:
        """The graphs that an image goes through: all but those over a set of labels. A prediction runs the last one."""
        return tuple(graph for graph in self.graphs if not graph.set_of)

    @property
    def set_graphs(self) -> tuple[Graph, ...]:
        """The graphs over a set of labels, see :attr:`Graph.set_of`."""
        return tuple(graph for graph in self.graphs if graph.set_of)


def _check(condition: bool, message: str) -> None:
    if not condition:
        raise SchemaError(message)


def _check_name(what: str, name: object) -> None:
    if not isinstance(name, str) or not _NAME.fullmatch(name):
        raise SchemaError(
            f"{what} name {name!r} is not allowed: a letter, then letters, digits, '_', '.', '-', at most 64"
        )


def _check_choice(what: str, value: object, allowed: Sequence[str]) -> None:
    if value not in allowed:
        raise SchemaError(f"{what} is {value!r}; allowed: {', '.join(allowed)}")


def _is_int(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


def _is_real(value: object) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool) and abs(value) <= sys.float_info.max
