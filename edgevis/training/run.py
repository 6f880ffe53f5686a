"""One training from its arguments to its report: model, data, epochs, evaluation."""

from __future__ import annotations

import functools
import json
import math
import platform
import warnings
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path
from typing import Any, cast, get_args

import cv2
import torch
from torch import nn

from edgevis import __version__, models
from edgevis.data.leakage import SplitCheck, listed
from edgevis.data.picture_check import require_readable
from edgevis.models.advice import recipe_advice
from edgevis.models.allowed import number, one_of, whole
from edgevis.models.recipe import Recipe
from edgevis.models.recipe_detection import DetectionRecipe
from edgevis.models.recipe_moco import MomentumContrastRecipe, recipes_of
from edgevis.models.recipe_projection import ProjectionRecipe
from edgevis.models.unlabelled_recipe import BlockwiseDistillationRecipe, SimilarityDistillationRecipe
from edgevis.provenance import Provenance
from edgevis.training import tasks
from edgevis.training.blockwise import BlockwiseDistillationTask
from edgevis.training.checkpoint import TrainingSession, TrainingState
from edgevis.training.detection_distillation import DetectionDistillationTask
from edgevis.training.distillation import check_distillable, with_teacher
from edgevis.training.freeze import freeze
from edgevis.training.identity import DATA, list_data, summary_of, write_listing
from edgevis.training.loop import Run, evaluated, fit
from edgevis.training.memory import keep_freed_memory
from edgevis.training.moco import MomentumContrastTask
from edgevis.training.person_views import PersonViewsTask
from edgevis.training.processes import ending_processes, is_first_process
from edgevis.training.progress import ProgressListener
from edgevis.training.projection import projection_start
from edgevis.training.request import Precision, TrainingRequest, command_of
from edgevis.training.resume import (
    BEST,
    FILES,
    REPORT,
    begin,
    growth_note,
    no_room,
    only_training,
)
from edgevis.training.similarity import SimilarityDistillationTask
from edgevis.training.task import Evaluation, SelfTrainingTask, TaskRequest, TrainingTask
from edgevis.training.teacher import Teacher, open_teacher, teacher_file
from edgevis.training.unlabelled import with_unlabelled
from edgevis.training.validation import require_validation
from edgevis.training.warm_start import load_backbone, load_matching
from runtime.bundle.bundle import sha256
from runtime.bundle.spec import Deployment
from runtime.common.files import atomic_write
from runtime.common.json_data import to_json
from runtime.errors import InputError

SAMPLES = "samples.json"

_PSEUDO, _UNLABELLED = "pseudo-labels", "unlabelled"
"""The keys of an identity's digests of pictures beside the data."""

_TAUGHT_ALONE: Mapping[type[Recipe], type[PersonViewsTask[Any]]] = {
    BlockwiseDistillationRecipe: BlockwiseDistillationTask,
    SimilarityDistillationRecipe: SimilarityDistillationTask,
}
"""The tasks of the recipes that learn from a teacher alone."""


_ALLOWED = {
    "seed": whole(0, (1 << 63) - 1),
    "devices": whole(1, 1024),
    "workers": whole(0, 1024),
    "checkpoint_minutes": number(0, 1e6),
    "accelerator": one_of("auto", "cpu", "cuda"),
    "precision": one_of(*get_args(Precision)),
}
"""The allowed values of a request's fields that belong neither to the model nor to the recipe."""


def train(request: TrainingRequest, listener: ProgressListener) -> dict[str, Any] | None:
    """Train, evaluate and write the report, which is returned by the first process and None by the others.

    Raises:
        EdgevisError: The message says what is wrong.
        TrainingError: The training diverged, or the disk is full; the last checkpoint stays whole.
    """
    entry = models.entry(request.model)
    recipe = _recipe(entry, request)
    if isinstance(recipe, ProjectionRecipe):
        weights, options = projection_start(entry, recipe, request.weights)
        request = replace(request, weights=weights, options={**options, **request.options})
    if recipe.BEGINS_TRAINED and request.weights is None:
        request = replace(request, weights=_shipped(entry))
    if isinstance(recipe, MomentumContrastRecipe) and request.devices > 1:  # each process would have its own queue
        raise InputError(f"devices is {request.devices}; allowed with the recipe {request.recipe!r}: 1")
    fabric = _fabric(request)
    with ExitStack() as stack:
        if is_first_process():
            stack.enter_context(only_training(request.output))
            stack.enter_context(ending_processes(fabric))
        fabric.launch()
        try:
            return _train(request, entry, recipe, fabric, listener)
        except OSError as error:
            if (told := no_room(request.output, error)) is not None:
                raise told from error
            raise


