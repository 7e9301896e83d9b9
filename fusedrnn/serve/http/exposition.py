"""Prometheus. In: the metrics of engines; out: the endpoint ``/metrics``."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Iterator, Mapping

from prometheus_client import CollectorRegistry
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, HistogramMetricFamily, Metric
from prometheus_client.exposition import choose_encoder
from prometheus_client.registry import Collector
from starlette.requests import Request
from starlette.responses import Response

from ..metrics import Histogram, Metrics
from .faces import Face

_GAUGES = {
    "running": "Requests in slots",
    "waiting": "Requests in the queue",
    "slots": "Requests that can run at once",
}
_OUTCOMES = ("completed", "failed", "cancelled", "expired")
_COUNTERS = {
    "accepted": "Requests that were accepted",
    "launches": "Launches",
    "steps": "Steps of launches",
    "row_steps": "Steps of single rows",
}
_HISTOGRAMS = {
    "occupancy": ("occupancy_ratio", "Rows in use as a part of the slots, once a launch"),
    "steps_per_launch": ("steps_per_launch", "Steps of each launch"),
    "queue_seconds": ("queue_seconds", "From acceptance to the first launch of a request"),
    "first_chunk_seconds": ("first_chunk_seconds", "From acceptance to the first chunk"),
    "step_seconds": ("step_seconds", "Time per step of a row: per token, where a step is a token"),
    "total_seconds": ("total_seconds", "From acceptance to the end, of requests that completed"),
    "launch_seconds": ("launch_seconds", "Time of each launch"),
}


class EngineCollector(Collector):
    """The metrics of engines as Prometheus has them, with a label for the model.

    Args:
        engines: metrics by the name of the model.
        replica: another label; None: none.
    """

    def __init__(self, engines: Mapping[str, Metrics], replica: str | None = None) -> None:
        self._engines = engines
        self._names, self._values = ([], []) if replica is None else (["replica"], [replica])

    def collect(self) -> Iterator[Metric]:
        """Everything, as it is now."""
        for name, text in _GAUGES.items():
            gauge = GaugeMetricFamily(f"fusedrnn_{name}", text, labels=["model", *self._names])
            for model, metrics in self._engines.items():
                gauge.add_metric([model, *self._values], getattr(metrics, name))
            yield gauge
        for name, text in _COUNTERS.items():
            counter = CounterMetricFamily(f"fusedrnn_{name}", text, labels=["model", *self._names])
            for model, metrics in self._engines.items():
                counter.add_metric([model, *self._values], getattr(metrics, name))
            yield counter
        ended = CounterMetricFamily("fusedrnn_ended", "Requests that have ended, by how", labels=["model", *self._names, "outcome"])
        for model, metrics in self._engines.items():
            for outcome in _OUTCOMES:
                ended.add_metric([model, *self._values, outcome], getattr(metrics, outcome))
        yield ended
        yield self._by_reason("rejected", "Requests that were not accepted, by reason")
        yield self._by_reason("fallbacks", "Launches that had to be run in parts, by reason")
        for name, (called, text) in _HISTOGRAMS.items():
            histogram = HistogramMetricFamily(f"fusedrnn_{called}", text, labels=["model", *self._names])
            for model, metrics in self._engines.items():
                counted: Histogram = getattr(metrics, name)
                histogram.add_metric([model, *self._values], _buckets(counted), counted.sum)
            yield histogram

    def _by_reason(self, name: str, text: str) -> Metric:
        family = CounterMetricFamily(f"fusedrnn_{name}", text, labels=["model", *self._names, "reason"])
        for model, metrics in self._engines.items():
            for reason, count in list(getattr(metrics, name).items()):  # the engine's thread may add one meanwhile
                family.add_metric([model, *self._values, reason], count)
        return family


def _buckets(histogram: Histogram) -> list[tuple[str, float]]:
    """Upper bounds and how many values do not exceed each."""
    total, buckets = 0, list[tuple[str, float]]()
    for bound, count in zip((*histogram.bounds, float("inf")), histogram.counts, strict=True):
        total += count
        buckets.append(("+Inf" if bound == float("inf") else str(float(bound)), total))
    return buckets


def metrics(faces: Mapping[str, Face], replica: str | None = None) -> Callable[[Request], Awaitable[Response]]:
    """The endpoint; ``replica``: as `EngineCollector` has it."""
    registry = CollectorRegistry()
    registry.register(EngineCollector({name: face.engine.metrics for name, face in faces.items()}, replica))

    async def endpoint(request: Request) -> Response:
        encode, kind = choose_encoder(request.headers.get("accept", ""))
        return Response(encode(registry), headers={"Content-Type": kind})

    return endpoint
