"""Several nodes that share a broker, clients that are cut and come back to any node, faults, and then the checker.

``python -m tests.e2e.cluster_run --nodes 3 --clients 300 --seconds 120 --rate 200 --faults all`` prints the report,
and exits with 1 when anything was lost, repeated, misordered, leaked, or refused without a reason. Publications go to
the nodes over HTTP and, where they share a Redis, to that by XADD, in turn. With ``--broker nats`` they share three
NATS servers, with ``--broker embedded`` each node has one of its own, and with ``--broker workers --nodes 1`` one
server has several workers.

The clients share one process, which has to keep up: ``--heard 1 --cut_every 10`` for 200 messages a second to 300 of
them on two cores.
"""

from __future__ import annotations

import argparse
import asyncio
import itertools
import json
import random
import sys
import threading
import time
import uuid
from collections.abc import Awaitable, Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from typing import Any, Protocol

from anycable_tx.testing.checker import EventLog, Report
from anycable_tx.testing.processes import ProcessFailed, ProxyProcess, Publisher, Server
from tests.e2e.cluster_embedded import EmbeddedStore
from tests.e2e.cluster_nats import NatsStore
from tests.e2e.cluster_redis import RedisStore
from tests.e2e.cluster_workers import WorkersStore
from tests.e2e.crowd import at_rest, connect, cut
from tests.e2e.readiness import wait_until_ready

__all__ = ["STORES", "Plan", "clean", "run"]

_SETTLE = 30.0
#: A publication that nobody took for so long is given up.
_PATIENCE = 60.0
_STAYING = ThreadPoolExecutor(1)


class Store(Protocol):
    """What the nodes share. ``restarts`` are the faults that begin new epochs; ``times`` when each fault happens."""

    restarts: frozenset[str]
    times: dict[str, tuple[float, ...]]
    ready_within: float

    def options(self, number: int) -> tuple[str, ...]: ...

    def fault(self, what: str, nodes: list[Server]) -> None: ...

    def add(self, id: str, stream: str) -> bool | None: ...


STORES: dict[str, type[RedisStore] | type[NatsStore] | type[EmbeddedStore] | type[WorkersStore]] = {
    "redis": RedisStore,
    "valkey": RedisStore,
    "nats": NatsStore,
    "embedded": EmbeddedStore,
    "workers": WorkersStore,
}


@dataclass
class Plan:
    """How much of everything: ``rate`` is messages a second over all streams; a client hears ``heard`` of them.

    ``faults`` are those of the store, and ``node``: one is killed and started again. Each happens at its part of the
    time.
    """

    broker: str = "redis"
    nodes: int = 3
    clients: int = 300
    seconds: float = 120.0
    rate: float = 200.0
    streams: int = 20
    heard: int = 3
    cut_every: float = 4.0
    faults: dict[str, tuple[float, ...]] = field(default_factory=dict)
    seed: int = 0