def _train(
    request: TrainingRequest, entry: models.ModelEntry, recipe: Recipe, fabric: Any, listener: ProgressListener
) -> dict[str, Any] | None:
    if fabric.device.type == "cpu":
        keep_freed_memory()
    with torch.device("meta"):  # what the options make of the deployment, without the weights
        deployment = models.deployment_of(entry, models.module_from(entry, request.options))
    reading = functools.partial(listener.stage, "reads the data") if fabric.is_global_zero else None
    check = SplitCheck(allow_leakage=request.allow_leakage, split_by=request.split_by, progress=reading)
    task, teacher = _task(request, entry, recipe, deployment, fabric.device, check)
    if request.split_by and "split by" not in task.data:
        raise InputError(
            f"split_by is {request.split_by!r}, but {request.data} is divided by its splits, classes or persons: leave "
            "--split-by out"
        )
    require_validation(recipe, task, data=request.data, kind=deployment.task)
    for name, needed in task.model_options.items():
        if request.options.get(name, needed) != needed:
            raise InputError(f"{name} is {request.options[name]}; allowed: {needed}, as the data have, or leave it out")
    options = {**task.model_options, **request.options}
    taught = None if teacher is None else teacher.identity
    provenance = Provenance(entry.name, options, to_json(recipe), dict(task.data), request.seed, 0, taught)
    # One process hashes the data; the others end when it refuses them.
    state, listing = begin(
        request.output,
        _identity(request, provenance, fabric),
        request.data if fabric.is_global_zero else None,
        recipe=type(recipe),
        resume=request.resume,
    )
    if fabric.is_global_zero and not state.begun:
        require_readable(request.data, functools.partial(listener.stage, "looks at the pictures"))
    torch.manual_seed(request.seed)
    model = models.module_from(entry, options)
    if request.weights is not None:
        note = load_matching(model, request.weights, entry=entry)
        if note and fabric.is_global_zero:
            listener.note(note)
    if request.backbone is not None:
        load_backbone(model, request.backbone)
    frozen = freeze(model, _frozen(model, recipe))
    if fabric.is_global_zero:
        size = f"{models.parameters(model):,} parameters" + (f", {frozen:,} frozen" if frozen else "")
        listener.note(f"{entry.name}, {size}; {_sentence(task.data)}")
        if teacher is not None:
            listener.note(f"teacher: {teacher.identity['model']}, {models.parameters(teacher.model):,} parameters")
        write_listing(request.output / DATA, listing)
        _tell_going_on(listener, recipe, state)
    if state.epochs < recipe.epochs:
        session = TrainingSession(state.epochs + 1, recipe.epochs, _machine(), _versions())
        state = replace(state, sessions=(*state.sessions, session))
    run = Run(model, task, recipe, provenance, request.output, state, request.workers)
    state = fit(replace(run, checkpoint_s=60 * request.checkpoint_minutes), fabric, listener)
    if not fabric.is_global_zero:
        return None
    evaluation = evaluated(model, task.test)
    if evaluation is not None:
        listener.note(
            f"{evaluation.split}: " + ", ".join(f"{name} {figure}" for name, figure in evaluation.figures.items())
        )
    report = _report(request, provenance, state, evaluation)
    _write(request.output, report, evaluation)
    listener.note(f"written: {request.output}")
    return report


