"""What becomes of the entries that were read from the Redis stream: published, put aside, acknowledged."""

from __future__ import annotations

import math
from collections.abc import Callable
from hashlib import sha256
from typing import Any

from twisted.internet.defer import CancelledError

from anycable_tx.background import Background, sleep
from anycable_tx.broadcasters.ingest import Ingest, Job
from anycable_tx.cable.messages import Publication, Receipt, RemoteCommand
from anycable_tx.cable.publications import MAX_ID_LENGTH, decode
from anycable_tx.errors import AnyCableError, BadPublication
from anycable_tx.logs import shorten
from anycable_tx.metrics import Metrics
from anycable_tx.redis.api import Redis, RedisError, RedisUnavailable

__all__ = ["Acknowledgements", "Morgue", "Tenure", "TenureEnded"]

#: Seconds before Redis is asked again for what failed.
RETRY = 0.25


class TenureEnded(AnyCableError):
    """Another node may have taken over: nothing more is published from here."""

    code = "broker_unavailable"


class Acknowledgements(Background):
    """Entries that are done, until Redis has confirmed that they are acknowledged and deleted.

    They are sent in groups, and again until that succeeds: what is done is not to be done by another node.
    """

    GROUP = 256

    def __init__(self, redis: Redis, reactor: Any, metrics: Metrics, stream: str, group: str) -> None:
        super().__init__(reactor, metrics)
        self._redis = redis
        self._stream = stream
        self._group = group
        self._ids: dict[str, None] = {}
        self._sending = False

    def __len__(self) -> int:
        return len(self._ids)

    def __contains__(self, id: str) -> bool:
        return id in self._ids

    def add(self, id: str) -> None:
        """The entry *id* is done."""
        self._ids[id] = None
        if not self._sending:
            self._sending = True
            self.spawn(self._send())

    async def _send(self) -> None:
        delay = 0.0
        try:
            while self._ids:
                await sleep(self.reactor, delay)  # others are done in the same turn
                ids = list(self._ids)[: self.GROUP]
                commands = [("XACK", self._stream, self._group, *ids), ("XDEL", self._stream, *ids)]
                try:
                    answers = await self._redis.pipeline(self._stream, commands)
                except RedisUnavailable:
                    delay = RETRY
                    continue
                errors = [answer for answer in answers if isinstance(answer, RedisError)]
                if errors and errors[0].kind != "WRONGTYPE":
                    self.log.warn(
                        "entries of a Redis stream cannot be acknowledged yet",
                        attrs={"context": "broadcast", "provider": "redisx", "error": errors[0]},
                    )
                    delay = 4 * RETRY
                    continue
                for id in ids:
                    del self._ids[id]
                delay = 0.0
        finally:
            self._sending = False


class Morgue:
    """Where entries go that can never be published: ``<stream>:dead``, which keeps about the last 1,000 (BR-24)."""

    LENGTH = 1000

    def __init__(self, redis: Redis, stream: str) -> None:
        self._redis = redis
        self._key = f"{stream}:dead"

    async def keep(self, id: str, fields: list[bytes], reason: str) -> None:
        """Copy the entry there. Raises RedisUnavailable or RedisError."""
        await self._redis.execute(
            self._key, "XADD", self._key, "MAXLEN", "~", self.LENGTH, "*", "id", id, "reason", reason, *fields
        )


