"""The shape profiles of an engine: minimum, optimum and maximum of every input with an open axis."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace

from runtime.backends._tensorrt.spec import Shape
from runtime.bundle.spec import LABELS, MAX_BATCH, MAX_LABELS, Deployment, Graph, TensorSpec
from runtime.errors import InputError

# Labels that engines of a graph over a set are tuned for.
_USUAL_LABELS = 20

Profiles = Mapping[str, tuple[Shape, Shape, Shape]]


@dataclass(frozen=True, slots=True)
class ShapeProfileRequest:
    """Shapes that the user asks for, input name to shape; they hold for every graph that takes such an input.

    Attributes:
        smallest: Left out, every open axis begins at 1.
        usual: What engines are tuned for; left out, the target's usual batch, as far as the others allow.
        largest: Left out, the deployment's largest batch; of a set of labels the largest that is enrolled.
    """

    smallest: Mapping[str, Shape] = field(default_factory=dict)
    usual: Mapping[str, Shape] = field(default_factory=dict)
    largest: Mapping[str, Shape] = field(default_factory=dict)

    def __bool__(self) -> bool:
        return bool(self.smallest or self.usual or self.largest)


def profiles_of(deployment: Deployment, request: ShapeProfileRequest, *, usual_batch: int) -> dict[str, Profiles]:
    """Graph name to the shapes of its inputs.

    Inputs that share an axis have the same size there, so that one of them says it for all.

    Raises:
        InputError: There is no such input; a shape has another rank, another size on a fixed axis, or contradicts
            another one; the sizes are not in order; the smallest batch is not 1.
    """
    known = {tensor.name for graph in deployment.graphs for tensor in graph.inputs}
    for flag, shapes in (("min", request.smallest), ("opt", request.usual), ("max", request.largest)):
        for name in shapes:
            if name not in known:
                allowed = ", ".join(sorted(known))
                raise InputError(f"--{flag}-shapes: the model has no input {name!r}; it takes {allowed}")
    return {graph.name: _profiles(graph, deployment.max_batch, request, usual_batch) for graph in deployment.graphs}


def with_profile_max_batch(deployment: Deployment, profiles: Mapping[str, Profiles]) -> Deployment:
    """The deployment with the largest batch that all its engines take."""
    sizes = [
        shape[axis]
        for graph in deployment.image_graphs
        for tensor in graph.inputs
        for shape in [profiles[graph.name][tensor.name][2]]
        for axis, size in enumerate(tensor.shape)
        if isinstance(size, str)
    ]
    return replace(deployment, max_batch=min(sizes, default=deployment.max_batch))


def parsed_shapes(text: str) -> dict[str, Shape]:
    """Parse shapes such as ``image:8x3x256x128,mask:8x256x128`` to a mapping.

    Raises:
        InputError: It is written otherwise, or names an input twice.
    """
    shapes: dict[str, Shape] = {}
    for part in text.split(","):
        name, _, sizes = part.strip().rpartition(":")
        numbers = sizes.lower().split("x")
        if not name or not all(number.isascii() and number.isdecimal() for number in numbers):
            raise InputError(f"{part!r} is not a shape; write NAME:1x3x256x128, several with commas")
        if name in shapes:
            raise InputError(f"{text!r} gives the input {name!r} two shapes")
        shapes[name] = tuple(map(int, numbers))
    return shapes


def _profiles(graph: Graph, max_batch: int, request: ShapeProfileRequest, usual_batch: int) -> Profiles:
    axes = {size for tensor in graph.inputs for size in tensor.shape if isinstance(size, str)}
    smallest = dict.fromkeys(axes, 1) | _sizes(graph, request.smallest, "min")
    largest = {axis: MAX_LABELS if axis == LABELS else max_batch for axis in axes}
    largest |= _sizes(graph, request.largest, "max")
    tuned = {"N": usual_batch, LABELS: _USUAL_LABELS}
    usual = {axis: min(max(tuned.get(axis, 1), smallest[axis]), largest[axis]) for axis in axes}
    usual |= _sizes(graph, request.usual, "opt")
    for axis in sorted(axes):
        low, middle, high = smallest[axis], usual[axis], largest[axis]
        if not 1 <= low <= middle <= high <= MAX_BATCH:
            raise InputError(
                f"graph {graph.name!r}: axis {axis} has the sizes min {low}, opt {middle}, max {high}; "
                f"allowed: 1 <= min <= opt <= max <= {MAX_BATCH}"
            )
        if low != 1:
            raise InputError(
                f"graph {graph.name!r}: axis {axis} begins at {low}; allowed: 1, because a single image and the rest "
                "of a list are run as they are: leave --min-shapes out"
            )
        if axis == LABELS and high != MAX_LABELS:
            raise InputError(
                f"graph {graph.name!r}: axis {axis} ends at {high}; allowed: {MAX_LABELS}, the most "
                "labels that may be enrolled"
            )
    return {
        tensor.name: (_shape(tensor, smallest), _shape(tensor, usual), _shape(tensor, largest))
        for tensor in graph.inputs
    }


def _sizes(graph: Graph, shapes: Mapping[str, Shape], flag: str) -> dict[str, int]:
    """The sizes of the open axes in the requested shapes."""
    sizes: dict[str, int] = {}
    for tensor in graph.inputs:
        shape = shapes.get(tensor.name)
        if shape is None:
            continue
        if not tensor.fits(shape):
            raise InputError(
                f"--{flag}-shapes: {tensor.name!r} has the shape {_shown(shape)}; graph {graph.name!r} takes "
                f"{_shown(tensor.shape)}, letters being any size from 1"
            )
        for axis, size in zip(tensor.shape, shape, strict=True):
            if isinstance(axis, str) and sizes.setdefault(axis, size) != size:
                raise InputError(
                    f"--{flag}-shapes: the inputs of graph {graph.name!r} disagree on axis {axis}: "
                    f"{sizes[axis]} and {size}; give both the same size"
                )
    return sizes


def _shape(tensor: TensorSpec, sizes: Mapping[str, int]) -> Shape:
    return tuple(sizes[size] if isinstance(size, str) else size for size in tensor.shape)


def _shown(shape: tuple[int | str, ...]) -> str:
    return "x".join(map(str, shape))
