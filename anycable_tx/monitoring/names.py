"""The names under which metrics are served to Prometheus, and what became of those of the AnyCable server.

A metric that the AnyCable server has too keeps its full name, ``anycable_go_...``, its type and its single sample, so
that dashboards made for it go on working. What is this server's own begins with ``anycable_tx_``, and so does what
breaks a counter down by reason.
"""

from __future__ import annotations

from collections.abc import Iterable

from anycable_tx.metrics import COUNTERS, GAUGES, OPTIONAL, REASONED

__all__ = ["ABSENT", "SHARED", "condition", "names"]

#: The metrics that the AnyCable server has too.
SHARED = frozenset(
    {
        "clients_num",
        "clients_uniq_num",
        "broadcast_streams_num",
        "disconnect_queue_size",
        "mem_sys_bytes",
        "failed_auths_total",
        "client_msg_total",
        "failed_client_msg_total",
        "disconnected_slow_clients_total",
        "publications_total",
        "broadcast_msg_total",
        "remote_commands_total",
        "failed_broadcast_msg_total",
        "server_msg_total",
        "failed_server_msg_total",
        "timeout_server_msg_total",
        "data_sent_total",
        "data_rcvd_total",
        "rpc_call_total",
        "rpc_retries_total",
        "rpc_error_total",
        "rpc_timeout_total",
        "rpc_canceled_total",
        "rpc_pending_num",
        "grpc_active_conn_num",
        "rpc_capacity_num",
        "sse_clients_num",
    }
)

_GO_MEMORY = "a detail of Go's memory; see `mem_sys_bytes`"
_DURABLE, _POLLING = "there are no Durable Streams here", "there is no long polling here"

#: Those that mean nothing here -> why.
ABSENT = {
    "goroutines_num": "there are no Go routines; `loop_delay_ms` and `cpu_percent` tell how busy the process is",
    "heap_sys_bytes": _GO_MEMORY,
    "stack_sys_bytes": _GO_MEMORY,
    "heap_alloc_total": _GO_MEMORY,
    "heap_idle_bytes": _GO_MEMORY,
    "heap_released_bytes": _GO_MEMORY,
    "ds_requests_total": _DURABLE,
    "ds_poll_requests_total": _DURABLE,
    "ds_sse_requests_total": _DURABLE,
    "ds_poll_clients_num": _DURABLE,
    "ds_sse_clients_num": _DURABLE,
    "long_poll_clients_num": _POLLING,
    "long_poll_stale_requests_total": _POLLING,
}

#: Gauges that are there only in some servers -> which.
_CONDITIONS = {
    "rpc_pending_num": "with a backend",
    "grpc_active_conn_num": "with a backend over gRPC",
    "rpc_capacity_num": "when the number of calls adapts to the backend",
    "sse_clients_num": "with server-sent events",
    "open_fds_num": "on Linux",
}
_PARTS = {
    "rpc": "with a backend",
    "redis": "with Redis",
    "nats": "with NATS",
    "embedded_nats": "with an embedded NATS server",
    "sse": "with server-sent events",
    "admin": "with the admin page",
    "statsd": "with StatsD",
}


def names(name: str) -> Iterable[tuple[str, bool]]:
    """The full names of a counter or gauge, and whether its samples under that name are labelled with reasons."""
    if name in SHARED:
        yield f"anycable_go_{name}", False
    if name not in SHARED or name in REASONED:
        yield f"anycable_tx_{name}", name in REASONED


def condition(name: str) -> str:
    """Which servers have a metric; '' for all."""
    if name in GAUGES:
        return _CONDITIONS.get(name, "")
    assert name in COUNTERS
    part = next((part for part in OPTIONAL if name.startswith(f"{part}_")), "")
    return _PARTS.get(part, "")
