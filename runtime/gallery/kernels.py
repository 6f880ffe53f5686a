"""Products of 8-bit integers with 32-bit sums, for the first pass of a search over packed rows.

Any of these computes the same integers; which one runs is a matter of speed alone. A kernel is used only after it has
computed extreme values right on this machine: the 8-bit instructions of older processors saturate 16-bit sums.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np

from runtime.common.arrays import Array
from runtime.common.vendors import import_onnxruntime

# MatMulInteger over "codes" (N, D) uint8 with the zero point 128 and "weights" (D, C): serialised, because building a
# model would need the package onnx. int8 weights are twice as fast where the processor has instructions for them;
# uint8 weights with the zero point 128 are exact everywhere.
_ONNX_INT8 = (
    b'\x08\x05:\x92\x01\n+\n\x05codes\n\x07weights\n\x04zero\x12\x04sums"\rMatMulInteger\x12\x03dot*\x0c\x10'
    b"\x02*\x02\x80\x01B\x04zeroZ\x19\n\x05codes\x12\x10\n\x0e\x08\x02\x12\n\n\x03\x12\x01N\n\x03\x12\x01DZ\x1b\n\x07"
    b"weights\x12\x10\n\x0e\x08\x03\x12\n\n\x03\x12\x01D\n\x03\x12\x01Cb\x18\n\x04sums\x12\x10\n\x0e\x08\x06\x12\n\n\x03"
    b"\x12\x01N\n\x03\x12\x01CB\x04\n\x00\x10\n"
)
_ONNX_UINT8 = (
    b'\x08\x05:\x98\x01\n1\n\x05codes\n\x07weights\n\x04zero\n\x04zero\x12\x04sums"\rMatMulInteger\x12\x03dot*'
    b"\x0c\x10\x02*\x02\x80\x01B\x04zeroZ\x19\n\x05codes\x12\x10\n\x0e\x08\x02\x12\n\n\x03\x12\x01N\n\x03\x12\x01DZ\x1b\n"
    b"\x07weights\x12\x10\n\x0e\x08\x02\x12\n\n\x03\x12\x01D\n\x03\x12\x01Cb\x18\n\x04sums\x12\x10\n\x0e\x08\x06\x12\n\n"
    b"\x03\x12\x01N\n\x03\x12\x01CB\x04\n\x00\x10\n"
)


@dataclass(frozen=True, slots=True)
class Kernel:
    """An integer matrix product.

    Attributes:
        name: The package that computes it.
        bias: The number added to a code, -128..127, before it is stored: 128 for uint8, 0 for int8.
        product: (N, D) stored codes and (D, C) int8 weights to (N, C) int32: the products of the codes themselves.
            Runs on the thread that calls it; threads may call it at once.
    """

    name: str
    bias: int
    product: Callable[[Array, Array], Array]

    def stored(self, codes: Array) -> Array:
        """Convert codes, -128..127, to the type that :attr:`product` takes."""
        return (codes + np.int16(128)).astype(np.uint8) if self.bias else codes.astype(np.int8)


KERNELS = ("numkong", "onnxruntime")
"""The packages that have one, fastest first."""


@functools.cache
def best_kernel(package: str | None = None) -> Kernel | None:
    """The fastest installed kernel that is exact on this machine, of all packages or of one; None if there is none."""
    return next((kernel for kernel in kernels(package) if is_exact(kernel)), None)


def kernels(package: str | None = None) -> Iterator[Kernel]:
    """All kernels whose package is installed, fastest first."""
    makers = {"numkong": _numkong, "onnxruntime": _onnxruntime}
    for name in KERNELS if package is None else (package,):
        try:
            yield from makers[name]()
        except ImportError:
            continue


def _numkong() -> Iterator[Kernel]:
    import numkong

    def product(codes: Array, weights: Array) -> Array:
        return np.asarray(numkong.dots_packed(codes, numkong.dots_pack(np.ascontiguousarray(weights.T))))

    yield Kernel("numkong", 0, product)


def _onnxruntime() -> Iterator[Kernel]:
    onnxruntime = import_onnxruntime()

    def kernel(name: str, model: bytes, convert: Callable[[Array], Array]) -> Kernel:
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = options.inter_op_num_threads = 1  # no threads that a fork would lose
        options.enable_cpu_mem_arena = False
        options.log_severity_level = 3
        session: Any = onnxruntime.InferenceSession(model, options, providers=["CPUExecutionProvider"])

        def product(codes: Array, weights: Array) -> Array:
            return np.asarray(session.run(None, {"codes": codes, "weights": convert(weights)})[0])

        return Kernel(name, 128, product)

    yield kernel("onnxruntime", _ONNX_INT8, np.ascontiguousarray)
    yield kernel("onnxruntime, uint8 weights", _ONNX_UINT8, lambda w: (w + np.int16(128)).astype(np.uint8))


def is_exact(kernel: Kernel) -> bool:
    """Whether extreme and random codes give the right sums."""
    random = np.random.default_rng(0)
    codes = random.integers(-128, 128, (70, 258)).astype(np.int16)
    codes[:4] = np.array([-128, 127, 126, -1])[:, None]
    weights = random.integers(-127, 128, (258, 5)).astype(np.int8)
    weights[:, 0], weights[:, 1] = 127, -127
    return bool(np.array_equal(kernel.product(kernel.stored(codes), weights), codes.astype(np.int64) @ weights))
