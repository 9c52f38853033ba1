"""Counters and gauges: one declared name each, labelled by reason where a thing can happen for several."""

from __future__ import annotations

from collections.abc import Callable, Iterator

__all__ = ["COUNTERS", "GAUGES", "MAX_REASONS", "OPTIONAL", "REASONED", "Metrics", "aged"]

#: Name -> meaning. A name that is not declared here cannot be counted. A meaning that ends in ``, by reason`` (or by
#: whatever it is) declares that each count says which.
COUNTERS: dict[str, str] = {
    "connections_total": "connections of clients, let in or not",
    "failed_auths_total": "authentications that were refused, by reason",
    "client_msg_total": "decoded messages received from clients",
    "failed_client_msg_total": "messages from clients that could not be decoded, or whose command failed, by reason",
    "disconnected_slow_clients_total": "connections dropped because their write queue was full",
    "publications_total": "publications and remote commands accepted (a batch counts once)",
    "broadcast_msg_total": "messages handed to the local fan-out, with and without subscribers",
    "remote_commands_total": "remote commands executed on this node",
    "failed_broadcast_msg_total": "publications that could not be understood",
    "duplicate_publications_total": "publications recognised by their idempotency id and not stored again",
    "rejected_publications_total": "publications refused, by reason",
    "rejected_reads_total": "requests of the REST API for presence or history that were refused, by reason",
    "held_publications_total": "publications held because the broker was unavailable",
    "abandoned_publications_total": "publications given up because their publisher left before they were stored",
    "dead_entries_total": "entries of a Redis stream put aside because they cannot be published",
    "failed_bus_msg_total": "messages from the bus that could not be understood",
    "server_msg_total": "frames written to clients (pings and close frames excluded)",
    "failed_server_msg_total": "connections lost or given up while frames waited for them",
    "timeout_server_msg_total": "connections given up because they took nothing of what waited for them in time",
    "data_sent_total": "payload bytes written to clients, pings included",
    "data_rcvd_total": "payload bytes received from clients",
    "history_confirms_total": "history answers that were whole",
    "history_rejects_total": "history answers refused, by reason",
    "subscription_rejects_total": "subscriptions refused, by reason",
    "sessions_restored_total": "sessions resumed",
    "sessions_refused_total": "resume attempts that fell back to authentication, by reason",
    "sessions_taken_over_total": "sockets closed because their session was resumed elsewhere",
    "barriers_expired_total": "history barriers that opened because the client did not ask in time",
    "gaps_total": "holes seen between two messages of a stream",
    "gaps_healed_total": "holes filled from the broker before anything was delivered",
    "broadcast_gaps_unhealed_total": "holes that could not be filled, so that subscribers were told, by reason",
    "dropped_bus_msg_total": "messages from the bus that were not handed over as they came, by reason",
    "stream_resets_total": "new epochs of streams; their subscribers were told",
    "transient_dropped_total": "transient messages dropped because a held subscription had too many waiting",
    "presence_refused_total": "presence requests that could not be honoured, by reason",
    "broker_errors_total": "broker operations that failed",
    "broker_evictions_total": "records the broker forgot before their time because there were too many, by reason",
    "redis_reconnects_total": "connections to Redis that came back, by what they are for",
    "redis_failed_attempts_total": "attempts to connect to Redis that failed",
    "redis_stalls_total": "connections to Redis given up because nothing was answered",
    "redis_redirects_total": "commands sent again because their slot had moved, by reason",
    "redis_refused_commands_total": "commands not sent to Redis, by reason",
    "nats_reconnects_total": "connections to NATS that came back",
    "nats_failed_attempts_total": "attempts to connect to NATS that failed",
    "nats_stalls_total": "connections to NATS given up because nothing was answered",
    "nats_slow_consumers_total": "connections that NATS closed because messages came faster than they were taken",
    "nats_errors_total": "errors NATS told of without closing the connection, such as a lack of permission",
    "nats_refused_messages_total": "messages not sent to NATS, by reason",
    "embedded_nats_restarts_total": "times the embedded NATS server ended by itself and was started again",
    "unannounced_messages_total": "messages that were stored but could not be handed to the bus",
    "controller_errors_total": "controller calls that failed, by what was asked",
    "rpc_call_total": "calls to the backend, repeated attempts not counted",
    "rpc_retries_total": "further attempts at a call to the backend",
    "rpc_error_total": "calls to the backend that failed or were answered with an error, by reason",
    "rpc_timeout_total": "calls to the backend that failed because their time was up",
    "rpc_canceled_total": "calls to the backend that were dropped because the session or the server ended",
    "disconnect_dropped_total": "ends of sessions the backend was not told of, by reason",
    "worker_restarts_total": "workers of this number that ended by themselves and were replaced, by how they ended",
    "dropped_log_records_total": "log records of a worker that were lost because its parent did not read in time",
    "internal_errors_total": "errors nobody expected; each has a traceback in the log",
    "refused_connections_total": "connections refused before the upgrade, by reason",
    "refused_requests_total": "HTTP requests refused before their resource saw them, by reason",
    "closed_connections_total": "client connections closed, by reason",
    "sse_refusals_total": "requests for server-sent events that got none, by reason",
    "admin_refusals_total": "requests of the admin page that were refused, by reason",
    "statsd_errors_total": "packets to StatsD that could not be sent or were not taken, by reason",
}

