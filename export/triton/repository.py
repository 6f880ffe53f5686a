"""Write a model repository for Triton Inference Server, from a bundle or during its build.

::

    triton/
      NAME/              images in, results out: the Python backend runs edgevis.Predictor on the bundle
        config.pbtxt
        1/model.py
      NAME-GRAPH/        tensors in, tensors out, one for each graph of an engine: what a pipeline of one's own calls
        config.pbtxt
        1/model.onnx     or model.plan

``python -m export.triton BUNDLE --output DIR`` writes one; it needs neither PyTorch nor a GPU.
"""

from __future__ import annotations

import argparse
import os
import re
import shutil
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

from runtime import tasks
from runtime.backends import load as load_backend
from runtime.bundle.bundle import Bundle
from runtime.bundle.engine_files import EngineFiles
from runtime.bundle.manifest import EngineRecord
from runtime.bundle.spec import Deployment, Graph, TensorSpec
from runtime.common.command import run_command
from runtime.errors import ExportError, InputError

FOLDER = "triton"
MAX_QUEUE_DELAY_US = 2000
"""How long a request waits for others to be batched with, in microseconds: less than a frame of a camera."""

_TYPES = {
    "float32": "TYPE_FP32",
    "float16": "TYPE_FP16",
    "int64": "TYPE_INT64",
    "int32": "TYPE_INT32",
    "uint8": "TYPE_UINT8",
    "bool": "TYPE_BOOL",
}
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]{0,127}")


def write_predictor(
    folder: Path,
    *,
    name: str,
    bundle: str,
    deployment: Deployment,
    record: EngineRecord | None = None,
    enrolment: str = "",
    instances: int = 1,
) -> Path:
    """Write the model that takes images and returns results.

    Args:
        folder: The repository.
        name: The model's name there.
        bundle: The bundle's path relative to the model's folder, ``"../.."`` for a repository inside its bundle; or an
            absolute one.
        deployment: The bundle's.
        record: The engine to run; None leaves the choice to the server's machine.
        enrolment: A file that ``Predictor.save`` wrote, given as ``bundle`` is; without one, models that need an
            enrolment return embeddings only.
        instances: How many processes run it, each with an engine of its own.

    Returns:
        The model's folder.

    Raises:
        ExportError: The name is not allowed.
    """
    place = _model_folder(folder, name)
    shutil.copyfile(Path(__file__).with_name("model.py"), place / "1" / "model.py")
    parameters = {
        "bundle": bundle,
        "enrolment": enrolment,
        "backend": record.backend if record else "auto",
        "device": record.device if record else "auto",
        "precision": record.precision if record else "",
    }
    config = [
        *_head(name, "python", deployment.max_batch),
        *_tensors("input", [("image", "TYPE_STRING", (1,))]),
        *_tensors("output", _predictor_outputs(deployment)),
        # The process picks its device itself: Triton only has to start it.
        *_serving(instances, "KIND_CPU", deployment.max_batch),
        *(
            f"parameters {{ key: {_quoted(key)} value {{ string_value: {_quoted(value)} }} }}"
            for key, value in parameters.items()
        ),
    ]
    (place / "config.pbtxt").write_text("\n".join(config) + "\n", encoding="utf-8")
    return place


def write_graphs(
    folder: Path,
    *,
    name: str,
    deployment: Deployment,
    record: EngineRecord,
    files: Mapping[str, Path],
    plans: Mapping[str, bytes] | None = None,
    instances: int = 1,
) -> tuple[Path, ...]:
    """Write one model for each graph of an engine, ``NAME-GRAPH``.

    A graph whose inputs and outputs are all batched is batched by the server; another, such as ``query`` of few-shot
    segmentation with its support tensors, takes what a client sends.

    Args:
        folder: The repository.
        name: What the models' names begin with.
        deployment: The model's graphs and batch limit.
        record: The engine.
        files: Graph name to the engine's main file.
        plans: Graph name to a TensorRT plan to serve instead of the graph; it must have been built on a machine like
            the server's.
        instances: How many run at once on each GPU.

    Returns:
        The models' folders.

    Raises:
        ExportError: The engine is one that Triton has no backend for, or a name is not allowed.
    """
    written = []
    for graph in deployment.graphs:
        source = files[graph.name]
        plan = (plans or {}).get(graph.name)
        if plan is None and (record.backend not in ("onnxruntime", "tensorrt") or source.suffix != ".onnx"):
            raise ExportError(
                f"Triton serves no {source.suffix} file of {record.backend}; choose an engine of onnxruntime or "
                "tensorrt"
            )
        place = _model_folder(folder, f"{name}-{graph.name}")
        if plan is None:
            shutil.copyfile(source, place / "1" / "model.onnx")
        else:
            (place / "1" / "model.plan").write_bytes(plan)
        config = _graph_config(place.name, graph, deployment.max_batch, record, plan=plan is not None, count=instances)
        (place / "config.pbtxt").write_text("\n".join(config) + "\n", encoding="utf-8")
        written.append(place)
    return tuple(written)


