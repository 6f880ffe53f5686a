"""Events as HTTP POST requests, one JSON object each."""

from __future__ import annotations

import http.client
import json
import logging
import urllib.error
import urllib.request
from base64 import b64encode
from collections.abc import Mapping
from typing import Any
from urllib.parse import unquote_to_bytes, urlsplit, urlunsplit

from runtime.common.addresses import without_password
from runtime.errors import InputError
from runtime.events.outbox import Outbox

_log = logging.getLogger("edgevis.events")

SCHEMES = ("http://", "https://")
TIMEOUT_S = 5.0
"""Seconds for a connection, and for each answer."""


def open_sink(address: str) -> Webhook:
    """A webhook; InputError when the address is malformed."""
    return Webhook(address)


class Webhook(Outbox):
    """Posts events to an address: ``Content-Type: application/json``, accepted by any status 2xx.

    A server that cannot be reached, that answers 408, 429 or 5xx, or that takes too long is tried again; by any other
    status an event is refused for good, and counts as sent. Redirections are not followed: the event would be lost.

    Args:
        address: ``https://[USER:PASSWORD@]HOST[:PORT]/PATH``; a login is sent as basic authentication.
    """

    def __init__(self, address: str) -> None:
        try:
            parts = urlsplit(address)
            valid = parts.scheme in ("http", "https") and parts.hostname and parts.port != 0
        except ValueError:  # of the port, or of brackets
            valid = False
        if not valid or any(not 32 < ord(letter) < 127 for letter in address):
            raise InputError(
                f"events: {without_password(address)!r} is no address of a webhook; allowed: https://HOST[:PORT]/PATH, "
                "ASCII without spaces, others as %XX"
            )
        login, _, place = parts.netloc.rpartition("@")
        self._address, self._host = urlunsplit(parts._replace(netloc=place, fragment="")), place
        self._headers = {"Content-Type": "application/json", "User-Agent": "edgevis"}
        if login:
            self._headers["Authorization"] = f"Basic {b64encode(unquote_to_bytes(login)).decode()}"
        self._opener = urllib.request.build_opener(_NoRedirection)
        super().__init__(f"{parts.scheme}://{place}{parts.path}", self._post)

    def _post(self, event: Mapping[str, Any]) -> None:
        body = json.dumps(event, allow_nan=False).encode()
        request = urllib.request.Request(  # noqa: S310 - http and https only, checked above
            self._address, body, self._headers, method="POST"
        )
        try:
            with self._opener.open(request, timeout=TIMEOUT_S) as answer:
                answer.read(1 << 16)
        except urllib.error.HTTPError as error:
            with error:
                if error.code in (408, 429) or error.code >= 500:
                    raise OSError(f"status {error.code}") from error
                _log.warning("the webhook at %s refuses an event: status %d", self._host, error.code)
        except http.client.HTTPException as error:  # no HTTP, or an answer that was cut
            raise OSError(f"{type(error).__name__}: {error}") from error


class _NoRedirection(urllib.request.HTTPRedirectHandler):
    """Makes an error of a redirection, in which a POST would become a GET without its body."""

    def redirect_request(self, *_: Any) -> None:
        return None
