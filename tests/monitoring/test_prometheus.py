"""The metrics as Prometheus gets them, from a server on a clock."""

from __future__ import annotations

import re
from typing import Any

import pytest
from prometheus_client.parser import text_string_to_metric_families
from twisted.internet.task import Clock
from twisted.internet.testing import MemoryReactorClock

from anycable_tx.config.load import defaults
from anycable_tx.metrics import MAX_REASONS, Metrics
from anycable_tx.monitoring.names import ABSENT
from anycable_tx.monitoring.prometheus import PrometheusResource
from anycable_tx.server import Server
from anycable_tx.transports.site import Sites
from tests.transports.peer import Peer

#: The always registered names of the AnyCable server that mean something here, with their types.
ALWAYS = {
    "clients_num": "gauge",
    "clients_uniq_num": "gauge",
    "broadcast_streams_num": "gauge",
    "disconnect_queue_size": "gauge",
    "mem_sys_bytes": "gauge",
    "failed_auths_total": "counter",
    "client_msg_total": "counter",
    "failed_client_msg_total": "counter",
    "disconnected_slow_clients_total": "counter",
    "publications_total": "counter",
    "broadcast_msg_total": "counter",
    "remote_commands_total": "counter",
    "failed_broadcast_msg_total": "counter",
    "server_msg_total": "counter",
    "failed_server_msg_total": "counter",
    "timeout_server_msg_total": "counter",
    "data_sent_total": "counter",
    "data_rcvd_total": "counter",
}
RPC = {
    "rpc_call_total": "counter",
    "rpc_retries_total": "counter",
    "rpc_error_total": "counter",
    "rpc_timeout_total": "counter",
    "rpc_canceled_total": "counter",
    "rpc_pending_num": "gauge",
}


def built(**settings: Any) -> Server:
    """A server that was not started: its routes are there."""
    return Server(defaults(public=True, metrics_http="/metrics", **settings), MemoryReactorClock())


def scraped(server: Server, port: int = 8080, host: str = "") -> dict[str, Any]:
    """The families by name, as Prometheus understands them."""
    peer = Peer(server.sites.site_for(port, host), server.reactor)
    answer = peer.ask("GET", "/metrics")
    assert answer.status == 200
    return families(answer.body.decode())


def families(text: str) -> dict[str, Any]:
    """The families in *text* under the names they have there."""
    found = list(text_string_to_metric_families(text))
    return {f.name + ("_total" if f.type == "counter" else ""): f for f in found}


@pytest.mark.statement("HE-6")
@pytest.mark.parametrize("method", ["GET", "POST", "PUT"])
def test_metrics_are_plain_text_where_they_are_asked_for_and_nowhere_else(method: str) -> None:
    server = built()
    answer = Peer(server.sites.site_for(8080), server.reactor).ask(method, "/metrics")
    assert answer.status == 200
    assert answer.headers["content-type"] == "text/plain; version=0.0.4; charset=utf-8"
    assert Peer(server.sites.site_for(8080), server.reactor).ask("HEAD", "/metrics").status == 200
    off = Server(defaults(public=True), Clock())
    assert Peer(off.sites.site_for(8080), off.reactor).ask(method, "/metrics").status == 404


@pytest.mark.statement("HE-7")
def test_each_name_of_the_anycable_server_is_there_once_with_its_type() -> None:
    found = scraped(built())
    for name, kind in ALWAYS.items():
        family = found[f"anycable_go_{name}"]
        assert family.type == kind, name
        [sample] = family.samples
        assert (sample.name, sample.labels) == (f"anycable_go_{name}", {}), name
        assert sample.value >= 0
    assert not {f"anycable_go_{name}" for name in ABSENT} & set(found)


