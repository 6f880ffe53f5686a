"""The in-process gallery: exact cosine search; adding and removing rows has a constant cost."""

from __future__ import annotations

import importlib.util
import threading
from collections.abc import Iterator, Mapping, Sequence

import numpy as np

from runtime.common.arrays import Array
from runtime.common.extras import install_command
from runtime.errors import InputError, UnknownLabelError
from runtime.gallery.index import IndexInfo
from runtime.gallery.kernels import KERNELS, best_kernel
from runtime.gallery.queries import Queries
from runtime.gallery.rows import RowsByLabel, rows_by_label
from runtime.gallery.search import named, search
from runtime.gallery.state import GalleryState, Scoring, SlotEpoch
from runtime.gallery.store import Store
from runtime.gallery.tracking import BestScores
from runtime.results import Match

_BULK_ROWS = 16384  # that are taken into the store at once
_SHOWN_LABELS = 20  # the number of labels that an error message lists


class EmbeddedGallery:
    """Embeddings by label, in memory. Threads may search while another one adds.

    Adding and removing cost the same however much is enrolled. A reader sees one state from its first line to its
    last: each change puts a new state in place, which shares its blocks of rows with the one before.

    Args:
        dimension: D, the length of an embedding.
        scoring: The score of a query against a label: ``nearest`` takes the label's closest embedding (a person looks
            different from each side), ``prototype`` the mean of its embeddings (few-shot classification), ``blend``
            the mean of both scores.
        kernel: The package that computes the first pass of a search: ``numkong`` or ``onnxruntime``; None for the
            fastest that is installed. What is found is the same.
        index_from: From how many rows on searches go through an approximate index that a thread makes and keeps, once
            it is made and was measured to be faster and to miss little: see :mod:`runtime.gallery.index`. None for
            exact searches alone.

    Raises:
        InputError: There is no such kernel, or it does not run here; or there is to be an index and USearch is not
            installed.
    """

    def __init__(
        self, dimension: int, scoring: Scoring, *, kernel: str | None = None, index_from: int | None = None
    ) -> None:
        if kernel is not None and (kernel not in KERNELS or best_kernel(kernel) is None):
            here = ", ".join(name for name in KERNELS if best_kernel(name)) or "none"
            raise InputError(f"kernel is {kernel!r}; allowed: None or one that runs here: {here}")
        if index_from is not None:
            _check_index(index_from)
        self.dimension = dimension
        self.scoring = scoring
        self.index_from = index_from
        self._writing = threading.Lock()
        self.kernel = kernel
        self._store = Store(dimension, scoring, kernel=kernel, index_from=index_from)

    @property
    def state(self) -> GalleryState:
        """An immutable snapshot of the enrolled rows."""
        return self._store.state

    @property
    def labels(self) -> tuple[str, ...]:
        return self.state.labels

    @property
    def label_count(self) -> int:
        """The number of labels, without building their list."""
        return self.state.label_count

    @property
    def version(self) -> int:
        """The version, which grows with every change; equal versions of one gallery have equal contents."""
        return self.state.version

    def __len__(self) -> int:
        """The number of embeddings."""
        return self.state.row_count

    def add(self, label: str, embeddings: Array) -> None:
        """Add (N, D) float32 unit rows to a label, making it if it is new.

        Raises:
            InputError: They are not (N, D) with N >= 1, or not of length one; nothing was enrolled.
        """
        self._check_shape(embeddings)
        rows = np.asarray(embeddings, np.float32)
        counts = np.array([len(rows)])
        _check_lengths([label], counts, rows)
        with self._writing:
            self._store.add([label], counts, rows)

    def remove(self, label: str) -> None:
        """Forget a label and all its embeddings; UnknownLabelError when there is none."""
        with self._writing:
            if not self._store.remove(label):
                labels = self.labels
                shown = ", ".join(labels[:_SHOWN_LABELS]) or "nobody"
                more = f" and {len(labels) - _SHOWN_LABELS} more" if len(labels) > _SHOWN_LABELS else ""
                raise UnknownLabelError(f"{label!r} is not enrolled; enrolled: {shown}{more}")

    def alive(self, epoch: SlotEpoch, slots: Array) -> tuple[GalleryState, Array]:
        """The state of now, and which of (N,) ``slots`` of an epoch are still those of labels: False for all of an
        epoch that has ended.
        """
        with self._writing:
            state = self._store.state
            if state.epoch is not epoch:
                return state, np.zeros(len(slots), bool)
            return state, self._store.alive(slots)

    def search(self, queries: Array, top_k: int) -> list[tuple[Match, ...]]:
        """The best labels for each of (N, D) float32 rows, best first; equal scores in the order of enrolment."""
        return self.search_rows(queries, top_k)

    def search_rows(self, queries: Array, top_k: int) -> list[tuple[Match, ...]]:
        """As :meth:`search`, by the enrolled rows themselves, whatever else a gallery scores its labels by."""
        store, query_batch = self._store, Queries(queries)
        index = None if store.indexing is None else store.indexing.index  # before the state, which is then not older
        state = store.state
        if index is None or not state.label_count:
            return search(state, query_batch, top_k)
        return named(state, index.best(state, query_batch, top_k))

    @property
    def index(self) -> IndexInfo | None:
        """The measurement of the index; None while there is no index."""
        indexing = self._store.indexing
        return None if indexing is None else indexing.info

    def wait_for_index(self, timeout: float | None = None) -> None:
        """Wait until an index that is being built is ready, at most ``timeout`` seconds."""
        if self._store.indexing is not None:
            self._store.indexing.wait(timeout)

    def rows_of(self, label: str) -> Array:
        """(N, D) float32: the rows of a label; N is 0 when it is not enrolled."""
        with self._writing:
            state, slot = self._store.state, self._store.slot_of(label)
        if slot is None:
            return np.empty((0, self.dimension), np.float32)
        return state.rows_at(np.flatnonzero(state.slots == slot))

    def items(self) -> Iterator[tuple[str, Array]]:
        """Yield each label of one state with its (N, D) float32 rows, in order, without copying everything."""
        return self.state.grouped()

    def contents(self) -> RowsByLabel:
        """Label to (N, D) float32 unit rows, in order: a copy of one state, in one array."""
        state = self.state
        matrix = np.empty((state.row_count, self.dimension), np.float32)
        end = 0
        for _, rows in state.grouped():
            matrix[end : end + len(rows)] = rows
            end += len(rows)
        return RowsByLabel(state.labels, state.counts[state.live_slots], matrix)

    def replace(self, rows: Mapping[str, Array]) -> None:
        """Replace all rows by ``rows`` in one step; InputError, and nothing changes, when they do not fit."""
        fresh = Store(self.dimension, self.scoring, kernel=self.kernel, labels=len(rows), index_from=self.index_from)
        if rows:
            for embeddings in (rows.matrix,) if isinstance(rows, RowsByLabel) else rows.values():
                self._check_shape(embeddings)
            for labels, counts, part in rows_by_label(rows).slices(_BULK_ROWS):
                embeddings = np.asarray(part, np.float32)
                _check_lengths(labels, counts, embeddings)
                fresh.add(labels, counts, embeddings)
        with self._writing:
            before = self._store
            fresh.follow(before)
            self._store = fresh
        if before.indexing is not None:
            before.indexing.stop()

    def best_scores(self, probes: Array) -> BestScores:
        """Follows the best score of each of (N, D) float32 rows; see :class:`runtime.gallery.tracking.BestScores`."""
        return BestScores(self, probes)

    def _check_shape(self, embeddings: Array) -> None:
        if embeddings.ndim != 2 or embeddings.shape[1] != self.dimension or not len(embeddings):
            raise InputError(
                f"embeddings of shape {embeddings.shape}; this gallery takes (N, {self.dimension}), N >= 1"
            )


def _check_index(index_from: object) -> None:
    if isinstance(index_from, bool) or not isinstance(index_from, (int, np.integer)) or index_from < 1:
        raise InputError(f"index_from is {index_from!r}; allowed: None or an int >= 1, a number of rows")
    if importlib.util.find_spec("usearch") is None:
        raise InputError(f"index_from asks for an index, which needs USearch: {install_command('search')}")


def _check_lengths(labels: Sequence[str], counts: Array, rows: Array) -> None:
    # Also false for zeros, which have no direction, and for NaN, which compares false with everything.
    sound = np.abs(np.einsum("nd,nd->n", rows, rows) - 1.0) <= 1e-3
    if not sound.all():
        label = labels[int(np.searchsorted(np.cumsum(counts), np.argmin(sound), side="right"))]
        raise InputError(
            f"an embedding for {label!r} is not a row of length one (all zero or not finite?): the model cannot "
            "use such an image; nothing was enrolled"
        )
