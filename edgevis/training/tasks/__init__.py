"""The training tasks: one file each, named as :attr:`runtime.bundle.spec.Deployment.task`."""

from __future__ import annotations

from typing import cast

from edgevis.training.task import TaskFactory
from runtime.common.discovery import load_from
from runtime.errors import InputError


def load(name: str) -> TaskFactory:
    """The task of that name; InputError lists the known ones."""
    return cast(TaskFactory, load_from(__name__, name, what="task that can be trained", error=InputError))