def test_the_text_has_for_each_metric_its_help_its_type_and_then_its_samples() -> None:
    server = built(metrics_tags="env:dev")
    server.metrics.count("history_rejects_total", reason="trimmed")
    body = Peer(server.sites.site_for(8080), server.reactor).ask("GET", "/metrics").body.decode()
    shape = re.compile(r"(# HELP (\w+) [^\n]+\n# TYPE \2 (counter|gauge)\n(\2\{[^\n]*\} [0-9.e+]+\n)*)+")
    assert shape.fullmatch(body)
    kinds = re.findall(r"^# TYPE \w+ (\w+)$", body, re.M)
    assert kinds == sorted(kinds)  # counters first
    assert 'anycable_tx_history_rejects_total{env="dev",reason="trimmed"} 1.0\n' in body


@pytest.mark.statement("HE-8")
def test_without_a_backend_there_is_nothing_about_calls_to_it() -> None:
    assert [name for name in scraped(built()) if "rpc_" in name] == []
    found = scraped(built(rpc_host="http://127.0.0.1:1"))
    for name, kind in RPC.items():
        assert found[f"anycable_go_{name}"].type == kind, name


@pytest.mark.statement("HE-8")
def test_event_streams_are_in_the_metrics_where_they_are_served() -> None:
    assert [name for name in scraped(built()) if "sse_" in name] == []
    found = scraped(built(sse=True))
    assert found["anycable_go_sse_clients_num"].type == "gauge"
    assert "anycable_tx_sse_refusals_total" in found


@pytest.mark.statement("HE-9")
def test_tags_are_labels_of_every_sample() -> None:
    server = built(metrics_tags="env:dev,b:2")
    server.metrics.count("failed_auths_total", reason="expired")
    for family in scraped(server).values():
        for sample in family.samples:
            assert sample.labels.items() >= {"env": "dev", "b": "2"}.items(), family.name


def test_what_is_special_in_a_label_is_escaped() -> None:
    odd = 'a"b\\c\nd'
    metrics = Metrics()
    metrics.count("history_rejects_total", reason=odd)
    sites = Sites({}, Clock(), metrics)
    sites.add_route(1, "/m", PrometheusResource(metrics, {"env": odd}))
    body = Peer(sites.site_for(1), sites.reactor).ask("GET", "/m").body.decode()
    [sample] = families(body)["anycable_tx_history_rejects_total"].samples
    assert sample.labels == {"env": odd, "reason": odd}


def test_a_counter_of_the_anycable_server_is_one_total_and_its_reasons_stand_beside_it() -> None:
    server = built()
    for reason, amount in {"expired": 2, "unauthorized": 1}.items():
        server.metrics.count("failed_auths_total", amount, reason)
    found = scraped(server)
    assert [s.value for s in found["anycable_go_failed_auths_total"].samples] == [3]
    reasons = {s.labels["reason"]: s.value for s in found["anycable_tx_failed_auths_total"].samples}
    assert reasons == {"expired": 2, "unauthorized": 1}


@pytest.mark.statement("HE-10")
def test_another_port_or_host_serves_metrics_there_only() -> None:
    server = built(metrics_port=9100, metrics_host="127.0.0.2")
    assert "anycable_go_clients_num" in scraped(server, 9100, "127.0.0.2")
    for port, host in ((8080, ""), (9100, "")):
        assert Peer(server.sites.site_for(port, host), server.reactor).ask("GET", "/metrics").status == 404
    assert Peer(server.sites.site_for(9100, "127.0.0.2"), server.reactor).ask("GET", "/health").status == 404


def test_reasons_are_bounded() -> None:
    server = built()
    for n in range(3 * MAX_REASONS):
        server.metrics.count("subscription_rejects_total", reason=f"r{n}")
    server.metrics.count("subscription_rejects_total", reason="r0")
    samples = scraped(server)["anycable_tx_subscription_rejects_total"].samples
    assert len(samples) == MAX_REASONS + 1
    values = {s.labels["reason"]: s.value for s in samples}
    assert (values["r0"], values["other"]) == (2, 2 * MAX_REASONS)
