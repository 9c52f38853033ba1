"""Hand publications to the node in order, and hold them while the broker is unavailable."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from functools import partial
from typing import Any

from twisted.internet.defer import Deferred
from twisted.logger import Logger

from anycable_tx.cable.messages import Publication, Receipt, RemoteCommand
from anycable_tx.errors import BrokerUnavailable
from anycable_tx.metrics import Metrics

__all__ = ["MAX_HELD", "MAX_HELD_BYTES", "Ingest", "Job"]

#: While the broker is unavailable, at most so many requests wait, with bodies of so many bytes (P7).
MAX_HELD = 1000
MAX_HELD_BYTES = 64 * 1024 * 1024

#: Seconds before the second attempt; doubled for each further one up to the longest.
FIRST_DELAY = 0.1
LONGEST_DELAY = 1.0


@dataclass(slots=True, eq=False)
class Job:
    """One publisher's request on its way to the broker.

    ``work`` is its publications in order (*batch*: sent as a list), or its command; ``size`` the bytes it keeps in
    memory. The publisher sets ``abandoned`` when it is gone: what has not been handed to the broker then is given up.
    ``attempted`` says that something of it was handed over, so that its outcome may be unknown. ``receipts`` are
    the broker's answers for the publications that are stored, in order.
    """

    work: list[Publication] | RemoteCommand
    size: int
    batch: bool = False
    abandoned: bool = False
    attempted: bool = False
    held: bool = False
    deadline: float = 0.0
    receipts: list[Receipt] = field(default_factory=list)


class _Turn:
    """A request's place in the queues of its streams."""

    __slots__ = ("_ended", "_waiting")

    def __init__(self) -> None:
        self._ended = False
        self._waiting: list[Deferred[None]] = []

    def ended(self) -> Deferred[None]:
        """Fires when the request has ended."""
        waiting: Deferred[None] = Deferred()
        if self._ended:
            waiting.callback(None)
        else:
            self._waiting.append(waiting)
        return waiting

    def end(self, reactor: Any) -> None:
        """Let those behind go on; through *reactor*, because a long queue must not become a deep stack."""
        self._ended = True
        for waiting in self._waiting:
            reactor.callLater(0, waiting.callback, None)


class Ingest:
    """The way from broadcasters to the node.

    Requests that share a stream are worked off in the order of their arrival, and each one's publications one
    after the other (P1, P6). While the broker is unavailable a request is tried again for up to *hold* seconds,
    those behind it wait, and past MAX_HELD of them or MAX_HELD_BYTES new ones are refused at once, unless the
    broadcaster keeps a bound itself (*bounded* is False).
    """

    _log = Logger()

    def __init__(self, node: Any, reactor: Any, metrics: Metrics, hold: float, *, bounded: bool = True) -> None:
        self._node = node
        self._reactor = reactor
        self._metrics = metrics
        self._hold_for = hold
        self._bounded = bounded
        #: Stream -> the turn of the last request for it.
        self._tails: dict[str, _Turn] = {}
        self._pending = 0
        self._retrying = 0
        self._held = 0
        self._held_bytes = 0
        self._idle: list[Deferred[None]] = []

    async def store(self, job: Job) -> None:
        """Done when everything of *job* is stored (or, for a command, sent).

        Raises BrokerUnavailable when that did not succeed in time, when too much is held already, or when the
        publisher left meanwhile: the first of its publications may be stored then, the rest is not.
        """
        job.deadline = self._reactor.seconds() + self._hold_for
        self._pending += 1
        try:
            if isinstance(job.work, RemoteCommand):
                await self._persist(job, partial(self._node.broadcast_command, job.work))
            else:
                await self._store_in_turn(job, job.work)
        finally:
            self._release(job)
            self._pending -= 1
            if not self._pending:
                idle, self._idle = self._idle, []
                for waiting in idle:
                    waiting.callback(None)

    async def finished(self) -> None:
        """Done when no request is on its way."""
        if self._pending:
            waiting: Deferred[None] = Deferred()
            self._idle.append(waiting)
            await waiting

    async def _store_in_turn(self, job: Job, publications: list[Publication]) -> None:
        streams = {publication.stream for publication in publications}
        before = [self._tails[stream] for stream in streams if stream in self._tails]
        if before:
            self._hold(job)
        # Turns are taken for all streams at once, so requests wait only for earlier ones and never in a circle.
        turn = _Turn()
        for stream in streams:
            self._tails[stream] = turn
        try:
            for earlier in before:
                await earlier.ended()
            if before:
                self._check_present(job)
                if not self._retrying:
                    self._release(job)
            for publication in publications:
                job.receipts.append(await self._persist(job, partial(self._node.publish, publication)))
        finally:
            for stream in streams:
                if self._tails[stream] is turn:
                    del self._tails[stream]
            turn.end(self._reactor)

    async def _persist(self, job: Job, attempt: Callable[[], Awaitable[Any]]) -> Any:
        """Make *attempt* until it succeeds, which answers its result, or the job's time is over."""
        delay = FIRST_DELAY
        retrying = False
        try:
            while True:
                job.attempted = True
                try:
                    return await attempt()
                except BrokerUnavailable as e:
                    left = job.deadline - self._reactor.seconds()
                    if left <= 0:
                        raise
                    if not retrying:
                        self._begin_retrying(e)
                        retrying = True
                        self._hold(job)
                await self._sleep(min(delay, left))
                self._check_present(job)
                delay = min(2 * delay, LONGEST_DELAY)
        finally:
            if retrying:
                self._end_retrying()

    def _begin_retrying(self, error: BrokerUnavailable) -> None:
        self._retrying += 1
        if self._retrying == 1:
            self._log.warn(
                "broadcasts are held: the broker is unavailable",
                attrs={"context": "broadcast", "error": error, "hold": self._hold_for},
            )

    def _end_retrying(self) -> None:
        self._retrying -= 1
        if not self._retrying:
            self._log.info("no broadcast is held any more", attrs={"context": "broadcast"})

    def _hold(self, job: Job) -> None:
        """Count *job* among the held ones. Raises BrokerUnavailable if there is no room."""
        if job.held:
            return
        if self._retrying:
            if self._bounded and (self._held >= MAX_HELD or self._held_bytes + job.size > MAX_HELD_BYTES):
                raise BrokerUnavailable("the broker is unavailable and too many publications are held already")
            self._metrics.count("held_publications_total")
        job.held = True
        self._held += 1
        self._held_bytes += job.size

    def _release(self, job: Job) -> None:
        if job.held:
            job.held = False
            self._held -= 1
            self._held_bytes -= job.size

    def _check_present(self, job: Job) -> None:
        if job.abandoned:
            self._metrics.count("abandoned_publications_total")
            raise BrokerUnavailable("the publisher left before the broker took it")

    async def _sleep(self, seconds: float) -> None:
        over: Deferred[None] = Deferred()
        self._reactor.callLater(seconds, over.callback, None)
        await over
