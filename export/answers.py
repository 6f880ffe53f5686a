"""From pixel to answer at the build: compares the predictor on each engine with that on the reference model."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path

import cv2

from export.pictures import Pictures
from export.reference_models import ReferenceModel
from runtime.backends import NO_ARRAYS
from runtime.bundle.manifest import ANSWERS, EngineRecord, Manifest
from runtime.bundle.spec import Graph
from runtime.bundle.staging import unfinished_bundle
from runtime.common.arrays import Array, write_arrays
from runtime.common.json_data import to_json
from runtime.errors import ExportError, ParityError
from runtime.predictor import predictor_of
from runtime.selection.choose import SelectedEngine
from runtime.sessions.open import open_sessions
from runtime.sessions.session import Session
from runtime.verification.answers.compare import AnswersCheck, compared, distances
from runtime.verification.answers.definition import steps_from_definition
from runtime.verification.answers.exercise import answers_of
from runtime.verification.answers.file import Answers, AnswersHeader, arrays_of
from runtime.verification.answers.reference import reference_answers


class ReferenceEngine:
    """One graph of the reference model in float32 on one thread, where a predictor has an engine."""

    def __init__(self, model: ReferenceModel, graph: Graph) -> None:
        self._model, self._graph = model, graph
        self.inputs = tuple(tensor.name for tensor in graph.inputs)
        self.outputs = tuple(tensor.name for tensor in graph.outputs)

    def run(self, feeds: Mapping[str, Array], resident: Mapping[str, Array] = NO_ARRAYS) -> dict[str, Array]:
        every = {**resident, **feeds}
        outputs = self._model.outputs(self._graph, [every[name] for name in self.inputs])
        return dict(zip(self.outputs, outputs, strict=True))

    def close(self) -> None:
        """The model belongs to the caller."""


def write_answers(
    folder: Path,
    manifest: Manifest,
    model: ReferenceModel,
    pictures: Pictures,
    *,
    here: Sequence[EngineRecord],
    advance: Callable[[int, int], None],
) -> Answers:
    """Write ``answers.npz`` into a bundle that is being built.

    Args:
        folder: The bundle's; its engines and whatever its task reads are in it.
        manifest: The bundle's manifest.
        model: The reference model.
        pictures: The pictures to enrol and to predict on.
        here: The engines that this machine can run.
        advance: Called after each engine with the steps done and their total.

    Returns:
        What was written. ``expected`` is empty where the reference model can enrol none of the pictures, as random
        weights may: preprocessing alone is covered then.

    Raises:
        ExportError: The OpenCV of this machine does not resize or convert as preprocessing is defined.
        ParityError: With an engine the predictor's answers are not those that it has with the reference model.
        BackendError: An engine failed.
    """
    bundle = unfinished_bundle(folder, manifest)
    deployment = manifest.deployment
    header = AnswersHeader(pictures.source, to_json(deployment), pictures.shows, pictures.enrolled)
    sessions = {
        graph.name: Session(ReferenceEngine(model, graph), graph, max_batch=deployment.max_batch)
        for graph in deployment.graphs
    }
    answers = reference_answers(bundle, sessions, header, pictures.images, pictures.masks)
    for picture, tensor in zip(answers.pictures, answers.inputs, strict=True):
        if steps := steps_from_definition(picture, tensor, deployment.preprocess):
            raise ExportError(
                f"OpenCV {cv2.__version__} of this machine makes another input of a picture of {picture.shape[:2]} "
                f"than {deployment.preprocess} defines: {steps:.3g} steps of 0..255 beyond its rounding; install "
                "opencv-python-headless from PyPI"
            )
    advance(1, 1 + len(here))
    measured: dict[str, dict[str, float]] = {}
    for number, record in enumerate(here if answers.expected else (), start=2):
        with predictor_of(
            bundle, SelectedEngine(record, open_sessions(bundle, record, threads=None), "", ())
        ) as predictor:
            actual = answers_of(predictor, header, pictures.images, pictures.masks)
        measured[record.name] = distances(answers.expected, actual)
        check = compared(answers.expected, actual, record.precision, measured[record.name])
        if check.beyond:
            raise ParityError(_complaint(record, check), engines=(record.name,))
        advance(number, 1 + len(here))
    answers = replace(answers, header=replace(answers.header, distances=measured))
    write_arrays(folder / ANSWERS, arrays_of(answers))
    return answers


def _complaint(record: EngineRecord, check: AnswersCheck) -> str:
    return (
        f"a predictor with the engine {record.name} does not answer as with the reference model; {check.reason}. The "
        "engine alone holds its tolerance: please report this as a bug, with the model's name"
    )
