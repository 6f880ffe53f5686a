"""Metrics: Prometheus' text over HTTP, and OpenTelemetry's instruments."""

from __future__ import annotations

import os
import re
from contextlib import closing
from dataclasses import replace
from http.client import HTTPConnection, HTTPException

import numpy as np
import pytest

from runtime.errors import EdgevisError, OutputError
from runtime.monitoring.opentelemetry import register_metrics
from runtime.monitoring.prometheus import CONTENT_TYPE, MetricsServer, prometheus_text
from runtime.streams.stats import SourceStats
from runtime.tracking.drift import DriftState
from runtime.tracking.stats import PipelineStats

CAMERA = SourceStats('rtsp://door/"1"\\', 100, 7, 0, 2, 9.5, 31.0, float("nan"), True)
STATS = PipelineStats(
    (CAMERA,), 100, 40, 10, 3, 12, 2, {"detect": 20.0, "track": 1.0, "identify": 4.0}, DriftState(2.5, True, 30, 3)
)
LINE = re.compile(r'([a-z][a-z0-9_]*)(\{([a-z_]+="([^"\\]|\\.)*",?)+\})? (\S+)')


def test_the_text_has_each_series_once_with_help_and_type() -> None:
    text = prometheus_text(STATS)
    values: dict[str, float] = {}
    types: dict[str, str] = {}
    for line in text.splitlines():
        if line.startswith("# TYPE "):
            _, _, name, kind = line.split()
            assert name not in types
            types[name] = kind
        elif not line.startswith("#"):
            match = LINE.fullmatch(line)
            assert match, line
            values[match[1] + (match[2] or "")] = float(match[5])
    source = '{source="rtsp://door/\\"1\\"\\\\",position="0"}'
    assert values["edgevis_source_dropped_total" + source] == 7
    assert values["edgevis_source_latency_p50_seconds" + source] == pytest.approx(0.031)
    assert not any(name.startswith("edgevis_source_latency_p99") for name in values)  # not known yet
    assert values["edgevis_unknown_ratio"] == 0.25
    assert values['edgevis_stage_seconds{stage="detect"}'] == pytest.approx(0.02)
    assert values["edgevis_embedding_drift"] == 2.5
    assert values["edgevis_embedding_drift_alarm"] == 1
    assert {types[name] for name in types if name.endswith("_total")} == {"counter"}
    assert {re.sub(r"\{.*", "", name) for name in values} == set(types)


def fetched(port: int, path: str) -> tuple[int, str | None, str]:
    """Status, content type and text."""
    with closing(HTTPConnection("127.0.0.1", port, timeout=5)) as connection:
        connection.request("GET", path)
        answer = connection.getresponse()
        return answer.status, answer.getheader("Content-Type"), answer.read().decode()


def test_the_server_answers_on_this_machine_until_it_is_closed() -> None:
    with MetricsServer(lambda: STATS, 0) as server:
        status, kind, body = fetched(server.port, "/metrics")
        assert (status, kind) == (200, CONTENT_TYPE)
        assert body == prometheus_text(STATS)
        assert fetched(server.port, "/other")[0] == 404
        with pytest.raises(OutputError, match="cannot be served"):
            MetricsServer(lambda: STATS, server.port)
    with pytest.raises(ConnectionError):
        fetched(server.port, "/metrics")


def test_a_file_whose_name_is_no_text() -> None:
    stats = replace(STATS, sources=(replace(CAMERA, source=os.fsdecode(b"\xff.mp4")),))
    with MetricsServer(lambda: stats, 0) as server:
        assert 'edgevis_source_frames_total{source="\\\\udcff.mp4",position="0"}' in fetched(server.port, "/metrics")[2]


def test_a_scrape_that_fails_is_one_line(caplog: pytest.LogCaptureFixture, capsys: pytest.CaptureFixture[str]) -> None:
    def closed() -> PipelineStats:
        raise EdgevisError("this pipeline has been closed")

    with MetricsServer(closed, 0) as server, pytest.raises((ConnectionError, HTTPException)):
        fetched(server.port, "/metrics")
    assert "metrics could not be sent to 127.0.0.1: this pipeline has been closed" in caplog.text
    assert capsys.readouterr().err == ""


def test_opentelemetry_reads_the_same_values() -> None:
    sdk = pytest.importorskip("opentelemetry.sdk.metrics")
    from opentelemetry.sdk.metrics.export import InMemoryMetricReader

    reader = InMemoryMetricReader()
    provider = sdk.MeterProvider([reader])
    register_metrics(lambda: STATS, provider=provider)
    data = reader.get_metrics_data()
    points = {
        (metric.name, *sorted(point.attributes.items())): point.value
        for resource in data.resource_metrics
        for scope in resource.scope_metrics
        for metric in scope.metrics
        for point in metric.data.data_points
    }
    assert points["edgevis_unknown_ratio",] == 0.25
    assert points["edgevis_embedding_drift",] == 2.5
    key = ("edgevis_source_dropped", ("position", "0"), ("source", CAMERA.source))
    assert points[key] == 7
    assert points["edgevis_stage_seconds", ("stage", "identify")] == pytest.approx(0.004)
    assert all(np.isfinite(value) for value in points.values())
    provider.shutdown()
