"""KEY=VALUE of a command line, as recipes and models take them."""

from __future__ import annotations

import argparse
import json
from typing import Any


def setting(text: str) -> tuple[str, Any]:
    """A KEY=VALUE of the command line; the value is JSON, or text where it is none."""
    name, equals, value = text.partition("=")
    if not (name and equals):
        raise argparse.ArgumentTypeError(f"{text!r} is not KEY=VALUE")
    return name, setting_value(value)


def setting_value(text: str) -> Any:
    """The value parsed as JSON, or the text if it is no JSON; its consumer validates it."""
    try:
        return json.loads(text)
    except (ValueError, RecursionError):
        return text
