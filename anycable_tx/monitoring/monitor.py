"""What tells about the server: the endpoint, the log, StatsD and the gauges of the process, as the settings ask."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from twisted.logger import Logger

from anycable_tx.metrics import Metrics
from anycable_tx.monitoring.printer import LogPrinter
from anycable_tx.monitoring.process import Process
from anycable_tx.monitoring.rotation import Rotation, Writer
from anycable_tx.monitoring.statsd import StatsD
from anycable_tx.transports.site import Sites

__all__ = ["Monitor"]


class Monitor:
    """Started first and stopped last, so that all is seen."""

    log = Logger()

    def __init__(self, settings: Mapping[str, Any], reactor: Any, metrics: Metrics, sites: Sites) -> None:
        self._settings = settings
        self._process = Process(metrics, reactor, settings["stats_refresh_interval"])
        writers: list[Writer] = []
        if settings["metrics_log"]:
            writers.append(LogPrinter(settings["metrics_log_filter"]))
        if settings["statsd_host"]:
            writers.append(StatsD(settings, reactor, metrics))
        interval = settings["metrics_rotate_interval"]
        self._rotation = Rotation(metrics, reactor, interval, writers) if writers else None
        if settings["metrics_http"]:
            # What this needs is loaded only where it is wanted.
            from anycable_tx.monitoring.prometheus import PrometheusResource

            resource = PrometheusResource(metrics, settings["metrics_tags"])
            host, port = self._place()
            host = "" if host == settings["host"] else host
            sites.add_route(port, settings["metrics_http"], resource, host)

    def _place(self) -> tuple[str, int]:
        """Where Prometheus finds the metrics."""
        settings = self._settings
        return settings["metrics_host"] or settings["host"], settings["metrics_port"] or settings["port"]

    async def start(self) -> None:
        """Begin to look, and to write."""
        self._process.start()
        if self._rotation is not None:
            self._rotation.start()

    def announce(self) -> None:
        """Log what is served and sent, and where."""
        settings, about = self._settings, {"context": "metrics"}
        if settings["metrics_http"]:
            scheme = "https" if settings["ssl_cert"] else "http"
            host, port = self._place()
            url = f"{scheme}://{host}:{port}{settings['metrics_http']}"
            self.log.info("Serve metrics at {url}", url=url, attrs=about)
        if settings["metrics_log"]:
            fields = {"fields": settings["metrics_log_filter"]} if settings["metrics_log_filter"] else {}
            self.log.info("log metrics", attrs={**about, "interval": settings["metrics_rotate_interval"], **fields})
        if settings["statsd_host"]:
            self.log.info("Send statsd metrics to {place}", place=settings["statsd_host"], attrs=about)

    async def stop(self) -> None:
        """Write what has not been written, and end."""
        self._process.stop()
        if self._rotation is not None:
            await self._rotation.stop()
