"""Label pictures by detectors and write a data set in COCO's format.

    python -m edgevis.pseudo_labels ccp_dev.zip:split=train people.mp4:0-699 photos/ \
        --teacher yolox-nano=yolox_nano_coco.safetensors deimv2_femto.onnx --output labels

Sources are pictures, folders, zips and videos. ZIP:column=value chooses by the table in a zip or a folder, index.csv or
labels.csv; VIDEO:FIRST-LAST chooses frames, from 0. Teachers are bundles of the task detect, MODEL=WEIGHTS (run by
PyTorch), and .onnx files with DETR's interface (DEIM, DEIMv2, D-FINE, RT-DETR). Their boxes are fused by weighted boxes
fusion. The folder then holds images/ and annotations.json, which edgevis train takes; what was interrupted goes on with
--resume.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path

from edgevis.pseudo_labels.labelling import LabelRequest, label_pictures
from edgevis.pseudo_labels.pictures import PictureSource
from edgevis.pseudo_labels.teachers import TeacherEnsemble, TeacherViews, open_teacher
from runtime.common.command import run_command

_TAKES_PART = 0.05
_REPORT_SECONDS = 10.0


def main(argv: Sequence[str] | None = None) -> int:
    """Label and write; an error of ours becomes one line and exit status 1."""
    parser = argparse.ArgumentParser(
        prog="python -m edgevis.pseudo_labels",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("sources", nargs="+", help="pictures, folders, zips and videos")
    parser.add_argument("--teacher", nargs="+", required=True, help="bundles, MODEL=WEIGHTS, .onnx files")
    parser.add_argument("--output", type=Path, required=True, help="the folder to write")
    parser.add_argument("--classes", nargs="+", default=["person"], help="the labels that are kept (default: person)")
    parser.add_argument(
        "--onnx-labels", type=Path, help="names of an .onnx file's classes, one a line (default: those of --classes)"
    )
    parser.add_argument("--score", type=float, default=0.5, help="of a label (default: 0.5)")
    parser.add_argument("--ignore", type=float, default=0.3, help="of a box that is neither label nor background")
    parser.add_argument("--iou", type=float, default=0.55, help="of boxes that are fused (default: 0.55)")
    parser.add_argument("--scales", type=float, nargs="+", default=[1.0], help="2: also in tiles of half the sides")
    parser.add_argument("--no-flip", action="store_true", help="do not look at the mirrored picture, too")
    parser.add_argument("--every", type=int, default=5, help="each how manieth frame of a video (default: 5)")
    parser.add_argument("--most", type=int, help="at most so many pictures of each source, evenly spaced")
    parser.add_argument("--change", type=float, default=12.0, help="of 255, by which a frame must differ (default: 12)")
    parser.add_argument(
        "--hold-out", type=float, default=0.0, help="the share of each source that becomes instances_val.json"
    )
    parser.add_argument("--threads", type=int, help="of an .onnx file's engine")
    parser.add_argument("--resume", action="store_true", help="go on with an interrupted run")
    arguments = parser.parse_args(argv)
    return run_command(lambda: _run(arguments), interrupted="go on with --resume")


def _run(arguments: argparse.Namespace) -> int:
    request = LabelRequest(
        tuple(PictureSource.parse(text) for text in arguments.sources),
        score=arguments.score,
        ignore=arguments.ignore,
        every=arguments.every,
        most=arguments.most,
        change=arguments.change,
        hold_out=arguments.hold_out,
    )
    names = arguments.classes
    if arguments.onnx_labels is not None:
        names = [line.strip() for line in arguments.onnx_labels.read_text("utf-8").splitlines()]
    views = TeacherViews(not arguments.no_flip, tuple(arguments.scales), arguments.iou)
    begun = said = time.monotonic()

    def say(source: str, pictures: int, labels: int) -> None:
        nonlocal said
        now = time.monotonic()
        if now - said >= _REPORT_SECONDS:
            said = now
            sys.stderr.write(f"{now - begun:7.0f} s  {source}  {pictures} pictures, {labels} boxes\n")
            sys.stderr.flush()

    with ExitStack() as opened:
        teachers = []
        for text in arguments.teacher:
            teacher = open_teacher(text, labels=names, score=_TAKES_PART, threads=arguments.threads)
            opened.callback(teacher.close)
            teachers.append(teacher)
        ensemble = TeacherEnsemble(teachers, classes=arguments.classes, views=views, score=_TAKES_PART)
        result = label_pictures(request, ensemble, arguments.output, resume=arguments.resume, progress=say)
    for part, content in result.items():
        ignored = sum(item["iscrowd"] for item in content["annotations"])
        labels = len(content["annotations"]) - ignored
        sys.stdout.write(f"{part}: {len(content['images'])} pictures, {labels} labels, {ignored} ignored boxes\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
