"""Pictures that cannot be read are found before the training, all at once."""

from __future__ import annotations

import re
import struct
import zipfile
import zlib
from pathlib import Path

import cv2
import numpy as np
import pytest

from edgevis.data.picture_check import require_readable
from runtime.errors import SourceError

from split_data import write_image


def _chunk(kind: bytes, data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))


def test_every_damaged_picture_is_named(tmp_path: Path) -> None:
    for number, name in enumerate(("a.png", "b.jpg", "c.bmp", "d.webp")):
        write_image(tmp_path / name, number, (40, 40))
    told: list[tuple[int, int]] = []
    require_readable(tmp_path, lambda done, total: told.append((done, total)))
    assert told == [(0, 4), (1, 4), (2, 4), (3, 4), (4, 4)]
    whole = cv2.imencode(".jpg", np.random.default_rng(0).integers(0, 256, (90, 90, 3), np.uint8))[1].tobytes()
    (tmp_path / "trailing.jpg").write_bytes(whole + b"of a camera")
    require_readable(tmp_path, lambda done, total: None)
    header = _chunk(b"IHDR", struct.pack(">IIBBBBB", 60000, 60000, 8, 2, 0, 0, 0))
    huge = b"\x89PNG\r\n\x1a\n" + header + _chunk(b"IDAT", b"") + _chunk(b"IEND", b"")
    damaged = {"cut.jpg": whole[:-40], "empty.png": b"", "huge.png": huge, "text.jpg": b"no picture"}
    for name, data in damaged.items():
        (tmp_path / name).write_bytes(data)
    with zipfile.ZipFile(tmp_path.parent / "data.zip", "w") as archive:
        for path in tmp_path.iterdir():
            archive.write(path, path.name)
    for place in (tmp_path, tmp_path.parent / "data.zip"):
        with pytest.raises(SourceError) as raised:
            require_readable(place, lambda done, total: None)
        message = str(raised.value)
        assert message.startswith(f"4 pictures of {place} cannot be trained on: cut.jpg ")
        assert "cut short" in message
        assert re.search(r"empty\.png .*is empty", message)
        assert "huge.png has 60000 x 60000 pixels" in message
        assert message.endswith("and 1 more; remove them, or put whole ones in their place")
