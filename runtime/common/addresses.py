"""Addresses such as ``rtsp://user:password@camera/1``: what may be shown of them, and which are live."""

from __future__ import annotations

import re
from urllib.parse import unquote

from runtime.errors import InputError

HIDDEN = "***"

# Up to the last @: a password may hold /, ? and #, though they should be escaped there.
_LOGIN = re.compile(r"(?P<scheme>[A-Za-z][A-Za-z0-9+.-]*:/{1,2})(?P<login>[^\s/?#]*[:@]\S*|[^\s/?#]*)@")
# Cameras that take no login in the usual place take it as a parameter.
_PARAMETER = re.compile(
    r"(?i)(?P<name>[?&;/_](?:[a-z0-9.-]*(?:pass(?:wd|word)?|pwd|secret|token|api_?key|auth|signature|sig))=)[^\s&;#]+"
)

_COLLAPSED = re.compile(r"[A-Za-z][A-Za-z0-9+.-]+:/(?!/)")

ALWAYS_LIVE = frozenset({"rtp", "rtmp", "rtmps", "rtsp", "rtsps", "rtspt", "srt", "tcp", "udp"})
"""Schemes of which the end is always that of a camera; what HTTP delivers may be a recording."""


def is_address(text: str) -> bool:
    """Whether a text is an address and not a path."""
    return "://" in text


def looks_like_address(text: str) -> bool:
    """Whether a text is an address, or one that has been a ``Path``, which makes ``rtsp:/`` of ``rtsp://``."""
    return is_address(text) or _COLLAPSED.match(text) is not None


def scheme_of(address: str) -> str:
    return address.partition("://")[0].lower()


def check_address(address: str) -> None:
    """Raise InputError for an address that no reader can take."""
    try:
        address.encode()
    except UnicodeEncodeError:
        raise InputError(
            f"the address {without_password(address)!r} is not UTF-8; allowed: text such as rtsp://camera/1"
        ) from None
    if any(ord(letter) < 32 for letter in address):
        raise InputError(f"the address {without_password(address)!r} holds control characters")


def without_password(text: str) -> str:
    """A text in which ``***`` stands for the user name and password of every address, and for secret parameters."""
    return _PARAMETER.sub(rf"\g<name>{HIDDEN}", _LOGIN.sub(rf"\g<scheme>{HIDDEN}@", text))


def secrets_of(address: str) -> tuple[str, ...]:
    """The password of an address as it stands there and decoded; libraries quote either."""
    login = _LOGIN.match(address)
    password = login["login"].partition(":")[2] if login else ""
    return tuple(dict.fromkeys(text for text in (password, unquote(password)) if text))


def hide(text: str, address: str) -> str:
    """:func:`without_password`, and without the password of ``address`` wherever else it stands in the text."""
    text = without_password(text)
    for secret in secrets_of(address):
        text = text.replace(secret, HIDDEN)
    return text
