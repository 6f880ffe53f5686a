"""A network camera that sends H.264 over RTSP (RFC 2326), in RTP packets (RFC 6184) inside of its TCP connection.

PyAV encodes; see ``camera_server`` for what can go wrong.
"""

from __future__ import annotations

import base64
import contextlib
import re
import socketserver
import struct
from collections.abc import Iterator
from fractions import Fraction
from typing import Any

import av

from camera_server import Faults, Picture, serve

_CLOCK = 90_000
_PAYLOAD = 1200
_SDP = (
    "v=0\r\no=- 0 0 IN IP4 127.0.0.1\r\ns=camera\r\nc=IN IP4 0.0.0.0\r\nt=0 0\r\nm=video 0 RTP/AVP 96\r\n"
    "a=rtpmap:96 H264/90000\r\na=fmtp:96 packetization-mode=1\r\na=control:track\r\n"
)


class _Encoder:
    """H.264 without delay; every tenth picture is a key frame, and carries the size."""

    def __init__(self, image: Picture) -> None:
        self.shape = image.shape
        self._codec: Any = av.CodecContext.create("libx264", "w")
        self._codec.height, self._codec.width = image.shape[:2]
        self._codec.pix_fmt, self._codec.framerate = "yuv420p", Fraction(50)
        self._codec.options = {"preset": "ultrafast", "tune": "zerolatency", "x264-params": "keyint=10:scenecut=0"}

    def units(self, image: Picture) -> list[bytes]:
        """The NAL units of a picture, without start codes."""
        data = b"".join(bytes(packet) for packet in self._codec.encode(av.VideoFrame.from_ndarray(image, "bgr24")))
        return [unit for unit in re.split(b"\0\0\0?\1", data) if unit]


class _Camera(socketserver.StreamRequestHandler):
    login = ""
    _asked = ""

    def handle(self) -> None:
        with contextlib.suppress(OSError):
            while line := self.rfile.readline():
                method, address = line.decode().split()[:2]
                headers = {}
                while field := self.rfile.readline().decode().strip():
                    name, _, value = field.partition(":")
                    headers[name.lower()] = value.strip()
                if not self._answered(method, headers):
                    return
                if method == "PLAY":
                    self._send_pictures(Faults(self._asked))
                    return
                if method == "DESCRIBE":
                    self._asked = address

    def _answered(self, method: str, headers: dict[str, str]) -> bool:
        expected = "Basic " + base64.b64encode(self.login.encode()).decode()
        status, fields, body = "200 OK", "", ""
        if method == "OPTIONS":
            fields = "Public: OPTIONS, DESCRIBE, SETUP, PLAY, TEARDOWN\r\n"
        elif self.login and headers.get("authorization") != expected:
            status, fields = "401 Unauthorized", 'WWW-Authenticate: Basic realm="camera"\r\n'
        elif method == "DESCRIBE":
            body = _SDP
            fields = f"Content-Type: application/sdp\r\nContent-Length: {len(body)}\r\n"
        elif method == "SETUP" and "interleaved" not in headers.get("transport", ""):
            status = "461 Unsupported Transport"
        elif method == "SETUP":
            fields = "Transport: RTP/AVP/TCP;unicast;interleaved=0-1\r\nSession: 1\r\n"
        elif method == "PLAY":
            fields = "Session: 1\r\nRange: npt=0.000-\r\n"
        answer = f"RTSP/1.0 {status}\r\nCSeq: {headers.get('cseq', '0')}\r\n{fields}\r\n{body}"
        self.wfile.write(answer.encode())
        return method != "TEARDOWN"

    def _send_pictures(self, faults: Faults) -> None:
        encoder, number = None, 0
        for sent, image in faults.pictures():
            if encoder is None or encoder.shape != image.shape:
                encoder = _Encoder(image)
            units = encoder.units(image)
            if faults.corrupt(sent):
                units[-1] = units[-1][: len(units[-1]) // 2]
            packets = list(_packets(units))
            for position, packet in enumerate(packets):
                last = position == len(packets) - 1
                header = struct.pack(
                    ">BBHII", 0x80, 96 | (0x80 if last else 0), number & 0xFFFF, sent * _CLOCK // 50, 1
                )
                number += 1
                data = b"$\0" + struct.pack(">H", len(header) + len(packet)) + header + packet
                if faults.cut(sent) and last:
                    self.wfile.write(data[: len(data) // 2])
                    return
                self.wfile.write(data)


def _packets(units: list[bytes]) -> Iterator[bytes]:
    """RTP payloads: whole NAL units, and larger ones in fragments (FU-A)."""
    for unit in units:
        if len(unit) <= _PAYLOAD:
            yield unit
            continue
        indicator, kind, body = (unit[0] & 0xE0) | 28, unit[0] & 0x1F, unit[1:]
        for start in range(0, len(body), _PAYLOAD):
            part = body[start : start + _PAYLOAD]
            flags = (0x80 if start == 0 else 0) | (0x40 if start + _PAYLOAD >= len(body) else 0)
            yield bytes([indicator, kind | flags]) + part


class _Server(socketserver.ThreadingTCPServer):
    daemon_threads = True
    allow_reuse_address = True


if __name__ == "__main__":
    serve(_Server, _Camera)
