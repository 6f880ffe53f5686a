"""edgevis: train a small-label vision model in PyTorch, export it once, run it anywhere through one Predictor.

Importing this package imports neither torch nor an engine.
"""

import runtime as _runtime

if getattr(_runtime, "OWNER", None) != "edgevis":
    raise ImportError(
        f"edgevis needs its own package 'runtime', but Python found another one first: {_runtime.__file__}. "
        "Rename or move that one, or start Python from another folder."
    )

from runtime.enrolment.quality import EnrolmentReport, Finding, Judgement
from runtime.errors import *  # noqa: F403 - the tree of exceptions is public as it stands in that file's __all__
from runtime.errors import __all__ as _errors
from runtime.pipeline import Pipeline
from runtime.predictor import Predictor
from runtime.results import Classification, Detection, Detections, Identification, Match, Segmentation
from runtime.selection.info import Info
from runtime.streams.frame import Frame
from runtime.streams.stats import SourceStats
from runtime.tracking.objects import TrackedObject
from runtime.tracking.settings import PipelineSettings
from runtime.tracking.stats import PipelineStats

__version__ = "0.2.0"

__all__ = [
    "Classification",
    "Detection",
    "Detections",
    "EnrolmentReport",
    "Finding",
    "Frame",
    "Identification",
    "Info",
    "Judgement",
    "Match",
    "Pipeline",
    "PipelineSettings",
    "PipelineStats",
    "Predictor",
    "Segmentation",
    "SourceStats",
    "TrackedObject",
    "__version__",
    *_errors,
]
