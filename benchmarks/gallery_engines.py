"""Nearest-neighbour search engines behind one protocol: the gallery and its competitors in their default form.

Every engine holds (N, D) float32 unit rows under the integers 0..N-1 and finds the nearest by inner product. The ones
that are not installed are left out: ``pip install faiss-cpu usearch numkong``.
"""

from __future__ import annotations

import importlib
import importlib.util
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from runtime.common.arrays import Array
from runtime.enrolment.file import Enrolment, EnrolmentEncoder, load_enrolment, save_enrolment
from runtime.gallery.embedded import EmbeddedGallery
from runtime.gallery.kernels import KERNELS, best_kernel
from runtime.gallery.rows import RowsByLabel

_ENCODER = EnrolmentEncoder("0" * 64, "benchmark", "none", shares_enrolments=True)


class SearchEngine(Protocol):
    """A search engine over rows. Most also ``add(number, row)``, ``remove(number)`` and ``save(path)``; an
    index can ``widen(width)`` its search, False when it has none to widen.
    """

    exact: bool

    def search(self, queries: Array, top_k: int) -> Array:
        """(B, top_k) numbers of the nearest rows, nearest first."""
        ...


class EdgevisGallery:
    """The gallery of edgevis, with a label for each row."""

    exact = True
    index_from: int | None = None

    def __init__(self, rows: Array, kernel: str | None) -> None:
        self._gallery = EmbeddedGallery(rows.shape[1], "nearest", kernel=kernel, index_from=self.index_from)
        labels = [f"person {index:07d}" for index in range(len(rows))]
        self._gallery.replace(RowsByLabel(labels, np.ones(len(rows), np.int64), rows))

    def add(self, number: int, row: Array) -> None:
        self._gallery.add(f"person {number:07d}", row)

    def remove(self, number: int) -> None:
        self._gallery.remove(f"person {number:07d}")

    def search(self, queries: Array, top_k: int) -> Array:
        rankings = self._gallery.search(queries, top_k)
        return np.array([[int(match.label[7:]) for match in matches] for matches in rankings])

    def save(self, path: Path) -> None:
        save_enrolment(path, Enrolment(_ENCODER, self._gallery.contents(), None))

    @classmethod
    def load(cls, path: Path, kernel: str | None, dimension: int) -> EdgevisGallery:
        loaded = cls(np.empty((0, dimension), np.float32), kernel)
        loaded._gallery.replace(load_enrolment(path).rows)
        return loaded


class IndexedGallery(EdgevisGallery):
    """The gallery of edgevis with its approximate index, which is built before the constructor returns."""

    exact = False
    index_from: int | None = 1000

    def __init__(self, rows: Array, kernel: str | None) -> None:
        super().__init__(rows, kernel)
        self._gallery.wait_for_index()

    @classmethod
    def load(cls, path: Path, kernel: str | None, dimension: int) -> EdgevisGallery:
        loaded = super().load(path, kernel, dimension)
        loaded._gallery.wait_for_index()
        return loaded


class Numpy:
    """NumPy: one product and a partition. Adding or removing a row copies all rows."""

    exact = True

    def __init__(self, rows: Array) -> None:
        self._rows = rows

    def add(self, number: int, row: Array) -> None:
        self._rows = np.concatenate([self._rows, row])

    def remove(self, number: int) -> None:
        self._rows = np.delete(self._rows, number, axis=0)

    def product(self, queries: Array) -> Array:
        return np.asarray(queries @ self._rows.T)

    def search(self, queries: Array, top_k: int) -> Array:
        scores = self.product(queries)
        best = np.argpartition(scores, -top_k, axis=1)[:, -top_k:]
        order = np.argsort(-np.take_along_axis(scores, best, axis=1), axis=1)
        return np.take_along_axis(best, order, axis=1)

    def save(self, path: Path) -> None:
        with path.open("wb") as file:
            np.save(file, self._rows)


class Faiss:
    """A FAISS index, by its factory string."""

    def __init__(self, rows: Array, factory: str, *, refined: bool = False) -> None:
        import faiss

        self.exact = factory == "Flat"
        self._index: Any = faiss.index_factory(rows.shape[1], factory, faiss.METRIC_INNER_PRODUCT)
        if refined:
            self._index = faiss.IndexRefineFlat(self._index)
        self._index.train(rows[:: max(1, len(rows) // 40_000)])
        self._index.add(rows)

    def widen(self, width: int) -> bool:
        hnsw = getattr(self._index, "hnsw", None)
        for settings, name, unit in ((hnsw, "efSearch", 1), (self._index, "nprobe", 1), (self._index, "k_factor", 4)):
            if hasattr(settings, name):
                setattr(settings, name, width // unit)
                return True
        return False

    def add(self, number: int, row: Array) -> None:
        self._index.add(row)

    def remove(self, number: int) -> None:
        self._index.remove_ids(np.array([number]))

    def search(self, queries: Array, top_k: int) -> Array:
        return np.asarray(self._index.search(queries, top_k)[1])

    def save(self, path: Path) -> None:
        import faiss

        faiss.write_index(self._index, str(path))


class UsearchExact:
    """USearch's exact search over an array."""

    exact = True

    def __init__(self, rows: Array) -> None:
        self._rows = rows

    def search(self, queries: Array, top_k: int) -> Array:
        from usearch.index import MetricKind, search

        matches = search(self._rows, queries, top_k, MetricKind.IP, exact=True)
        return np.asarray(matches.keys).reshape(len(queries), -1)


class Usearch:
    """USearch's graph over fp16 rows."""

    exact = False

    def __init__(self, rows: Array) -> None:
        from usearch.index import Index

        self.index = Index(ndim=rows.shape[1], metric="cos", dtype="f16", connectivity=32, expansion_add=128)
        self.index.add(np.arange(len(rows)), rows)

    def add(self, number: int, row: Array) -> None:
        self.index.add(number, row[0])

    def remove(self, number: int) -> None:
        self.index.remove(number)

    def widen(self, width: int) -> bool:
        self.index.expansion_search = width
        return True

    def search(self, queries: Array, top_k: int) -> Array:
        return np.asarray(self.index.search(queries, top_k).keys).reshape(len(queries), -1)

    def save(self, path: Path) -> None:
        self.index.save(str(path))


def galleries() -> list[str | None]:
    """The kernels with which the gallery runs here, the default first."""
    return [name for name in KERNELS if best_kernel(name) is not None]


def has(package: str) -> bool:
    """Whether a competitor is installed."""
    return importlib.util.find_spec(package) is not None


def prepare(name: str) -> None:
    """Import the modules that loading an engine needs."""
    for package in ("faiss", "usearch"):
        if package in name.lower():
            importlib.import_module(package)
    if name.startswith("edgevis"):
        galleries()


def load(name: str, path: Path, dimension: int) -> Any:
    """Load what an engine of that name saved."""
    if name == "edgevis (index)":
        return IndexedGallery.load(path, None, dimension)
    if name.startswith("edgevis"):
        kernel = next((kernel for kernel in KERNELS if kernel in name), None)
        return EdgevisGallery.load(path, kernel, dimension)
    if "FAISS" in name:
        import faiss

        return faiss.read_index(str(path))
    if "USearch" in name:
        from usearch.index import Index

        return Index.restore(str(path))
    return np.load(path)
