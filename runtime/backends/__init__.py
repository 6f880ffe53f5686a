"""The inference engines behind one small protocol.

Each file here is one backend and its name is the backend's: ``openvino.py`` is ``backend="openvino"``. A new file is
a new backend; there is no list to edit. Such a module satisfies :class:`Backend`; it imports its vendor's package
inside :meth:`Backend.open_engine` and maps the vendor's exceptions to :mod:`runtime.errors` in one place. A package
outside edgevis adds a backend as an entry point of the group ``edgevis.backends``, named as the backend, that points to
such a module.
"""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType
from typing import Protocol, cast, runtime_checkable

from runtime.bundle.engine_files import EngineFiles
from runtime.bundle.spec import Precision
from runtime.common.arrays import Array
from runtime.common.discovery import known_names, load_from
from runtime.errors import MissingDependencyError, UnavailableError, UnknownBackendError

GROUP = "edgevis.backends"
"""The entry points of backends from other packages."""

NO_ARRAYS: Mapping[str, Array] = MappingProxyType({})


class Engine(Protocol):
    """One graph, compiled and ready. ``run`` may be called by several threads at once.

    ``run`` takes one array per input, C-contiguous and already checked by :class:`runtime.sessions.session.Session`,
    and returns one array per output. The arrays it returns belong to the caller; those it is given are never written.
    ``resident`` are inputs that nobody will write to either, and that later runs are likely to be given again: the same
    arrays need not be copied, or sent to a device, twice.
    """

    @property
    def inputs(self) -> tuple[str, ...]: ...

    @property
    def outputs(self) -> tuple[str, ...]: ...

    def run(self, feeds: Mapping[str, Array], resident: Mapping[str, Array] = NO_ARRAYS) -> dict[str, Array]: ...

    def close(self) -> None: ...


class Backend(Protocol):
    """The members of a module in this package."""

    def devices(self) -> tuple[str, ...]:
        """The kinds of device that the backend can use here, best first, such as ``("cpu",)``.

        Raises:
            MissingDependencyError: Its package is not installed.
            UnavailableError: It is installed but finds no device it can use.
        """
        ...

    def open_engine(self, files: EngineFiles, *, precision: Precision, device: str, threads: int | None) -> Engine:
        """Open what export wrote for this backend.

        Args:
            files: The contents of the engine's files; a bundle's have been hashed.
            precision: The arithmetic to run in; always explicit, a vendor's default may differ.
            device: One of :meth:`devices`.
            threads: CPU threads to use; None leaves the choice to the vendor.

        Raises:
            MissingDependencyError: Its package is not installed.
            EngineError: The vendor refused the file.
        """
        ...


@runtime_checkable
class BuildsOnDevice(Protocol):
    """A backend whose engines are compiled, and their parity measured, on the device that runs them."""

    def fingerprint(self, device: str) -> Mapping[str, str]:
        """The versions and the GPU's name that an engine's parity on that device is valid for.

        Raises:
            MissingDependencyError, UnavailableError, UnknownBackendError: It cannot use that device here.
        """
        ...

    def build_on_device(self, files: EngineFiles) -> DeviceBuildResult:
        """Compile what :meth:`Backend.open_engine` opens; a compiled engine in the cache is used again.

        Raises:
            EngineError: The vendor refused the file.
        """
        ...


class DeviceBuildResult(Protocol):
    """The result of building one graph of an engine on the device."""

    @property
    def built(self) -> bool:
        """Whether it was compiled now; False where it was in the cache."""
        ...

    @property
    def seconds(self) -> float:
        """The compile time in seconds."""
        ...

    @property
    def reason(self) -> str:
        """Why a cached engine could not be used; empty if there was none, or it was used."""
        ...

    @property
    def size_bytes(self) -> int: ...


def names() -> tuple[str, ...]:
    """The names of all backends, installed or not."""
    return known_names(__name__, GROUP)


def load(name: str) -> Backend:
    """The backend module of a name; UnknownBackendError lists the known ones."""
    return cast(Backend, load_from(__name__, name, what="backend", error=UnknownBackendError, group=GROUP))


def runs_here(name: str, device: str) -> bool:
    """Whether the backend of that name is installed and can use that kind of device on this machine."""
    try:
        return device in load(name).devices()
    except (MissingDependencyError, UnavailableError, UnknownBackendError):
        return False
