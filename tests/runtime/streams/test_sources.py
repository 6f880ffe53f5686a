"""What a source is, and the messages for what is none."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest

from runtime.errors import EdgevisError, InputError, SourceError
from runtime.streams.reader import StreamReader
from runtime.streams.sources import source_specs

IMAGE = np.full((8, 8, 3), 7, np.uint8)


@pytest.mark.parametrize(
    ("source", "message"),
    [
        (-1, "there is no camera -1; allowed: an index from 0 to 99"),
        (2**31, "there is no camera 2147483648; allowed"),
        ("-1", "there is no camera -1"),
        (97, "camera 97 cannot be opened: check that it exists.*found here"),
        ("97", "camera 97 cannot be opened"),
        ("/dev/video97", "camera 97 cannot be opened.*may read /dev/video97"),
        (Path("/dev/video97"), "camera 97 cannot be opened"),
        (Path("rtsp://u:secret@camera/1"), "is an address as a Path, which loses a slash: give it as text"),
        ("videotestsrc ! appsink", "there is no file videotestsrc ! appsink"),
        ([97, "rtsp://camera/1"], "camera 97 cannot be opened"),
        ("file:///nowhere.avi", "there is no file /nowhere.avi"),
    ],
)
def test_sources_that_are_not_there(source: Any, message: str) -> None:
    with pytest.raises(SourceError, match=message) as caught:
        source_specs(source)
    assert "secret" not in str(caught.value)


@pytest.mark.parametrize("source", ["", ["rtsp://camera/1", ""], None, 3.5, True, len, IMAGE])
def test_what_is_no_source(source: Any) -> None:
    with pytest.raises(InputError, match=r"allowed|give it to predict"):
        source_specs(source)


def test_a_file_called_like_a_camera(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    Path("97").write_bytes(b"a file")
    ((spec,), single) = source_specs("97")
    assert (spec.kind, spec.name, single) == ("video", "97", True)


def test_an_address_is_named_without_its_password() -> None:
    ((spec,), _) = source_specs("rtsp://user:secret@camera/1")
    assert (spec.kind, spec.name) == ("address", "rtsp://***@camera/1")
    with StreamReader("rtsp://user:secret@camera/1") as reader:
        assert "secret" not in str(reader.stats)


def test_a_list_of_sources_and_a_list_of_images(tmp_path: Path) -> None:
    (tmp_path / "door").mkdir()
    cv2.imwrite(str(tmp_path / "door" / "a.png"), IMAGE)
    picture, video = str(tmp_path / "door" / "a.png"), str(tmp_path / "v.mp4")
    Path(video).write_bytes(b"a video")
    for sources, kinds in [
        (["rtsp://a/1", "http://b/2"], ["address", "address"]),
        ([video, video], ["video", "video"]),
        ([str(tmp_path / "door"), picture], ["images", "images"]),
        ((iter([IMAGE]), [IMAGE, IMAGE], video), ["iterable", "iterable", "video"]),
    ]:
        specs, single = source_specs(sources)
        assert ([spec.kind for spec in specs], single) == (kinds, False)
    for images in ([picture, picture], [IMAGE, picture], [], [None], [Path(picture).read_bytes()]):
        specs, single = source_specs(images)
        assert ([spec.kind for spec in specs], single) == (["iterable"], True)
    with pytest.raises(InputError, match="65 sources are given; allowed: at most 64"):
        source_specs(["rtsp://a/1"] * 65)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"drop": "newest"}, "drop is 'newest'; allowed: 'auto', 'none' or 'oldest'"),
        ({"timeout_s": 0}, "timeout_s is 0; allowed: 0.1 to 86400 seconds"),
        ({"timeout_s": float("nan")}, "timeout_s is nan"),
        ({"timeout_s": True}, "timeout_s is True"),
        ({"batch": 0}, "batch is 0; allowed: an int from 1 to 1024"),
        ({"batch": 1.5}, r"batch is 1\.5"),
    ],
)
def test_settings_that_are_not_allowed(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=message):
        StreamReader([IMAGE], **settings)


@pytest.mark.parametrize("given", ["x.mp4", "rtsp://u:secret@camera/1", Path("rtsp://u:secret@camera/1")])
def test_a_video_or_an_address_is_no_image(given: Any, tmp_path: Path) -> None:
    from runtime.images.decode import as_image

    if given == "x.mp4":
        given = tmp_path / given
        writer = cv2.VideoWriter(str(given), cv2.VideoWriter.fourcc(*"mp4v"), 10.0, (64, 48))
        writer.write(np.zeros((48, 64, 3), np.uint8))
        writer.release()
    with pytest.raises(EdgevisError, match=r"is (a video|an address).*give it to stream\(\)") as caught:
        as_image(given)
    assert "secret" not in str(caught.value)
