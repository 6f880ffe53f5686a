"""Persons detected, tracked and recognised: ``python -m benchmarks.demo`` (see ``make demo``).

Over the photographs of the wheels two persons are enrolled from one camera and recognised by another. Over a video
nobody is enrolled, and each person gets a name such as ``unknown-2`` that stays.

Writes into the output folder: ``picture.jpg``, ``video.mp4``, ``latency.md`` and ``latency.json``.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TypeAlias

import cv2
import numpy as np

from benchmarks.video_scenes import PhotoPan, by_another_camera, frame_rate
from edgevis import EdgevisError, Frame, Pipeline, Predictor, SourceError, TrackedObject
from runtime.bundle.bundle import Bundle
from runtime.common.json_data import to_json
from runtime.common.text import markdown_table, text_table
from runtime.images.decode import Image
from runtime.images.draw import color_of, draw_tag
from runtime.open_set.text import open_set_lines
from runtime.pipeline import DETECTOR, IDENTIFIER
from runtime.streams.video_output import VideoOutput
from runtime.tracking.objects import UNKNOWN
from runtime.verification.timing import HEADERS, MEASURED, time_engines

_CROPS = 24  # kept of each identity for the picture
_CARDS = 4  # identities on the picture's left

Gallery: TypeAlias = dict[str, list[Image]]
"""Crops by label or identity."""


@dataclass
class Watch:
    """The observations of the demo: annotated frames for the picture by label, and how often each label appeared."""

    seen: Counter[str] = field(default_factory=Counter)
    pictures: dict[str, list[Image]] = field(default_factory=dict)
    frames: int = 0

    def keep(self, picture: Image, labels: Sequence[str]) -> None:
        """Count the labels of one frame and keep its picture for each of them."""
        self.frames += 1
        for label in labels:
            self.seen[label] += 1
            pictures = self.pictures.setdefault(label, [])
            pictures.append(picture)
            if len(pictures) > 400:  # of a long video each other one will do
                del pictures[::2]


def main(argv: Sequence[str] | None = None) -> int:
    """Run the demo; an EdgevisError becomes one line and exit status 1."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.demo", description=(__doc__ or "").partition("\n")[0])
    parser.add_argument(
        "--bundle", default=IDENTIFIER, help=f"a Re-ID bundle (default: {IDENTIFIER}, which comes along)"
    )
    parser.add_argument("--detect", default=DETECTOR, help=f"a detector (default: {DETECTOR}, which comes along)")
    parser.add_argument("--timed", nargs="*", default=[], help="more bundles for the table of latencies")
    parser.add_argument("--video", type=Path, help="a video (default: a pan over photographs)")
    parser.add_argument("--output", type=Path, default=Path("demo"), help="folder for what is made (default: demo)")
    parser.add_argument(
        "--seconds", type=float, default=4.0, help="time for each bundle and batch size (default: 4); 0: none"
    )
    arguments = parser.parse_args(argv)
    try:
        run(arguments)
    except EdgevisError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    return 0


def run(arguments: argparse.Namespace) -> None:
    """Enrol, predict, draw and time; see the module."""
    output: Path = arguments.output
    output.mkdir(parents=True, exist_ok=True)
    with Predictor(arguments.bundle) as predictor:
        info = predictor.info
        print(f"Engine: {info.backend} {info.precision}, {info.why}")
        if not info.trained:
            print("WARNING: this bundle's weights are random; what it recognises means nothing")
        gallery, watch = _watched(predictor, arguments)
    seen = ", ".join(f"{label} {count}x" for label, count in watch.seen.most_common())
    print(f"Seen in {watch.frames} frames: {seen or 'nobody'}")
    _write_image(output / "picture.jpg", _poster(gallery, watch))
    if arguments.seconds > 0:
        _time([arguments.bundle, arguments.detect, *arguments.timed], output, arguments.seconds)
    print(f"\nWritten: {', '.join(sorted(str(path) for path in output.iterdir() if path.is_file()))}")


def _watched(predictor: Predictor, arguments: argparse.Namespace) -> tuple[Gallery, Watch]:
    """The whole pipeline: over the photographs with two persons enrolled, or over a video with nobody."""
    video: Path | None = arguments.video
    gallery: Gallery = {}
    if video is None:
        pan = PhotoPan()
        gallery = _enrolled(predictor, pan)
        images, rate = by_another_camera(pan.frames()), pan.fps
    else:
        rate = frame_rate(video)
    watch, crops = Watch(), Crops()
    path = arguments.output / "video.mp4"
    path.unlink(missing_ok=True)
    with Pipeline(arguments.detect, predictor) as pipeline, VideoOutput(path, rate) as writer:
        for frame, people in pipeline.stream(images if video is None else video, drop="none"):
            picture = pipeline.plot(frame.image, people)
            writer.write(picture)
            watch.keep(picture, [item.identity for item in people])
            crops.keep(frame, people)
        stats = pipeline.stats
    stages = ", ".join(f"{stage} {milliseconds:.1f} ms" for stage, milliseconds in stats.stage_ms.items())
    print(f"Tracks: {stats.tracks}; crops embedded: {stats.embedded}; a frame: {stages}")
    return gallery if video is None else crops.most_seen(), watch


class Crops:
    """Crops of the identities that were seen, a few of each."""

    def __init__(self) -> None:
        self._crops: Gallery = {}
        self._seen: Counter[str] = Counter()

    def keep(self, frame: Frame, people: Sequence[TrackedObject]) -> None:
        """Keep what one frame shows."""
        for item in people:
            self._seen[item.identity] += 1
            x0, y0, x1, y1 = (round(float(value)) for value in item.box_xyxy)
            if item.identity != UNKNOWN and x1 - x0 > 8 and y1 - y0 > 8 and self._seen[item.identity] % 5 == 1:
                crops = self._crops.setdefault(item.identity, [])
                crops.append(frame.image[y0:y1, x0:x1].copy())
                if len(crops) > _CROPS:
                    del crops[::2]

    def most_seen(self) -> Gallery:
        """The crops of the identities that were seen most, as many as the picture has room for."""
        named = [name for name, _ in self._seen.most_common() if name in self._crops]
        return {name: self._crops[name] for name in named[:_CARDS]}


def _enrolled(predictor: Predictor, pan: PhotoPan) -> Gallery:
    """Enrol two persons of the photographs; returns their crops."""
    print(f"\nScene: {pan.name}")
    gallery = dict(pan.examples())
    for label, crops in gallery.items():
        predictor.enroll(label, crops)
        print(f"Enrolled: {label}, {len(crops)} crops")
    if predictor.info.open_set is not None:
        print("\n".join(open_set_lines(predictor.info.open_set)))
    print("\nAsked: the same by a second camera")
    return gallery


def _poster(gallery: dict[str, list[Image]], watch: Watch, width: int = 1280) -> Image:
    """The demo's picture: on the left the persons of the gallery, on the right six frames with them and another."""
    side = width // 4
    if not gallery:
        raise SourceError("nobody was seen for long enough to be named: there is nothing to show")
    cards = [_card(label, crops, side, color_of(label)) for label, crops in gallery.items()]
    others = [name for name, _ in watch.seen.most_common() if name != UNKNOWN and name not in gallery]
    order = [name for name in (*gallery, *others[:1]) if name in watch.pictures]
    chosen = [picture for label in order for picture in _spread(watch.pictures[label], max(1, 6 // max(1, len(order))))]
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
    draw_tag(card, label, (0, 4), color, 0.55)
    return card


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
