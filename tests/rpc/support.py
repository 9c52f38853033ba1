"""A backend that answers as scripted, and the settings of the calls to it."""

from __future__ import annotations

from collections import deque
from collections.abc import Awaitable, Callable
from typing import Any, NamedTuple

from twisted.internet.defer import Deferred
from twisted.internet.task import Clock
from twisted.python.failure import Failure

from anycable_tx.config.declarations.backend import BACKEND, DISCONNECTS
from anycable_tx.metrics import Metrics
from anycable_tx.rpc.transport import CallFailed, Code, RpcReply, RpcStatus

#: What an attempt comes to: a reply, a failure, or one of them later.
Outcome = RpcReply | CallFailed | Deferred[RpcReply]


def settings(**given: Any) -> dict[str, Any]:
    """The options of the backend as they are declared, save those given."""
    known = {option.name: option.default for option in (*BACKEND, *DISCONNECTS)}
    assert given.keys() <= known.keys(), given
    return known | given


def ok(**more: Any) -> RpcReply:
    return RpcReply(RpcStatus.SUCCESS, **more)


def failed(code: Code, *, delivered: bool = False, retry_after: float | None = None) -> CallFailed:
    return CallFailed(code, f"scripted: {code.value}", delivered=delivered, retry_after=retry_after)


class Attempt(NamedTuple):
    """One attempt at a call, as the transport saw it."""

    method: str
    request: dict[str, Any]
    sid: str
    within: float | None
    at: float


class Scripted:
    """A transport. Each attempt takes the next of ``outcomes``; when there is none left it succeeds."""

    announcement = "backend:50051"

    def __init__(self, clock: Clock | None = None) -> None:
        self.clock = clock or Clock()
        self.attempts: list[Attempt] = []
        self.outcomes: deque[Outcome] = deque()
        self.answer: Callable[[Attempt], Outcome] = lambda attempt: ok()
        self.log: list[str] = []
        self.trouble = ""

    async def start(self) -> None:
        self.log.append("start")

    async def stop(self) -> None:
        self.log.append("stop")

    async def call(self, method: str, request: dict[str, Any], sid: str, within: float | None) -> RpcReply:
        attempt = Attempt(method, request, sid, within, self.clock.seconds())
        self.attempts.append(attempt)
        outcome = self.outcomes.popleft() if self.outcomes else self.answer(attempt)
        if isinstance(outcome, CallFailed):
            raise outcome
        return await outcome if isinstance(outcome, Deferred) else outcome

    def problem(self) -> str:
        return self.trouble

    @property
    def times(self) -> list[float]:
        """When each attempt was made, in milliseconds."""
        return [round(attempt.at * 1000, 3) for attempt in self.attempts]


class Begun:
    """Work that was begun: ``result`` is what it came to, a Failure if it raised."""

    def __init__(self, work: Awaitable[Any]) -> None:
        async def run() -> Any:
            return await work

        self.result: Any = None
        self.done = False
        self.deferred = Deferred.fromCoroutine(run())
        self.deferred.addBoth(self._end)

    def _end(self, result: Any) -> None:
        self.result, self.done = result, True

    @property
    def error(self) -> Any:
        """The exception it raised."""
        assert isinstance(self.result, Failure), self.result
        return self.result.value

    @property
    def code(self) -> Code:
        """Why the call failed."""
        assert isinstance(self.error, CallFailed), self.result
        return self.error.reason


def counted(metrics: Metrics, prefix: str = "") -> dict[str, int]:
    """The counters that are not zero, ``name{reason}`` -> value."""
    gauges = ("rpc_pending_num", "rpc_capacity_num", "disconnect_queue_size")
    return {
        f"{name}{{{reason}}}" if reason else name: value
        for name, reason, value in metrics
        if name.startswith(prefix) and name not in gauges
    }


def spin(clock: Clock, seconds: float) -> None:
    """Let time pass; what is due happens at its very time."""
    end = clock.seconds() + seconds
    while (calls := clock.getDelayedCalls()) and (due := min(call.getTime() for call in calls)) <= end:
        clock.rightNow = max(due, clock.rightNow)
        clock.advance(0)
    clock.rightNow = end