def _task(
    request: TrainingRequest,
    entry: models.ModelEntry,
    recipe: Recipe,
    deployment: Deployment,
    device: torch.device,
    check: SplitCheck,
) -> tuple[TrainingTask, Teacher | None]:
    """The training task, and the teacher if there is one, on the device."""
    if isinstance(recipe, MomentumContrastRecipe):
        return _without_labels(request, entry, recipe, deployment), None
    if request.unlabelled is not None and _taught(request):
        raise InputError("--unlabelled and a teacher do not go together: leave one of them out")
    detection = recipe if isinstance(recipe, DetectionRecipe) else None
    taught_alone = next((kind for of, kind in _TAUGHT_ALONE.items() if isinstance(recipe, of)), None)
    checked = taught_alone is None and detection is None
    taught = check_distillable(recipe, deployment.task) if _taught(request) and checked else None
    teacher = None
    if _taught(request):
        teacher = open_teacher(request.teacher, request.teacher_model, student=deployment)
        teacher.model.to(device)
    if taught_alone is not None:
        task: TrainingTask = taught_alone.read(request.data, cast(Any, recipe), deployment, teacher, seed=request.seed)
        return _with_pseudo_labels(task, request, check), teacher
    student_task: TrainingTask = tasks.load(deployment.task).training_task(
        TaskRequest(request.data, recipe, deployment, request.options, request.seed, check)
    )
    student_task = _with_pseudo_labels(student_task, request, check)
    if teacher is not None and detection is not None:
        weight = detection.distill
        return DetectionDistillationTask(student_task, teacher, weight=weight, student=deployment), teacher
    if teacher is None or taught is None:
        if request.unlabelled is None:
            return student_task, None
        task = with_unlabelled(student_task, request.unlabelled, recipe, deployment, seed=request.seed, check=check)
        return task, None
    return with_teacher(student_task, teacher, taught, deployment, seed=request.seed), teacher


def _without_labels(
    request: TrainingRequest, entry: models.ModelEntry, recipe: MomentumContrastRecipe, deployment: Deployment
) -> MomentumContrastTask:
    given = {
        "--teacher": _taught(request),
        "--pseudo-labels": request.pseudo_labels,
        "--unlabelled": request.unlabelled,
    }
    for flag, value in given.items():
        if value:
            raise InputError(f"the recipe {request.recipe!r} learns from pictures alone: leave {flag} out")
    create = functools.partial(models.module_from, entry, request.options)
    return MomentumContrastTask(request.data, recipe, deployment, create=create, seed=request.seed)


def _with_pseudo_labels(task: TrainingTask, request: TrainingRequest, check: SplitCheck) -> TrainingTask:
    if request.pseudo_labels is None:
        return task
    if not isinstance(task, SelfTrainingTask):
        raise InputError(f"{request.model!r} takes no pseudo-labels: leave --pseudo-labels out")
    return task.with_pseudo_labels(request.pseudo_labels, check)


def _frozen(model: nn.Module, recipe: Recipe) -> Sequence[str]:
    """Prefixes of the parameters that the recipe keeps as they are."""
    kinds = (nn.BatchNorm1d, nn.BatchNorm2d)
    norms = [name for name, module in model.named_modules() if isinstance(module, kinds)] if recipe.frozen_norms else []
    return [*recipe.frozen, *norms]


def _taught(request: TrainingRequest) -> bool:
    return request.teacher is not None or request.teacher_model is not None


def _files(request: TrainingRequest) -> dict[str, Path | None]:
    """The input files of a training, by purpose."""
    return {
        "data": request.data,
        "weights": request.weights,
        "backbone": request.backbone,
        "teacher": teacher_file(request.teacher, request.teacher_model) if _taught(request) else None,
    }


def _recipe(entry: models.ModelEntry, request: TrainingRequest) -> Recipe:
    known = recipes_of(entry)
    if not entry.recipes and request.recipe not in known:
        raise InputError(recipe_advice(entry.name, entry.deployment.task))
    if request.recipe not in known:
        raise InputError(f"{entry.name!r} has no recipe {request.recipe!r}; allowed: {', '.join(known)}")
    return known[request.recipe].with_values(request.values)


def _shipped(entry: models.ModelEntry) -> Path:
    """The weights that ship with a model."""
    weights = models.shipped_weights(entry)
    if weights is None:
        raise InputError(f"no weights of {entry.name!r} ship, and this recipe goes on from trained ones; add --weights")
    return weights


def _fabric(request: TrainingRequest) -> Any:
    from lightning_fabric import Fabric  # takes seconds; argument errors are raised before

    for name, rule in _ALLOWED.items():
        if (refusal := rule.refusal(name, getattr(request, name))) is not None:
            raise InputError(refusal)
    if request.accelerator == "cuda" and request.devices > torch.cuda.device_count():
        raise InputError(
            f"accelerator is cuda with {request.devices} devices; this machine has {torch.cuda.device_count()}; "
            "allowed: no more than those, or accelerator cpu"
        )
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of what it would rather have installed
        return Fabric(accelerator=request.accelerator, devices=request.devices, precision=request.precision)


