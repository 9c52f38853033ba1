"""The workers of a machine: started together, replaced, stopped together."""

from __future__ import annotations

import socket
from collections.abc import Iterator
from typing import Any

import pytest
from twisted.internet.defer import Deferred
from twisted.logger import LogEvent, formatEvent, globalLogPublisher

from anycable_tx.config.load import defaults
from anycable_tx.errors import ConfigurationError
from anycable_tx.testing.processes import free_port
from anycable_tx.workers.handover import SOCKETS
from anycable_tx.workers.pool import Workers
from anycable_tx.workers.reports import WorkerFailed
from tests.workers.support import Child, Reactor


class World:
    def __init__(self, **settings: Any) -> None:
        self.port, self.other = free_port(), free_port()
        self.reactor = Reactor()
        settings = {"workers": 2, "broker": "redis", "public": True, "node_id": "me", **settings}
        self.settings = defaults(host="127.0.0.1", port=self.port, http_broadcast_port=self.other, **settings)
        self.workers = Workers(self.settings, self.reactor)
        self.outcome: list[Any] = []

    def start(self) -> World:
        """Begin; the reactor runs."""
        Deferred.fromCoroutine(self.workers.start()).addBoth(self.outcome.append)
        self.reactor.run()
        return self

    def served(self) -> World:
        """All workers serve."""
        self.start()
        for child in self.children:
            child.say(ready=True)
        assert self.outcome == [None]
        return self

    def stop(self) -> list[Any]:
        """Begin to stop."""
        stopped: list[Any] = []
        Deferred.fromCoroutine(self.workers.stop()).addBoth(stopped.append)
        return stopped

    @property
    def children(self) -> list[Child]:
        return self.reactor.children

    def bound(self) -> bool:
        """Is the port taken?"""
        with socket.socket() as probe:
            try:
                probe.bind(("127.0.0.1", self.port))
            except OSError:
                return True
        return False


@pytest.fixture(autouse=True)
def log() -> Iterator[list[str]]:
    """Everything that is logged meanwhile, as text and attributes."""
    texts: list[str] = []

    def observe(event: LogEvent) -> None:
        if event["log_namespace"].startswith("anycable_tx"):
            attrs = " ".join(f"{key}={value}" for key, value in event.get("attrs", {}).items())
            texts.append(f"{event['log_level'].name} {formatEvent(event)} {attrs}")

    globalLogPublisher.addObserver(observe)
    yield texts
    globalLogPublisher.removeObserver(observe)


def test_no_worker_runs_before_the_reactor_does() -> None:
    """Privileges are dropped in between; the ports are bound while there are some."""
    it = World()
    Deferred.fromCoroutine(it.workers.start()).addBoth(it.outcome.append)
    assert it.bound()
    assert it.children == []
    it.reactor.run()
    assert len(it.children) == 2


def test_each_worker_is_a_node_of_its_own_with_the_settings_and_sockets_of_all(log: list[str]) -> None:
    it = World(max_conn=101, secret="hush").start()
    assert it.outcome == []
    for number, child in enumerate(it.children, 1):
        settings = child.handover.settings
        changed = {name for name in settings if settings[name] != it.settings[name]}
        assert changed - {"metrics_port"} == {"node_id", "workers", "max_conn", "metrics_tags"}
        assert (settings["node_id"], settings["workers"], settings["max_conn"]) == (f"me-{number}", 1, 51)
        assert set(child.fds) == {0, 1, 2, 3, 4, SOCKETS, SOCKETS + 1}
        assert child.command[1:] == ["-P", "-m", "anycable_tx.workers", f"me-{number}"]
        assert "hush" not in str([*child.command, *child.environment.values()])
    it.children[0].say(ready=True)
    assert it.outcome == []
    it.children[1].say(ready=True)
    assert it.outcome == [None]
    assert log[-1] == "info Workers are ready context=workers num=2"


