"""The text of a model's ``config.pbtxt`` in a repository of Triton Inference Server."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from runtime import tasks
from runtime.backends._tensorrt.spec import BuildSpec
from runtime.bundle.manifest import EngineRecord
from runtime.bundle.spec import Deployment, Graph, TensorSpec
from runtime.results import Segmentation

MAX_QUEUE_DELAY_US = 2000
"""How long a request waits for others to be batched with, in microseconds: less than a frame of a camera."""
QUEUED_BATCHES = 16
"""How many full batches may wait; what comes then is refused at once, instead of growing old in the queue."""
QUEUE_TIMEOUT_US = 2_000_000
"""How long a request may wait, in microseconds; a client may ask for less or more."""

_TYPES = {
    "float32": "TYPE_FP32",
    "float16": "TYPE_FP16",
    "int64": "TYPE_INT64",
    "int32": "TYPE_INT32",
    "uint8": "TYPE_UINT8",
    "bool": "TYPE_BOOL",
}
_Tensor = tuple[str, str, tuple[int, ...]]


def predictor_config(
    name: str, deployment: Deployment, parameters: Mapping[str, str], *, on_gpus: bool, count: int
) -> list[str]:
    """The configuration of the model that takes images and returns results.

    Args:
        name: The model's name.
        deployment: The bundle's.
        parameters: What ``model.py`` reads.
        on_gpus: Whether it has instances on each of the server's GPUs.
        count: How many instances there are, on each GPU if it is on those.

    Returns:
        The lines.
    """
    return [
        *_head(name, "python", deployment.max_batch),
        *_tensors("input", [("image", "TYPE_STRING", (1,))]),
        *_tensors("output", _predictor_outputs(deployment)),
        *_serving(count, "KIND_GPU" if on_gpus else "KIND_CPU", deployment.max_batch),
        *(
            f"parameters {{ key: {_quoted(key)} value {{ string_value: {_quoted(value)} }} }}"
            for key, value in parameters.items()
        ),
    ]


def graph_config(
    name: str,
    graph: Graph,
    max_batch: int,
    record: EngineRecord,
    *,
    spec: BuildSpec | None,
    plan: bool,
    cache: str | None,
    count: int,
) -> list[str]:
    """The configuration of a model that is one graph of an engine.

    Args:
        name: The model's name.
        graph: The graph.
        max_batch: The bundle's largest batch.
        record: The engine.
        spec: The shapes that a TensorRT engine is built for; None where they are not known.
        plan: Whether a TensorRT plan is served instead of the graph.
        cache: The folder, on the server, where ONNX Runtime's TensorRT provider keeps what it builds; None for none.
        count: How many instances there are, on each GPU if it is on those.

    Returns:
        The lines.
    """
    batched = all(tensor.batched for tensor in (*graph.inputs, *graph.outputs))
    limit = max_batch if batched else 0
    if spec is not None and batched:  # a larger batch would have another engine built while serving
        limit = min([limit, *(largest[0] for _, _, largest in spec.profiles.values())])
    inputs, outputs = ([_described(tensor, batched) for tensor in part] for part in (graph.inputs, graph.outputs))
    provider = record.backend == "tensorrt" and not plan
    return [
        *_head(name, "tensorrt" if plan else "onnxruntime", limit),
        *_tensors("input", inputs),
        *_tensors("output", outputs),
        *_serving(count, "KIND_CPU" if record.device == "cpu" else "KIND_GPU", limit),
        *(_tensorrt_in_onnxruntime(record, spec, cache) if provider else []),
        *_warm_up(inputs, _preferred(limit)),
    ]


def _tensorrt_in_onnxruntime(record: EngineRecord, spec: BuildSpec | None, cache: str | None) -> list[str]:
    """ONNX Runtime's TensorRT provider: the server builds an engine when it starts, and no plan has to fit its GPU.

    One engine for the whole range of shapes, kept for the next start where there is a cache. Without a range the
    provider builds one for the first shape, and another whenever a larger one comes.
    """
    parameters = {"precision_mode": {"fp16": "FP16"}.get(record.precision, "FP32")}
    if cache is not None:
        for kind in ("engine", "timing"):
            parameters[f"trt_{kind}_cache_enable"] = "1"
            parameters[f"trt_{kind}_cache_path"] = cache
    if spec is not None:
        if spec.workspace_bytes is not None:
            parameters["max_workspace_size_bytes"] = str(spec.workspace_bytes)
        for number, kind in enumerate(("min", "opt", "max")):
            shapes = (f"{name}:{'x'.join(map(str, profile[number]))}" for name, profile in spec.profiles.items())
            parameters[f"trt_profile_{kind}_shapes"] = ",".join(shapes)
    return [
        'optimization { execution_accelerators { gpu_execution_accelerator: [ { name: "tensorrt"',
        *(f"  parameters {{ key: {_quoted(key)} value: {_quoted(value)} }}" for key, value in parameters.items()),
        "} ] } }",
    ]


def _described(tensor: TensorSpec, batched: bool) -> _Tensor:
    """Name, Triton's type and sizes; the batch axis is left out where the server batches, an open axis is -1."""
    shape = tensor.shape[1:] if batched else tensor.shape
    return tensor.name, _TYPES[tensor.dtype], tuple(-1 if isinstance(size, str) else size for size in shape)


