"""Prove a bundle again on the machine where it lies: every file's hash, every engine's parity and recorded outputs, and
the way from pixel to answer.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from runtime import tasks
from runtime.bundle.bundle import Bundle
from runtime.bundle.manifest import EngineRecord, GraphParity
from runtime.bundle.spec import Precision
from runtime.common.arrays import Array
from runtime.errors import (
    BackendError,
    EnrolmentRefusedError,
    MissingDependencyError,
    UnavailableError,
    UnknownBackendError,
)
from runtime.parity.compare import BATCH_SIZES, distance_text
from runtime.parity.measure import measure_engine
from runtime.parity.recorded import Deviation, deviation_text, deviations, held_to_text, read_recorded
from runtime.predictor import predictor_of
from runtime.selection.choose import SelectedEngine
from runtime.sessions.open import open_sessions
from runtime.sessions.session import Session
from runtime.verification.answers.compare import (
    AnswersCheck,
    PreprocessingCheck,
    check_answers,
    check_preprocessing,
    read_answers,
)
from runtime.verification.answers.file import Answers

NOT_RECORDED = (
    "the bundle is of an older edgevis, which recorded no outputs of this engine: it was held to the tolerance of its "
    "precision alone, within which a faulty engine may lie; build the bundle again"
)


@dataclass(frozen=True, slots=True)
class EngineCheck:
    """The result for one engine.

    Attributes:
        engine: The engine's name.
        status: ``passed``, ``failed``, or ``not run`` where the machine lacks its backend, package or device.
        tolerance: The bounds that it was held to.
        graphs: The measured distance of each graph from the reference outputs in ``golden.npz``.
        reason: Why it failed or was not run, or what it could not be held to.
        recorded: The distances of its outputs from those that the build recorded; empty where it recorded none.
        answers: How far a predictor's answers are from those in ``answers.npz``; None where they were not compared: the
            bundle has none, preprocessing differs, or the engine failed before.
    """

    engine: str
    status: str
    tolerance: str
    graphs: tuple[GraphParity, ...] = ()
    reason: str = ""
    recorded: tuple[Deviation, ...] = ()
    answers: AnswersCheck | None = None


def verify_bundle(
    bundle: Bundle,
    *,
    precision: Precision | None = None,
    threads: int | None = None,
    batch_sizes: Sequence[int] = BATCH_SIZES,
) -> list[EngineCheck]:
    """Check all files of a bundle, then run each of its engines on the golden inputs, and from pixel to answer.

    No engine passes where preprocessing differs, see :func:`runtime.verification.answers.compare.check_preprocessing`.

    Args:
        bundle: The bundle.
        precision: Check only the engines of this precision; None checks all.
        threads: CPU threads for the engines; None leaves the choice to the vendor.
        batch_sizes: The batch sizes at which the recorded outputs are compared.

    Raises:
        IntegrityError: A file is missing or altered.
        UnknownBackendError: No engine has that precision; the message lists those it has.
    """
    records = bundle.engines_of(precision)
    bundle.verify_files()
    golden = bundle.golden()
    answers = read_answers(bundle)
    preprocessing = check_preprocessing(bundle, answers)
    return [_check(bundle, record, golden, answers, preprocessing, threads, batch_sizes) for record in records]


def _check(
    bundle: Bundle,
    record: EngineRecord,
    golden: dict[str, Array],
    answers: Answers | None,
    preprocessing: PreprocessingCheck,
    threads: int | None,
    batch_sizes: Sequence[int],
) -> EngineCheck:
    held_to = held_to_text(record)
    try:
        sessions = open_sessions(bundle, record, threads=threads)
    except (MissingDependencyError, UnavailableError, UnknownBackendError) as error:
        return EngineCheck(record.name, "not run", held_to, reason=str(error))
    except BackendError as error:
        return EngineCheck(record.name, "failed", held_to, reason=str(error))
    try:
        measured = measure_engine(
            sessions,
            record.precision,
            golden,
            agreement=tasks.load(bundle.manifest.deployment.task).agreement,
            machine="",
        )
        known = read_recorded(bundle, record)
        differences = () if known is None else deviations(record, sessions, golden, known, batch_sizes=batch_sizes)
        answered = _answered(bundle, record, sessions, answers, preprocessing)
    except (BackendError, EnrolmentRefusedError) as error:
        return EngineCheck(record.name, "failed", held_to, reason=str(error))
    finally:
        for session in sessions.values():
            session.close()
    reasons: list[str] = []
    # What was recorded says more than the tolerance of a precision, which is meant for images like the task's.
    if not differences or not all(deviation.holds for deviation in differences):
        reasons += [f"graph {parity.graph!r}: {_distance(parity)}" for parity in measured.beyond]
    reasons += [deviation_text(deviation) for deviation in differences if not deviation.holds]
    if preprocessing.status == "failed":
        reasons.append(preprocessing.reason)
    elif answered is not None and answered.beyond:
        reasons.append(answered.reason)
    status = "failed" if reasons else "passed"
    if record.precision != "fp32" and not differences:
        reasons.append(NOT_RECORDED)
    return EngineCheck(record.name, status, held_to, measured.parity.graphs, "; ".join(reasons), differences, answered)


def _answered(
    bundle: Bundle,
    record: EngineRecord,
    sessions: Mapping[str, Session],
    answers: Answers | None,
    preprocessing: PreprocessingCheck,
) -> AnswersCheck | None:
    if answers is None or not answers.expected or preprocessing.status != "passed":
        return None
    with predictor_of(bundle, SelectedEngine(record, sessions, "", ())) as predictor:
        return check_answers(predictor, record, answers, exact=preprocessing.exact)


def _distance(parity: GraphParity) -> str:
    if math.isfinite(parity.max_relative_error):
        return distance_text(parity)
    return "NaN or infinity in the engine's outputs or in the golden ones"
