"""Train a model on images, evaluate it, and write its weights (as `python -m edgevis.train`)."""

from __future__ import annotations

import argparse

from edgevis import train


def add_arguments(parser: argparse.ArgumentParser) -> None:
    train.add_arguments(parser)


def run(arguments: argparse.Namespace) -> int:
    return train.run(arguments)
