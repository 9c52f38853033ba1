"""The metrics of a server tell the truth: they equal what a checker counted that knows nothing of it (INV-M)."""

from __future__ import annotations

import socket
from pathlib import Path
from typing import Any

import pytest

from anycable_tx.testing.checker import Report
from anycable_tx.testing.processes import HOST, Server, free_port
from tests.e2e.cutting_run import Plan, clean, run
from tests.e2e.process import Process, get, until
from tests.e2e.scraper import Sample, Scraper

pytestmark = pytest.mark.e2e


class Watched:
    """A delivery run whose server is asked for its metrics; ``values`` are those of its end, before anybody left."""

    def __init__(self, plan: Plan) -> None:
        self.plan = plan
        self.scraper: Scraper | None = None
        self.values: dict[Sample, float] = {}
        self.report: Report = run(plan, None, "--metrics_http=/metrics", watching=self._watch, at_the_end=self._look)
        assert clean(self.report), f"{self.report.counts}\n{self.report}"

    def _watch(self, target: Server) -> Scraper:
        self.scraper = Scraper(f"http://{HOST}:{target.port}/metrics")
        return self.scraper

    def _look(self, target: Server) -> None:
        assert self.scraper is not None
        self.values = dict(self.scraper.look())

    def go(self, name: str) -> float:
        """A metric of the AnyCable server."""
        return self.values[f"anycable_go_{name}", ""]

    def tx(self, name: str, reason: str = "") -> float:
        """A metric of this one; a reason that was never counted is 0."""
        full = f"anycable_tx_{name}"
        if not reason:
            return sum(value for (known, _), value in self.values.items() if known == full)
        return self.values.get((full, reason), 0)


@pytest.mark.statement("P9")
def test_of_clients_that_are_cut_the_metrics_count_what_the_checker_counts() -> None:
    it = Watched(Plan(clients=30, seconds=8, rate=50, streams=10))
    counts = it.report.counts
    assert it.scraper is not None
    assert it.scraper.count >= 10
    assert it.scraper.shrunk == set()
    assert it.go("publications_total") == it.go("broadcast_msg_total") == counts["publications"]
    assert it.go("clients_num") == counts["clients"] == 30
    assert it.tx("sessions_restored_total") == counts["resumes"] >= 30 * 2
    assert it.tx("sessions_refused_total") == counts["fresh_authentications"] == 0
    assert it.tx("history_rejects_total") == counts["refusals"] == 0
    assert it.tx("history_confirms_total") >= counts["resumes"]
    ended = it.tx("closed_connections_total", "lost") + it.tx("sessions_taken_over_total")
    assert ended == it.tx("closed_connections_total") == counts["cuts"]
    for name in ("gaps_total", "broker_errors_total", "internal_errors_total", "dropped_bus_msg_total"):
        assert it.tx(name) == 0, name
    for name in ("failed_auths_total", "failed_client_msg_total", "disconnected_slow_clients_total"):
        assert it.go(name) == 0, name


@pytest.mark.statement("P9")
def test_of_clients_that_stay_the_metrics_count_every_frame() -> None:
    plan = Plan(clients=20, seconds=4, rate=50, streams=10, cut_every=1000)
    it = Watched(plan)
    counts = it.report.counts
    assert counts["cuts"] == 0
    subscriptions = plan.clients * plan.heard
    assert it.go("client_msg_total") == subscriptions
    asides = plan.clients + subscriptions + it.tx("history_confirms_total")  # welcomes and confirmations
    assert it.go("server_msg_total") - asides == counts["deliveries"]
    assert it.go("broadcast_streams_num") == plan.streams
    assert it.tx("closed_connections_total") == 0


# -- a whole process


def samples(port: int) -> dict[str, Any]:
    """The lines of the endpoint by what stands before their values."""
    status, text = get(port, "/metrics")
    assert status == 200
    return dict(line.rsplit(" ", 1) for line in text.splitlines() if not line.startswith("#"))


@pytest.mark.statement("HE-10", "HE-14", "HE-15", "HE-16")
@pytest.mark.parametrize("reactor", ["epoll", "asyncio"])
def test_a_server_serves_logs_and_sends_its_metrics(tmp_path: Path, reactor: str) -> None:
    own = free_port()
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as statsd:
        statsd.bind((HOST, 0))
        statsd.settimeout(10)
        place = f"localhost:{statsd.getsockname()[1]}"
        options = (
            "--public", "--metrics_http=metrics", f"--metrics_port={own}", "--metrics_tags=env:dev", "--metrics_log",
            "--metrics_log_filter=publications_total,mem_sys_bytes", "--metrics_rotate_interval=0.5",
            f"--statsd_host={place}", "--statsd_prefix=a.",
        )  # fmt: skip
        with Process(*options, cwd=tmp_path, twistd=("-n", "--pidfile=", "-r", reactor)) as it:
            it.ready()
            until(lambda: f"Send statsd metrics to {place}" in it.out, "the last of what is announced")
            assert f"Serve metrics at http://{HOST}:{own}/metrics" in it.out
            assert "log metrics nodeid=" in it.out
            assert samples(own)['anycable_go_clients_num{env="dev"}'] == "0.0"
            assert int(float(samples(own)['anycable_go_mem_sys_bytes{env="dev"}'])) > 10_000_000
            assert get(it.port, "/metrics")[0] == 404
            until(lambda: " publications_total=0" in it.out, "a record in the log")
            lines = statsd.recv(65536).decode().split("\n")
            assert "a.clients_num:0|g|#env:dev" in lines
            it.stop()
        assert "mem_sys_bytes=" in it.out


@pytest.mark.parametrize("reactor", ["epoll", "asyncio"])
def test_a_statsd_server_that_is_away_is_spoken_of_once_and_found_when_it_comes(tmp_path: Path, reactor: str) -> None:
    place = (HOST, free_port())
    options = (
        "--public",
        "--metrics_http=/metrics",
        "--metrics_rotate_interval=0.2",
        f"--statsd_host={HOST}:{place[1]}",
    )
    with Process(*options, cwd=tmp_path, twistd=("-n", "--pidfile=", "-r", reactor)) as it:
        it.ready()
        until(lambda: _refused(it.port) >= 3, "refusals")
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as statsd:
            statsd.bind(place)
            statsd.settimeout(10)
            assert b"anycable_go.clients_num:0|g" in statsd.recv(65536)
            until(lambda: "again" in it.out, "the notice that it is back")
        it.stop()
        assert it.out.count("metrics do not reach StatsD") == 1


def _refused(port: int) -> float:
    return float(samples(port).get('anycable_tx_statsd_errors_total{reason="refused"}', 0))
