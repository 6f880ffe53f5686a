"""The speed of ways to turn a crop into an input tensor: ``python -m benchmarks.preprocess``."""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Callable, Sequence

import cv2
import numpy as np

from runtime.bundle.spec import Preprocess
from runtime.common.arrays import Array
from runtime.common.json_data import to_json
from runtime.common.text import text_table
from runtime.images.preprocess import Preprocessor
from runtime.parity.latency import interleaved

SPEC = Preprocess(256, 128, mean=(0.485, 0.456, 0.406), std=(0.229, 0.224, 0.225))


def ways(crop: Array) -> dict[str, Callable[[], Array]]:
    """The ways as functions without arguments that return (1, 3, 256, 128) float32."""
    size = (SPEC.width, SPEC.height)
    mean, std = np.array(SPEC.mean, np.float32), np.array(SPEC.std, np.float32)
    tables = [((np.arange(256) / 255 - m) / s).astype(np.float32) for m, s in zip(SPEC.mean, SPEC.std, strict=True)]
    ours = Preprocessor(SPEC)

    def arithmetic() -> Array:
        rgb = cv2.resize(crop, size)[:, :, ::-1].astype(np.float32) / np.float32(255)
        return np.ascontiguousarray(((rgb - mean) / std).transpose(2, 0, 1)[None])

    def blob() -> Array:
        # blobFromImage knows one scale for all channels: the deviations are divided out afterwards.
        tensor = cv2.dnn.blobFromImage(crop, 1 / 255, size, [m * 255 for m in SPEC.mean], swapRB=True)
        return np.asarray(tensor / std[None, :, None, None])

    def fancy_index() -> Array:
        resized = cv2.resize(crop, size)
        return np.stack([table[resized[:, :, 2 - c]] for c, table in enumerate(tables)])[None]

    return {
        "edgevis (split, one table per channel)": lambda: ours([crop]),
        "NumPy arithmetic": arithmetic,
        "cv2.dnn.blobFromImage": blob,
        "NumPy indexing of tables": fancy_index,
    }


def main(argv: Sequence[str] | None = None) -> int:
    """Print the table, or JSON."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.preprocess", description=__doc__)
    parser.add_argument("--seconds", type=float, default=4.0)
    parser.add_argument("--json", action="store_true")
    arguments = parser.parse_args(argv)
    frame = cv2.GaussianBlur(np.random.default_rng(0).integers(0, 256, (1080, 1920, 3), np.uint8), (7, 7), 0)
    contenders = ways(frame[200:900, 600:950])
    reference = contenders["NumPy arithmetic"]()
    errors = {name: float(np.abs(way() - reference).max()) for name, way in contenders.items()}
    latencies = interleaved(contenders, seconds=arguments.seconds)
    base = latencies["NumPy arithmetic"].p50_ms
    if arguments.json:
        print(
            json.dumps(
                {name: {**to_json(item), "max_error": errors[name]} for name, item in latencies.items()}, indent=2
            )
        )
        return 0
    rows = [
        (name, f"{item.p50_ms:.3f}", f"{item.p90_ms:.3f}", f"{base / item.p50_ms:.1f}x", f"{errors[name]:.1e}")
        for name, item in latencies.items()
    ]
    print("a 350x700 crop of a 1080p frame to (1, 3, 256, 128) float32")
    print(text_table(("way", "p50 ms", "p90 ms", "speed", "max difference"), rows))
    return 0


if __name__ == "__main__":
    sys.exit(main())
