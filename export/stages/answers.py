"""Compare answers from pixel to result on pictures that go into the bundle, ``answers.npz``."""

from __future__ import annotations

from export.answers import write_answers
from export.pictures import drawn_pictures, given_pictures, with_photographs
from export.request import BuildProgress
from export.state import BuildState
from runtime import tasks
from runtime.bundle.manifest import ANSWERS
from runtime.errors import ExportError
from runtime.results import Detections


def run(state: BuildState, progress: BuildProgress) -> None:
    """Write the pictures and the reference model's answers.

    Raises:
        ExportError: OpenCV does not preprocess as defined, or none of the given pictures can be enrolled.
        ParityError: An FP32 engine answers otherwise than the model.
    """
    progress.begin("answers")
    request, deployment = state.request, state.deployment
    traits = tasks.load(deployment.task).TRAITS
    if request.golden_pictures is not None:
        pictures = given_pictures(request.golden_pictures, deployment.preprocess)
    else:
        pictures = drawn_pictures(deployment.preprocess, few=traits.embedding is None)
        if issubclass(traits.result, Detections):
            pictures = with_photographs(pictures, deployment.preprocess)
    if traits.enrolment == "nothing":
        pictures = pictures.all_queries()
    here = [record for record in state.engines if state.target.runs_here(record.backend)]
    answers = write_answers(state.folder, state.manifest, state.model, pictures, here=here, advance=progress.advance)
    ran = f", {len(here)} engines answer as the model does" if here and answers.expected else ""
    progress.end(
        f"{len(pictures.images)} pictures from pixel to answer{ran}: {pictures.source}",
        size_bytes=(state.folder / ANSWERS).stat().st_size,
    )
    if answers.expected:
        return
    if request.golden_pictures is not None:
        raise ExportError(
            f"--golden-pictures: the model can enrol none of the pictures of one label in {request.golden_pictures}; "
            "give others, sharp and well lit, or leave the option out for drawn ones"
        )
    progress.warn(
        "the model makes nothing of the pictures that can be enrolled: `edgevis verify` will prove "
        "preprocessing on them, but no answers"
    )
