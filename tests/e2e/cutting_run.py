"""Clients behind a proxy that cuts each of them every two seconds, while streams are published to; then the checker.

``python -m tests.e2e.cutting_run --clients 200 --seconds 60 --rate 100 --streams 20 [--restart]`` prints the report
and exits with 1 when anything was lost, repeated, misordered, leaked or refused, or a client authenticated again.
With ``--rpc=grpc`` or ``http`` a backend lets the clients in and decides about their channels, and is told of the end
of sessions with ``disconnect_mode=deferred``: then each session must begin once and end once.
"""

from __future__ import annotations

import argparse
import asyncio
import random
import sys
import threading
import time
from collections import Counter
from collections.abc import Awaitable, Callable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import IO, Any

from anycable_tx.testing.checker import EventLog, Report
from anycable_tx.testing.client import CableClient
from anycable_tx.testing.identifiers import identifier_of
from anycable_tx.testing.processes import ProxyProcess, Publisher, Server, server
from anycable_tx.testing.rpc_app import Application
from tests.e2e.crowd import at_rest, connect, cut
from tests.e2e.rpc import IMPLEMENTATIONS, Backend

_SETTLE = 20.0
#: How long a session of a backend can be resumed, in seconds.
_SESSIONS = 5


@dataclass
class Plan:
    """How much of everything: ``rate`` is messages a second over all streams; a client hears ``heard`` of them."""

    clients: int = 200
    seconds: float = 60.0
    rate: float = 100.0
    streams: int = 20
    heard: int = 3
    cut_every: float = 2.0
    restart: bool = False
    rpc: str = ""
    seed: int = 0


class Traffic(threading.Thread):
    """Publishes at a steady rate until told to stop."""

    def __init__(self, publisher: Publisher, plan: Plan):
        super().__init__()
        self._publisher = publisher
        self._plan = plan
        self._random = random.Random(plan.seed)
        self._stopping = threading.Event()
        self.failure: Exception | None = None

    def run(self) -> None:
        started, sent = time.monotonic(), 0
        try:
            while not self._stopping.wait(max(0.0, started + sent / self._plan.rate - time.monotonic())):
                self._publisher.publish(f"stream-{self._random.randrange(self._plan.streams)}")
                sent += 1
        except Exception as e:
            self.failure = e
        finally:
            self._publisher.close()

    def stop(self) -> None:
        self._stopping.set()
        self.join()
        if self.failure is not None:
            raise self.failure


def _subscribing(plan: Plan) -> Callable[[CableClient, str], Awaitable[Any]]:
    """How a client subscribes to a stream: by its name, or to the backend's channel of it."""
    if not plan.rpc:
        return lambda client, name: client.subscribe(stream=name)
    return lambda client, name: client.subscribe(identifier_of("Chat", room=name), streams=[name])


async def _drive(
    plan: Plan, target: Server, proxy: ProxyProcess, log: EventLog, at_the_end: Callable[[Server], Any]
) -> int:
    """Carry out the plan; answers how many connections the server holds for clients that have a newer one."""
    clients = await connect(plan, [proxy.url()], log, _subscribing(plan))
    traffic = Traffic(target.publisher(log=log), plan)
    traffic.start()
    try:
        cutting = asyncio.create_task(cut(plan, [proxy], time.monotonic() + plan.seconds))
        if plan.restart:
            await asyncio.sleep(plan.seconds / 2)
            await asyncio.to_thread(target.restart)
        await cutting
    finally:
        await asyncio.to_thread(traffic.stop)
    with target.publisher(log=log) as last:
        for stream in range(plan.streams):
            await asyncio.to_thread(last.publish, f"stream-{stream}")
    await asyncio.gather(*(client.caught_up(_SETTLE) for client in clients))
    await at_rest(log, _SETTLE)
    connections = await asyncio.to_thread(proxy.do, "connections")
    await asyncio.to_thread(at_the_end, target)
    await asyncio.gather(*(client.close() for client in clients))
    return len(connections) - plan.clients


def run(
    plan: Plan,
    file: IO[str] | None = None,
    *options: str,
    watching: Callable[[Server], AbstractContextManager[Any]] = lambda target: nullcontext(),
    at_the_end: Callable[[Server], Any] = lambda target: None,
) -> Report:
    """Carry the plan out against a server of its own, and judge it; *file* gets the events.

    *options* are further ones of the server. *watching* it goes on meanwhile, and *at_the_end* is called when all is
    delivered and everybody is still there.

    Beside the checker's counts there is ``superseded_connections``: those that outlived a resume elsewhere.
    Raises ProcessFailed if the server fails.
    """
    log = EventLog(file)
    app = Application()
    backend = Backend(plan.rpc, app) if plan.rpc else None
    access: tuple[str, ...] = ("--public",)
    if backend is not None:
        access = (
            *backend.options,
            "--disconnect_mode=deferred",
            f"--sessions_ttl={_SESSIONS}",
            "--disconnect_rate=1000",
        )
    options = ("--presets=broker", "--broker_snapshot=snapshot", "--history_limit=5000", *access, *options)
    with (
        backend or nullcontext(),
        server(*options) as target,
        watching(target),
        ProxyProcess(target.port) as proxy,
    ):
        superseded = asyncio.run(_drive(plan, target, proxy, log, at_the_end))
        if backend is not None:
            time.sleep(_SESSIONS + 3)
    report = log.check()
    report.counts["superseded_connections"] = superseded
    if backend is not None:
        _pair(app, report)
    return report


def _pair(app: Application, report: Report) -> None:
    """Count the beginnings and ends that the backend heard of, and the sessions that do not have one of each."""
    begun = Counter(sid for method, _, sid in list(app.asked) if method == "connect")
    ended = Counter(request["identifiers"] for request in app.of("disconnect"))
    users = {app.connect({}, sid)["identifiers"]: n for sid, n in begun.items()}
    report.counts["connects"], report.counts["disconnects"] = begun.total(), ended.total()
    report.counts["unpaired_sessions"] = sum(
        users.get(user, 0) != 1 or ended[user] != 1 for user in users.keys() | ended.keys()
    )


def clean(report: Report) -> bool:
    """No finding, and every connection resumed its session without a refusal and without a left-over."""
    unwanted = ("fresh_authentications", "refusals", "superseded_connections", "unpaired_sessions")
    return report.ok and not any(report.counts.get(name, 0) for name in unwanted)


def main() -> int:
    """The command of the module's first lines."""
    parser = argparse.ArgumentParser(
        prog="python -m tests.e2e.cutting_run", description=(__doc__ or "").split("\n")[0]
    )
    for name in ("clients", "streams", "heard", "seed"):
        parser.add_argument(f"--{name}", type=int, default=getattr(Plan, name))
    for name in ("seconds", "rate", "cut_every"):
        parser.add_argument(f"--{name}", type=float, default=getattr(Plan, name))
    parser.add_argument("--restart", action="store_true", help="restart the server in the middle, from its snapshot")
    parser.add_argument("--rpc", default="", choices=IMPLEMENTATIONS, help="let a backend decide, called like this")
    parser.add_argument("--log", type=argparse.FileType("w"), help="write the events there, for the checker")
    options = vars(parser.parse_args())
    report = run(file=options.pop("log"), plan=Plan(**options))
    print(report)
    for name in ("superseded_connections", "connects", "disconnects", "unpaired_sessions"):
        if name in report.counts:
            print(f"{name:<22} {report.counts[name]}")
    return 0 if clean(report) else 1


if __name__ == "__main__":
    sys.exit(main())
