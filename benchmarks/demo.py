"""Two persons enrolled from one camera, then recognised by another: ``python -m benchmarks.demo`` (see ``make demo``).

Writes into the output folder: ``picture.jpg``, ``video.mp4``, ``latency.md`` and ``latency.json``.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path
from typing import cast

import cv2
import numpy as np

from benchmarks.video_scenes import FixedCamera, OtherCamera, PhotoPan, VideoScene, View
from edgevis import EdgevisError, Identification, Predictor, SourceError
from runtime.bundle.bundle import Bundle
from runtime.common.json_data import to_json
from runtime.common.text import markdown_table, text_table
from runtime.images.decode import Image
from runtime.images.draw import color_at, color_of, draw_tag
from runtime.open_set.text import open_set_lines
from runtime.verification.timing import HEADERS, MEASURED, time_engines


@dataclass
class Watch:
    """The observations of the demo: annotated frames for the picture by label, and how often each label appeared."""

    seen: Counter[str] = field(default_factory=Counter)
    pictures: dict[str, list[Image]] = field(default_factory=dict)
    frames: int = 0
    engine_ms: list[float] = field(default_factory=list)

    def keep(self, picture: Image, labels: Sequence[str]) -> None:
        """Count the labels of one frame and keep its picture for each of them."""
        self.frames += 1
        for label in labels:
            self.seen[label] += 1
            self.pictures.setdefault(label, []).append(picture)


def main(argv: Sequence[str] | None = None) -> int:
    """Run the demo; an EdgevisError becomes one line and exit status 1."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.demo", description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--bundle", required=True, help="a Re-ID bundle that recognises")
    parser.add_argument("--timed", nargs="*", default=[], help="more bundles for the table of latencies")
    parser.add_argument(
        "--video",
        type=Path,
        help="a video of a fixed camera whose first second shows nobody (default: a pan over photographs)",
    )
    parser.add_argument("--output", type=Path, default=Path("demo"), help="folder for what is made (default: demo)")
    parser.add_argument("--seconds", type=float, default=4.0, help="time for each bundle and batch size (default: 4)")
    arguments = parser.parse_args(argv)
    try:
        run(arguments.bundle, arguments.timed, arguments.video, arguments.output, seconds=arguments.seconds)
    except EdgevisError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    return 0


def run(bundle: str, timed: Sequence[str], video: Path | None, output: Path, *, seconds: float) -> None:
    """Enrol, predict, draw and time; see the module."""
    scene: VideoScene = PhotoPan() if video is None else FixedCamera(video)
    output.mkdir(parents=True, exist_ok=True)
    print(f"\nScene: {scene.name}")
    with Predictor(bundle) as predictor:
        info = predictor.info
        print(f"Engine: {info.backend} {info.precision}, {info.why}")
        if not info.trained:
            print("WARNING: this bundle's weights are random; what it recognises means nothing")
        gallery = dict(islice(scene.examples(), 2))
        if len(gallery) < 2:
            raise SourceError(f"{scene.name} shows {len(gallery)} persons one at a time; two are needed to enrol")
        for label, crops in gallery.items():
            predictor.enroll(label, crops)
            print(f"Enrolled: {label}, {len(crops)} crops")
        if predictor.info.open_set is not None:
            print("\n".join(open_set_lines(predictor.info.open_set)))
        other = OtherCamera(scene)
        print(f"\nAsked: {other.name}")
        watch = _watch(predictor, other, output / "video.mp4")
    seen = ", ".join(f"{label} {count}x" for label, count in watch.seen.most_common())
    print(f"Seen in {watch.frames} frames: {seen or 'nobody'}")
    print(f"Median time of a person, crop to result: {np.median(watch.engine_ms or [0.0]):.2f} ms")
    _write_image(output / "picture.jpg", _poster(gallery, watch))
    _time([bundle, *timed], output, seconds)
    print(f"\nWritten: {', '.join(sorted(str(path) for path in output.iterdir() if path.is_file()))}")


def _watch(predictor: Predictor, scene: VideoScene, path: Path) -> Watch:
    watch = Watch()
    writer: cv2.VideoWriter | None = None
    start = time.monotonic()
    try:
        for view in scene.views():
            if writer is None:
                size = (view.image.shape[1], view.image.shape[0])
                writer = cv2.VideoWriter(str(path), cv2.VideoWriter.fourcc(*"mp4v"), scene.fps, size)
                if not writer.isOpened():
                    raise SourceError(f"{path} cannot be written")
            picture, results = _annotate(predictor, view)
            writer.write(picture)
            watch.keep(picture, [result.label or "unknown" for result in results])
            watch.engine_ms += [sum(result.speed_ms.values()) for result in results]
            if watch.frames % 100 == 0:
                print(f"  {watch.frames} frames in {time.monotonic() - start:.0f} s", file=sys.stderr, flush=True)
    finally:
        if writer is not None:
            writer.release()
    return watch


