"""The scenarios: what is done to a fresh server, and the figures that come out."""

from __future__ import annotations

import asyncio
import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial

from anycable_tx.testing.client import CableClient
from tests.benchmarks.client import EXT, load_client
from tests.benchmarks.payload import Template
from tests.benchmarks.processes import RunFailed, Server
from tests.benchmarks.publisher import Publisher, publish_at_rate

__all__ = ["SCENARIOS", "Figures", "Scenario", "Size"]

Figures = dict[str, float]

DELIVERY = ("cpu_us", "p50_ms", "p99_ms", "per_second")


@dataclass(frozen=True)
class Size:
    """How much of everything: ``seconds`` of a steady load, and the numbers of connections of the other scenarios."""

    seconds: float = 10.0
    bursts: int = 10
    idle: int = 5000
    connects: int = 5000
    sessions: int = 1000


@dataclass(frozen=True)
class Scenario:
    """One row group of the report. *figures* names, in order, what *run* returns.

    *baseline* is the server that ratios are to; only servers of that baseline take part.
    """

    name: str
    title: str
    figures: tuple[str, ...]
    run: Callable[[Server, Size], Figures]
    needs_sessions: bool = False
    bare_handshake: bool = False
    in_quick: bool = True
    baseline: str = "stock"
    targets: dict[str, float] = field(default_factory=dict)


def steady(subscribers: int, streams: int, rate: float, connections: int, server: Server, size: Size) -> Figures:
    """*rate* messages a second in all, over *streams* streams with *subscribers* each."""
    names = [f"s{i}" for i in range(streams)]
    templates = [Template(name) for name in names]
    count = round(rate * size.seconds)
    with load_client(server) as client:
        client.connect(subscribers * streams, names)
        publish_at_rate(server.http_port, templates, rate, streams * 2, connections)
        server.wait_until_idle()
        client.call("start")
        before = server.cpu()
        reached = publish_at_rate(server.http_port, templates, rate, count, connections)
        total = count * subscribers
        seen = client.finish(total)
        cpu = server.cpu() - before
    return {
        "cpu_us": cpu / total * 1e6,
        "p50_ms": seen["p50"],
        "p99_ms": seen["p99"],
        "per_second": reached * subscribers,
        "published": reached,
    }


