"""Several nodes that share a broker, clients that are cut and come back to any node, faults, and then the checker.

``python -m tests.e2e.cluster_run --nodes 3 --clients 300 --seconds 120 --rate 200 --faults all`` prints the report,
and exits with 1 when anything was lost, repeated, misordered, leaked or refused. Publications go to the nodes over
HTTP and to Redis by XADD, in turn.
"""

from __future__ import annotations

import argparse
import asyncio
import itertools
import json
import random
import socket
import sys
import threading
import time
import uuid
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from typing import Any

from anycable_tx.redis.api import RedisError
from anycable_tx.redis.resp import Reader, encode
from anycable_tx.testing.checker import EventLog, Report
from anycable_tx.testing.processes import HOST, ProcessFailed, ProxyProcess, Publisher, Server
from anycable_tx.testing.redis_servers import RedisServer, Sentinels
from tests.e2e.crowd import at_rest, connect, cut

__all__ = ["Plan", "clean", "run"]

_SETTLE = 30.0
#: A publication that nobody took for so long is given up.
_PATIENCE = 40.0


@dataclass
class Plan:
    """How much of everything: ``rate`` is messages a second over all streams; a client hears ``heard`` of them."""

    nodes: int = 3
    clients: int = 300
    seconds: float = 120.0
    rate: float = 200.0
    streams: int = 20
    heard: int = 3
    cut_every: float = 4.0
    #: Of ``redis`` (killed and started again), ``failover`` (the same, while sentinels name another master), ``node``
    #: (killed and started again), ``bus`` (its connections are killed): at which part of the time each happens.
    faults: dict[str, tuple[float, ...]] = field(default_factory=dict)
    seed: int = 0
    kind: str = "redis"


ALL: dict[str, tuple[float, ...]] = {"bus": (0.15,), "node": (0.3, 0.6), "redis": (0.45,), "failover": (0.75,)}
#: These begin a new epoch, so history is refused once.
RESTARTS = frozenset({"redis", "failover"})


class Store:
    """The Redis of the nodes: one server that keeps what it was told, or three with sentinels."""

    def __init__(self, plan: Plan, stack: ExitStack) -> None:
        if "failover" in plan.faults:
            self._sentinels: Sentinels | None = stack.enter_context(Sentinels(kind=plan.kind))
            watchers = ",".join(self._sentinels.sentinels)
            url = self._sentinels.url
            self.options: tuple[str, ...] = (f"--redis_sentinels={watchers}", "--redis_min_replicas=1")
        else:
            self._sentinels = None
            kept = ("--appendonly", "yes", "--appendfsync", "always")
            self._server = stack.enter_context(RedisServer(*kept, kind=plan.kind))
            url, self.options = self._server.url, ()
        self.options += (f"--redis_url={url}",)

    @property
    def master(self) -> RedisServer:
        """Who takes writes."""
        return self._server if self._sentinels is None else self._sentinels.master()

    @property
    def copies(self) -> int:
        """How many replicas have to have a publication."""
        return 0 if self._sentinels is None else 1

    def restart(self) -> None:
        """Kill the master, and start it again: with sentinels as a replica of whoever is master then."""
        before = self.master
        before.kill()
        if self._sentinels is not None:
            deadline = time.monotonic() + 20
            while self.master is before:
                if time.monotonic() > deadline:
                    raise ProcessFailed("the sentinels named no other master")
                time.sleep(0.1)
        else:
            time.sleep(1.0)
        before.start()
        if self._sentinels is not None:
            before.ask("REPLICAOF", HOST, str(self.master.port))

    def kill_subscriptions(self) -> None:
        """Close the connections of all subscribers."""
        self.master.ask("CLIENT", "KILL", "TYPE", "pubsub")


