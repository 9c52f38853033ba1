"""A client of server-sent events that comes back by itself, as browsers do: with the last id it read."""

from __future__ import annotations

import asyncio
import json
import random
from contextlib import suppress
from typing import Any

import httpx
from httpx_sse import ServerSentEvent, aconnect_sse

from anycable_tx.testing.checker import EventLog

__all__ = ["EventSource"]


class EventSource:
    """Reads one stream until it is closed, at any of *urls*, and tells *log* what the checker wants to know.

    ``last_id`` is the last id it read, ``received`` are the ids of the messages, in order.
    """

    def __init__(self, urls: list[str], stream: str, *, name: str, log: EventLog, retry: float = 0.2) -> None:
        self.urls = urls
        self.stream = stream
        self.name = name
        self.last_id = ""
        self.received: list[str] = []
        self.connections = 0
        self.subscribed = asyncio.Event()
        self._log = log
        self._retry = retry
        self._identifier = ""
        self._replaying = False
        self._http = httpx.AsyncClient(timeout=httpx.Timeout(5, read=10), trust_env=False)
        self._task = asyncio.create_task(self._run())

    async def close(self) -> None:
        """Leave for good."""
        self._task.cancel()
        with suppress(asyncio.CancelledError):
            await self._task
        await self._http.aclose()
        self._log.record("gone", client=self.name)

    async def _run(self) -> None:
        while True:
            with suppress(httpx.HTTPError):
                await self._read()
            if self.subscribed.is_set():
                self.subscribed.clear()
                self._log.record("cut", client=self.name, connection=self.connections)
            await asyncio.sleep(self._retry)

    async def _read(self) -> None:
        headers = {"Last-Event-ID": self.last_id} if self.last_id else {}
        self._replaying = bool(self.last_id)
        async with aconnect_sse(
            self._http, "GET", random.choice(self.urls), params={"stream": self.stream}, headers=headers
        ) as source:
            source.response.raise_for_status()
            async for event in source.aiter_sse():
                self._take(event)

    def _take(self, event: ServerSentEvent) -> None:
        origin, self.last_id = self.last_id, event.id or self.last_id
        value: dict[str, Any] = json.loads(event.data)
        about = {"client": self.name, "identifier": self._identifier}
        match event.event:
            case "confirm_subscription":
                self.connections += 1
                self._identifier = about["identifier"] = value["identifier"]
                self._log.record("connected", client=self.name, connection=self.connections, restored=False)
                place = {self.stream: _position(origin)} if self._replaying else None
                self._log.record("subscribed", **about, stream=self.stream, **{"from": place})
                self.subscribed.set()
            case "confirm_history":
                self._replaying = False
            case "reject_history":
                self._replaying = False
                self._log.record("refused", **about)
            case "message":
                self.received.append(value["id"])
                how = "replay" if self._replaying else "live"
                self._log.record(
                    "received", **about, connection=self.connections, stream=self.stream, id=value["id"], how=how,
                    **_position(event.id),
                )  # fmt: skip


def _position(id: str) -> dict[str, Any]:
    offset, epoch, _ = id.split("/", 2)
    return {"epoch": epoch, "offset": int(offset)}