def test_each_worker_serves_metrics_of_its_own_with_its_number_on_them() -> None:
    port = free_port()
    it = World(metrics_http="/metrics", metrics_port=port, metrics_tags="env:dev").start()
    given = [child.handover.settings for child in it.children]
    assert [settings["metrics_port"] for settings in given] == [port, port + 1]
    assert [settings["metrics_tags"] for settings in given] == [{"env": "dev", "worker": n} for n in ("1", "2")]
    assert all(SOCKETS + 2 not in child.fds for child in it.children)  # they share the other ports only
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", port))  # the parent left it to the worker


def test_settings_are_spoken_of_once(log: list[str]) -> None:
    it = World().start()
    assert [line for line in log if "public mode" in line]
    assert all(child.handover.settings.notices == () for child in it.children)


def test_an_occupied_port_stops_the_start_before_there_is_a_worker() -> None:
    it = World()
    with socket.create_server(("127.0.0.1", it.other)):
        it.start()
    [failure] = it.outcome
    assert failure.type is ConfigurationError
    assert str(failure.value).startswith(f"cannot listen on 127.0.0.1:{it.other}: ")
    assert it.children == []
    assert not it.bound()


def test_what_no_worker_can_start_with_is_said_once_and_ends_all(log: list[str]) -> None:
    it = World().start()
    for child in list(it.children):
        child.say(failed="redis_url: no luck", traceback="")
        child.end(1)
    [failure] = it.outcome
    assert (failure.type, str(failure.value)) == (ConfigurationError, "redis_url: no luck")
    assert len(it.children) == 2
    assert not it.bound()
    assert not [line for line in log if "no luck" in line]
    assert it.reactor.getDelayedCalls() == []


def test_a_surprise_in_a_worker_comes_with_its_traceback() -> None:
    it = World().start()
    it.children[1].say(failed="what", traceback="Traceback: here\n")
    [failure] = it.outcome
    assert (failure.type, str(failure.value)) == (WorkerFailed, "what\n\nTraceback: here\n")
    assert it.children[0].orders == ["hurry"]


def test_a_worker_that_ends_before_it_serves_stops_the_start() -> None:
    it = World().start()
    it.children[0].end(signal=11)
    [failure] = it.outcome
    assert str(failure.value) == "the worker me-1 ended (SIGSEGV) before it served"
    assert it.children[1].pid is None


def test_a_start_that_is_given_up_leaves_no_worker() -> None:
    it = World()
    start = Deferred.fromCoroutine(it.workers.start())
    start.addBoth(it.outcome.append)
    it.reactor.run()
    start.cancel()
    assert it.stop() == [None]
    assert all(child.orders == ["hurry"] for child in it.children)
    assert len(it.outcome) == 1
    assert not it.bound()


def test_a_worker_that_ended_is_replaced_and_counted(log: list[str]) -> None:
    it = World().served()
    it.reactor.advance(60)
    it.children[0].end(signal=9)
    assert log[-1] == "error a worker ended and is replaced context=workers worker=me-1 how=SIGKILL"
    it.reactor.advance(0.1)
    assert [child.handover.settings["node_id"] for child in it.children] == ["me-1", "me-2", "me-1"]
    it.children[2].say(ready=True)
    assert log[-1] == "info a worker is ready context=workers worker=me-1 pid=4711"
    assert [child.handover.restarts for child in it.children] == [{}, {}, {"SIGKILL": 1}]
    assert it.children[1].orders == []


def test_one_that_ends_at_once_again_waits_longer_each_time(log: list[str]) -> None:
    it = World().served()
    waits = []
    for _ in range(12):
        it.children[-1].end(1)
        begun, there = it.reactor.seconds(), len(it.children)
        while len(it.children) == there:
            it.reactor.advance(0.01)
        waits.append(it.reactor.seconds() - begun)
    assert waits[0] <= 0.11
    assert all(2.4 <= wait <= 5.1 for wait in waits[-5:])
    it.children[-1].say(ready=True)
    it.reactor.advance(60)
    it.children[-1].end(1)
    it.reactor.advance(0.11)
    assert it.children[-1].pid is not None