class Line:
    """A publisher's connection to Redis, which is opened again when it was lost."""

    def __init__(self, store: Store) -> None:
        self._store = store
        self._socket: socket.socket | None = None
        self._reader = Reader()

    def ask(self, *args: Any) -> Any:
        """The answer to one command. Raises OSError or RedisError."""
        if self._socket is None:
            self._socket, self._reader = (
                socket.create_connection((HOST, self._store.master.port), timeout=5),
                Reader(),
            )
        try:
            self._socket.sendall(encode(args))
            while not (answers := self._reader.feed(self._received())):
                pass
        except OSError:
            self.close()
            raise
        if isinstance(answers[0], RedisError):
            raise answers[0]
        return answers[0]

    def add(self, payload: str) -> bool:
        """XADD; True when Redis, and as many replicas as there have to be, have it. Raises OSError or RedisError."""
        self.ask("XADD", "__anycable__", "*", "payload", payload)
        copies = self._store.copies
        return not copies or self.ask("WAIT", copies, 1000) >= copies

    def _received(self) -> bytes:
        assert self._socket is not None
        data = self._socket.recv(65536)
        if not data:
            raise ConnectionResetError("the connection to Redis was closed")
        return data

    def close(self) -> None:
        """Close the connection."""
        if self._socket is not None:
            self._socket.close()
            self._socket = None


