"""What a NATS server tells about itself over HTTP."""

from __future__ import annotations

import json
from typing import Any, NamedTuple

from twisted.internet.defer import CancelledError, Deferred
from twisted.internet.protocol import Protocol, connectionDone
from twisted.python.failure import Failure
from twisted.web.client import Agent, ResponseDone

__all__ = ["Monitor", "Unanswered"]

#: Seconds for an answer.
PATIENCE = 2.0


class Unanswered(Exception):
    """Nobody answers there, or nothing that could be understood."""


class Answer(NamedTuple):
    """The status of HTTP and the object that came with it."""

    status: int
    body: dict[str, Any]


class Monitor:
    """The server on 127.0.0.1, at *port*, below *base_path*."""

    def __init__(self, reactor: Any, port: int, base_path: str) -> None:
        self._reactor = reactor
        self._base = f"http://127.0.0.1:{port}{base_path}"
        self._agent = Agent(reactor, connectTimeout=PATIENCE)  # type: ignore[no-untyped-call]

    async def problem(self) -> str:
        """Why it cannot do its work now, JetStream with all that is stored there included; '' if it can."""
        try:
            answer = await self._get("healthz")
        except Unanswered as e:
            return str(e)
        if answer.status == 200:
            return ""
        return str(answer.body.get("error") or answer.body.get("status") or f"it answers with {answer.status}")

    async def lagging(self, own: str) -> list[str]:
        """The servers that do not have everything yet, or are away, of those that store what *own*, this one, does.

        What they have is known where they are led. Raises Unanswered.
        """
        told = (await self._get("jsz?streams=true&accounts=true")).body
        groups = [told.get("meta_cluster")]
        for account in told.get("account_details") or ():
            groups += [stream.get("cluster") for stream in account.get("stream_detail") or ()]
        found = set()
        for group in filter(None, groups):
            leads = group.get("leader") == own
            for replica in group.get("replicas") or ():
                if replica.get("offline") or (leads and not replica.get("current")):
                    found.add(str(replica.get("name")))
        return sorted(found)

    async def _get(self, path: str) -> Answer:
        try:
            request: Deferred[Any] = self._agent.request(b"GET", f"{self._base}/{path}".encode())
            response = await request.addTimeout(PATIENCE, self._reactor)
            received = _Body()
            response.deliverBody(received)
            body = json.loads(await received.whole.addTimeout(PATIENCE, self._reactor))
        except CancelledError:
            raise
        except Exception as e:
            raise Unanswered(f"it does not answer: {e or type(e).__name__}") from e
        if not isinstance(body, dict):
            raise Unanswered("it does not answer with an object")
        return Answer(response.code, body)


class _Body(Protocol):
    """Collects what is answered. Who waits for it no longer ends the connection."""

    def __init__(self) -> None:
        self._parts: list[bytes] = []
        self.whole: Deferred[bytes] = Deferred(lambda _: self._give_up())

    def dataReceived(self, data: bytes) -> None:
        self._parts.append(data)

    def connectionLost(self, reason: Failure = connectionDone) -> None:
        if self.whole.called:
            return
        if isinstance(reason.value, ResponseDone):
            self.whole.callback(b"".join(self._parts))
        else:
            self.whole.errback(reason)

    def _give_up(self) -> None:
        if self.transport is not None:
            self.transport.loseConnection()
