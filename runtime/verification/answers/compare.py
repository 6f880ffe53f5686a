"""The distance of a predictor's answers from the build's, and its bounds."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType

import numpy as np

from runtime.bundle.bundle import Bundle
from runtime.bundle.manifest import EngineRecord
from runtime.bundle.spec import Deployment, Precision, Preprocess
from runtime.common.arrays import Array
from runtime.common.json_data import from_json, shown, to_json
from runtime.detection.boxes import pairwise_iou
from runtime.detection.matching import matched_pairs
from runtime.detection.postprocess import DetectedBoxes
from runtime.errors import SchemaError
from runtime.images.preprocess import Preprocessor
from runtime.predictor import Predictor
from runtime.verification.answers.exercise import answers_of
from runtime.verification.answers.file import Answers, answers_from

EXACT = 1e-5
"""Of the size of a step: what the arithmetic of a table of float32 may be off."""

NO_PICTURES = (
    "it was built without pictures from pixel to answer, so that neither preprocessing nor postprocessing can be "
    "proved; build it again: python -m export.build"
)
NONE_OFF: Mapping[str, float] = MappingProxyType({})
_MEASURES = ("embedding", "operating point", "scores", "probability", "pixels", "decisions", "boxes", "outlines")

# What engines of a precision may be off on any picture, beside twice of what the engine was where it was built: another
# processor sums in another order, or rounds INT8 otherwise. What an engine computes is held closer on golden.npz; here
# it is preprocessing, open-set values and postprocessing that would be wrong, and these are wrong by far more.
_BOUNDS: Mapping[Precision, Mapping[str, float]] = {
    "fp32": {
        "embedding": 1e-5,
        "operating point": 1e-3,
        "scores": 1e-3,
        "probability": 1e-3,
        "pixels": 2e-3,
        "boxes": 2e-3,
        "outlines": 2e-3,
    },
    "fp16": {
        "embedding": 1e-3,
        "operating point": 0.02,
        "scores": 0.02,
        "probability": 0.01,
        "pixels": 0.01,
        "boxes": 0.05,
        "outlines": 0.05,
    },
    "bf16": {
        "embedding": 0.02,
        "operating point": 0.1,
        "scores": 0.1,
        "probability": 0.05,
        "pixels": 0.05,
        "boxes": 0.1,
        "outlines": 0.1,
    },
    "int8": {
        "embedding": 0.05,
        "operating point": 0.15,
        "scores": 0.15,
        "probability": 0.1,
        "pixels": 0.1,
        "boxes": 0.2,
        "outlines": 0.2,
    },
}
# Two boxes of one class with this IoU are boxes of one object; how far they are apart is measured.
_SAME_OBJECT = 0.5
# Where pixels are a step off, as OpenCV's implementations round: four times what the build measured for half of them at
# random. Twice that is all of them, in either direction.
_ONE_STEP = 4


@dataclass(frozen=True, slots=True)
class PreprocessingCheck:
    """The comparison of this machine's preprocessing of a bundle's pictures with the build's.

    Attributes:
        status: ``passed``, ``failed``, or ``not covered`` for a bundle without pictures.
        pictures: The number of compared pictures.
        max_steps: The largest difference, in steps of a pixel's 0..255.
        reason: The difference, or the reason why nothing was compared.
    """

    status: str
    pictures: int = 0
    max_steps: float = 0.0
    reason: str = ""

    @property
    def exact(self) -> bool:
        """Whether every input tensor is the build's."""
        return self.status == "passed" and self.max_steps <= EXACT


@dataclass(frozen=True, slots=True)
class AnswersCheck:
    """The distance of a predictor's answers with one engine from the reference model's.

    Attributes:
        distances: The distances by the names of :func:`distances`.
        allowed: The bound of each distance.
        beyond: The names of those that are more.
    """

    distances: Mapping[str, float]
    allowed: Mapping[str, float]
    beyond: tuple[str, ...]

    @property
    def reason(self) -> str:
        """The distances beyond their bounds, in words; empty when there are none."""
        excesses = [
            f"{name} off by {self.distances[name]:.2g}, allowed {self.allowed[name]:.2g}" for name in self.beyond
        ]
        return "" if not excesses else "from pixel to answer: " + ", ".join(excesses)


