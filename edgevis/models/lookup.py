"""Finds a model by its name (in this folder or an installed package) or by its path.

A name without a colon is a model of a file in this folder, or an entry point in the group :data:`GROUP` of an installed
package. ``package.module:NAME`` is looked up in that module, which is imported: from where Python finds it, or else
from the working folder. ``NAME`` is

* a :class:`~edgevis.models.entry.ModelEntry`, or the name of one in the module's ``ENTRIES``;
* or an ``nn.Module`` class whose keyword arguments are the model's options; its ``DEPLOYMENT``, and its ``RECIPES`` if
  it has any, are attributes of the class or of its module.

Such a model is called by its path, however it was found: in provenance, in the encoder identity and in messages. In all
names ``_`` and ``-`` mean the same.
"""

from __future__ import annotations

import functools
import importlib
import inspect
import logging
import os
import sys
from collections.abc import Mapping
from dataclasses import replace
from importlib import metadata
from types import ModuleType

import torch
from torch import nn

from edgevis.models.advice import deployment_advice
from edgevis.models.entry import ModelEntry
from runtime.bundle.spec import Deployment
from runtime.common.discovery import module_name, names_in
from runtime.errors import EdgevisError, ModelError, UnknownModelError

GROUP = "edgevis.models"
"""The group of entry points by which installed packages offer models."""

_log = logging.getLogger("edgevis.models")


def names() -> list[str]:
    """The model names that :func:`entry` accepts besides paths, sorted."""
    built_in = {item.name for item in _entries().values()}
    return sorted(built_in | {point.name for key, point in _entry_points().items() if key not in _entries()})


def entry(name: str) -> ModelEntry:
    """The declaration of a model.

    Args:
        name: One of :func:`names`, or ``package.module:NAME``.

    Raises:
        UnknownModelError: There is no such model.
        ModelError: What the name leads to declares no model, or cannot be imported.
    """
    if ":" in name:
        return _by_path(name)
    key = module_name(name)
    if key in _entries():
        return _entries()[key]
    if key in _entry_points():
        return _by_path(_entry_points()[key].value)
    raise UnknownModelError(f"no model {name!r}; known: {', '.join(names())}, or package.module:NAME")


def declared_entries() -> list[ModelEntry]:
    """The declarations of all :func:`names`; a model of an installed package that fails to load is logged."""
    entries = []
    for name in names():
        try:
            entries.append(entry(name))
        except EdgevisError as error:
            _log.warning("the model %s of an installed package is left out: %s", name, error)
    return entries


def file_name(name: str) -> str:
    """The default file name of a model: its name, or the part after the colon of a path."""
    return name.rpartition(":")[2]


@functools.cache
def _entries() -> Mapping[str, ModelEntry]:
    """The models of this folder by :func:`runtime.common.discovery.module_name` of their names."""
    entries: dict[str, ModelEntry] = {}
    for module in names_in(__package__):
        declared: tuple[ModelEntry, ...] = getattr(importlib.import_module(f"{__package__}.{module}"), "ENTRIES", ())
        for item in declared:
            if module_name(item.name) in entries:
                raise ModelError(f"two files in edgevis/models declare a model {item.name!r}")
            entries[module_name(item.name)] = item
    return entries


def _entry_points() -> dict[str, metadata.EntryPoint]:
    points: dict[str, metadata.EntryPoint] = {}
    for point in metadata.entry_points(group=GROUP):
        first = points.setdefault(module_name(point.name), point)
        if first.value != point.value:
            raise ModelError(
                f"two installed packages offer a model {point.name!r}: {first.value} and {point.value}; uninstall one"
            )
    return points


def _by_path(path: str) -> ModelEntry:
    place, _, name = (part.strip() for part in path.partition(":"))
    module = _imported(place, path)
    value = getattr(module, name, None)
    if value is None:
        entries = {module_name(item.name): item for item in getattr(module, "ENTRIES", ())}
        value = entries.get(module_name(name))
    path = f"{place}:{name}"
    if isinstance(value, ModelEntry):
        return replace(value, name=path)
    if isinstance(value, type) and issubclass(value, nn.Module):
        return _from_class(value, path)
    if value is None:
        offered = [key for key, item in vars(module).items() if _is_model(item)] + [
            item.name for item in getattr(module, "ENTRIES", ())
        ]
        raise UnknownModelError(f"{place} has no {name!r}; it has {', '.join(offered) or 'no model'}")
    raise ModelError(
        f"{path} is a {type(value).__name__}; allowed: an nn.Module class with a DEPLOYMENT, or ModelEntry"
    )


def _imported(place: str, path: str) -> ModuleType:
    """The module; the working folder counts, as for `python -m`."""
    if not place or not all(part.isidentifier() for part in place.split(".")):
        raise UnknownModelError(f"{path!r} is no path of a model; allowed: package.module:NAME")
    if not {"", os.getcwd()} & set(sys.path):
        sys.path.append(os.getcwd())
    importlib.invalidate_caches()  # its file may have been written a moment ago, as from a notebook
    try:
        return importlib.import_module(place)
    except ModuleNotFoundError as error:
        if error.name is not None and (place == error.name or place.startswith(f"{error.name}.")):
            raise UnknownModelError(
                f"there is no module {error.name} for the model {path!r}: install its package, or run in its folder"
            ) from error
        raise ModelError(f"{place} cannot be imported for the model {path!r}: {error}") from error
    except Exception as error:  # the imported code may raise anything
        raise ModelError(f"{place} cannot be imported for the model {path!r}: {error}") from error


def _is_model(value: object) -> bool:
    return isinstance(value, ModelEntry) or (
        isinstance(value, type)
        and issubclass(value, nn.Module)
        and isinstance(_beside(value, "DEPLOYMENT"), Deployment)
    )


def _beside(model: type[nn.Module], name: str) -> object:
    """An attribute of the class, or else of its module."""
    return getattr(model, name, getattr(sys.modules.get(model.__module__), name, None))


def _from_class(model: type[nn.Module], path: str) -> ModelEntry:
    deployment, recipes = _beside(model, "DEPLOYMENT"), _beside(model, "RECIPES")
    if not isinstance(deployment, Deployment):
        raise ModelError(deployment_advice(path))
    missing = [graph.name for graph in deployment.graphs if not callable(getattr(model, graph.name, None))]
    if missing:
        raise ModelError(f"{path} has no method {missing[0]!r}, which its DEPLOYMENT names as a graph")
    try:
        with torch.device("meta"):  # shapes without memory
            count = sum(parameter.numel() for parameter in model().parameters())
    except Exception as error:  # the imported code may raise anything
        raise ModelError(
            f"{path} cannot be made without arguments: {error}; give its options default values"
        ) from error
    return ModelEntry(
        name=path,
        build=model,
        deployment=deployment,
        paper=(inspect.getdoc(model) or "").partition("\n")[0],
        licence="",
        parameters=count,
        recipes=recipes if isinstance(recipes, Mapping) else {},
    )
