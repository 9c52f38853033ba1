"""Options of the metrics: where they are served, logged and sent."""

from __future__ import annotations

from anycable_tx.config.option import Option

__all__ = ["METRICS"]

_SECTION = "Metrics"

METRICS = (
    Option(
        "metrics_http",
        help="path where Prometheus finds the metrics, such as /metrics; empty: off",
        key="metrics.http_path",
        section=_SECTION,
    ),
    Option(
        "metrics_host", help="address of the metrics' listener; empty: host", key="metrics.host", section=_SECTION
    ),
    Option(
        "metrics_port",
        "int",
        0,
        "port of the metrics, 0: the main one",
        key="metrics.port",
        section=_SECTION,
        minimum=0,
        maximum=65535,
    ),
    Option("metrics_tags", "map", {}, "labels of every metric", key="metrics.tags", section=_SECTION),
    Option(
        "metrics_rotate_interval",
        "float",
        15,
        "time between records in the log and between packets to StatsD, 0: 15",
        key="metrics.rotate_interval",
        section=_SECTION,
        minimum=0,
        unit="s",
    ),
    Option("metrics_log", "bool", False, "log the metrics regularly", key="metrics.log", section=_SECTION),
    Option(
        "metrics_log_filter",
        "list",
        (),
        "names of the metrics to log; empty: all",
        key="metrics.log_filter",
        section=_SECTION,
    ),
    Option(
        "stats_refresh_interval",
        "float",
        5,
        "how old what a gauge shows may be if it takes work to find out; 0: it is always found out",
        key="app.stats_refresh_interval",
        section=_SECTION,
        minimum=0,
        unit="s",
    ),
    Option(
        "statsd_host",
        help="host and UDP port of a StatsD server, such as localhost:8125; empty: off",
        key="metrics.statsd.host",
        section=_SECTION,
    ),
    Option(
        "statsd_prefix",
        default="anycable_go.",
        help="what the names begin with there",
        key="metrics.statsd.prefix",
        section=_SECTION,
    ),
    Option(
        "statsd_max_packet_size",
        "int",
        1400,
        "largest packet to StatsD",
        key="metrics.statsd.max_packet_size",
        section=_SECTION,
        minimum=1,
        maximum=65507,
        unit="bytes",
    ),
    Option(
        "statsd_tags_format",
        default="datadog",
        help="how metrics_tags are written there",
        key="metrics.statsd.tags_format",
        section=_SECTION,
        choices=("datadog", "influxdb", "graphite"),
    ),
    Option("metrics_log_interval", "float", 0, section=_SECTION, tag="D", file=False),
    Option("metrics_log_formatter", section=_SECTION, tag="G", file=False),
)
