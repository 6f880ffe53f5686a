"""OpenTelemetry: the counts of a pipeline as observable instruments of a meter.

edgevis registers instruments and sends nothing: where they go is the business of the meter provider that the program
has set up. Without one, OpenTelemetry does nothing.
"""

from __future__ import annotations

from collections.abc import Callable
from importlib import util
from typing import Any

from runtime.common.extras import install_command
from runtime.errors import MissingDependencyError
from runtime.monitoring.series import Sample, samples
from runtime.streams.stats import SourceStats
from runtime.tracking.drift import DriftState
from runtime.tracking.stats import PipelineStats


def register_metrics(stats: Callable[[], PipelineStats], *, provider: Any = None) -> None:
    """Register a pipeline's counts, under the names that the Prometheus text has.

    Args:
        stats: Called for each collection, such as ``lambda: pipeline.stats``.
        provider: An ``opentelemetry.metrics.MeterProvider``; None for the process's.

    Raises:
        MissingDependencyError: OpenTelemetry is not installed.
    """
    if util.find_spec("opentelemetry") is None:
        raise MissingDependencyError(f"metrics for OpenTelemetry need opentelemetry-api: {install_command('otel')}")
    from opentelemetry import metrics

    meter = metrics.get_meter("edgevis", meter_provider=provider)

    def observer(name: str) -> Callable[[Any], list[Any]]:
        def observe(options: Any) -> list[Any]:
            values = [sample for sample in samples(stats()) if sample.name == name]
            return [metrics.Observation(sample.value, dict(sample.labels)) for sample in values]

        return observe

    for sample in _one_of_each():
        make = meter.create_observable_counter if sample.kind == "counter" else meter.create_observable_gauge
        make(sample.name.removesuffix("_total"), [observer(sample.name)], description=sample.help)


def _one_of_each() -> list[Sample]:
    """A sample of each series, of a pipeline in which all are known."""
    source = SourceStats("", 0, 0, 0, 0, 0.0, 0.0, 0.0, False)
    stats = PipelineStats((source,), 0, 0, 0, 0, 0, 0, {"detect": 0.0}, DriftState(0.0, False, 0, 0))
    return list({sample.name: sample for sample in samples(stats)}.values())
