"""A whole build, stage by stage: from a model's declaration and its weights to a bundle whose engines are proved."""

from __future__ import annotations

import platform
import shutil
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from datetime import datetime, timezone
from importlib import metadata
from pathlib import Path

import cv2
import onnx
import torch
from onnx import ModelProto
from torch import nn

from calibration.data.activation_spread import unlike_text
from calibration.data.samples import SampleSet, samples_from, samples_from_photographs, split
from calibration.quantize.config import QuantizationConfig, calibration_digest
from calibration.quantize.lint import lint_quantized
from calibration.search.sensitivity import LayerSensitivity
from edgevis import __version__, models
from edgevis.open_set.sidecar import sidecar_of, weights_digest
from edgevis.provenance import read_provenance
from export import compilers, int8, targets
from export.agreement import Agreement, write_recorded
from export.answers import write_answers
from export.autocast import fp16_from_fp32
from export.compilers import graph_path
from export.engine_selection import candidates_of, no_int8_text, unopenable
from export.measurable import unmeasurable_text, without_int8
from export.onnx import onnx_from_module
from export.pictures import drawn_pictures, given_pictures
from export.profiles import Profiles, profiles_of, with_profile_max_batch
from export.reference import calibration_feeds, golden_of, golden_rows, limit_samples, needs_masks, reference_of
from export.report import UNTRAINED
from export.request import BuildProgress, BuildRequest
from export.targets import Target
from export.triton import FOLDER as TRITON
from export.triton import write_repository
from export.verify import check_parity, embedding_output
from runtime.backends._tensorrt.spec import BuildSpec
from runtime.bundle.build_report import search_text
from runtime.bundle.bundle import GOLDEN, Bundle, write_bundle
from runtime.bundle.identity import encoder_identity
from runtime.bundle.manifest import ANSWERS, Calibration, EngineRecord, Manifest, Weights
from runtime.bundle.spec import Deployment, Precision
from runtime.common.arrays import Array, write_arrays
from runtime.common.files import scratch_folder
from runtime.common.json_data import to_json
from runtime.common.machine import machine_name
from runtime.errors import ExportError, WeightsError
from runtime.open_set.space import FILE as OPEN_SET

_CALIBRATION_BATCH = 4
# The peak of an activation differs little between images, and float16's range has a margin of 4 above it.
_AUTOCAST_IMAGES = 8
_TOOLS = ("torch", "onnx", "onnxscript", "onnxruntime", "openvino", "numpy", "tensorrt-rtx-cu13-libs")


def build_bundle(request: BuildRequest, progress: BuildProgress) -> Bundle:
    """Build, prove and write a bundle. If anything fails, nothing is written and a bundle that was there stays.

    Raises:
        EdgevisError: The build failed; the message says at what and how to mend it.
    """
    request = _with_trained_options(request)
    target = targets.load(request.target)
    precisions = _checked_precisions(request, target)
    if request.shapes and not target.profiled:
        raise ExportError(
            f"the target {request.target!r} has engines for any shape; leave --min-shapes, --opt-shapes and "
            "--max-shapes out"
        )
    target.check(request.settings)
    for precision in precisions:
        for name in target.compilers[precision]:
            compilers.load(name).check()  # a missing package is better found now than after minutes of work

    def fill(folder: Path) -> Manifest:
        return _build(request, target, precisions, folder, progress)

    return write_bundle(request.output, fill)


def measure_layers(request: BuildRequest, progress: BuildProgress) -> tuple[LayerSensitivity, ...]:
    """What each layer of a model alone does in INT8, without building a bundle; ``request.output`` does not matter.

    Raises:
        EdgevisError: It cannot be measured; the message says why.
    """
    request = _with_trained_options(request)
    target = targets.load(request.target)
    module, weights = _load(request)
    deployment = models.deployment_of(request.entry, module)
    to_calibrate, to_verify = _samples(request, module, deployment)
    floats = {graph.name: onnx_from_module(module, graph) for graph in deployment.graphs}
    progress.begin("reference")
    reference = reference_of(module, deployment, to_verify, progress.advance)
    progress.end(f"PyTorch in float32 on {len(to_verify)} images")
    return _calibrate(
        request,
        _quantization_config(request, target),
        floats,
        module,
        deployment,
        weights.sha256,
        to_calibrate,
        reference,
        progress,
    )[1]


