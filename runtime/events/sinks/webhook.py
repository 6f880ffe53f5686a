"""Events as HTTP POST requests, one JSON object each."""

from __future__ import annotations

import http.client
import json
import logging
import urllib.error
import urllib.request
from collections.abc import Mapping
from typing import Any
from urllib.parse import urlsplit

from runtime.errors import InputError
from runtime.events.outbox import Outbox

_log = logging.getLogger("edgevis.events")

SCHEMES = ("http://", "https://")
TIMEOUT_S = 5.0
"""Seconds for a connection, and for each answer."""


def open_sink(address: str) -> Webhook:
    """A webhook; InputError when the address has no host."""
    return Webhook(address)


class Webhook(Outbox):
    """Posts events to an address: ``Content-Type: application/json``, accepted by any status below 400.

    A server that cannot be reached, that answers 408, 429 or 5xx, or that takes too long is tried again; by any other
    status an event is refused for good, and counts as sent.
    """

    def __init__(self, address: str) -> None:
        parts = urlsplit(address)
        if parts.scheme not in ("http", "https") or not parts.hostname:
            raise InputError(f"events: {address!r} is no address of a webhook; allowed: https://HOST[:PORT]/PATH")
        self._address, self._host = address, parts.hostname
        super().__init__(f"{parts.scheme}://{parts.hostname}{parts.path}", self._post)

    def _post(self, event: Mapping[str, Any]) -> None:
        body = json.dumps(event, allow_nan=False).encode()
        request = urllib.request.Request(  # noqa: S310 - http and https only, checked above
            self._address, body, {"Content-Type": "application/json", "User-Agent": "edgevis"}, method="POST"
        )
        try:
            with urllib.request.urlopen(request, timeout=TIMEOUT_S) as answer:  # noqa: S310
                answer.read(1 << 16)
        except urllib.error.HTTPError as error:
            with error:
                if error.code in (408, 429) or error.code >= 500:
                    raise OSError(f"status {error.code}") from error
                _log.warning("the webhook at %s refuses an event: status %d", self._host, error.code)
        except http.client.HTTPException as error:  # no HTTP, or an answer that was cut
            raise OSError(f"{type(error).__name__}: {error}") from error
