"""Resources that a ``with`` block closes at its end."""

from __future__ import annotations

from abc import ABC, abstractmethod
from types import TracebackType
from typing import NoReturn, TypeVar

_Resource = TypeVar("_Resource", bound="Closing")


class Closing(ABC):
    """A base of what holds a resource until :meth:`close`, or the end of its ``with`` block."""

    def __enter__(self: _Resource) -> _Resource:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()

    def __reduce__(self) -> NoReturn:
        """What is held – an engine, a camera, a file – belongs to one process; copies and pickles would have none."""
        kind = type(self).__name__
        raise TypeError(f"a {kind} cannot be copied or sent to another process: open a {kind} there")

    @abstractmethod
    def close(self) -> None:
        """Let go of what is held."""
