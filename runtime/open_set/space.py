"""The space in which embeddings are scored against labels, and the normalisation of the scores.

A raw cosine means different things for different images: an image of a common kind is near to everything. So a model's
weights bring measurements on images that are never enrolled (the *background*):

1. *Whitening*: embeddings are centred on the background's mean and, where views of one object under different cameras
   were at hand, multiplied by the inverse square root of the within-class covariance (WCCN; Hatch, Kajarekar, Stolcke,
   Interspeech 2006), so that directions in which cameras differ weigh less than those in which persons differ.
2. *Cohort normalisation*: from each score the mean of the query's highest cosines to the background's centroids is
   taken off, the mean part of an adaptive T-norm (Sturim, Reynolds, ICASSP 2005). The part is the same for all labels:
   it moves no label before another one, only strangers away from the enrolled.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import numpy.typing as npt

from runtime.common.arrays import Array, unit_rows
from runtime.errors import SchemaError

FILE = "open_set.npz"
"""The file of a bundle that holds a space's arrays."""

MAX_BYTES = 256 << 20
_MAX_COHORT = 4096
_CAMERA_DIRECTIONS = 8


@dataclass(frozen=True, eq=False)
class ScoreSpace:
    """The space in which embeddings of one model are scored.

    Attributes:
        mean: (D,) float32, of the background's unit rows.
        whitening: (D, D) float32, symmetric; None where embeddings are only centred.
        cohort: (K, D) float32 unit rows of the space: the background's centroids.
        neighbours: The number of nearest centroids that make a query's offset.
        strength: The share of their mean cosine that is subtracted, 0..1.
        level: Their mean cosine over the background, given back, so that scores stay where cosines are.
    """

    mean: Array
    whitening: Array | None
    cohort: Array
    neighbours: int
    strength: float
    level: float

    @property
    def dimension(self) -> int:
        """The number D of values in a row."""
        return int(self.mean.shape[0])

    @cached_property
    def digest(self) -> str:
        """SHA-256 of the parameters of the projection; rows of equal digests may be compared."""
        digest = hashlib.sha256(np.ascontiguousarray(self.mean).tobytes())
        if self.whitening is not None:
            digest.update(np.ascontiguousarray(self.whitening).tobytes())
        return digest.hexdigest()

    def project(self, embeddings: Array) -> npt.NDArray[np.float32]:
        """Project (N, D) float32 unit rows of the model to (N, D) float32 unit rows of the space."""
        rows = embeddings - self.mean
        if self.whitening is not None:
            rows = rows @ self.whitening
        # In float32, unlike unit_rows: this is in every query's way, and a tenth of a millionth changes nothing.
        rows /= np.maximum(np.sqrt(np.einsum("nd,nd->n", rows, rows)), np.float32(1e-12))[:, None]
        return rows

    def camera_coordinates(self, rows: Array) -> npt.NDArray[np.float32]:
        """(N, K) float32: (N, D) rows of the space in the directions that the whitening holds down most.

        In these, views of one object differ most from camera to camera; the whitening is taken back. Without one, all.
        """
        if self.whitening is None:
            return np.asarray(rows, np.float32)
        scales, directions = self._whitening_axes
        return np.asarray(rows @ directions[:, :_CAMERA_DIRECTIONS] / scales[:_CAMERA_DIRECTIONS], np.float32)

    @cached_property
    def _whitening_axes(self) -> tuple[Array, Array]:
        """The eigenvalues of the whitening, ascending, and its eigenvectors."""
        scales, directions = np.linalg.eigh(np.asarray(self.whitening, np.float64))
        return np.maximum(scales, 1e-6), directions

    def offsets(self, rows: Array) -> npt.NDArray[np.float32]:
        """(N,) float32: the offset subtracted from the scores of each of (N, D) rows of the space."""
        cosines = rows @ self.cohort.T
        cosines.partition(len(self.cohort) - self.neighbours, axis=1)
        share, level = np.float32(self.strength / self.neighbours), np.float32(self.strength * self.level)
        return np.asarray(cosines[:, -self.neighbours :].sum(axis=1) * share - level)

    def arrays(self) -> dict[str, Array]:
        """The arrays that :func:`space_from` reads, in float16 where that is enough."""
        arrays: dict[str, Array] = {
            "mean": np.asarray(self.mean, np.float32),
            "cohort": np.asarray(self.cohort, np.float16),
            "normalisation": np.array([self.neighbours, self.strength, self.level], np.float64),
        }
        if self.whitening is not None:
            arrays["whitening"] = np.asarray(self.whitening, np.float16)
        return arrays


def space_from(arrays: Mapping[str, Array], dimension: int, where: str) -> ScoreSpace:
    """The space of a model whose embeddings have ``dimension`` numbers.

    Args:
        arrays: The arrays that :meth:`ScoreSpace.arrays` returns.
        dimension: D.
        where: The file's name, for messages.

    Raises:
        SchemaError: An array is missing, unknown, of another shape, or not finite.
    """
    allowed = {"mean", "cohort", "normalisation", "whitening"}
    if not allowed - {"whitening"} <= set(arrays) <= allowed:
        raise SchemaError(f"{where} holds {sorted(arrays)}; needed: cohort, mean, normalisation; allowed: whitening")
    for name, array in arrays.items():
        if array.dtype not in (np.float16, np.float32, np.float64) or not np.isfinite(array).all():
            raise SchemaError(f"{where}: {name} must hold finite floating-point numbers")
    mean, cohort = (np.asarray(arrays[name], np.float32) for name in ("mean", "cohort"))
    whitening = np.asarray(arrays["whitening"], np.float32) if "whitening" in arrays else None
    if mean.shape != (dimension,) or cohort.ndim != 2 or cohort.shape[1:] != (dimension,):
        raise SchemaError(f"{where}: mean {mean.shape} and cohort {cohort.shape} do not fit embeddings of {dimension}")
    if whitening is not None and whitening.shape != (dimension, dimension):
        raise SchemaError(f"{where}: whitening has shape {whitening.shape}; needed: ({dimension}, {dimension})")
    if arrays["normalisation"].shape != (3,) or not 1 <= len(cohort) <= _MAX_COHORT:
        raise SchemaError(f"{where}: normalisation must be three numbers, the cohort 1 to {_MAX_COHORT} rows")
    neighbours, strength, level = (float(value) for value in arrays["normalisation"])
    if not (1 <= neighbours <= len(cohort) and 0 <= strength <= 1 and -1 <= level <= 1):
        raise SchemaError(
            f"{where}: neighbours {neighbours}, strength {strength}, level {level}; allowed: 1 to the cohort's "
            f"{len(cohort)}, 0..1, -1..1"
        )
    return ScoreSpace(mean, whitening, unit_rows(cohort), int(neighbours), strength, level)
