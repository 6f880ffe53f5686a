"""Receivers of events: each file here is one kind, and its name is the kind's.

Such a module offers ``SCHEMES``, the beginnings of the addresses that it takes, and ``open_sink(address)``.
"""

from __future__ import annotations

import importlib
from collections.abc import Mapping
from typing import Any, Protocol, cast

from runtime.common.addresses import without_password
from runtime.common.discovery import names_in
from runtime.errors import InputError


class EventSink(Protocol):
    """An open receiver. ``send`` never waits for a network."""

    def send(self, event: Mapping[str, Any]) -> None:
        """Hand over one event, plain data for JSON. OutputError when a file cannot be written."""
        ...

    def close(self, *, timeout_s: float = 5.0) -> None:
        """Wait until what was handed over has been sent, at most ``timeout_s`` seconds, and free everything."""
        ...


class EventSinkModule(Protocol):
    """The members of a module in this package."""

    SCHEMES: tuple[str, ...]

    def open_sink(self, address: str) -> EventSink:
        """The receiver at an address; InputError when it is malformed."""
        ...


def open_sink(address: str) -> EventSink:
    """The receiver that an address means.

    Args:
        address: ``jsonl`` for JSON lines on standard output; the path of a file to which they are added;
            ``mqtt://HOST[:PORT]/TOPIC`` or ``mqtts://…``; ``http://…`` or ``https://…`` for a webhook.

    Raises:
        InputError: The address is of none of these kinds, or malformed.
        OutputError: The file cannot be written.
        MissingDependencyError: A package is not installed.
    """
    modules = [cast(EventSinkModule, importlib.import_module(f"{__name__}.{name}")) for name in names_in(__name__)]
    scheme = f"{address.partition('://')[0].lower()}://" if "://" in address else ""
    for module in modules:
        if scheme in module.SCHEMES:
            return module.open_sink(address)
    known = ", ".join(sorted(scheme for module in modules for scheme in module.SCHEMES if scheme))
    told = without_password(address)
    raise InputError(f"events: {told!r} begins with no known scheme; allowed: jsonl, a file, {known}")