def _checked_precisions(request: BuildRequest, target: Target) -> tuple[Precision, ...]:
    # A model that leaves a precision out does so for what INT8 costs it; float16 costs nothing.
    own = {*(request.entry.precisions or target.default_precisions), "fp16"}
    usual = tuple(precision for precision in target.default_precisions if precision in own)
    wanted = request.precisions or (tuple(target.compilers) if request.choose else usual)
    for precision in wanted:
        if precision not in target.compilers:
            raise ExportError(
                f"the target {request.target!r} has no precision {precision!r}; it has {', '.join(target.compilers)}"
            )
    return tuple(dict.fromkeys(wanted))


def _build(
    request: BuildRequest, target: Target, precisions: Sequence[Precision], folder: Path, progress: BuildProgress
) -> Manifest:
    progress.begin("weights")
    module, weights = _load(request)
    deployment = models.deployment_of(request.entry, module)
    profiles: Mapping[str, Profiles] = {}
    if target.profiled:
        profiles = profiles_of(deployment, request.shapes, usual_batch=target.usual_batch)
        deployment = with_profile_max_batch(deployment, profiles)
    count = models.parameters(module)
    progress.end(f"{weights.source}; {count:,} parameters")
    if not weights.trained:
        progress.warn(UNTRAINED)

    progress.begin("samples")
    to_calibrate, to_verify = _samples(request, module, deployment)
    progress.end(f"{len(to_calibrate)} to calibrate, {len(to_verify)} to verify: {to_verify.source}")

    floats = _export(module, deployment, folder, progress)

    progress.begin("reference")
    reference = reference_of(module, deployment, to_verify, progress.advance)
    golden = _golden(request, module, deployment)
    write_arrays(folder / GOLDEN, golden_of(golden or reference, deployment))
    progress.end(
        f"PyTorch in float32 on {len(to_verify)} images; {golden_rows(deployment)} "
        f"{'of them' if golden is None else 'photographs, none of them yours,'} kept as {GOLDEN}",
        size_bytes=(folder / GOLDEN).stat().st_size,
    )

    int8_graphs = int8.NOT_SEARCHED
    calibration = None
    unmeasurable = unmeasurable_text(deployment, reference) if "int8" in precisions else ""
    if unmeasurable and weights.trained:  # of random weights nothing is claimed
        precisions = without_int8(precisions, unmeasurable, max_drop=request.max_drop, warn=progress.warn)
    if "int8" in precisions:
        if weights.trained and (unlike := unlike_text(module, deployment, to_calibrate)):
            progress.warn(unlike)
        int8_graphs, calibration = _quantize(
            request, target, floats, module, deployment, weights.sha256, to_calibrate, reference, progress
        )

    # What each engine is made of; those that are made of the same share the very object.
    graphs: dict[tuple[str, Precision], Mapping[str, ModelProto]] = {
        (name, precision): int8_graphs.graphs[name] if precision == "int8" else floats
        for precision in precisions
        for name in target.compilers[precision]
    }
    agreement = Agreement(dict(graphs), int8_graphs.outputs, target.autocast, deployment, reference, golden)
    if set(precisions) & set(target.autocast):
        _autocast(graphs, target, module, deployment, to_calibrate, progress)

    specs = {
        precision: {graph: target.spec(shapes, precision, request.settings) for graph, shapes in profiles.items()}
        for precision in (precisions if profiles else ())
    }
    records = _compile(graphs, target, specs, folder, progress)

    progress.begin("parity")
    here = [record for record in records if target.runs_here(record.backend)]
    unopened = unopenable(here, deployment, folder) if request.choose else {}
    # What was not asked for by name may be left out; FP32 is what everything else falls back to.
    named = bool(request.precisions) and not request.choose
    optional = frozenset[Precision]() if named else frozenset(precisions) - {"fp32"}
    with scratch_folder("edgevis-graphs-") as work:
        cpu_proxies = _cpu_proxies(records, graphs, target, folder, work)
        proved = check_parity(
            [record for record in records if record.name not in unopened],
            bundle=folder,
            deployment=deployment,
            reference=reference,
            optional=optional,
            advance=progress.advance,
            cpu_proxies=cpu_proxies,
            agreement=agreement,
        )
    engines = proved.engines
    progress.end(_proved_text(engines, len(to_verify)))
    for complaint in proved.refused:
        progress.warn(f"{complaint}. It is not in the bundle")
    candidates = candidates_of(
        records,
        engines,
        unopened=unopened,
        max_drop=request.max_drop,
        choose=request.choose,
        left_out=[f"{name}-int8" for name in target.compilers["int8"]] if unmeasurable and not calibration else (),
    )
    kept = {candidate.engine for candidate in candidates if candidate.in_bundle}
    engines = tuple(engine for engine in engines if engine.name in kept)
    _remove_files_of_none(records, engines, folder)
    write_recorded(engines, proved.recorded, folder)

    if target.triton:
        _write_triton(engines, deployment, request.output.stem, folder, progress)

    manifest = Manifest(
        name=request.output.stem,
        model=request.entry.name,
        target=request.target,
        deployment=_with_open_set(deployment, weights, request.checkpoint, folder, progress),
        encoder_identity=encoder_identity(request.entry.name, deployment, weights.sha256),
        weights=weights,
        parameters=count,
        engines=engines,
        files={},
        calibration=calibration,
        candidates=candidates,
        options=dict(request.options),
        tools=_tools(),
        machine=machine_name(),
        created=datetime.now(timezone.utc).isoformat(timespec="seconds"),
    )
    _answer(request, target, manifest, module, folder, progress)
    return manifest