def write_repository(
    folder: Path, *, name: str, deployment: Deployment, record: EngineRecord, files: Mapping[str, Path], bundle: str
) -> tuple[Path, ...]:
    """Write both kinds of model, as the target ``datacenter`` does inside a bundle, where ``bundle`` is ``"../.."``.

    The engine is that of the graphs; which one runs behind images is for the server's machine to choose.
    """
    predictor = write_predictor(folder, name=name, bundle=bundle, deployment=deployment)
    return (predictor, *write_graphs(folder, name=name, deployment=deployment, record=record, files=files))


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line; an EdgevisError becomes one line and exit status 1."""
    parser = argparse.ArgumentParser(
        prog="python -m export.triton", description="Write a Triton Inference Server model repository from a bundle."
    )
    parser.add_argument("bundle", metavar="BUNDLE", help="a folder NAME.edgevis")
    parser.add_argument("--output", metavar="DIR", required=True, help="the repository; models are added to it")
    parser.add_argument(
        "--engine", metavar="NAME", help="such as onnxruntime-fp32 (default: the server's machine picks)"
    )
    parser.add_argument("--enrolment", metavar="FILE", help="what `edgevis enroll` wrote, for results instead of nulls")
    parser.add_argument("--instances", type=int, default=1, help="how many run at once (default: 1)")
    parser.add_argument(
        "--graphs", action="store_true", help="also the engine's graphs, tensors in and tensors out; needs --engine"
    )
    parser.add_argument(
        "--plans", action="store_true", help="with --graphs: TensorRT plans of this machine instead of ONNX graphs"
    )
    arguments = parser.parse_args(argv)
    return run_command(lambda: _run(arguments))


def _run(arguments: argparse.Namespace) -> int:
    if arguments.instances < 1:
        raise InputError(f"--instances is {arguments.instances}; allowed: 1 or more")
    if (arguments.graphs and not arguments.engine) or (arguments.plans and not arguments.graphs):
        raise InputError("--graphs needs --engine, and --plans needs --graphs")
    bundle = Bundle(arguments.bundle)
    bundle.verify_files()
    manifest, folder = bundle.manifest, Path(arguments.output)
    record = _record(bundle, arguments.engine) if arguments.engine else None
    name = manifest.name
    _check_name(name)
    written = [
        write_predictor(
            folder,
            name=name,
            bundle=_relative(bundle.path, folder / name),
            deployment=manifest.deployment,
            record=record,
            enrolment=_relative(Path(arguments.enrolment), folder / name) if arguments.enrolment else "",
            instances=arguments.instances,
        )
    ]
    if arguments.graphs and record is not None:
        files = {graph: bundle.engine_file(file) for graph, file in record.files.items()}
        contents = {graph: bundle.engine_files(file) for graph, file in record.files.items()}
        outside = sorted(location for item in contents.values() for location in item.external)
        if outside:
            raise ExportError(f"{record.name} has external data ({', '.join(outside)}), which are not copied to Triton")
        written += write_graphs(
            folder,
            name=name,
            deployment=manifest.deployment,
            record=record,
            files=files,
            plans=_plans(record, contents) if arguments.plans else None,
            instances=arguments.instances,
        )
    for place in written:
        sys.stdout.write(f"{place}\n")
    sys.stdout.write(f"next: tritonserver --model-repository={folder}\n")
    return 0


def _record(bundle: Bundle, name: str) -> EngineRecord:
    known = {record.name: record for record in bundle.manifest.engines}
    if name not in known:
        raise InputError(f"{bundle.path} has no engine {name!r}; it has {', '.join(known)}")
    return known[name]


def _plans(record: EngineRecord, files: Mapping[str, EngineFiles]) -> dict[str, bytes]:
    if record.backend != "tensorrt":
        raise InputError(f"--plans needs an engine of tensorrt, not {record.name}")
    load_backend(record.backend).devices()
    from runtime.backends._tensorrt.backend import plan_bytes

    return {graph: plan_bytes(file, "tensorrt") for graph, file in files.items()}


def _graph_config(
    name: str, graph: Graph, max_batch: int, record: EngineRecord, *, plan: bool, count: int
) -> list[str]:
    batched = all(tensor.batched for tensor in (*graph.inputs, *graph.outputs))
    limit = max_batch if batched else 0
    inputs, outputs = ([_described(tensor, batched) for tensor in part] for part in (graph.inputs, graph.outputs))
    return [
        *_head(name, "tensorrt" if plan else "onnxruntime", limit),
        *_tensors("input", inputs),
        *_tensors("output", outputs),
        *_serving(count, "KIND_CPU" if record.device == "cpu" else "KIND_GPU", limit),
        *([] if plan or record.backend != "tensorrt" else _tensorrt_in_onnxruntime(record)),
        *_warm_up(inputs),
    ]


def _tensorrt_in_onnxruntime(record: EngineRecord) -> list[str]:
    """ONNX Runtime's TensorRT provider: the server builds its engine when it starts, and no plan has to fit its GPU."""
    mode = {"fp16": "FP16", "int8": "INT8"}.get(record.precision, "FP32")
    return [
        'optimization { execution_accelerators { gpu_execution_accelerator: [ { name: "tensorrt"',
        f'  parameters {{ key: "precision_mode" value: "{mode}" }}',
        "} ] } }",
    ]


