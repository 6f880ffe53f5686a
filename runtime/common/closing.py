"""Resources that a ``with`` block closes at its end."""

from __future__ import annotations

from abc import ABC, abstractmethod
from types import TracebackType
from typing import TypeVar

_Resource = TypeVar("_Resource", bound="Closing")


class Closing(ABC):
    """A base of what holds a resource until :meth:`close`, or the end of its ``with`` block."""

    def __enter__(self: _Resource) -> _Resource:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()

    @abstractmethod
    def close(self) -> None:
        """Let go of what is held."""