def _load(request: BuildRequest) -> tuple[nn.Module, Weights]:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(request.seed)
        module = models.module_from(request.entry, request.options)
    shipped = models.shipped_weights(request.entry, request.options)
    if request.checkpoint is not None:
        models.load_weights(module, request.checkpoint)
        source = request.checkpoint.name
    elif shipped is not None:
        models.load_weights(module, shipped)
        source = f"shipped with edgevis {__version__}: {shipped.name}"
    else:
        source = f"random, seed {request.seed}"
    trained = request.checkpoint is not None or shipped is not None
    return module, Weights(trained=trained, source=source, sha256=weights_digest(module))


def _with_trained_options(request: BuildRequest) -> BuildRequest:
    """With the options that the weights were trained with, where they say so: nobody need repeat them."""
    path = request.checkpoint or models.shipped_weights(request.entry, request.options)
    provenance = None if path is None else read_provenance(path)
    if provenance is None:
        return request
    if provenance.model != request.entry.name:
        raise WeightsError(
            f"{path} holds weights of {provenance.model!r}, not of {request.entry.name!r}: --model {provenance.model}"
        )
    return replace(request, options={**provenance.options, **request.options})


def _samples(request: BuildRequest, module: nn.Module, deployment: Deployment) -> tuple[SampleSet, SampleSet]:
    """The images to calibrate on, and those to verify on."""
    if request.calibration_data is not None:
        samples = samples_from(request.calibration_data)
    else:
        samples = samples_from_photographs(height=deployment.preprocess.height, width=deployment.preprocess.width)
    to_calibrate, to_verify = (limit_samples(part, module, deployment) for part in split(samples))
    if needs_masks(deployment):
        return to_calibrate.with_masks(), to_verify.with_masks()
    return to_calibrate, to_verify