def read_answers(bundle: Bundle) -> Answers | None:
    """The bundle's answers; None of one that has none. IntegrityError when they are damaged."""
    arrays = bundle.answers()
    return answers_from(arrays, bundle.manifest.deployment.preprocess.input) if arrays else None


def check_preprocessing(bundle: Bundle, answers: Answers | None) -> PreprocessingCheck:
    """Compare what the manifest declares, and the input tensors made here of the pictures, with the build's.

    A picture of the input's own size is not resized: its tensor must be the build's but for the last bits. Of the
    others every value may be a step of 0..255 off, or two with cubic interpolation: OpenCV's implementations for
    different processors round in fixed point, each up to that far from the exact value. So does the luma of ``GRAY``.
    """
    if answers is None:
        return PreprocessingCheck("not covered", reason=NO_PICTURES)
    count = len(answers.pictures)
    built_with = _as_read(answers.header.deployment)
    if (difference := _first_difference(built_with, to_json(bundle.manifest.deployment))) is not None:
        where, built, actual = difference
        reason = f"the manifest's deployment{where} is {shown(actual)}; the bundle was built with {shown(built)}"
        return PreprocessingCheck("failed", count, math.inf, reason)
    spec = bundle.manifest.deployment.preprocess
    preprocess = Preprocessor(spec)
    tensors = [preprocess([picture])[0] for picture in answers.pictures]
    steps = [_steps(tensor - built, spec) for tensor, built in zip(tensors, answers.inputs, strict=True)]
    for index, (picture, off) in enumerate(zip(answers.pictures, steps, strict=True)):
        rows, columns = picture.shape[:2]
        allowed = _allowed_steps(spec, (rows, columns))
        if not off <= allowed + EXACT:  # NaN is beyond, too
            reason = (
                f"preprocessing differs: picture {index} ({rows} x {columns} pixels), max difference {off:.3g} steps "
                f"of a pixel's 0..255, allowed {allowed}: the OpenCV of this machine does not resize or convert as "
                "the build's did, or this edgevis reads the manifest's preprocessing otherwise"
            )
            return PreprocessingCheck("failed", count, float(np.max(steps)), reason)
    return PreprocessingCheck("passed", count, float(np.max(steps)))


def check_answers(predictor: Predictor, record: EngineRecord, answers: Answers, *, exact: bool) -> AnswersCheck:
    """Compare the answers of a predictor in which nothing is enrolled.

    Args:
        predictor: Runs the engine of ``record``.
        record: Says what precision it has.
        answers: The bundle's.
        exact: Whether preprocessing makes the very input tensors of the build.

    Raises:
        EdgevisError: The predictor refuses a picture, or its engine fails.
    """
    actual = answers_of(predictor, answers.header, answers.pictures, answers.masks)
    known = answers.header.distances.get(record.name, {})
    one_step = {} if exact else answers.header.one_step
    return compared(answers.expected, actual, record.precision, known, one_step)


def compared(
    expected: Mapping[str, Array],
    actual: Mapping[str, Array],
    precision: Precision,
    known: Mapping[str, float],
    one_step: Mapping[str, float] = NONE_OFF,
) -> AnswersCheck:
    """Compare answers of an engine of ``precision``.

    Args:
        expected, actual: The arrays that :func:`runtime.verification.answers.exercise.answers_of` returns.
        precision: Says how far off they may be.
        known: How far off they were where the engine was built; of FP32 that allows nothing.
        one_step: What one step of a pixel may do to them; nothing where every input tensor is the build's.
    """
    bounds = {
        name: bound + 2 * known.get(name, 0.0) * (precision != "fp32") + _ONE_STEP * one_step.get(name, 0.0)
        for name, bound in _BOUNDS[precision].items()
    }
    off = distances(expected, actual, undecided=bounds["scores"] + bounds["operating point"])
    allowed = {name: bounds.get(name, 0.0) for name in off}
    beyond = tuple(name for name in off if not off[name] <= allowed[name])
    return AnswersCheck(off, allowed, beyond)


