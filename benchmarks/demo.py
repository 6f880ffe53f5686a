"""Persons detected, tracked and recognised: ``python -m benchmarks.demo`` (see ``make demo``).

Over the photographs of the wheels two persons are enrolled from one camera and recognised by another. Over a video with
``--detect`` nobody is enrolled, and each person gets a name such as ``unknown-2`` that stays.

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
from typing import TypeAlias, cast

import cv2
import numpy as np

from benchmarks.video_scenes import FixedCamera, OtherCamera, PhotoPan, VideoScene, View, frame_rate
from edgevis import EdgevisError, Frame, Identification, Pipeline, Predictor, SourceError, TrackedObject
from runtime.bundle.bundle import Bundle
from runtime.common.json_data import to_json
from runtime.common.text import markdown_table, text_table
from runtime.images.decode import Image
from runtime.images.draw import color_at, color_of, draw_tag
from runtime.open_set.text import open_set_lines
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
    person_ms: list[float] = field(default_factory=list)

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
    parser.add_argument("--bundle", required=True, help="a Re-ID bundle that recognises")
    parser.add_argument("--detect", help="a detector's bundle; without one persons are what moves, or known boxes")
    parser.add_argument("--timed", nargs="*", default=[], help="more bundles for the table of latencies")
    parser.add_argument(
        "--video",
        type=Path,
        help="a video; without --detect, of a fixed camera whose first second shows nobody (default: a pan over "
        "photographs)",
    )
    parser.add_argument("--output", type=Path, default=Path("demo"), help="folder for what is made (default: demo)")
    parser.add_argument("--seconds", type=float, default=4.0, help="time for each bundle and batch size (default: 4)")
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
        look = _without_detector if arguments.detect is None else _with_detector
        gallery, watch = look(predictor, arguments)
    seen = ", ".join(f"{label} {count}x" for label, count in watch.seen.most_common())
    print(f"Seen in {watch.frames} frames: {seen or 'nobody'}")
    print(f"Median time of a person, crop to result: {np.median(watch.person_ms or [0.0]):.2f} ms")
    _write_image(output / "picture.jpg", _poster(gallery, watch))
    timed = [arguments.bundle, *([] if arguments.detect is None else [arguments.detect]), *arguments.timed]
    _time(timed, output, arguments.seconds)
    print(f"\nWritten: {', '.join(sorted(str(path) for path in output.iterdir() if path.is_file()))}")


def _without_detector(predictor: Predictor, arguments: argparse.Namespace) -> tuple[Gallery, Watch]:
    scene: VideoScene = PhotoPan() if arguments.video is None else FixedCamera(arguments.video)
    gallery, other = _enrolled(predictor, scene)
    return gallery, _watch(predictor, other, arguments.output / "video.mp4")


def _with_detector(predictor: Predictor, arguments: argparse.Namespace) -> tuple[Gallery, Watch]:
    """The whole pipeline: over the photographs with two persons enrolled, or over a video with nobody."""
    video: Path | None = arguments.video
    gallery: Gallery = {}
    if video is None:
        gallery, other = _enrolled(predictor, PhotoPan())
        images, rate = (view.image for view in other.views()), other.fps
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
    watch.person_ms = [stats.stage_ms["identify"] * stats.frames / max(stats.objects, 1)]
    stages = ", ".join(f"{stage} {milliseconds:.1f} ms" for stage, milliseconds in stats.stage_ms.items())
    print(f"Tracks: {stats.tracks}; crops embedded: {stats.embedded}; a frame: {stages}")
    return {**crops.most_seen(without=gallery), **gallery} if video is not None else gallery, watch


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

    def most_seen(self, *, without: Gallery) -> Gallery:
        """The crops of the identities that were seen most, as many as the picture has room for."""
        named = [name for name, _ in self._seen.most_common() if name in self._crops and name not in without]
        return {name: self._crops[name] for name in named[:_CARDS]}


def _enrolled(predictor: Predictor, scene: VideoScene) -> tuple[Gallery, OtherCamera]:
    """Enrol two persons of a scene; returns their crops, and the scene by another camera."""
    print(f"\nScene: {scene.name}")
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
    return gallery, other


def _watch(predictor: Predictor, scene: VideoScene, path: Path) -> Watch:
    watch = Watch()
    start = time.monotonic()
    path.unlink(missing_ok=True)
    with VideoOutput(path, scene.fps) as writer:
        for view in scene.views():
            picture, results = _annotate(predictor, view)
            writer.write(picture)
            watch.keep(picture, [result.label or UNKNOWN for result in results])
            watch.person_ms += [sum(result.speed_ms.values()) for result in results]
            if watch.frames % 100 == 0:
                print(f"  {watch.frames} frames in {time.monotonic() - start:.0f} s", file=sys.stderr, flush=True)
    return watch


def _annotate(predictor: Predictor, view: View) -> tuple[Image, list[Identification]]:
    picture = view.image.copy()
    if not view.boxes:
        return picture, []
    results = cast(list[Identification], predictor.predict([box.crop(view.image) for box in view.boxes]))
    for box, result in zip(view.boxes, results, strict=True):
        color = _color(result.label, predictor.labels)
        cv2.rectangle(picture, (box.left, box.top), (box.right - 1, box.bottom - 1), color, 3)
        draw_tag(picture, f"{result.label or UNKNOWN} {result.score:.2f}", (box.left, box.top), color, 0.6)
    return picture, results


def _poster(gallery: dict[str, list[Image]], watch: Watch, width: int = 1280) -> Image:
    """The demo's picture: on the left the enrolled persons, on the right six frames with them and strangers."""
    side = width // 4
    if not gallery:
        raise SourceError("nobody was seen for long enough to be named: there is nothing to show")
    cards = [_card(label, crops, side, color_at(index)) for index, (label, crops) in enumerate(gallery.items())]
    order = [label for label in (*gallery, UNKNOWN) if label in watch.pictures]
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
