"""Calls to the backend: each waits for its turn, is tried again where that is safe, and is counted."""

from __future__ import annotations

import random
from asyncio import CancelledError as AsyncioCancelledError
from collections.abc import Callable, Mapping
from typing import Any

from twisted.internet.defer import CancelledError, Deferred

from anycable_tx.background import sleep
from anycable_tx.metrics import Metrics
from anycable_tx.rpc.permits import AdaptiveLimit, Limit, Permits
from anycable_tx.rpc.transport import CallFailed, Code, RpcReply, RpcStatus, Transport

__all__ = ["CANCELLED", "FIRST_DELAY", "LONGEST_DELAY", "Caller"]

#: What a call raises that its caller, or the end of the server, cancelled.
CANCELLED = (CancelledError, AsyncioCancelledError)

#: Seconds before the second attempt, doubled for each further one that fails in the same way.
FIRST_DELAY = {Code.EXHAUSTED: 0.01, Code.UNAVAILABLE: 0.1}
#: No pause is longer, unless the backend asks for it (RA-25).
LONGEST_DELAY = 1.0
JITTER = 0.2


class Caller:
    """Makes calls over *transport*, as many at a time as *settings* allow, within their time.

    *settings* are the ``rpc_*`` options; *jitter* answers a random number from 0 to 1. What is counted:
    ``rpc_call_total`` calls that came to an end, ``rpc_retries_total`` further attempts, ``rpc_error_total`` calls
    that failed or were answered with an error, by reason, ``rpc_timeout_total`` those of them whose time was up,
    ``rpc_canceled_total`` calls that nobody waited for any more (RA-28).
    """

    def __init__(
        self,
        transport: Transport,
        settings: Mapping[str, Any],
        reactor: Any,
        metrics: Metrics,
        *,
        jitter: Callable[[], float] = random.random,
    ) -> None:
        metrics.has("rpc")
        self._transport = transport
        self._reactor = reactor
        self._metrics = metrics
        self._jitter = jitter
        self._limit = _limit(settings)
        self._permits = Permits(
            self._limit,
            reactor,
            metrics,
            size=settings["rpc_queue_size"],
            patience=settings["rpc_queue_timeout"] / 1000,
        )
        self._attempt_time: float | None = settings["rpc_request_timeout"] / 1000 or None
        self._call_time: float | None = settings["rpc_command_timeout"] / 1000 or None
        self._repeats_messages: bool = settings["rpc_retry_messages"]
        #: How often an attempt found no backend. Whoever answers after that may be another one.
        self.outages = 0
        self._stopping = False
        self._given_up = False
        #: In the order they came.
        self._calls: dict[Deferred[RpcReply], None] = {}
        self._idle: Deferred[None] | None = None

    @property
    def concurrency(self) -> int:
        """How many calls run at a time, at present."""
        return self._limit.capacity

    async def call(self, method: str, request: dict[str, Any], sid: str, *, again: bool = True) -> RpcReply:
        """The backend's answer, whatever its status.

        The call keeps its turn from the first attempt to the last. A second attempt follows when the backend was
        unavailable or exhausted and there is time left. Without *again*, and unless ``rpc_retry_messages`` is on,
        it follows only if the backend cannot have carried out the first (RA-22).

        Raises CallFailed, whose ``delivered`` speaks for all attempts. Once the server stops, new calls raise it
        at once. Cancelling ends the call where it is.
        """
        if self._stopping:
            self._metrics.count("rpc_canceled_total")
            raise CallFailed(Code.CANCELED, "the server is stopping", delivered=False)
        work = Deferred.fromCoroutine(self._call(method, request, sid, again or self._repeats_messages))
        self._calls[work] = None
        try:
            return await work
        finally:
            del self._calls[work]
            if self._idle is not None and not self._calls:
                idle, self._idle = self._idle, None
                idle.callback(None)

    def gone(self, sid: str) -> None:
        """The session ended: its calls that wait for their turn, Disconnects excepted, fail with CANCELED.

        Those that run go on: the backend works on them, and what it decided has to be known (RA-16, RA-26).
        """
        self._permits.gone(sid)

    async def stop(self) -> None:
        """Take no more calls; done when those there are have ended. Cancelled, it cancels them (RA-27)."""
        self._stopping = True
        if not self._calls:
            return
        self._idle = Deferred()
        try:
            await self._idle
        except CANCELLED:
            self.cancel()
            raise

    def cancel(self) -> None:
        """Take no more calls, and give up those there are."""
        self._stopping = self._given_up = True
        self._idle = None
        for work in list(self._calls):
            work.cancel()

    async def _call(self, method: str, request: dict[str, Any], sid: str, again: bool) -> RpcReply:
        try:
            await self._permits.acquire(sid, disconnect=method == "disconnect")
            try:
                if self._given_up:  # it got the turn of a call that was cancelled just now
                    raise CancelledError
                reply = await self._attempts(method, request, sid, again)
            finally:
                self._permits.release()
        except CallFailed as e:
            self._count_failure(method, e)
            raise
        except CANCELLED:
            self._metrics.count("rpc_canceled_total")
            raise
        self._metrics.count("rpc_call_total")
        if reply.status not in (RpcStatus.SUCCESS, RpcStatus.FAILURE):
            self._metrics.count("rpc_error_total", reason="error")
        return reply

    def _count_failure(self, method: str, error: CallFailed) -> None:
        if error.reason is Code.CANCELED:
            self._metrics.count("rpc_canceled_total")
            return
        if error.reason is not Code.QUEUE_FULL:
            self._metrics.count("rpc_call_total")
        if method == "restore" and error.reason is Code.UNIMPLEMENTED:
            return  # it is an extension: a backend may do without it
        self._metrics.count("rpc_error_total", reason=error.reason.value)
        if error.reason is Code.TIMEOUT:
            self._metrics.count("rpc_timeout_total")

    async def _attempts(self, method: str, request: dict[str, Any], sid: str, again: bool) -> RpcReply:
        """Try until an answer came, or until a failure is final."""
        until = None if self._call_time is None else self._reactor.seconds() + self._call_time
        delivered = False  # may any attempt have been carried out?
        failure, times = None, 0
        while True:
            try:
                reply = await self._transport.call(method, request, sid, self._within(until))
            except CallFailed as e:
                if e.reason is Code.EXHAUSTED:
                    self._limit.exhausted(self._permits.running)
                self.outages += e.reason is Code.UNAVAILABLE
                safe = again or e.reason is Code.EXHAUSTED or not e.delivered
                delivered = e.delivered = e.delivered or delivered
                if e.reason not in FIRST_DELAY or not safe:
                    raise
                times = times + 1 if e.reason is failure else 0
                failure = e.reason
                delay = self._delay(e, times)
                if until is not None and self._reactor.seconds() + delay >= until:
                    # The time would be over before the next attempt: no need to sit it out.
                    self._metrics.count("rpc_timeout_total")
                    raise
            else:
                self._limit.answered(self._permits.waiting)
                return reply
            self._metrics.count("rpc_retries_total")
            await sleep(self._reactor, delay)

    def _within(self, until: float | None) -> float | None:
        """Seconds for the next attempt."""
        if until is None:
            return self._attempt_time
        left: float = until - self._reactor.seconds()
        return left if self._attempt_time is None else min(left, self._attempt_time)

    def _delay(self, failure: CallFailed, times: int) -> float:
        """Seconds to wait after a failure that came *times* times before in a row (RA-25, RA-29)."""
        delay: float = FIRST_DELAY[failure.reason] * 2 ** min(times, 10)
        delay = min(LONGEST_DELAY, delay * (1 - JITTER + 2 * JITTER * self._jitter()))
        return max(delay, failure.retry_after or 0.0)


def _limit(settings: Mapping[str, Any]) -> Limit:
    if settings["rpc_concurrency"]:
        return Limit(settings["rpc_concurrency"])
    return AdaptiveLimit(*(settings[f"rpc_concurrency_{name}"] for name in ("initial", "min", "max")))
