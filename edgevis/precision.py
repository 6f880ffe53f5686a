"""The argument ``--precision`` of every command line: the same names and the same error everywhere."""

from __future__ import annotations

import argparse
from collections.abc import Callable, Sequence
from types import MappingProxyType
from typing import cast, get_args

from runtime.bundle.spec import Precision

TRAINING_PRECISIONS = MappingProxyType({"fp32": "32-true", "bf16": "bf16-mixed", "fp16": "16-mixed"})
"""Names of a training's precision, and Fabric's name of each."""

PRECISIONS: tuple[Precision, ...] = get_args(Precision)


def precision(text: str) -> Precision:
    """The precision of that name; ``argparse`` prints the error of another one."""
    return cast(Precision, _checked(text, PRECISIONS))


def training_precision(text: str) -> str:
    """Fabric's name of a training's precision, from a key of :data:`TRAINING_PRECISIONS` or Fabric's name itself."""
    if text in TRAINING_PRECISIONS.values():
        return text
    return TRAINING_PRECISIONS[_checked(text, tuple(TRAINING_PRECISIONS))]


def precisions(*more: str) -> Callable[[str], tuple[str, ...]]:
    """Reads several names with commas between them; ``more`` are allowed besides the precisions."""

    def read(text: str) -> tuple[str, ...]:
        names = tuple(part.strip() for part in text.split(",") if part.strip())
        if not names:
            raise argparse.ArgumentTypeError(f"no precision is named; known: {', '.join((*PRECISIONS, *more))}")
        return tuple(_checked(name, (*PRECISIONS, *more)) for name in names)

    return read


def _checked(name: str, known: Sequence[str]) -> str:
    if name not in known:
        raise argparse.ArgumentTypeError(f"there is no precision {name!r}; known: {', '.join(known)}")
    return name
