"""The files of a build whose engines do not compute what the model does, kept for ``python -m export.debug``."""

from __future__ import annotations

import logging
import os
import shutil
from collections.abc import Mapping
from pathlib import Path

import onnx
from onnx import ModelProto

from runtime.bundle.bundle import Bundle
from runtime.bundle.manifest import MAX_MANIFEST_BYTES, Manifest
from runtime.bundle.staging import unfinished_bundle
from runtime.common.files import atomic_write
from runtime.errors import IntegrityError

SOURCES = "sources"
"""The folder of the ONNX graphs that engines were compiled from: ``sources/ENGINE/GRAPH.onnx``."""

GRAPH = "graph"
"""The name of a graph that ONNX Runtime runs node by node, where an engine's name could stand."""

_MANIFEST = "failed.json"  # not a bundle's: no predictor opens what failed
_ENDING = ".failed"

_log = logging.getLogger("edgevis.export")


def keep_failed(
    staged: Path, output: Path, manifest: Manifest, sources: Mapping[str, Mapping[str, ModelProto]]
) -> Path | None:
    """Move a failed build's files beside its output, in place of those of an earlier one.

    Args:
        staged: The folder of the files; it is gone afterwards.
        output: The bundle that was to be written, ``NAME.edgevis``; the files go to ``NAME.failed``.
        manifest: What it would have said, without parity.
        sources: Engine to the graphs that it was compiled from.

    Returns:
        The folder; None where the files cannot be kept: the disk is full, or a folder of that name is something else.
    """
    folder = output.with_suffix(_ENDING)
    try:
        for engine, graphs in sources.items():
            target = staged / SOURCES / engine
            target.mkdir(parents=True)
            for graph, model in graphs.items():
                onnx.save(model, target / f"{graph}.onnx")
        text = unfinished_bundle(staged, manifest).manifest.dumps()
        with atomic_write(staged / _MANIFEST) as file:
            file.write(text.encode())
        if is_failed_build(folder):
            shutil.rmtree(folder)
        os.rename(staged, folder)
    except OSError as error:
        _log.warning("the engines that failed are not kept in %s: %s", folder, error)
        return None
    return folder


def is_failed_build(folder: Path) -> bool:
    """Whether a folder holds what :func:`keep_failed` kept."""
    return (folder / _MANIFEST).is_file()


def open_failed(folder: Path) -> Bundle:
    """The files of a failed build as a bundle; its files are checked as a bundle's are.

    Raises:
        IntegrityError: Its list of files is not what was written.
        SchemaError: It is no such list.
    """
    path = folder / _MANIFEST
    if path.stat().st_size > MAX_MANIFEST_BYTES:
        raise IntegrityError(f"{path} has more than {MAX_MANIFEST_BYTES} bytes")
    return Bundle.of_manifest(folder, Manifest.loads(path.read_bytes()))
