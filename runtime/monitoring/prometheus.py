"""Prometheus' text format (version 0.0.4), and a small server of it on this machine."""

from __future__ import annotations

import logging
import sys
import threading
from collections.abc import Callable
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

from runtime.common.closing import Closing
from runtime.errors import OutputError
from runtime.monitoring.series import samples
from runtime.tracking.stats import PipelineStats

_log = logging.getLogger("edgevis.monitoring")

LOCALHOST = "127.0.0.1"

CONTENT_TYPE = "text/plain; version=0.0.4; charset=utf-8"


def prometheus_text(stats: PipelineStats) -> str:
    """The counts as Prometheus reads them."""
    lines: list[str] = []
    last = ""
    for sample in samples(stats):
        if sample.name != last:
            lines += [f"# HELP {sample.name} {sample.help}", f"# TYPE {sample.name} {sample.kind}"]
            last = sample.name
        labels = ",".join(f'{name}="{_escaped(value)}"' for name, value in sample.labels)
        lines.append(f"{sample.name}{{{labels}}} {sample.value!r}" if labels else f"{sample.name} {sample.value!r}")
    return "\n".join(lines) + "\n"


def _escaped(value: str) -> str:
    return value.replace("\\", "\\\\").replace('"', '\\"').replace("\n", "\\n")


class MetricsServer(Closing):
    """Serves ``/metrics`` by a thread until it is closed.

    Args:
        stats: Called for each request.
        port: A free port; 0 picks one, see :attr:`port`.
        host: The address to listen at. The default can be reached from this machine alone; metrics tell when people
            come and go, and the server asks nobody for a password.

    Raises:
        OutputError: The port is taken or not allowed.
    """

    def __init__(self, stats: Callable[[], PipelineStats], port: int, *, host: str = LOCALHOST) -> None:
        class Handler(BaseHTTPRequestHandler):
            timeout = 10

            def do_GET(self) -> None:
                if self.path.partition("?")[0] not in ("/", "/metrics"):
                    self.send_error(404)
                    return
                body = prometheus_text(stats()).encode()
                self.send_response(200)
                self.send_header("Content-Type", CONTENT_TYPE)
                self.send_header("Content-Length", str(len(body)))
                self.end_headers()
                self.wfile.write(body)

            def log_message(self, format: str, *arguments: Any) -> None:
                """Nothing: a scrape every few seconds is no news."""

        class Server(ThreadingHTTPServer):
            daemon_threads = True

            def handle_error(self, request: Any, client_address: Any) -> None:
                _log.warning("metrics could not be sent to %s: %s", client_address[0], sys.exc_info()[1])

        try:
            self._server = Server((host, port), Handler)
        except (OSError, OverflowError) as error:
            raise OutputError(f"metrics cannot be served at {host}:{port}: {error}") from error
        self._thread = threading.Thread(target=self._server.serve_forever, name="metrics", daemon=True)
        self._thread.start()

    @property
    def port(self) -> int:
        """The port that it listens at."""
        return int(self._server.server_address[1])

    def close(self) -> None:
        """Stop listening."""
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()