def distances(
    expected: Mapping[str, Array], actual: Mapping[str, Array], *, undecided: float = 0.0
) -> dict[str, float]:
    """The distances of ``actual`` from ``expected``, each the worst over all pictures.

    Args:
        expected, actual: The arrays that :func:`runtime.verification.answers.exercise.answers_of` returns.
        undecided: A decision counts where the score is further than this from the threshold, and from the next label.

    Returns:
        ``embedding``: 1 - cosine. ``operating point``: of a threshold or an expected rate. ``scores``: of a score.
        ``decisions``: how many queries get another label. ``probability``: the mean over a picture's pixels.
        ``pixels``: the share of a picture's pixels that get another label. ``boxes``: 1 - IoU of two boxes of one
        object. ``outlines``: the mean over an outline's vertices of the distance, as a share of its box's diagonal.
        ``detections``: how many objects one of them has alone. Infinity where the two cannot be compared.
    """
    if "threshold" in expected:
        return _detection_distances(expected, actual, undecided)
    if {name: array.shape for name, array in expected.items()} != {name: array.shape for name, array in actual.items()}:
        kinds = [name for name in _MEASURES if any(name.startswith(kind) for kind in expected)] or ["answers"]
        return dict.fromkeys(kinds, math.inf)
    off: dict[str, list[float]] = {}
    for name, array in expected.items():
        reference, other = np.asarray(array, np.float64), np.asarray(actual[name], np.float64)
        if name == "embedding":
            # A model may make nothing of a picture; nothing has no direction, and is the same as nothing.
            norms = np.linalg.norm(reference, axis=1) * np.linalg.norm(other, axis=1)
            alike = np.where(norms == 0, (reference == other).all(axis=1), 0.0)
            cosines = np.divide((reference * other).sum(axis=1), norms, out=alike, where=norms != 0)
            off["embedding"] = [float(1 - cosines.min())]
        elif name == "operating":
            off["operating point"] = [_largest(reference, other)]
        elif name == "scores":
            off["scores"] = [_largest(reference, other)]
        elif name == "accepted":
            decisive = _decisive(expected, undecided)
            off["decisions"] = [float((reference != other)[decisive].sum())]
        elif name.startswith("labels/"):
            off.setdefault("pixels", []).append(float((reference != other).mean()))
        elif name.startswith("probability/"):
            off.setdefault("probability", []).append(float(np.abs(reference - other).mean()))
    return {name: float(np.max(values)) for name, values in off.items()}


def _detection_distances(
    expected: Mapping[str, Array], actual: Mapping[str, Array], undecided: float
) -> dict[str, float]:
    """``scores``, ``boxes``, ``outlines`` and ``detections`` of lists, which begin at half of the threshold."""
    outlined = "polygons/0" in expected
    measures = ("scores", "boxes", *(("outlines",) if outlined else ()))
    if expected.keys() != actual.keys() or expected["threshold"].tolist() != actual["threshold"].tolist():
        return dict.fromkeys((*measures, "detections"), math.inf)
    threshold = float(expected["threshold"][0])
    off: dict[str, list[float]] = {name: [0.0] for name in measures}
    alone = 0
    for index in range(sum(name.startswith("boxes/") for name in expected)):
        one, other = (_detected(arrays, index) for arrays in (expected, actual))
        first, second = matched_pairs(one, other, iou=_SAME_OBJECT)
        clear = one.scores[first] >= threshold
        first, second = first[clear], second[clear]
        off["scores"] += np.abs(one.scores[first] - other.scores[second]).tolist()
        off["boxes"] += (1 - pairwise_iou(one.boxes[first], other.boxes[second]).diagonal()).tolist()
        if outlined:
            polygons = expected[f"polygons/{index}"][first], actual[f"polygons/{index}"][second]
            off["outlines"] += _vertex_distances(*polygons, one.boxes[first])
        for boxes, known in ((one, first), (other, second)):
            decided = np.flatnonzero(boxes.scores >= threshold + undecided)
            alone += len(np.setdiff1d(decided, known))
    return {name: float(np.max(values)) for name, values in off.items()} | {"detections": float(alone)}


