"""A network camera that sends JPEG pictures over HTTP, as multipart/x-mixed-replace; see ``camera_server``."""

from __future__ import annotations

import base64
import contextlib
import http.server

import cv2

from camera_server import Faults, serve


class _Camera(http.server.BaseHTTPRequestHandler):
    login = ""

    def log_message(self, format: str, *args: object) -> None:
        return

    def do_GET(self) -> None:
        expected = "Basic " + base64.b64encode(self.login.encode()).decode()
        if self.login and self.headers.get("Authorization") != expected:
            self.send_response(401)
            self.send_header("WWW-Authenticate", 'Basic realm="camera"')
            self.send_header("Content-Length", "0")
            self.end_headers()
            return
        self.send_response(200)
        self.send_header("Content-Type", "multipart/x-mixed-replace; boundary=x")
        self.end_headers()
        with contextlib.suppress(OSError):
            self._send_pictures(Faults(self.path))

    def _send_pictures(self, faults: Faults) -> None:
        for sent, image in faults.pictures():
            data = cv2.imencode(".jpg", image)[1].tobytes()
            if faults.corrupt(sent):
                data = data[: len(data) // 2]
            head = b"--x\r\nContent-Type: image/jpeg\r\nContent-Length: %d\r\n\r\n" % len(data)
            if faults.cut(sent):
                self.wfile.write(head + data[: len(data) // 2])
                return
            self.wfile.write(head + data + b"\r\n")


if __name__ == "__main__":
    serve(http.server.ThreadingHTTPServer, _Camera)
