"""The ranges of activations, measured on real images in one pass and bounded memory.

ONNX Runtime 1.31's own calibrators are not used: the histogram ones keep every intermediate tensor of every image
(1.4 GB for 48 images of OSNet x0.25), print to standard output and have 128 bins whose width the first image decides,
too few for their entropy method, which gave what min-max gives; the min-max one forgets images when its
``CalibMaxIntermediateOutputs`` is set.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
import onnx_ir as ir

from calibration.quantize.sessions import open_session
from runtime.common.arrays import Array
from runtime.errors import ExportError

Method = Literal["mse", "percentile", "entropy", "minmax"]

_BINS = 2048
_LEVELS = 127  # of int8 on either side of zero; -128 stays unused, so that the range is symmetric
_SMALLEST_SHARE = 0.1
_CANDIDATES = 128
# The entropy method's number of int8 magnitudes, and the number of bins between two of its candidates.
_ENTROPY_LEVELS = 128
_ENTROPY_STEP = 8
# The floor for a probability that the coarse distribution lacks; zero would make the divergence infinite.
_SMALLEST_PROBABILITY = 1e-10
# The number of evenly spaced values that are counted of a larger array; the peak is always that of all values.
_COUNTED = 1 << 17
# Smaller values count as zero: one bin of their histogram, or one step of int8, would have no normal float32 number.
_SMALLEST_PEAK = float(np.finfo(np.float32).tiny) * _BINS


class Histogram:
    """A histogram of one tensor's magnitudes: equal bins from zero to ``top``, which doubles for larger values."""

    def __init__(self) -> None:
        self.counts: npt.NDArray[np.int64] = np.zeros(_BINS, np.int64)
        self.top = 0.0
        self.peak = 0.0

    def add(self, values: Array) -> None:
        """Count an array of any shape; one without a magnitude of 2.4e-35 counts as zeros.

        Raises:
            ExportError: It holds NaN or infinity.
        """
        if not values.size:
            return
        peak = float(max(values.max(), -values.min()))
        if not np.isfinite(peak):
            raise ExportError("the values are not finite")
        # An odd step, so that it does not stay in one column of an image.
        magnitude = np.abs(values.ravel()[:: values.size // _COUNTED | 1])
        if peak < _SMALLEST_PEAK:
            self.counts[0] += magnitude.size
            return
        if self.top == 0.0:
            self.top = peak
        while peak > self.top:
            self.counts[: _BINS // 2] = self.counts.reshape(-1, 2).sum(axis=1)
            self.counts[_BINS // 2 :] = 0
            self.top *= 2.0
        bins = np.minimum((magnitude * (_BINS / self.top)).astype(np.int32), _BINS - 1)
        self.counts += np.bincount(bins, minlength=_BINS)
        self.peak = max(self.peak, peak)

    def amax(self, method: Method, percentile: float) -> float:
        """The magnitude that the largest integer represents; 1 for a tensor that was always zero.

        Args:
            method: ``minmax`` takes the largest value; ``percentile`` cuts off the rarest largest values; ``mse`` takes
                the cut with the least mean squared error of rounding and cutting together; ``entropy`` takes the cut
                whose coarse distribution diverges least from the fine one, see :func:`_entropy_bins`.
            percentile: The share of all values that ``percentile`` keeps, 0..100.
        """
        if self.peak == 0.0:
            return 1.0
        if method == "minmax":
            return self.peak
        if method == "percentile":
            cumulative = np.cumsum(self.counts) / self.counts.sum()
            edge = (int(np.searchsorted(cumulative, percentile / 100.0)) + 1) * self.top / _BINS
            return min(edge, self.peak)
        if method == "entropy":
            return min(_entropy_bins(self.counts) * self.top / _BINS, self.peak)
        centre = (np.arange(_BINS) + 0.5) * (self.top / _BINS)
        candidates = self.peak * np.linspace(_SMALLEST_SHARE, 1.0, _CANDIDATES)
        scale = candidates[:, None] / _LEVELS
        rounded = np.minimum(np.round(centre / scale), _LEVELS) * scale
        error = ((centre - rounded) ** 2) @ self.counts
        return float(candidates[int(np.argmin(error))])


def _entropy_bins(counts: npt.NDArray[np.int64]) -> int:
    """The number of bins in the range with which int8 keeps most of the information, by KL divergence.

    For each candidate the values beyond it fall into its last bin, the bins are merged into int8's 128 magnitudes, and
    each of these is spread evenly over those of its bins that held anything; the candidate whose spread distribution
    has the least Kullback-Leibler divergence from the unmerged one wins. The bin at zero does not count: zeros, which
    a ReLU makes in masses, are exact in any range.

    Source: Migacz, "8-bit Inference with TensorRT", GPU Technology Conference 2017, slides 38-40; Kullback, Leibler,
    "On Information and Sufficiency", Annals of Mathematical Statistics 22, 1951.
    """
    counted = counts.astype(np.float64)
    counted[0] = 0.0
    total = counted.sum()
    if total == 0.0:
        return len(counts)
    best, least = len(counts), np.inf
    for bin_count in range(_ENTROPY_LEVELS, len(counts) + 1, _ENTROPY_STEP):
        inside = counted[:bin_count]
        fine = inside.copy()
        fine[-1] += total - inside.sum()
        level = np.arange(bin_count) * _ENTROPY_LEVELS // bin_count
        filled = np.bincount(level, weights=inside > 0, minlength=_ENTROPY_LEVELS)
        mass = np.bincount(level, weights=inside, minlength=_ENTROPY_LEVELS)
        coarse = np.where(inside > 0, (mass / np.maximum(filled, 1))[level], 0.0)
        if coarse.sum() == 0.0:
            continue
        p, q = fine / total, np.maximum(coarse / coarse.sum(), _SMALLEST_PROBABILITY)
        some = p > 0
        divergence = float((p[some] * np.log(p[some] / q[some])).sum())
        if divergence < least:
            best, least = bin_count, divergence
    return best


def measure_histograms(
    model: ir.Model, tensors: Sequence[str], feeds: Iterable[Mapping[str, Array]]
) -> dict[str, Histogram]:
    """Run ``feeds`` through a float graph and count the values of ``tensors``; one feed is in memory at a time.

    Raises:
        ExportError: A tensor holds NaN or infinity; the message names it.
        MissingDependencyError: ONNX Runtime is not installed.
    """
    session, outputs = _session_with_outputs(model, tensors)
    histograms = {name: Histogram() for name in tensors}
    for feed in feeds:
        values = dict(zip(outputs, session.run(outputs, dict(feed)), strict=True))
        for name, histogram in histograms.items():
            try:
                histogram.add(values[name] if name in values else feed[name])
            except ExportError as error:
                raise ExportError(f"calibration: the tensor {name!r} cannot be quantised: {error}") from error
    return histograms


def _session_with_outputs(model: ir.Model, tensors: Sequence[str]) -> tuple[Any, list[str]]:
    """A session that returns the ``tensors`` that are not inputs, and their names."""
    probe = model.clone()
    values = ir.convenience.create_value_mapping(probe.graph)
    outputs = [name for name in tensors if not values[name].is_graph_input()]
    probe.graph.outputs.clear()
    for name in outputs:
        values[name].type = ir.TensorType(ir.DataType.FLOAT)
        probe.graph.outputs.append(values[name])
    return open_session(probe), outputs