class Tenure(Background):
    """The entries that were taken during one uninterrupted time of reading.

    Each is published to the node, those of one AnyCable stream in the order they were taken, and then acknowledged.
    While the broker is unavailable they wait, without limit. An entry that cannot be understood, or that makes the
    node fail, is put aside. From the moment *holds* answers False, or ``end`` was called, nothing more is begun: what
    was not finished stays unacknowledged in Redis for the next tenure, here or elsewhere. The ids of publications are
    made of the entries' ids, so that both may finish the same one.
    """

    def __init__(
        self,
        node: Any,
        reactor: Any,
        metrics: Metrics,
        *,
        stream: str,
        lenient: bool,
        holds: Callable[[], bool],
        done: Acknowledgements,
        morgue: Morgue,
    ) -> None:
        super().__init__(reactor, metrics)
        self._node = node
        self._prefix = f"rx:{stream}:"
        if len(self._prefix) > MAX_ID_LENGTH // 2:
            self._prefix = f"rx:{sha256(stream.encode()).hexdigest()[:32]}:"
        self._lenient = lenient
        self._holds = holds
        self._done = done
        self._morgue = morgue
        self._ended = False
        self._ingest = Ingest(self, reactor, metrics, math.inf, bounded=False)
        #: Entry id -> bytes, in the order taken; ``size`` is their sum.
        self.in_hand: dict[str, int] = {}
        self.size = 0
        self._progress = 0.0

    @property
    def ended(self) -> bool:
        """True once nothing more is begun; it stays so."""
        if not self._ended and not self._holds():
            self._ended = True
        return self._ended

    def end(self) -> None:
        """Begin nothing more."""
        self._ended = True

    def stuck_for(self) -> float:
        """For how many seconds nothing of what is in hand was finished."""
        return self.reactor.seconds() - self._progress if self.in_hand else 0.0

    def take(self, id: str, fields: list[bytes] | None) -> None:
        """An entry was read; None: it was deleted meanwhile. One that is in hand already is not taken twice."""
        if id in self.in_hand or id in self._done:
            return
        if fields is None:
            self._done.add(id)
            return
        if not self.in_hand:
            self._progress = self.reactor.seconds()
        self.in_hand[id] = size = sum(map(len, fields))
        self.size += size
        self.spawn(self._see_through(id, fields))

    async def _see_through(self, id: str, fields: list[bytes]) -> None:
        try:
            await self._publish(id, fields)
        except TenureEnded:
            return
        finally:
            self.size -= self.in_hand.pop(id)
        self._progress = self.reactor.seconds()
        self._done.add(id)

    async def _publish(self, id: str, fields: list[bytes]) -> None:
        payload = dict(zip(fields[::2], fields[1::2], strict=False)).get(b"payload")
        try:
            if payload is None:
                raise BadPublication("missing payload field")
            work = decode(payload, lenient=self._lenient, idempotency_key=self._prefix + id)
        except BadPublication as e:
            self.metrics.count("failed_broadcast_msg_total")
            self.log.warn(
                "failed to parse pubsub message",
                attrs={
                    "context": "broadcast", "provider": "redisx", "entry": id,
                    "data": shorten(payload or b""), "error": e,
                },
            )  # fmt: skip
            await self._put_aside(id, fields, str(e))
            return
        try:
            await self._ingest.store(Job(work, len(payload)))
        except (TenureEnded, CancelledError):
            raise
        except Exception as e:
            self.metrics.count("internal_errors_total")
            self.log.failure("broadcast failed", attrs={"context": "broadcast", "provider": "redisx", "entry": id})
            await self._put_aside(id, fields, f"{type(e).__name__}: {e}")
            return
        self.metrics.count("publications_total")

    async def _put_aside(self, id: str, fields: list[bytes], reason: str) -> None:
        while True:
            if self.ended:
                raise TenureEnded
            try:
                await self._morgue.keep(id, fields, reason)
                break
            except RedisUnavailable:
                await sleep(self.reactor, RETRY)
            except RedisError as e:
                self.log.warn(
                    "an entry that cannot be published is not kept",
                    attrs={"context": "broadcast", "provider": "redisx", "entry": id, "error": e},
                )
                break
        self.metrics.count("dead_entries_total")

    # -- the node, as the way in sees it

    async def publish(self, publication: Publication) -> Receipt:
        """Hand it to the node. Raises TenureEnded."""
        if self.ended:
            raise TenureEnded
        receipt: Receipt = await self._node.publish(publication)
        return receipt

    async def broadcast_command(self, command: RemoteCommand) -> None:
        """Hand it to the node. Raises TenureEnded."""
        if self.ended:
            raise TenureEnded
        await self._node.broadcast_command(command)