_Tensor = tuple[str, str, tuple[int, ...]]


def _described(tensor: TensorSpec, batched: bool) -> _Tensor:
    """Name, Triton's type and sizes; the batch axis is left out where the server batches, an open axis is -1."""
    shape = tensor.shape[1:] if batched else tensor.shape
    return tensor.name, _TYPES[tensor.dtype], tuple(-1 if isinstance(size, str) else size for size in shape)


def _predictor_outputs(deployment: Deployment) -> list[_Tensor]:
    outputs: list[_Tensor] = [("result", "TYPE_STRING", (1,))]
    embedding = tasks.load(deployment.task).TRAITS.embedding
    if embedding is not None:
        graph, _, output = embedding.partition("/")
        tensor = next(tensor for tensor in deployment.graph(graph).outputs if tensor.name == output)
        outputs.append(("embedding", "TYPE_FP32", (tensor.shape[1] if isinstance(tensor.shape[1], int) else -1,)))
    else:
        outputs.append(("mask", "TYPE_STRING", (1,)))
    return outputs


def _head(name: str, backend: str, max_batch: int) -> list[str]:
    return [f"name: {_quoted(name)}", f"backend: {_quoted(backend)}", f"max_batch_size: {max_batch}"]


def _tensors(field: str, tensors: Sequence[_Tensor]) -> list[str]:
    return [f"{field} {{ name: {_quoted(name)} data_type: {kind} {_dims(dims)} }}" for name, kind, dims in tensors]


def _dims(dims: Sequence[int]) -> str:
    return f"dims: [ {', '.join(map(str, dims))} ]"


def _serving(count: int, kind: str, max_batch: int) -> list[str]:
    batching = [f"dynamic_batching {{ max_queue_delay_microseconds: {MAX_QUEUE_DELAY_US} }}"] if max_batch > 1 else []
    return [
        *batching,
        f"instance_group {{ count: {count} kind: {kind} }}",
        # A new version is a new folder 2/; the server then goes over to it.
        "version_policy { latest { num_versions: 1 } }",
    ]


def _warm_up(inputs: Sequence[_Tensor]) -> list[str]:
    """A warm-up request for the server's start, so that no client waits for lazy initialisation; an open axis is 1."""
    lines = []
    for name, kind, dims in inputs:
        sizes = _dims([max(size, 1) for size in dims])
        lines.append(f"  inputs {{ key: {_quoted(name)} value {{ data_type: {kind} {sizes} random_data: true }} }}")
    return ['model_warmup { name: "first" batch_size: 1', *lines, "}"]


def _model_folder(folder: Path, name: str) -> Path:
    _check_name(name)
    (folder / name / "1").mkdir(parents=True, exist_ok=True)
    return folder / name


def _check_name(name: str) -> None:
    if not _NAME.fullmatch(name):
        raise ExportError(f"the model name {name!r} is not allowed in a repository: letters, digits, '_', '.' and '-'")


def _relative(path: Path, model: Path) -> str:
    return os.path.relpath(path.resolve(), model.resolve())


def _quoted(text: str) -> str:
    escaped = text.replace("\\", "\\\\").replace('"', '\\"').replace("\n", "\\n")
    return f'"{escaped}"'