class Traffic(threading.Thread):
    """Publishes at a steady rate until told to stop: to one node after another, and to Redis, each message once.

    Each stream is published to in one way only: what Redis has taken is stored a while later, so in a stream with
    both there would be no order to judge. A publication whose outcome is not known is made again with the same id,
    which the server knows it by.
    """

    def __init__(self, nodes: list[Server], line: Line, plan: Plan, log: EventLog) -> None:
        super().__init__()
        self._publishers = [Publisher(node.broadcast_port) for node in nodes]
        self._line = line
        self._plan = plan
        self._log = log
        self._random = random.Random(plan.seed)
        self._stopping = threading.Event()
        self.failure: Exception | None = None
        self.sent = 0

    def run(self) -> None:
        started = time.monotonic()
        try:
            while not self._stopping.wait(max(0.0, started + self.sent / self._plan.rate - time.monotonic())):
                by_redis = self.sent % 2
                stream = self._random.randrange(self._plan.streams // 2) * 2 + by_redis
                self.publish(f"stream-{stream}", by_redis=bool(by_redis))
        except Exception as e:
            self.failure = e
        finally:
            self.close()

    def close(self) -> None:
        """Close the connections; the next publication opens others."""
        self._line.close()
        for publisher in self._publishers:
            publisher.close()

    def publish(self, stream: str, *, by_redis: bool) -> None:
        """One message. Raises AssertionError if nobody takes it."""
        id = uuid.uuid4().hex
        self._log.record("publishing", id=id, stream=stream)
        deadline = time.monotonic() + _PATIENCE
        attempts = self._by_redis if by_redis else self._by_http
        for attempt in itertools.count():
            if attempts(id, stream, attempt):
                break
            assert time.monotonic() < deadline, "nobody takes publications"
            time.sleep(0.05)
        self.sent += 1
        self._log.record("published", id=id, stream=stream)

    def _by_http(self, id: str, stream: str, attempt: int) -> bool:
        publisher = self._publishers[(self.sent // 2 + attempt) % len(self._publishers)]
        payload = {"stream": stream, "data": json.dumps({"id": id})}
        try:
            return publisher.post(payload, {"Idempotency-Key": id}) == 201
        except Exception:
            publisher.close()
            return False

    def _by_redis(self, id: str, stream: str, attempt: int) -> bool:
        payload = {"stream": stream, "data": json.dumps({"id": id}), "meta": {"id": id}}
        try:
            return self._line.add(json.dumps(payload))
        except (OSError, RedisError, ProcessFailed):
            self._line.close()
            return False

    def stop(self) -> None:
        """Stop; raises what went wrong."""
        self._stopping.set()
        self.join()
        if self.failure is not None:
            raise self.failure


async def _faults(plan: Plan, nodes: list[Server], store: Store, begun: float, log: EventLog) -> None:
    """Each of them at its time."""
    times = sorted((at * plan.seconds, what) for what, when in plan.faults.items() for at in when)
    victims = itertools.cycle(nodes)
    for at, what in times:
        await asyncio.sleep(max(0.0, begun + at - time.monotonic()))
        if what == "bus":
            await asyncio.to_thread(store.kill_subscriptions)
        elif what in RESTARTS:
            log.record("new_epochs")
            await asyncio.to_thread(store.restart)
        elif what == "node":
            victim = next(victims)
            await asyncio.to_thread(victim.kill)
            await asyncio.sleep(1.0)
            await asyncio.to_thread(victim.start)


async def _drive(plan: Plan, nodes: list[Server], proxies: list[ProxyProcess], store: Store, log: EventLog) -> None:
    urls = [proxy.url() for proxy in proxies]
    clients = await connect(plan, urls, log, lambda client, name: client.subscribe(stream=name))
    traffic = Traffic(nodes, Line(store), plan, log)
    traffic.start()
    try:
        begun = time.monotonic()
        faults = asyncio.create_task(_faults(plan, nodes, store, begun, log))
        await cut(plan, proxies, begun + plan.seconds)
        await faults
    finally:
        await asyncio.to_thread(traffic.stop)
    for stream in range(plan.streams):
        await asyncio.to_thread(traffic.publish, f"stream-{stream}", by_redis=stream % 2 == 1)
    traffic.close()
    await asyncio.gather(*(client.caught_up(_SETTLE) for client in clients))
    await at_rest(log, _SETTLE)
    await asyncio.gather(*(client.close() for client in clients))


@contextmanager
def cluster(plan: Plan) -> Iterator[tuple[list[Server], list[ProxyProcess], Store]]:
    """The nodes, a proxy in front of each, and their Redis, which keeps what it was told."""
    with ExitStack() as stack:
        store = Store(plan, stack)
        options = (
            "--public", "--presets=broker", "--broadcast_adapter=http,redisx", "--history_limit=5000",
            "--redis_keepalive_interval=2", *store.options,
        )  # fmt: skip
        nodes = [Server(*options) for _ in range(plan.nodes)]
        for node in nodes:
            stack.callback(node.close)
            node.start()
        proxies = [stack.enter_context(ProxyProcess(node.port)) for node in nodes]
        yield nodes, proxies, store
        for node in nodes:
            if node.stop() != 0 or "Traceback" in node.log:
                raise ProcessFailed(f"a node did not end well:\n{node.log[-3000:]}")


def run(plan: Plan) -> Report:
    """Carry the plan out and judge it. Raises ProcessFailed if a server fails by itself."""
    log = EventLog()
    with cluster(plan) as (nodes, proxies, store):
        asyncio.run(_drive(plan, nodes, proxies, store, log))
    return log.check()


def clean(report: Report, plan: Plan) -> bool:
    """No finding, and nobody was refused history or a session.

    But for a restart of Redis: it begins new epochs, which explains one refusal of each subscription, and whoever
    comes back while it is away for longer than nodes wait for it is let in anew.
    """
    unwanted = ["unexplained_refusals"]
    if not RESTARTS & plan.faults.keys():
        unwanted.append("fresh_authentications")
    return report.ok and not any(report.counts[name] for name in unwanted)


def main() -> int:
    """The command of the module's first lines."""
    parser = argparse.ArgumentParser(
        prog="python -m tests.e2e.cluster_run", description=(__doc__ or "").split("\n")[0]
    )
    for name in ("nodes", "clients", "streams", "heard", "seed"):
        parser.add_argument(f"--{name}", type=int, default=getattr(Plan, name))
    for name in ("seconds", "rate", "cut_every"):
        parser.add_argument(f"--{name}", type=float, default=getattr(Plan, name))
    parser.add_argument("--faults", default="", help="all, or some of bus, node, redis, failover, with commas")
    parser.add_argument("--kind", default="redis", choices=("redis", "valkey"))
    options = vars(parser.parse_args())
    chosen = options.pop("faults")
    wanted = set(ALL) if chosen == "all" else set(filter(None, chosen.split(",")))
    plan = Plan(**options, faults={name: when for name, when in ALL.items() if name in wanted})
    report = run(plan)
    print(report)
    return 0 if clean(report, plan) else 1


if __name__ == "__main__":
    sys.exit(main())
