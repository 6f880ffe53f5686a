"""The stages of a build in order: each module is one, and its ``run`` reads and extends the build's state."""

from __future__ import annotations

import shlex
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Protocol

from calibration.search.sensitivity import LayerSensitivity
from edgevis import models
from edgevis.provenance import read_provenance
from export import compilers, targets
from export.failed import keep_failed
from export.request import BuildProgress, BuildRequest, OnnxSource
from export.stages import (
    answers,
    calibrate,
    cast_fp16,
    check_measurable,
    check_parity,
    describe,
    load,
    measure_sensitivity,
    open_set,
    reference,
    samples,
    search_int8,
    to_onnx,
    triton,
)
from export.stages import compile as compile_engines
from export.state import BuildState
from export.targets import Target
from runtime.bundle.bundle import Bundle
from runtime.bundle.spec import Precision
from runtime.bundle.staging import staged_bundle, write_manifest
from runtime.common.files import scratch_folder
from runtime.errors import ExportError, ParityError, WeightsError


class Stage(Protocol):
    """The members of a module in this package."""

    def run(self, state: BuildState, progress: BuildProgress) -> None:
        """Do one step of a build: read ``state``, write files into ``state.folder``, set attributes of ``state``."""
        ...


STAGES: Sequence[Stage] = (
    load,
    samples,
    to_onnx,
    reference,
    check_measurable,
    calibrate,
    search_int8,
    cast_fp16,
    compile_engines,
    check_parity,
    triton,
    open_set,
    describe,
    answers,
)

_UP_TO_SENSITIVITY: Sequence[Stage] = (load, samples, to_onnx, reference, calibrate, measure_sensitivity)


def build_bundle(request: BuildRequest, progress: BuildProgress) -> Bundle:
    """Build, measure and write a bundle. If anything fails, none is written and an earlier bundle stays.

    The files of a build with an engine that does not compute what the model does are kept, see :mod:`export.failed`.

    Raises:
        EdgevisError: The build failed; the message says at what and how to mend it.
    """
    request = with_trained_options(request)
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
    with staged_bundle(request.output) as folder:
        state = BuildState(request, target, precisions, folder)
        try:
            for stage in STAGES:
                stage.run(state, progress)
        except ParityError as error:
            raise _kept(state, error, progress) from error
        write_manifest(folder, state.manifest)
    return Bundle(request.output)


def _kept(state: BuildState, error: ParityError, progress: BuildProgress) -> ParityError:
    """The error with the command that finds the layer at fault in the files, which are kept."""
    if not error.engines:
        return error
    state.engines = state.records
    describe.run(state, progress)
    sources = {  # the others are compiled from the portable graphs
        f"{backend}-{precision}": graphs
        for (backend, precision), graphs in state.graphs.items()
        if precision in ("int8", "fp16")
    }
    folder = keep_failed(state.folder, state.request.output, state.manifest, sources)
    if folder is None:
        return error
    command = f"python -m export.debug {shlex.quote(str(folder))} --engine {error.engines[0]}"
    return ParityError(f"{error}\nWhere that begins: {command}", engines=error.engines)


def measure_layers(request: BuildRequest, progress: BuildProgress) -> tuple[LayerSensitivity, ...]:
    """The INT8 sensitivity of each layer of a model, without building a bundle; ``request.output`` is ignored.

    Raises:
        EdgevisError: It cannot be measured; the message says why.
    """
    request = with_trained_options(request)
    with scratch_folder("edgevis-sensitivity-") as folder:
        state = BuildState(request, targets.load(request.target), ("int8",), Path(folder))
        for stage in _UP_TO_SENSITIVITY:
            stage.run(state, progress)
    return state.sensitivity or ()


def with_trained_options(request: BuildRequest) -> BuildRequest:
    """The request with the options that the weights were trained with, if their provenance has them."""
    if isinstance(request.entry, OnnxSource):
        return request
    path = request.checkpoint or models.shipped_weights(request.entry, request.options)
    provenance = None if path is None else read_provenance(path)
    if provenance is None:
        return request
    if provenance.model != request.entry.name:
        raise WeightsError(
            f"{path} holds weights of {provenance.model!r}, not of {request.entry.name!r}: --model {provenance.model}"
        )
    return replace(request, options={**provenance.options, **request.options})


def _checked_precisions(request: BuildRequest, target: Target) -> tuple[Precision, ...]:
    # A model that leaves a precision out does so for what INT8 costs it; float16 costs nothing.
    offered = {*(request.entry.precisions or target.default_precisions), "fp16"}
    usual = tuple(precision for precision in target.default_precisions if precision in offered)
    precisions = request.precisions or (tuple(target.compilers) if request.choose else usual)
    for precision in precisions:
        if precision not in target.compilers:
            raise ExportError(
                f"the target {request.target!r} has no precision {precision!r}; it has {', '.join(target.compilers)}"
            )
    return tuple(dict.fromkeys(precisions))
