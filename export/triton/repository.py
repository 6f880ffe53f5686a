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
import shlex
import shutil
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path, PurePosixPath

from export.triton.config import embedding_output, graph_config, predictor_config
from runtime.backends import load as load_backend
from runtime.backends._tensorrt.spec import BuildSpec, spec_path
from runtime.bundle.bundle import Bundle
from runtime.bundle.engine_files import EngineFiles
from runtime.bundle.manifest import EngineRecord
from runtime.bundle.spec import Deployment
from runtime.common.command import run_command
from runtime.enrolment.file import EnrolmentEncoder, check_encoder, load_enrolment
from runtime.errors import ExportError, InputError
from runtime.open_set.bundled import space_of

FOLDER = "triton"
MAX_PIXELS = 7680 * 4320
"""The default bound on a picture's pixels: 8K video. Four requests at once of the runtime's own bound, which is for
files of one's own, would take gigabytes."""

_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]{0,127}")


def write_predictor(
    folder: Path,
    *,
    name: str,
    bundle: str,
    deployment: Deployment,
    record: EngineRecord | None = None,
    device: str = "auto",
    enrolment: str = "",
    instances: int = 1,
    max_pixels: int = MAX_PIXELS,
) -> Path:
    """Write the model that takes images and returns results.

    Args:
        folder: The repository.
        name: The model's name there.
        bundle: The bundle's path relative to the model's folder, ``"../.."`` for a repository inside its bundle; or an
            absolute one.
        deployment: The bundle's.
        record: The engine to run; None leaves the choice to the server's machine.
        device: Where it runs if ``record`` is None: ``"cuda"``, with an instance for each GPU, or ``"auto"``.
        enrolment: A file that ``Predictor.save`` wrote, given as ``bundle`` is; without one, models that need an
            enrolment return embeddings only.
        instances: How many processes run it, each with an engine of its own; on a server with GPUs, on each of them.
        max_pixels: The bound on a picture's pixels; ``EDGEVIS_MAX_PIXELS`` of the server's environment comes first.

    Returns:
        The model's folder.

    Raises:
        ExportError: The name is not allowed.
    """
    place = _model_folder(folder, name)
    device = record.device if record else device
    shutil.copyfile(Path(__file__).with_name("model.py"), place / "1" / "model.py")
    parameters = {
        "bundle": bundle,
        "enrolment": enrolment,
        "backend": record.backend if record else "auto",
        "device": device,
        "precision": record.precision if record else "",
        "max_pixels": str(max_pixels),
    }
    config = predictor_config(name, deployment, parameters, on_gpus=device == "cuda", count=instances)
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
    engine_cache: str | None = None,
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
        engine_cache: An absolute path on the server, where ONNX Runtime's TensorRT provider keeps the engines that it
            builds. It loads what lies there under an engine's name, whoever wrote it, so only the server's user may
            write there. None: nothing is kept, each start builds the engines.

    Returns:
        The models' folders.

    Raises:
        ExportError: The engine is one that Triton has no backend for, or a name is not allowed.
        InputError: ``engine_cache`` is no absolute path.
    """
    _check_engine_cache(engine_cache)
    written = []
    for graph in deployment.graphs:
        source = files[graph.name]
        plan = (plans or {}).get(graph.name)
        if plan is None and (record.backend not in ("onnxruntime", "tensorrt") or source.suffix != ".onnx"):
            raise ExportError(
                f"Triton serves no {source.suffix} file of {record.backend}; choose an engine of onnxruntime or "
                "tensorrt"
            )
        if plan is None and record.backend == "tensorrt" and record.precision == "int8":
            raise ExportError(
                f"{record.name}: Triton's ONNX Runtime backend knows one precision_mode for TensorRT, and an INT8 "
                "graph computes in float16 between its INT8 layers: choose an fp16 engine, or --plans on a machine "
                "with the GPU"
            )
        place = _model_folder(folder, f"{name}-{graph.name}")
        if plan is None:
            shutil.copyfile(source, place / "1" / "model.onnx")
        else:
            (place / "1" / "model.plan").write_bytes(plan)
        config = graph_config(
            place.name,
            graph,
            deployment.max_batch,
            record,
            spec=_spec_of(source) if record.backend == "tensorrt" else None,
            plan=plan is not None,
            cache=engine_cache,
            count=instances,
        )
        (place / "config.pbtxt").write_text("\n".join(config) + "\n", encoding="utf-8")
        written.append(place)
    return tuple(written)


def write_repository(
    folder: Path, *, name: str, deployment: Deployment, record: EngineRecord, files: Mapping[str, Path], bundle: str
) -> tuple[Path, ...]:
    """Write both kinds of model, as the target ``datacenter`` does inside a bundle, where ``bundle`` is ``"../.."``.

    The engine is that of the graphs; which one runs behind images is for the server's machine to choose.
    """
    predictor = write_predictor(folder, name=name, bundle=bundle, deployment=deployment, device=record.device)
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
    parser.add_argument("--instances", type=int, default=1, help="how many run at once, on each GPU (default: 1)")
    parser.add_argument(
        "--max-pixels",
        type=int,
        default=MAX_PIXELS,
        help="of one picture; larger ones are refused (default: %(default)s)",
    )
    parser.add_argument(
        "--engine-cache",
        metavar="DIR",
        help="with --graphs, an absolute path on the server that only its user may write: what TensorRT builds stays "
        "there (default: each start builds it)",
    )
    parser.add_argument(
        "--graphs", action="store_true", help="also the engine's graphs, tensors in and tensors out; needs --engine"
    )
    parser.add_argument(
        "--plans", action="store_true", help="with --graphs: TensorRT plans of this machine instead of ONNX graphs"
    )
    arguments = parser.parse_args(argv)
    return run_command(lambda: _run(arguments))


def _run(arguments: argparse.Namespace) -> int:
    for option in ("instances", "max_pixels"):
        if (value := getattr(arguments, option)) < 1:
            raise InputError(f"--{option.replace('_', '-')} is {value}; allowed: 1 or more")
    if (arguments.graphs and not arguments.engine) or (arguments.plans and not arguments.graphs):
        raise InputError("--graphs needs --engine, and --plans needs --graphs")
    _check_engine_cache(arguments.engine_cache)
    bundle = Bundle(arguments.bundle)
    bundle.verify_files()
    manifest, folder = bundle.manifest, Path(arguments.output)
    record = _record(bundle, arguments.engine) if arguments.engine else None
    name = manifest.name
    _check_name(name)
    if arguments.enrolment:
        _check_enrolment(bundle, record, arguments.enrolment)
    written = [
        write_predictor(
            folder,
            name=name,
            bundle=_relative(bundle.path, folder / name),
            deployment=manifest.deployment,
            record=record,
            device="cuda" if all(engine.device == "cuda" for engine in manifest.engines) else "auto",
            enrolment=_relative(Path(arguments.enrolment), folder / name) if arguments.enrolment else "",
            instances=arguments.instances,
            max_pixels=arguments.max_pixels,
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
            engine_cache=arguments.engine_cache,
        )
    for place in written:
        sys.stdout.write(f"{place}\n")
    builds = arguments.graphs and not arguments.plans and record is not None and record.backend == "tensorrt"
    if builds and arguments.engine_cache is None:
        sys.stdout.write("each start of the server builds the TensorRT engines; to keep them: --engine-cache DIR\n")
    sys.stdout.write(f"next: tritonserver --model-repository={shlex.quote(str(folder))}\n")
    return 0


def _record(bundle: Bundle, name: str) -> EngineRecord:
    known = {record.name: record for record in bundle.manifest.engines}
    if name not in known:
        raise InputError(f"{bundle.path} has no engine {name!r}; it has {', '.join(known)}")
    return known[name]


def _check_enrolment(bundle: Bundle, record: EngineRecord | None, path: str) -> None:
    """Raise if the server could not load an enrolment: it is missing, damaged, or of another encoder."""
    made_by = load_enrolment(path).encoder
    running = EnrolmentEncoder(
        bundle.manifest.encoder_identity,
        bundle.manifest.model,
        made_by.engine if record is None else record.name,  # the server's machine chooses
        record is None or record.shares_enrolments,
        _space_of(bundle),
    )
    check_encoder(made_by, running, path)


def _check_engine_cache(path: str | None) -> None:
    # A relative one would be anywhere: the server takes it from the folder that it was started in.
    if path is not None and not PurePosixPath(path).is_absolute():
        raise InputError(
            f"--engine-cache is {path!r}; allowed: an absolute path, of a folder on the server that only the server's "
            "user may write"
        )


def _space_of(bundle: Bundle) -> str:
    """The digest of the space that a bundle's enrolments lie in; empty for raw embeddings, and for a task without."""
    embedding = embedding_output(bundle.manifest.deployment)
    dimension = 0 if embedding is None else embedding.shape[1]
    space = space_of(bundle, dimension) if isinstance(dimension, int) and dimension else None
    return "" if space is None else space.digest


def _spec_of(graph: Path) -> BuildSpec | None:
    """The shapes that an engine is built for; None where none are known."""
    path = spec_path(graph)
    return BuildSpec.loads(path.read_bytes()) if path.is_file() else None


def _plans(record: EngineRecord, files: Mapping[str, EngineFiles]) -> dict[str, bytes]:
    if record.backend != "tensorrt":
        raise InputError(f"--plans needs an engine of tensorrt, not {record.name}")
    load_backend(record.backend).devices()
    from runtime.backends._tensorrt.backend import plan_bytes

    return {graph: plan_bytes(file, "tensorrt") for graph, file in files.items()}


def _model_folder(folder: Path, name: str) -> Path:
    _check_name(name)
    (folder / name / "1").mkdir(parents=True, exist_ok=True)
    return folder / name


def _check_name(name: str) -> None:
    if not _NAME.fullmatch(name):
        raise ExportError(f"the model name {name!r} is not allowed in a repository: letters, digits, '_', '.' and '-'")


def _relative(path: Path, model: Path) -> str:
    return os.path.relpath(path.resolve(), model.resolve())
