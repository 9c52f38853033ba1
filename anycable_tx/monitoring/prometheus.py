"""Metrics for Prometheus: the text of all that there are, made when it is asked for."""

# Twisted's requests carry no annotations:
# mypy: disable-error-code="no-untyped-call"

from __future__ import annotations

from collections.abc import Iterable, Mapping

from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.exposition import generate_latest
from prometheus_client.registry import Collector
from twisted.web.server import Request

from anycable_tx.metrics import COUNTERS, GAUGES, Metrics
from anycable_tx.monitoring.names import names
from anycable_tx.transports.site import Leaf

__all__ = ["PrometheusResource"]

_TYPE = b"text/plain; version=0.0.4; charset=utf-8"


class _Collected(Collector):
    """What there is now, counters first, with the *tags* on every sample."""

    def __init__(self, metrics: Metrics, tags: Mapping[str, str]) -> None:
        self._metrics = metrics
        self._tags = list(tags)
        self._values = list(tags.values())

    def collect(self) -> Iterable[Metric]:
        """The families."""
        for name, reasons in self._metrics.counters().items():
            for full, labelled in names(name):
                labels = [*self._tags, "reason"] if labelled else self._tags
                family = CounterMetricFamily(full, COUNTERS[name], labels=labels)
                if labelled:
                    for reason, value in sorted(reasons.items()):
                        family.add_metric([*self._values, reason], value)
                else:
                    family.add_metric(self._values, sum(reasons.values()))
                yield family
        for name, value in self._metrics.gauges().items():
            for full, _ in names(name):
                gauge = GaugeMetricFamily(full, GAUGES[name], labels=self._tags)
                gauge.add_metric(self._values, value)
                yield gauge


class PrometheusResource(Leaf):
    """Answers every method alike, in the text format of Prometheus."""

    def __init__(self, metrics: Metrics, tags: Mapping[str, str]) -> None:
        super().__init__()
        self._collected = _Collected(metrics, tags)

    def render(self, request: Request) -> bytes:
        """All metrics, as they are now."""
        body = generate_latest(self._collected)
        request.setHeader(b"content-type", _TYPE)
        request.setHeader(b"content-length", b"%d" % len(body))
        return b"" if request.method == b"HEAD" else body