def _predictor_outputs(deployment: Deployment) -> list[_Tensor]:
    outputs: list[_Tensor] = [("result", "TYPE_STRING", (1,))]
    tensor = embedding_output(deployment)
    if tensor is not None:
        outputs.append(("embedding", "TYPE_FP32", (tensor.shape[1] if isinstance(tensor.shape[1], int) else -1,)))
    elif issubclass(tasks.load(deployment.task).TRAITS.result, Segmentation):
        outputs.append(("mask", "TYPE_STRING", (1,)))
    return outputs


def embedding_output(deployment: Deployment) -> TensorSpec | None:
    """The output that holds embeddings."""
    embedding = tasks.load(deployment.task).TRAITS.embedding
    if embedding is None:
        return None
    graph, _, output = embedding.partition("/")
    return next(tensor for tensor in deployment.graph(graph).outputs if tensor.name == output)


def _head(name: str, backend: str, max_batch: int) -> list[str]:
    return [f"name: {_quoted(name)}", f"backend: {_quoted(backend)}", f"max_batch_size: {max_batch}"]


def _tensors(field: str, tensors: Sequence[_Tensor]) -> list[str]:
    return [f"{field} {{ name: {_quoted(name)} data_type: {kind} {_dims(dims)} }}" for name, kind, dims in tensors]


def _dims(dims: Sequence[int]) -> str:
    return f"dims: [ {', '.join(map(str, dims))} ]"


def _serving(count: int, kind: str, max_batch: int) -> list[str]:
    batching = []
    if max_batch > 1:
        batching = [
            "dynamic_batching {",
            f"  preferred_batch_size: [ {', '.join(map(str, _preferred(max_batch)))} ]",
            f"  max_queue_delay_microseconds: {MAX_QUEUE_DELAY_US}",
            "  default_queue_policy {",
            "    timeout_action: REJECT",
            f"    default_timeout_microseconds: {QUEUE_TIMEOUT_US}",
            "    allow_timeout_override: true",
            f"    max_queue_size: {QUEUED_BATCHES * max_batch}",
            "  }",
            "}",
        ]
    return [
        *batching,
        f"instance_group {{ count: {count} kind: {kind} }}",
        # A new version is a new folder 2/; the server then goes over to it.
        "version_policy { latest { num_versions: 1 } }",
    ]


def _preferred(max_batch: int) -> list[int]:
    """The batch sizes that are sent without waiting for more: the largest and its half."""
    return sorted({size for size in (max_batch // 2, max_batch) if size > 1})


def _warm_up(inputs: Sequence[_Tensor], batches: Sequence[int]) -> list[str]:
    """Warm-up requests for the server's start, so that no client waits for lazy initialisation; an open axis is 1."""
    lines = []
    for batch in (1, *batches):
        lines += [f'model_warmup {{ name: "batch of {batch}" batch_size: {batch}']
        for name, kind, dims in inputs:
            sizes = _dims([max(size, 1) for size in dims])
            lines.append(f"  inputs {{ key: {_quoted(name)} value {{ data_type: {kind} {sizes} random_data: true }} }}")
        lines.append("}")
    return lines


def _quoted(text: str) -> str:
    escaped = text.replace("\\", "\\\\").replace('"', '\\"').replace("\n", "\\n")
    return f'"{escaped}"'
