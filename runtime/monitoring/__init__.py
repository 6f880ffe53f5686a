"""The counts of a pipeline for monitoring systems: Prometheus' text format and OpenTelemetry."""