def _vertex_distances(expected: Array, actual: Array, boxes: Array) -> list[float]:
    """The mean distance of the vertices of outlines (n, V, 2) each, as a share of the diagonal of boxes (n, 4)."""
    if expected.shape != actual.shape:
        return [math.inf]
    apart = np.linalg.norm(np.asarray(expected, np.float64) - actual, axis=2).mean(axis=1)
    return [float(value) for value in apart / np.linalg.norm(boxes[:, 2:] - boxes[:, :2], axis=1)]


def _detected(arrays: Mapping[str, Array], index: int) -> DetectedBoxes:
    rows = arrays[f"detected/{index}"]
    return DetectedBoxes(
        np.asarray(arrays[f"boxes/{index}"], np.float32),
        np.asarray(rows[:, 0], np.float32),
        rows[:, 1].astype(np.int64),
    )


def _largest(expected: Array, actual: Array) -> float:
    """The largest difference; what is unknown on one side only is infinitely far."""
    if (np.isnan(expected) != np.isnan(actual)).any():
        return math.inf
    return float(np.nan_to_num(np.abs(expected - actual)).max(initial=0.0))


def _decisive(expected: Mapping[str, Array], undecided: float) -> Array:
    """Which queries' labels do not hang on a difference of ``undecided``."""
    scores, threshold = expected["scores"], float(expected["operating"][-1, 0, 0])
    ranked = np.sort(scores, axis=1)[:, ::-1]
    lead = ranked[:, 0] - ranked[:, 1] if ranked.shape[1] > 1 else np.full(len(ranked), np.inf)
    to_threshold = np.full(len(ranked), np.inf) if math.isnan(threshold) else np.abs(ranked[:, 0] - threshold)
    rejected = expected["accepted"] < 0  # of these, which label led does not matter
    return np.asarray((to_threshold > undecided) & ((lead > undecided) | rejected))


def _as_read(deployment: object) -> object:
    """JSON data of a deployment with the fields of today; data that is none stays as it is."""
    try:
        return to_json(from_json(Deployment, deployment))
    except SchemaError:
        return deployment


def _allowed_steps(spec: Preprocess, size: tuple[int, int]) -> int:
    resized = 0 if size == (spec.height, spec.width) else 2 if spec.interpolation == "cubic" else 1
    return resized + (spec.color == "GRAY")


def _steps(difference: Array, spec: Preprocess) -> float:
    """The largest value of (channels, h, w), in steps of a pixel's 0..255."""
    step = np.array([spec.scale / std for std in spec.std])
    return float((np.abs(difference).max(axis=(1, 2)) / step).max())


def _first_difference(built: object, actual: object, where: str = "") -> tuple[str, object, object] | None:
    """The first path at which two pieces of JSON data differ, and both values."""
    if isinstance(built, Mapping) and isinstance(actual, Mapping):
        keys: Sequence[str] = [*built, *(key for key in actual if key not in built)]
        pairs = [(f"{where}.{key}", built.get(key), actual.get(key)) for key in keys]
    elif isinstance(built, list) and isinstance(actual, list) and len(built) == len(actual):
        pairs = [(f"{where}[{index}]", *pair) for index, pair in enumerate(zip(built, actual, strict=True))]
    else:
        return None if built == actual else (where, built, actual)
    return next((item for pair in pairs if (item := _first_difference(pair[1], pair[2], pair[0]))), None)