def test_one_that_cannot_start_any_more_is_spoken_of_and_tried_again(log: list[str]) -> None:
    it = World().served()
    it.children[0].end(1)
    it.reactor.advance(0.1)
    it.children[2].say(failed="the port is gone", traceback="")
    assert log[-1] == "error a worker cannot start context=workers worker=me-1 error=the port is gone"
    it.children[2].end(1)
    it.reactor.advance(0.2)
    assert len(it.children) == 4


def test_a_stop_tells_all_and_is_over_when_they_have_ended(log: list[str]) -> None:
    it = World().served()
    it.children[1].obedient = False
    stopped = it.stop()
    assert not it.bound()
    assert [child.orders for child in it.children] == [["stop"], ["stop"]]
    assert stopped == []
    it.children[1].end()
    assert stopped == [None]
    assert it.reactor.getDelayedCalls() == []
    assert len(it.children) == 2


def test_who_does_not_stop_in_time_is_killed(log: list[str]) -> None:
    it = World(shutdown_timeout=10, shutdown_delay=2).served()
    it.children[0].obedient = False
    stopped = it.stop()
    it.reactor.advance(12 + 1.7)
    assert stopped == []
    it.reactor.advance(0.2)
    assert it.children[0].orders == ["stop", "KILL"]
    assert stopped == [None]
    assert "warn a worker did not stop and is killed context=workers worker=me-1" in log


def test_hurrying_is_passed_on_and_shortens_the_wait() -> None:
    it = World().served()
    it.children[0].obedient = it.children[1].obedient = False
    stopped = it.stop()
    it.reactor.advance(3)
    it.workers.hurry()
    assert it.children[0].orders == ["stop", "hurry"]
    it.reactor.advance(1.0)
    assert stopped == [None]


def test_a_stop_while_a_replacement_waits_starts_no_other() -> None:
    it = World().served()
    for _ in range(3):
        it.children[-1].end(1)
        it.reactor.advance(5)
    it.children[-1].end(1)
    there = len(it.children)
    assert it.stop() == [None]
    it.reactor.advance(60)
    assert len(it.children) == there


def test_the_records_of_workers_come_out_here(log: list[str]) -> None:
    it = World().served()
    told = {"time": 1.0, "level": "warn", "namespace": "anycable_tx.x", "text": "a {b}", "attrs": {"nodeid": "me-1"}}
    it.children[0].say(record=told)
    assert log[-1] == "warn a {b} nodeid=me-1"
    it.children[0].say(lost=7)
    assert log[-1] == "warn log records were lost context=workers worker=me-1 num=7"


def test_a_certificate_that_cannot_be_used_reaches_no_worker(tmp_path: Any) -> None:
    it = World().served()
    it.workers.renew_certificate()
    assert it.children[0].orders == []
    (tmp_path / "cert.pem").write_text("nonsense")
    it.workers.settings = it.settings.part(ssl_cert=str(tmp_path / "cert.pem"), ssl_key=str(tmp_path / "cert.pem"))
    with pytest.raises(ConfigurationError, match="ssl_cert"):
        it.workers.renew_certificate()
    assert it.children[0].orders == []


def test_an_inherited_socket_is_handed_on_and_not_bound_again() -> None:
    it = World()
    given = socket.create_server(("127.0.0.1", it.port))
    it.workers = Workers(it.settings, it.reactor, [given])
    it.start()
    assert it.children[0].fds[SOCKETS] == given.fileno()
    assert len(it.children[0].fds) == 7
    assert it.stop() == [None]
    assert given.fileno() == -1


def test_one_that_cannot_be_spawned_is_tried_again_later(log: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    it = World().served()
    spawn, failures = it.reactor.spawnProcess, [OSError(11, "Try again"), OSError(11, "Try again")]

    def failing(*args: Any, **more: Any) -> Any:
        if failures:
            raise failures.pop()
        return spawn(*args, **more)

    monkeypatch.setattr(it.reactor, "spawnProcess", failing)
    it.children[0].end(1)
    for _ in range(100):
        it.reactor.advance(0.01)
    assert failures == []
    assert it.children[2].handover.restarts == {"status 1": 1, "not started": 2}
    assert len([line for line in log if "cannot be started: [Errno 11] Try again" in line]) == 2
    assert it.stop() == [None]
