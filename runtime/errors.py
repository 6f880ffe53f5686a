"""Every exception that edgevis raises on purpose. All of them can be imported from ``edgevis``.

::

    EdgevisError
    ├── BundleError                  a bundle cannot be used
    │   ├── BundleNotFoundError      there is no bundle at that path
    │   ├── SchemaError              its manifest is malformed or of another schema version
    │   └── IntegrityError           a file is missing, altered, too large or outside of the folder
    ├── BackendError                 an engine cannot be used
    │   ├── UnknownBackendError      no backend, device or precision of that name      (also a ValueError)
    │   ├── MissingDependencyError   the backend's package is not installed            (also an ImportError)
    │   ├── UnavailableError         installed, but it cannot run on this machine
    │   └── EngineError              the vendor's runtime failed while opening or running an engine
    │       └── DeviceMemoryError    the device has not enough memory for it
    ├── InputError                   an argument is wrong                              (also a ValueError)
    │   └── EnrolmentRefusedError    no image given for a label may be enrolled
    ├── SourceError                  a camera, video or image file cannot be read      (also an OSError)
    ├── OutputError                  a file that was asked for cannot be written       (also an OSError)
    ├── EnrolmentError               an enrolment cannot be used
    │   ├── UnknownLabelError        that label is not enrolled                        (also a KeyError)
    │   └── EnrolmentMismatchError   it was made by another encoder
    ├── ModelError                   a model cannot be made or loaded
    │   ├── UnknownModelError        no model of that name                             (also a ValueError)
    │   └── WeightsError             a checkpoint does not fit the model
    └── ExportError                  a build failed; no bundle was written
        ├── CompileError             a compiler refused or failed
        └── ParityError              an engine does not compute what the reference model computes

A message says what is wrong, what was given, what is allowed and how to mend it.
"""

from __future__ import annotations

from typing import Any

__all__ = [
    "BackendError",
    "BundleError",
    "BundleNotFoundError",
    "CompileError",
    "DeviceMemoryError",
    "EdgevisError",
    "EngineError",
    "EnrolmentError",
    "EnrolmentMismatchError",
    "EnrolmentRefusedError",
    "ExportError",
    "InputError",
    "IntegrityError",
    "MissingDependencyError",
    "ModelError",
    "OutputError",
    "ParityError",
    "SchemaError",
    "SourceError",
    "UnavailableError",
    "UnknownBackendError",
    "UnknownLabelError",
    "UnknownModelError",
    "WeightsError",
]


class EdgevisError(Exception):
    """The root: ``except EdgevisError`` catches whatever edgevis raises on purpose."""


class BundleError(EdgevisError):
    """A bundle cannot be used."""


class BundleNotFoundError(BundleError):
    """There is no bundle at the given path."""


class SchemaError(BundleError):
    """A manifest is malformed, or written by a newer schema than this version reads."""


class IntegrityError(BundleError):
    """A file of a bundle is missing, altered, larger than allowed or outside of the bundle's folder."""


class BackendError(EdgevisError):
    """An engine cannot be used."""


class UnknownBackendError(BackendError, ValueError):
    """No backend, device or precision has the given name."""


class MissingDependencyError(BackendError, ImportError):
    """A package is not installed; the message holds the command that installs it."""


class UnavailableError(BackendError):
    """The backend is installed but cannot run this engine on this machine."""


class EngineError(BackendError):
    """The vendor's runtime failed while it opened or ran an engine; the cause is chained."""


class DeviceMemoryError(EngineError):
    """The device has not enough memory to open or to run an engine; nothing is wrong with the engine."""


class InputError(EdgevisError, ValueError):
    """An argument has a wrong type, dtype, shape or value."""


class EnrolmentRefusedError(InputError):
    """The images given for a label are not fit to be enrolled; nothing was enrolled.

    Attributes:
        report: An :class:`edgevis.EnrolmentReport`: what speaks against each image; None only where this was not raised
            by ``Predictor.enroll``.
    """

    def __init__(self, message: str, *, report: Any = None) -> None:
        super().__init__(message)
        self.report = report


class SourceError(EdgevisError, OSError):
    """A camera, a video or an image file cannot be opened or read."""


class OutputError(EdgevisError, OSError):
    """A picture or another file cannot be written, or would take the place of one that edgevis did not write."""


class EnrolmentError(EdgevisError):
    """An enrolment cannot be read, written or used."""


class UnknownLabelError(EnrolmentError, KeyError):
    """The label is not enrolled."""

    # KeyError would show the message in quotes.
    __str__ = Exception.__str__


class EnrolmentMismatchError(EnrolmentError):
    """An enrolment's embeddings were made by another encoder, so scores against them would mean nothing."""


class ModelError(EdgevisError):
    """A PyTorch model cannot be made or loaded."""


class UnknownModelError(ModelError, ValueError):
    """No model has the given name."""


class WeightsError(ModelError):
    """A checkpoint cannot be read or does not fit the model."""


class ExportError(EdgevisError):
    """A build failed; no bundle was written."""


class CompileError(ExportError):
    """A compiler refused a graph or failed on it."""


class ParityError(ExportError):
    """An engine's results are further from the reference model's than the tolerance allows.

    Attributes:
        engines: The names of the engines.
    """

    def __init__(self, message: str, *, engines: tuple[str, ...] = ()) -> None:
        super().__init__(message)
        self.engines = engines
