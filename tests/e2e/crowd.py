"""Clients that are cut again and again and come back, to whichever node; what the delivery runs have in common."""

from __future__ import annotations

import asyncio
import random
import time
from collections.abc import Awaitable, Callable
from contextlib import suppress
from typing import Any, Protocol

from anycable_tx.testing.checker import EventLog
from anycable_tx.testing.client import CableClient
from anycable_tx.testing.processes import ProcessFailed, ProxyProcess

__all__ = ["Crowd", "at_rest", "connect", "cut"]


class Crowd(Protocol):
    """How many clients there are, of how many streams each hears ``heard``, and how often each is cut."""

    clients: int
    streams: int
    heard: int
    cut_every: float
    seed: int


async def connect(
    crowd: Crowd, urls: list[str], log: EventLog, subscribe: Callable[[CableClient, str], Awaitable[Any]]
) -> list[CableClient]:
    """The clients, subscribed with *subscribe* to streams called ``stream-<number>``."""
    chance = random.Random(crowd.seed)
    clients: list[CableClient] = []
    for number in range(crowd.clients):
        returning = _returning(clients, number, urls, chance)
        url = urls[number % len(urls)]
        client = CableClient(url, name=f"client-{number}", log=log, keep_frames=False, reconnect_after=returning)
        clients.append(client)
        await client.connect()
        for stream in chance.sample(range(crowd.streams), min(crowd.heard, crowd.streams)):
            await subscribe(client, f"stream-{stream}")
    return clients


def _returning(
    clients: list[CableClient], number: int, urls: list[str], chance: random.Random
) -> Callable[[int], float]:
    """Come back soon, and to whichever node."""

    def after(attempt: int) -> float:
        clients[number].url = chance.choice(urls)
        return min(0.1 * 2**attempt, 1.0) * chance.uniform(0.5, 1.5)

    return after


async def cut(crowd: Crowd, proxies: list[ProxyProcess], until: float) -> None:
    """Reset each connection when it is old enough; in every fourth case the server is not told."""
    chance = random.Random(crowd.seed)
    born: dict[tuple[int, int], float] = {}
    while time.monotonic() < until:
        await asyncio.sleep(0.1)
        now = time.monotonic()
        there = [
            (p, number)
            for p, proxy in enumerate(proxies)
            for number in await asyncio.to_thread(proxy.do, "connections")
        ]
        # Those of the beginning are of one age, and must not be cut all at a time.
        born = {key: born.get(key, now - chance.random() * crowd.cut_every / 2) for key in there}
        for (p, number), birth in born.items():
            if birth and now - birth >= crowd.cut_every:
                side = "client" if chance.random() < 0.25 else "both"
                with suppress(ProcessFailed):  # it may have ended since it was listed
                    await asyncio.to_thread(proxies[p].do, "cut", connection=number, side=side)
                born[p, number] = 0.0


async def at_rest(log: EventLog, settle: float) -> None:
    """Wait until nothing has been received for two seconds, for at most *settle*."""
    before, deadline = -1, time.monotonic() + settle
    while len(log.events) != before and time.monotonic() < deadline:
        before = len(log.events)
        await asyncio.sleep(2.0)