def _golden(request: BuildRequest, module: nn.Module, deployment: Deployment) -> dict[str, Array] | None:
    """What goes into the bundle of a build on the user's images, which do not; None where they are not the user's."""
    if request.calibration_data is None:
        return None
    size = deployment.preprocess
    samples = samples_from_photographs(height=size.height, width=size.width, count=golden_rows(deployment))
    if needs_masks(deployment):
        samples = samples.with_masks()
    return reference_of(module, deployment, samples, lambda done, total: None)


def _quantization_config(request: BuildRequest, target: Target) -> QuantizationConfig:
    return replace(target.quantization, method=request.calibration or target.quantization.method)


def _export(module: nn.Module, deployment: Deployment, folder: Path, progress: BuildProgress) -> dict[str, ModelProto]:
    progress.begin("onnx")
    made, size = {}, 0
    for number, graph in enumerate(deployment.graphs, start=1):
        made[graph.name] = onnx_from_module(module, graph)
        path = graph_path(folder, graph.name)
        path.parent.mkdir(exist_ok=True)
        onnx.save(made[graph.name], path)
        size += path.stat().st_size
        progress.advance(number, len(deployment.graphs))
    nodes = sum(len(model.graph.node) for model in made.values())
    progress.end(f"{', '.join(made)}: {nodes} nodes, batch free", size_bytes=size)
    return made


def _calibrate(
    request: BuildRequest,
    config: QuantizationConfig,
    floats: Mapping[str, ModelProto],
    module: nn.Module,
    deployment: Deployment,
    weights_sha256: str,
    samples: SampleSet,
    reference: Mapping[str, Array],
    progress: BuildProgress,
) -> tuple[int8.Calibrated, tuple[LayerSensitivity, ...]]:
    """The ranges of every graph, and what each layer alone does in INT8."""
    progress.begin("calibrate")
    total = len(samples) * len(floats)
    done = 0

    def feeds(name: str) -> Iterator[dict[str, Array]]:
        nonlocal done
        graph = deployment.graph(name)
        for feed in calibration_feeds(module, deployment, graph, samples, batch=_CALIBRATION_BATCH):
            yield feed
            done += len(feed["image"])
            progress.advance(done, total)

    key = int8.cache_key(
        request.entry.name, weights=weights_sha256, samples=samples, deployment=deployment, config=config
    )
    calibrated = int8.calibrate(floats, feeds, config=config, key=key, folder=request.cache)
    notes = ", ".join(sorted(set(calibrated.notes.values())))
    progress.end(f"{len(samples)} images ({notes}): {config}")

    progress.begin("layers")
    sensitivity = int8.layer_sensitivities(calibrated, deployment, reference, config, progress.advance)
    excluded_by_rule = sum(len(prepared.excluded_by_rule) for prepared in calibrated.prepared.values())
    progress.end(f"{len(sensitivity)} layers, each alone in INT8; {excluded_by_rule} more are float by rule")
    return calibrated, sensitivity


def _quantize(
    request: BuildRequest,
    target: Target,
    floats: Mapping[str, ModelProto],
    module: nn.Module,
    deployment: Deployment,
    weights_sha256: str,
    samples: SampleSet,
    reference: Mapping[str, Array],
    progress: BuildProgress,
) -> tuple[int8.Searched, Calibration]:
    """For each backend its INT8 graphs, and how they were made."""
    config = _quantization_config(request, target)
    calibrated, sensitivity = _calibrate(
        request, config, floats, module, deployment, weights_sha256, samples, reference, progress
    )
    progress.begin("search")
    searched = int8.search_int8(
        calibrated,
        sensitivity,
        names=target.compilers["int8"],
        device=target.device,
        deployment=deployment,
        reference=reference,
        config=config,
        max_drop=request.max_drop,
        advance=progress.advance,
    )
    progress.end("; ".join(search_text(search) for search in searched.searches))
    for search in searched.searches:
        if not search.holds:
            progress.warn(no_int8_text(search))
    calibration = Calibration(
        digest=calibration_digest(
            samples, preprocess=deployment.preprocess, weights_sha256=weights_sha256, config=config
        ),
        images=len(samples),
        source=samples.source,
        algorithm=str(config),
        excluded_by_rule=sum(len(prepared.excluded_by_rule) for prepared in calibrated.prepared.values()),
        searches=searched.searches,
    )
    return searched, calibration


