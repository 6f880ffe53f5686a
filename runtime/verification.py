"""Prove a bundle again on the machine where it lies: every file's hash, every engine's parity, from pixel to answer."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

from runtime.answers.compare import (
    AnswersCheck,
    PreprocessingCheck,
    check_answers,
    check_preprocessing,
    read_answers,
)
from runtime.answers.file import Answers
from runtime.arrays import Array
from runtime.bundle import Bundle
from runtime.errors import (
    BackendError,
    EnrolmentRefusedError,
    MissingDependencyError,
    UnavailableError,
    UnknownBackendError,
)
from runtime.manifest import EngineRecord, GraphParity
from runtime.opening import open_sessions
from runtime.parity import TOLERANCES, distance_text
from runtime.predictor import predictor_of
from runtime.proving import measure_engine
from runtime.selection import Opened
from runtime.session import Session


@dataclass(frozen=True, slots=True)
class EngineCheck:
    """What came out for one engine.

    Attributes:
        engine: Its name.
        status: ``passed``, ``failed``, or ``not run`` where the machine lacks its backend, package or device.
        tolerance: What it was held to.
        graphs: The measured distance of each graph from the PyTorch outputs in ``golden.npz``.
        reason: Why it failed or was not run.
        answers: How far a predictor's answers are from those in ``answers.npz``; None where they were not compared: the
            bundle has none, preprocessing differs, or the engine failed before.
    """

    engine: str
    status: str
    tolerance: str
    graphs: tuple[GraphParity, ...] = ()
    reason: str = ""
    answers: AnswersCheck | None = None


def verify_bundle(bundle: Bundle) -> list[EngineCheck]:
    """Check all files of a bundle, then run each of its engines on the golden inputs, and from pixel to answer.

    No engine passes where preprocessing differs, see :func:`runtime.answers.compare.check_preprocessing`.

    Raises:
        IntegrityError: A file is missing or altered.
    """
    bundle.verify_files()
    golden = bundle.golden()
    answers = read_answers(bundle)
    preprocessing = check_preprocessing(bundle, answers)
    return [_check(bundle, record, golden, answers, preprocessing) for record in bundle.manifest.engines]


def _check(
    bundle: Bundle,
    record: EngineRecord,
    golden: dict[str, Array],
    answers: Answers | None,
    preprocessing: PreprocessingCheck,
) -> EngineCheck:
    tolerance = TOLERANCES[record.precision]
    try:
        sessions = open_sessions(bundle, record, threads=None)
    except (MissingDependencyError, UnavailableError, UnknownBackendError) as error:
        return EngineCheck(record.name, "not run", str(tolerance), reason=str(error))
    except BackendError as error:
        return EngineCheck(record.name, "failed", str(tolerance), reason=str(error))
    try:
        measured = measure_engine(sessions, record.precision, golden, machine="")
        answered = _answered(bundle, record, sessions, answers, preprocessing)
    except (BackendError, EnrolmentRefusedError) as error:
        return EngineCheck(record.name, "failed", str(tolerance), reason=str(error))
    finally:
        for session in sessions.values():
            session.close()
    reasons = [f"graph {parity.graph!r}: {_distance(parity)}" for parity in measured.beyond]
    if preprocessing.status == "failed":
        reasons.append(preprocessing.reason)
    elif answered is not None and answered.beyond:
        reasons.append(answered.reason)
    status = "failed" if reasons else "passed"
    return EngineCheck(record.name, status, str(tolerance), measured.proof.graphs, "; ".join(reasons), answered)


def _answered(
    bundle: Bundle,
    record: EngineRecord,
    sessions: Mapping[str, Session],
    answers: Answers | None,
    preprocessing: PreprocessingCheck,
) -> AnswersCheck | None:
    if answers is None or not answers.expected or preprocessing.status != "passed":
        return None
    with predictor_of(bundle, Opened(record, sessions, "", ())) as predictor:
        return check_answers(predictor, record, answers, exact=preprocessing.exact)


def _distance(parity: GraphParity) -> str:
    if math.isfinite(parity.max_relative_error):
        return distance_text(parity)
    return "NaN or infinity in the engine's outputs or in the golden ones"