class Traffic(threading.Thread):
    """Publishes at a steady rate until told to stop: to one node after another, and by the store's own way.

    Each stream is published to in one way only: what Redis has taken is stored a while later, so in a stream with
    both there would be no order to judge. A publication whose outcome is not known is made again with the same id,
    which the server knows it by.
    """

    def __init__(self, nodes: list[Server], store: Store, plan: Plan, log: EventLog) -> None:
        super().__init__()
        self._publishers = [Publisher(node.broadcast_port) for node in nodes]
        self._store = store
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
                self.publish(self._random.randrange(self._plan.streams // 2) * 2 + self.sent % 2)
        except Exception as e:
            self.failure = e
        finally:
            self.close()

    def close(self) -> None:
        """Close the connections; the next publication opens others."""
        for publisher in self._publishers:
            publisher.close()

    def publish(self, number: int) -> None:
        """One message to that stream. Raises AssertionError if nobody takes it."""
        id, stream = uuid.uuid4().hex, f"stream-{number}"
        self._log.record("publishing", id=id, stream=stream)
        deadline = time.monotonic() + _PATIENCE
        for attempt in itertools.count():
            taken = self._store.add(id, stream) if number % 2 else None
            if taken or (taken is None and self._by_http(id, stream, attempt)):
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
        if what in store.restarts:
            log.record("new_epochs")
        if what == "node":
            await _kill(next(victims), store)
        else:
            await _apart(store.fault, what, nodes)


async def _kill(node: Server, store: Store) -> None:
    await _apart(node.kill)
    await asyncio.sleep(1.0)
    await _apart(node.start)
    await _apart(wait_until_ready, node, store.ready_within)


def _apart(work: Callable[..., object], *args: Any) -> Awaitable[object]:
    """Done in a thread that stays: what it starts ends with it."""
    return asyncio.get_running_loop().run_in_executor(_STAYING, work, *args)


async def _drive(plan: Plan, nodes: list[Server], proxies: list[ProxyProcess], store: Store, log: EventLog) -> None:
    urls = [proxy.url() for proxy in proxies]
    clients = await connect(plan, urls, log, lambda client, name: client.subscribe(stream=name))
    traffic = Traffic(nodes, store, plan, log)
    traffic.start()
    try:
        begun = time.monotonic()
        faults = asyncio.create_task(_faults(plan, nodes, store, begun, log))
        await cut(plan, proxies, begun + plan.seconds)
        await faults
    finally:
        await asyncio.to_thread(traffic.stop)
    for number in range(plan.streams):
        await asyncio.to_thread(traffic.publish, number)
    traffic.close()
    await asyncio.gather(*(client.caught_up(_SETTLE) for client in clients))
    await at_rest(log, _SETTLE)
    await asyncio.gather(*(client.close() for client in clients))


@contextmanager
def cluster(plan: Plan) -> Iterator[tuple[list[Server], list[ProxyProcess], Store]]:
    """The nodes, a proxy in front of each, and what they share."""
    with ExitStack() as stack:
        store: Store = STORES[plan.broker](plan.broker, frozenset(plan.faults), stack)
        nodes = [Server("--public", "--history_limit=5000", *store.options(n)) for n in range(plan.nodes)]
        starts = [threading.Thread(target=node.start, args=(store.ready_within + 20,)) for node in nodes]
        for node, start in zip(nodes, starts, strict=True):
            stack.callback(node.close)
            start.start()
        for node, start in zip(nodes, starts, strict=True):
            start.join()
            wait_until_ready(node, store.ready_within)
        proxies = [stack.enter_context(ProxyProcess(node.port)) for node in nodes]
        yield nodes, proxies, store
        for node in nodes:
            status, found = node.stop(), node.log.find("Traceback")
            if status != 0 or found >= 0:
                raise ProcessFailed(f"a node ended with {status}:\n{node.log[found - 500 :][:5000]}")


def run(plan: Plan) -> Report:
    """Carry the plan out and judge it. Raises ProcessFailed if a server fails by itself.

    Beside the checker's counts there is ``slowest_live_ms``: the longest time between the acknowledgement of a
    publication and its arrival at a client that did not have to ask for it.
    """
    log = EventLog()
    with cluster(plan) as (nodes, proxies, store):
        asyncio.run(_drive(plan, nodes, proxies, store, log))
    report = log.check()
    published = {event["id"]: event["t"] for event in log.events if event["event"] == "published"}
    live = (event for event in log.events if event["event"] == "received" and event["how"] == "live")
    waits = (event["t"] - published[event["id"]] for event in live if event["id"] in published)
    report.counts["slowest_live_ms"] = round(1000 * max(waits, default=0.0))
    return report


def clean(report: Report, plan: Plan) -> bool:
    """No finding, and nobody was refused history or a session.

    But for what begins new epochs, which explains one refusal of each subscription; and whoever comes back while the
    store is away for longer than nodes wait for it is let in anew.
    """
    unwanted = ["unexplained_refusals"]
    if not plan.faults.keys() - {"node", "bus", "worker"}:
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
    parser.add_argument("--broker", default="redis", choices=STORES)
    known = {name: ", ".join(store.times) for name, store in STORES.items()}
    parser.add_argument("--faults", default="", help=f"all, or some, with commas; {known}")
    options = vars(parser.parse_args())
    chosen, times = options.pop("faults"), STORES[options["broker"]].times
    wanted = set(times) if chosen == "all" else set(filter(None, chosen.split(",")))
    if unknown := wanted - times.keys():
        parser.error(f"--faults: {', '.join(unknown)}: known are {', '.join(times)}")
    plan = Plan(**options, faults={name: when for name, when in times.items() if name in wanted})
    report = run(plan)
    print(report)
    print(f"{'slowest_live_ms':<22} {report.counts['slowest_live_ms']}")
    return 0 if clean(report, plan) else 1


if __name__ == "__main__":
    sys.exit(main())