#: Gauges are read when asked for: name -> meaning.
GAUGES: dict[str, str] = {
    "clients_num": "sessions connected",
    "clients_uniq_num": "distinct connection identifiers among them",
    "broadcast_streams_num": "streams with at least one local subscriber",
    "rpc_pending_num": "calls to the backend that wait for their turn",
    "grpc_active_conn_num": "connections to backends over gRPC",
    "rpc_capacity_num": "calls the backend is given at a time, where that adapts to it",
    "sse_clients_num": "responses of server-sent events that are open",
    "disconnect_queue_size": "ends of sessions the backend has not been told of yet",
    "mem_sys_bytes": "memory of the process",
    "open_fds_num": "open file descriptors of the process",
    "loop_delay_ms": "longest delay of the event loop lately, in milliseconds",
    "cpu_percent": "use of the processor lately, in percent of one core",
}

#: The counters that are labelled.
REASONED = frozenset(name for name, meaning in COUNTERS.items() if ", by " in meaning)

#: The parts that a server may do without. Counters whose names begin with one are there once the part is.
OPTIONAL = ("rpc", "redis", "nats", "embedded_nats", "sse", "admin", "statsd")

#: A counter is labelled with at most so many reasons; further ones count as "other".
MAX_REASONS = 100


class Metrics:
    """The numbers of one node. Every reject, drop, gap and heal is counted here (P9)."""

    def __init__(self) -> None:
        self._counts: dict[tuple[str, str], int] = {}
        self._gauges: dict[str, Callable[[], int]] = {}
        self._parts: set[str] = set()

    def count(self, name: str, amount: int = 1, reason: str = "") -> None:
        """Add *amount* to the counter *name*. Raises KeyError for a name that is not declared."""
        key = (name, reason)
        try:
            self._counts[key] += amount
        except KeyError:
            COUNTERS[name]  # an undeclared name is a mistake in the code, found by its first use
            if sum(known == name for known, _ in self._counts) >= MAX_REASONS:
                key = (name, "other")
            self._counts[key] = self._counts.get(key, 0) + amount

    def has(self, part: str) -> None:
        """The server has *part*, one of OPTIONAL. Raises ValueError for another."""
        if part not in OPTIONAL:
            raise ValueError(f"there is no part {part!r}; known: {', '.join(OPTIONAL)}")
        self._parts.add(part)

    def gauge(self, name: str, read: Callable[[], int]) -> None:
        """Let *read* supply the value of the gauge *name*. Raises KeyError for an undeclared name."""
        GAUGES[name]
        self._gauges[name] = read

    def value(self, name: str, reason: str | None = None) -> int:
        """The counter's total, over all reasons unless one is named; or the gauge's value now."""
        if name in self._gauges:
            return self._gauges[name]()
        return sum(n for (key, why), n in self._counts.items() if key == name and reason in (None, why))

    def counters(self) -> dict[str, dict[str, int]]:
        """The counters there are, in the order of their declaration: name -> reason -> total.

        A counter without reasons has its total at '', from the beginning; one of an optional part is there once the
        part is, or something was counted.
        """
        counted: dict[str, dict[str, int]] = {}
        for (name, reason), value in self._counts.items():
            reasons = counted.setdefault(name, {})
            label = reason if name in REASONED else ""
            reasons[label] = reasons.get(label, 0) + value
        none: dict[str, int] = {}
        absent = tuple(f"{part}_" for part in OPTIONAL if part not in self._parts)
        return {
            name: counted.get(name) or (none if name in REASONED else {"": 0})
            for name in COUNTERS
            if name in counted or not name.startswith(absent)
        }

    def gauges(self) -> dict[str, int]:
        """The values now of the gauges there are, in the order of their declaration."""
        return {name: self._gauges[name]() for name in GAUGES if name in self._gauges}

    def __iter__(self) -> Iterator[tuple[str, str, int]]:
        """All (name, reason, value) that were ever counted, and the gauges."""
        for (name, reason), value in sorted(self._counts.items()):
            yield name, reason, value
        for name, read in sorted(self._gauges.items()):
            yield name, "", read()


def aged(read: Callable[[], int], age: float, seconds: Callable[[], float]) -> Callable[[], int]:
    """*read*, for a gauge that takes work: asked anew when its last answer is *age* seconds old."""
    last, answer = float("-inf"), 0

    def found() -> int:
        nonlocal last, answer
        now = seconds()
        if now - last >= age:
            last, answer = now, read()
        return answer

    return found