def _annotate(predictor: Predictor, view: View) -> tuple[Image, list[Identification]]:
    picture = view.image.copy()
    if not view.boxes:
        return picture, []
    results = cast(list[Identification], predictor.predict([box.crop(view.image) for box in view.boxes]))
    for box, result in zip(view.boxes, results, strict=True):
        color = _color(result.label, predictor.labels)
        cv2.rectangle(picture, (box.left, box.top), (box.right - 1, box.bottom - 1), color, 3)
        draw_tag(picture, f"{result.label or 'unknown'} {result.score:.2f}", (box.left, box.top), color, 0.6)
    return picture, results


def _poster(gallery: dict[str, list[Image]], watch: Watch, width: int = 1280) -> Image:
    """The demo's picture: on the left the enrolled persons, on the right six frames with them and strangers."""
    side = width // 4
    cards = [_card(label, crops, side, color_at(index)) for index, (label, crops) in enumerate(gallery.items())]
    order = [label for label in (*gallery, "unknown") if label in watch.pictures]
    chosen = [picture for label in order for picture in _spread(watch.pictures[label], 6 // max(1, len(order)))]
    columns = (width - side) // 3
    tiles = [_fitted(picture, columns, round(columns * 0.675)) for picture in chosen[:6]]
    tiles += [np.full_like(tiles[0], 32)] * (6 - len(tiles)) if tiles else []
    grid = np.vstack([np.hstack(tiles[:3]), np.hstack(tiles[3:])]) if tiles else np.full((400, columns * 3, 3), 32)
    height = grid.shape[0] // len(cards)
    left = np.vstack([_fitted(card, side, height) for card in cards])
    return np.hstack([_fitted(left, side, grid.shape[0]), grid]).astype(np.uint8)


def _card(label: str, crops: list[Image], width: int, color: tuple[int, int, int]) -> Image:
    tile = width // 3
    height = round(tile * crops[0].shape[0] / crops[0].shape[1])
    card = np.full((height + 40, width, 3), 32, np.uint8)
    card[36 : 36 + height, : 3 * tile] = np.hstack([cv2.resize(crop, (tile, height)) for crop in _spread(crops, 3)])
    draw_tag(card, f"enrolled: {label}", (0, 4), color, 0.55)
    return card


def _color(label: str | None, enrolled: Sequence[str]) -> tuple[int, int, int]:
    """The colour of a label by the order of enrolment, so that no two persons share one."""
    return color_of(None) if label is None else color_at(enrolled.index(label))


def _spread(items: list[Image], count: int) -> Iterator[Image]:
    return (items[index] for index in np.linspace(0, len(items) - 1, count + 2).astype(int)[1:-1])


def _fitted(image: Image, width: int, height: int) -> Image:
    ratio = min(width / image.shape[1], height / image.shape[0])
    resized = cv2.resize(
        image, (max(1, int(image.shape[1] * ratio)), max(1, int(image.shape[0] * ratio))), interpolation=cv2.INTER_AREA
    )
    output = np.full((height, width, 3), 32, np.uint8)
    top, left = (height - resized.shape[0]) // 2, (width - resized.shape[1]) // 2
    output[top : top + resized.shape[0], left : left + resized.shape[1]] = resized
    return output


def _write_image(path: Path, image: Image) -> None:
    if not cv2.imwrite(str(path), image, [cv2.IMWRITE_JPEG_QUALITY, 90]):
        raise SourceError(f"{path} cannot be written")


def _time(bundles: Sequence[str], output: Path, seconds: float) -> None:
    print(f"\nLatency on this machine: {MEASURED}")
    rows, data = [], []
    for path in bundles:
        bundle = Bundle(path)
        timings = time_engines(bundle, [1, 8], seconds=seconds)
        rows += [(bundle.manifest.model, *timing.cells()) for timing in timings]
        data.append({"model": bundle.manifest.model, "results": to_json(timings)})
    headers = ("model", *HEADERS)
    print(text_table(headers, rows))
    (output / "latency.md").write_text(f"{MEASURED}, on this machine\n\n{markdown_table(headers, rows)}\n")
    (output / "latency.json").write_text(json.dumps({"measured": MEASURED, "bundles": data}, indent=2) + "\n")


if __name__ == "__main__":
    sys.exit(main())