def _identity(request: TrainingRequest, provenance: Provenance, fabric: Any) -> dict[str, Any]:
    """The values that a checkpoint of this training must match, besides the contents of its data."""
    files = (("weights", request.weights), ("backbone", request.backbone))
    pictures = {_PSEUDO: request.pseudo_labels, _UNLABELLED: request.unlabelled} if fabric.is_global_zero else {}
    identity: dict[str, Any] = {
        "model": provenance.model,
        "options": dict(provenance.options),
        "recipe": {"name": request.recipe, **provenance.recipe},
        "data": dict(provenance.data),
        "seed": provenance.seed,
        "teacher": provenance.teacher,
        "precision": request.precision,
        "devices": fabric.world_size,
        **{
            name: summary_of(list_data(path, output=request.output))
            for name, path in pictures.items()
            if path is not None
        },
        **{name: None if path is None else _digest(path) for name, path in files},
    }
    return {name: to_json(value) for name, value in identity.items()}  # as a checkpoint gives it back


def _digest(path: Path) -> str:
    models.check_size(path)
    return sha256(path)


def _tell_going_on(listener: ProgressListener, recipe: Recipe, state: TrainingState) -> None:
    if state.begun:
        listener.note(f"goes on after {state.place} of {recipe.epochs} epochs")
        was = state.sessions[-1].epochs if state.sessions else recipe.epochs
        if recipe.epochs > was:
            listener.note(growth_note(recipe, was, state.epochs))


def _machine() -> str:
    if torch.cuda.is_available():
        return torch.cuda.get_device_name()
    return f"{platform.machine()}, {torch.get_num_threads()} threads"


def _versions() -> dict[str, str]:
    return {"edgevis": __version__, "torch": torch.__version__}


def _number(value: float | None) -> float | None:
    """The figure, or None for NaN, which JSON does not have."""
    return value if value is not None and math.isfinite(value) else None


def _report(
    request: TrainingRequest, provenance: Provenance, state: TrainingState, evaluation: Evaluation | None
) -> dict[str, Any]:
    contents = state.identity[FILES]  # of a folder there is no other hash
    return {
        "model": provenance.model,
        "options": dict(provenance.options),
        "recipe": {"name": request.recipe, **provenance.recipe},
        "data": dict(provenance.data),
        "command": command_of(request),
        "teacher": None if provenance.teacher is None else dict(provenance.teacher),
        "files": {
            name: {"name": path.name, "sha256": sha256(path) if path.is_file() else contents["sha256"]}
            for name, path in _files(request).items()
            if path is not None
        },
        "data_files": contents,
        **{name: state.identity[name] for name in (_PSEUDO, _UNLABELLED) if name in state.identity},
        "weights": {"name": BEST, "sha256": sha256(request.output / BEST)},
        "precision": request.precision,
        "seed": provenance.seed,
        "epochs": len(state.history),
        "seconds": state.seconds,
        "sessions": to_json(state.sessions),
        "machine": _machine(),
        "versions": _versions(),
        "evaluation": None
        if evaluation is None
        else {
            "split": evaluation.split,
            "figures": {
                name: {"value": _number(figure.value), "half_width95": _number(figure.half_width95)}
                for name, figure in evaluation.figures.items()
            },
        },
    }


def _write(folder: Path, report: Mapping[str, Any], evaluation: Evaluation | None) -> None:
    for name, picture in ({} if evaluation is None else evaluation.pictures).items():
        encoded, data = cv2.imencode(".png", picture)
        if encoded:
            with atomic_write(folder / f"{name}.png") as file:
                file.write(data.tobytes())
    if evaluation is not None:
        samples = {
            name: [_number(value) for value in figure.samples]
            for name, figure in evaluation.figures.items()
            if figure.samples
        }
        _write_json(folder / SAMPLES, samples)
    _write_json(folder / REPORT, report)


def _write_json(path: Path, data: Mapping[str, Any]) -> None:
    with atomic_write(path) as file:
        file.write((json.dumps(data, indent=2, allow_nan=False) + "\n").encode())


def _sentence(data: Mapping[str, object]) -> str:
    shown = {name: listed(value) if isinstance(value, list) else value for name, value in data.items()}
    return ", ".join(f"{name} {value}" for name, value in shown.items())
