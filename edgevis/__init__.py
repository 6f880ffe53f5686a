"""edgevis: train a small-label vision model in PyTorch, export it once, run it anywhere through one Predictor.

Importing this package imports neither torch nor an engine.
"""

import importlib as _importlib
from typing import TYPE_CHECKING as _TYPE_CHECKING
from typing import Any as _Any

import runtime as _runtime

if getattr(_runtime, "OWNER", None) != "edgevis":
    raise ImportError(
        f"edgevis needs its own package 'runtime', but Python found another one first: {_runtime.__file__}. "
        "Rename or move that one, or start Python from another folder."
    )

from runtime.enrolment.quality import EnrolmentReport, Finding, Judgement
from runtime.errors import *  # noqa: F403 - the tree of exceptions is public as it stands in that file's __all__
from runtime.errors import __all__ as _errors
from runtime.predictor import Predictor
from runtime.results import Classification, Detection, Detections, Identification, Match, Segmentation
from runtime.results_instances import Instance, InstanceSegmentation
from runtime.selection.info import Info
from runtime.streams.frame import Frame
from runtime.streams.stats import SourceStats

if _TYPE_CHECKING:
    from runtime.pipeline import Pipeline
    from runtime.tracking.objects import TrackedObject
    from runtime.tracking.settings import PipelineSettings
    from runtime.tracking.stats import PipelineStats
else:
    # Imported when first used: they are a tenth of what importing the rest takes.
    _LATER = {
        "Pipeline": "runtime.pipeline",
        "PipelineSettings": "runtime.tracking.settings",
        "PipelineStats": "runtime.tracking.stats",
        "TrackedObject": "runtime.tracking.objects",
    }

    def __getattr__(name: str) -> _Any:
        if name not in _LATER:
            raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
        return getattr(_importlib.import_module(_LATER[name]), name)


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
    "Instance",
    "InstanceSegmentation",
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