def _autocast(
    graphs: dict[tuple[str, Precision], Mapping[str, ModelProto]],
    target: Target,
    module: nn.Module,
    deployment: Deployment,
    samples: SampleSet,
    progress: BuildProgress,
) -> None:
    """Replace the graphs of those precisions that the target wants in float16 where they are not int8."""
    progress.begin("autocast")
    few = samples.subset(range(min(len(samples), _AUTOCAST_IMAGES)))
    chosen = [key for key in graphs if key[1] in target.autocast]
    sources = {(id(graphs[key]), key[1]): graphs[key] for key in chosen}
    fp16_graphs: dict[tuple[int, Precision], Mapping[str, ModelProto]] = {}
    for (identity, precision), source in sources.items():
        made = {}
        for graph in deployment.graphs:
            feeds = calibration_feeds(module, deployment, graph, few, batch=_CALIBRATION_BATCH)
            made[graph.name] = fp16_from_fp32(source[graph.name], feeds)
            if precision == "int8":
                lint_quantized(made[graph.name])
            progress.advance(
                len(fp16_graphs) * len(deployment.graphs) + len(made), len(sources) * len(deployment.graphs)
            )
        fp16_graphs[identity, precision] = made
    for key in chosen:
        graphs[key] = fp16_graphs[id(graphs[key]), key[1]]
    cast = ", ".join(dict.fromkeys(precision for _, precision in chosen))
    progress.end(f"float16 where {len(few)} images show that it is safe: {cast}")


def _compile(
    graphs: Mapping[tuple[str, Precision], Mapping[str, ModelProto]],
    target: Target,
    specs: Mapping[Precision, Mapping[str, BuildSpec]],
    folder: Path,
    progress: BuildProgress,
) -> list[EngineRecord]:
    progress.begin("compile")
    records = []
    for number, (name, precision) in enumerate(graphs, start=1):
        files = {}
        for graph, model in graphs[name, precision].items():
            path = compilers.load(name).engine_from_onnx(
                model,
                graph=graph,
                precision=precision,
                bundle=folder,
                spec=specs[precision][graph] if specs else None,
            )
            files[graph] = path.relative_to(folder).as_posix()
        records.append(EngineRecord(name, precision, target.device, files))
        progress.advance(number, len(graphs))
    size = sum(path.stat().st_size for path in (folder / compilers.ENGINES).rglob("*") if path.is_file())
    progress.end(", ".join(record.name for record in records), size_bytes=size)
    return records


def _cpu_proxies(
    records: Sequence[EngineRecord],
    graphs: Mapping[tuple[str, Precision], Mapping[str, ModelProto]],
    target: Target,
    folder: Path,
    work: Path,
) -> dict[str, dict[str, Path]]:
    """For the engines that cannot run here: the ONNX files that they are made of, written where they are in none."""
    cpu_proxies: dict[str, dict[str, Path]] = {}
    for record in records:
        if target.runs_here(record.backend):
            continue
        files = cpu_proxies[record.name] = {}
        for graph, model in graphs[record.backend, record.precision].items():
            path = folder / record.files[graph]
            if path.suffix != ".onnx":
                path = work / f"{record.name}-{graph}.onnx"
                onnx.save(model, path)
            files[graph] = path
    return cpu_proxies


def _proved_text(engines: Sequence[EngineRecord], images: int) -> str:
    proved = sum(engine.parity is not None for engine in engines)
    waiting = len(engines) - proved
    parts = [f"{proved} engines on {images} images hold their tolerance"] if proved or not waiting else []
    if waiting:
        parts.append(f"the graphs of {waiting} engines hold it on {images} images; the engines are not yet proved")
    return "; ".join(parts)