def burst(subscribers: int, messages: int, server: Server, size: Size) -> Figures:
    """*messages* publications in one request to *subscribers* of one stream; the next when all were delivered."""
    template = Template("s0")
    total = messages * subscribers
    bursts = max(2, size.bursts * 1000 // max(subscribers, 1000))
    seconds = cpu = 0.0
    with load_client(server) as client:
        client.connect(subscribers, ["s0"])
        publisher = Publisher(server.http_port)
        try:
            publisher.post(template.batch(time.monotonic_ns(), messages))
            server.wait_until_idle()
            client.call("start")
            for done in range(bursts):
                before, start = server.cpu(), time.monotonic_ns()
                publisher.post(template.batch(start, messages))
                reached = client.call("reach", total=total * (done + 1), timeout=60)
                cpu += server.cpu() - before
                seconds += (reached["last"] - start) / 1e9
                time.sleep(0.2)
        finally:
            publisher.close()
        seen = client.finish(total * bursts, timeout=5)
    return {
        "cpu_us": cpu / (total * bursts) * 1e6,
        "p50_ms": seen["p50"],
        "p99_ms": seen["p99"],
        "per_second": total * bursts / seconds,
    }


def idle(server: Server, size: Size) -> Figures:
    """Memory that a connection takes, with its session and one subscription, and the CPU that all take while idle."""
    with load_client(server) as client:
        client.connect(50, ["warm-up"], protocol=EXT)  # what the first connections load is not theirs
        before = server.settled_rss()
        client.connect(size.idle, ["s0"], protocol=EXT)
        grown = server.settled_rss() - before
        cpu, start = server.cpu(), time.monotonic()
        time.sleep(6)
        share = (server.cpu() - cpu) / (time.monotonic() - start)
        client.check()
    return {"rss_kb": grown / size.idle / 1024, "idle_percent": share * 100}


def connect(server: Server, size: Size, *, bare: bool = False) -> Figures:
    """Handshake, welcome and one confirmed subscription, 50 connections at a time; *bare* has no welcome."""
    with load_client(server) as client:
        options = {"path": "/bare", "await_welcome": False} if bare else {}
        client.connect(100, ["s0"], **options)  # type: ignore[arg-type]
        server.wait_until_idle()
        before = server.cpu()
        seen = client.connect(size.connects, ["s0"], **options)  # type: ignore[arg-type]
        server.wait_until_idle()
        cpu = server.cpu() - before
        client.check()
    return {
        "cpu_us": cpu / size.connects * 1e6,
        "per_second": size.connects / seen["seconds"],
        "client_percent": seen["busy"] / seen["seconds"] * 100,
    }


def resume(server: Server, size: Size, missed: int = 5, streams: int = 10) -> Figures:
    """Cut all sessions, publish, and let them come back 100 at a time for their session and what they missed."""
    names = [f"s{i}" for i in range(streams)]
    templates = [Template(name) for name in names]
    with load_client(server) as client:
        client.call("track")
        client.connect(size.sessions, names, protocol=EXT)
        client.call("start")
        _publish_everywhere(server, templates, 1)
        client.finish(size.sessions)
        server.wait_until_idle()
        before = server.cpu()
        client.call("cut")
        server.wait_until_idle()
        cut = server.cpu() - before
        _publish_everywhere(server, templates, missed)
        server.wait_until_idle()
        before = server.cpu()
        seen = client.call("resume", concurrency=100, until=1 + missed)
        server.wait_until_idle()
        back = server.cpu() - before
        client.check()
    return {
        "cut_us": cut / size.sessions * 1e6,
        "cpu_us": back / size.sessions * 1e6,
        "per_second": size.sessions / seen["seconds"],
        "client_percent": seen["busy"] / seen["seconds"] * 100,
    }


def rpc(connections: int, server: Server, size: Size) -> Figures:
    """Commands that are answered with an echo; each of *connections* has one under way at any time."""
    with load_client(server) as client:
        client.connect(connections, ["r"], channel="Chat")
        client.call(
            "perform", seconds=size.seconds / 5
        )  # until the server has the connections and the turns it wants
        server.wait_until_idle()
        client.call("start")
        before = server.cpu()
        performed = client.call("perform", seconds=size.seconds)
        cpu = server.cpu() - before
        total = performed["performed"]
        seen = client.finish(total, timeout=5)
    return {
        "cpu_us": cpu / total * 1e6,
        "p50_ms": seen["p50"],
        "p99_ms": seen["p99"],
        "per_second": total / performed["seconds"],
    }


def shared(server: Server, size: Size) -> Figures:
    """``steady`` traffic, then publications one after another, then questions for ten missed messages."""
    figures = steady(20, 50, 1000, 4, server, size)
    figures.update(_round_trips(server, 2000), **asyncio.run(_histories(server, 500)))
    return figures


def _round_trips(server: Server, count: int) -> Figures:
    template, publisher = Template("s0"), Publisher(server.http_port)
    try:
        times = []
        for _ in range(count):
            start = time.monotonic()
            publisher.post(template.one(time.monotonic_ns()))
            times.append(time.monotonic() - start)
    finally:
        publisher.close()
    return {
        "publish_p50_ms": statistics.median(times) * 1e3,
        "publish_p95_ms": _p95(times),
    }


def _p95(times: list[float]) -> float:
    return statistics.quantiles(times, n=20)[-1] * 1e3


async def _histories(server: Server, count: int) -> Figures:
    async with CableClient(f"ws://127.0.0.1:{server.port}/cable") as client:
        identifier = await client.subscribe(stream="asked")
        publisher, template = Publisher(server.http_port), Template("asked")
        for _ in range(11):
            await asyncio.to_thread(publisher.post, template.one(time.monotonic_ns()))
        publisher.close()
        first = await client.expect(identifier=identifier, stream_id="asked")
        position = {"asked": {"epoch": first["epoch"], "offset": first["offset"]}}
        times = []
        for _ in range(count):
            start = time.monotonic()
            if not await client.history(identifier, position):
                raise RunFailed("history was refused")
            times.append(time.monotonic() - start)
    return {"history_p95_ms": _p95(times)}


def _publish_everywhere(server: Server, templates: list[Template], count: int) -> None:
    publisher = Publisher(server.http_port)
    try:
        for template in templates:
            publisher.post(template.batch(time.monotonic_ns(), count))
    finally:
        publisher.close()


def _deliveries(
    name: str, title: str, run: Callable[[Server, Size], Figures], quick: bool = True, **targets: float
) -> Scenario:
    return Scenario(name, title, DELIVERY, run, in_quick=quick, targets=targets)


SCENARIOS = (
    _deliveries("sparse-100", "20 messages/s to 100 subscribers of one stream", partial(steady, 100, 1, 20, 1)),
    _deliveries(
        "sparse-1000",
        "20 messages/s to 1,000 subscribers of one stream",
        partial(steady, 1000, 1, 20, 1),
        cpu_us=0.5,
    ),
    _deliveries(
        "sparse-5000",
        "4 messages/s to 5,000 subscribers of one stream",
        partial(steady, 5000, 1, 4, 1),
        quick=False,
        cpu_us=0.5,
    ),
    _deliveries("burst-100", "bursts of 50 publications to 100 subscribers", partial(burst, 100, 50), cpu_us=0.08),
    _deliveries(
        "burst-1000", "bursts of 50 publications to 1,000 subscribers", partial(burst, 1000, 50), cpu_us=0.08
    ),
    _deliveries(
        "burst-5000",
        "bursts of 50 publications to 5,000 subscribers",
        partial(burst, 5000, 50),
        quick=False,
        cpu_us=0.08,
    ),
    Scenario(
        "streams",
        "1,000 messages/s over 50 streams with 20 subscribers each",
        (*DELIVERY, "published"),
        partial(steady, 20, 50, 1000, 4),
    ),
    Scenario(
        "idle",
        "idle connections, each with its session and one subscription",
        ("rss_kb", "idle_percent"),
        idle,
        targets={"rss_kb": 3.0},
    ),
    Scenario(
        "connect",
        "connect and subscribe, 50 at a time",
        ("cpu_us", "per_second", "client_percent"),
        connect,
        bare_handshake=True,
        targets={"cpu_us": 0.3},
    ),
    Scenario(
        "resume",
        "cut, reconnect, restore the session and fetch 5 missed messages, 100 at a time",
        ("cut_us", "cpu_us", "per_second", "client_percent"),
        resume,
        needs_sessions=True,
    ),
    Scenario(
        "rpc",
        "commands answered by the backend, one at a time on each of 50 connections",
        DELIVERY,
        partial(rpc, 50),
        baseline="in process",
    ),
    Scenario(
        "brokers",
        "1,000 messages/s over 50 streams with 20 subscribers each; one publication, one history of 10, at a time",
        (*DELIVERY, "publish_p50_ms", "publish_p95_ms", "history_p95_ms"),
        shared,
        baseline="memory",
    ),
    Scenario(
        "workers",
        "bursts of 50 publications to 1,000 subscribers",
        DELIVERY,
        partial(burst, 1000, 50),
        baseline="workers: 1",
    ),
)
