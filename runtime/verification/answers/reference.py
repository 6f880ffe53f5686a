"""The answers that engines are compared with: of a predictor whose engine is the model that was trained."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace

import numpy as np
import numpy.typing as npt

from runtime.bundle.bundle import Bundle
from runtime.bundle.manifest import EngineRecord
from runtime.common.arrays import Array
from runtime.errors import EnrolmentRefusedError
from runtime.images.decode import Image
from runtime.images.masks import Mask
from runtime.images.preprocess import Preprocessor
from runtime.predictor import predictor_of
from runtime.selection.choose import SelectedEngine
from runtime.sessions.session import Session
from runtime.verification.answers.compare import distances
from runtime.verification.answers.exercise import answers_of
from runtime.verification.answers.file import Answers, AnswersHeader

REFERENCE = "reference"


class OneStepOff(Preprocessor):
    """Preprocessing of which half of all values are one step of 0..255 too low, at random."""

    def __call__(self, images: Sequence[Image]) -> npt.NDArray[np.float32]:
        tensor = super().__call__(images)
        random = np.random.default_rng(20261128)
        for channel, std in enumerate(self.spec.std):
            plane = tensor[:, channel]
            plane -= np.float32(self.spec.scale / std) * random.integers(0, 2, plane.shape, np.uint8)
        return tensor


def reference_answers(
    bundle: Bundle,
    sessions: Mapping[str, Session],
    header: AnswersHeader,
    pictures: Sequence[Image],
    masks: Sequence[Mask | None],
) -> Answers:
    """Run the exercise on the model itself.

    Args:
        bundle: Says how the model is deployed.
        sessions: The model's graphs, in float32; the caller closes them.
        header: What the pictures show and which are enrolled; its distances are filled in here and by the build.
        pictures: Each (H, W, 3) uint8 BGR; the first of the input's own size.
        masks: The masks of the enrolled pictures, where the task enrols with masks.

    Returns:
        Pictures, input tensors and answers. ``expected`` is empty where the model can enrol none of the pictures, as
        random weights may make nothing of them: then they cover preprocessing alone.

    Raises:
        BackendError: The model failed.
    """
    preprocess = Preprocessor(bundle.manifest.deployment.preprocess)
    inputs = tuple(preprocess([picture])[0] for picture in pictures)
    record = EngineRecord(REFERENCE, "fp32", "cpu", dict.fromkeys(sessions, ""))

    def run(how: Preprocessor) -> dict[str, Array]:
        predictor = predictor_of(bundle, SelectedEngine(record, sessions, "", ()), how)
        return answers_of(predictor, header, pictures, masks)

    try:
        expected = run(preprocess)
        one_step = distances(expected, run(OneStepOff(preprocess.spec)))
    except EnrolmentRefusedError:
        expected, one_step = {}, {}
    return Answers(replace(header, one_step=one_step), tuple(pictures), tuple(masks), inputs, expected)