def _remove_files_of_none(made: Sequence[EngineRecord], kept: Sequence[EngineRecord], folder: Path) -> None:
    """Delete the folders of those engines that are not in the bundle."""
    used = {Path(file).parent for record in kept for file in record.files.values()}
    for record in made:
        for parent in {Path(file).parent for file in record.files.values()} - used:
            if parent.parts[0] == compilers.ENGINES:
                shutil.rmtree(folder / parent, ignore_errors=True)


def _write_triton(
    engines: Sequence[EngineRecord], deployment: Deployment, name: str, folder: Path, progress: BuildProgress
) -> None:
    """A model repository inside the bundle, with the engine that a predictor would take."""
    progress.begin("triton")
    record = next((engine for engine in engines if engine.precision == "fp32" or engine.shares_enrolments), engines[0])
    files = {graph: folder / file for graph, file in record.files.items()}
    repository = folder / TRITON
    made = write_repository(repository, name=name, deployment=deployment, record=record, files=files, bundle="../..")
    size = sum(path.stat().st_size for path in repository.rglob("*") if path.is_file())
    progress.end(f"models {', '.join(path.name for path in made)} on {record.name}", size_bytes=size)


def _with_open_set(
    deployment: Deployment, weights: Weights, checkpoint: Path | None, folder: Path, progress: BuildProgress
) -> Deployment:
    """The deployment with what was measured of the weights for open-set identification; its arrays go to ``folder``."""
    found = None if embedding_output(deployment) is None else sidecar_of(weights.sha256, checkpoint)
    if found is None:
        return deployment
    progress.begin("open set")
    write_arrays(folder / OPEN_SET, found.arrays)
    statistics = found.header.statistics
    progress.end(f"measured on {statistics.source}", size_bytes=(folder / OPEN_SET).stat().st_size)
    return replace(deployment, postprocess={**deployment.postprocess, "open_set": to_json(statistics)})


def _answer(
    request: BuildRequest, target: Target, manifest: Manifest, module: nn.Module, folder: Path, progress: BuildProgress
) -> None:
    """Pictures and what the model makes of them, from pixel to answer, go to ``folder``."""
    progress.begin("answers")
    deployment = manifest.deployment
    embeds = embedding_output(deployment) is not None
    if request.golden_pictures is not None:
        pictures = given_pictures(request.golden_pictures, deployment.preprocess)
    else:
        pictures = drawn_pictures(deployment.preprocess, few=not embeds)
    if not embeds and not needs_masks(deployment):
        pictures = pictures.all_queries()
    here = [record for record in manifest.engines if target.runs_here(record.backend)]
    answers = write_answers(folder, manifest, module, pictures, here=here, advance=progress.advance)
    ran = f", {len(here)} engines answer as PyTorch does" if here and answers.expected else ""
    progress.end(
        f"{len(pictures.images)} pictures from pixel to answer{ran}: {pictures.source}",
        size_bytes=(folder / ANSWERS).stat().st_size,
    )
    if not answers.expected and request.golden_pictures is not None:
        raise ExportError(
            f"--golden-pictures: the model can enrol none of the pictures of one label in {request.golden_pictures}; "
            "give others, sharp and well lit, or leave the option out for drawn ones"
        )
    if not answers.expected:
        progress.warn(
            "the PyTorch model makes nothing of the pictures that can be enrolled: `edgevis verify` will prove "
            "preprocessing on them, but no answers"
        )


def _tools() -> dict[str, str]:
    """Versions of what the build used, as far as it is installed."""
    versions = {"edgevis": __version__, "python": platform.python_version(), "opencv": cv2.__version__}
    for name in _TOOLS:
        try:
            versions[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            continue
    return dict(sorted(versions.items()))
