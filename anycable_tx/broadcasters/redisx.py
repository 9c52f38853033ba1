"""Publications from a Redis stream, read by a consumer group and acknowledged once they are stored."""

from __future__ import annotations

import random
from collections.abc import Callable

from twisted.internet.defer import CancelledError, Deferred
from zope.interface import implementer

from anycable_tx.background import Background, sleep
from anycable_tx.broadcasters.redisx_entries import Acknowledgements, Morgue, Tenure
from anycable_tx.broadcasters.redisx_group import Entry, Group
from anycable_tx.broadcasters.redisx_leader import Lease, lease_key
from anycable_tx.cable.ids import new_node_id
from anycable_tx.errors import BrokerUnavailable
from anycable_tx.interfaces import IBroadcaster, ProviderContext
from anycable_tx.redis.api import Link, Redis, RedisError, RedisUnavailable
from anycable_tx.redis.client import shared

__all__ = ["RedisStreamBroadcaster", "create"]

#: At most so many entries are read at a time, and no more while so many, or so many bytes, are not finished (P7).
BATCH = 128
MAX_UNFINISHED = 1024
MAX_UNFINISHED_BYTES = 32 * 1024 * 1024

#: Seconds. An entry that nobody has claimed for IDLE is claimed; what is in hand is claimed anew each HOLD_ON, and
#: relied on no longer than TRUST after that.
IDLE = 15.0
HOLD_ON = 5.0
TRUST = 12.0
CLAIM_EACH = 2.0
#: A node that is not the leader asks so often whether it may be.
STANDBY = 1.0
TICK = 0.5
#: A node that cannot store anything for so long lets another try, and does not read itself for a while.
STUCK = 10.0
AWAY = 8.0
#: Reading that does not succeed for so long is a problem.
DEAF_AFTER = 5.0
#: A stop waits so long for what is in hand.
FINISH = 5.0
#: Consumers with nothing pending that were idle for so many seconds are removed; looked for so often.
STALE = 3600.0
TIDY_EACH = 600.0


def create(context: ProviderContext) -> RedisStreamBroadcaster:
    """The provider's factory."""
    return RedisStreamBroadcaster(context)


@implementer(IBroadcaster)
class RedisStreamBroadcaster(Background):
    """Reads ``redisx_stream`` as a consumer of ``redisx_group``: each entry's field ``payload`` is a publication.

    An entry is acknowledged, and deleted, after everything in it is stored (P6); what a node left unfinished is
    finished by another. Redis and the broker may be away as long as they like: nothing is given up. With
    ``redisx_mode=leader`` one node reads and the others stand by, so that entries are published in the order they
    were added; with ``shared`` all read, and only those that one node took are in order.
    """

    def __init__(self, context: ProviderContext, redis: Redis | None = None) -> None:
        super().__init__(context.reactor, context.metrics)
        settings = context.settings
        self._node = context.node
        self._redis = redis or shared(context)
        self._stream: str = settings["redisx_stream"]
        self._block: int = settings["redisx_read_block_milliseconds"]
        self._lenient = bool(settings.get("broadcast_lenient", True))
        self.consumer = new_node_id()
        self._group = Group(self._redis, self._stream, settings["redisx_group"], self.consumer)
        self._attrs = {
            "context": "broadcast", "provider": "redisx", "consumer": self.consumer, "stream": self._stream,
        }  # fmt: skip
        self._lease: Lease | None = None
        if settings["redisx_mode"] == "leader":
            self._lease = Lease(self._redis, self.reactor, lease_key(self._stream), self.consumer)
        self._done = Acknowledgements(self._redis, self.reactor, self.metrics, self._stream, self._group.name)
        self._morgue = Morgue(self._redis, self._stream)
        self._tenure: Tenure | None = None
        #: There was a group once, and there is one now.
        self._had_group = self._has_group = False
        #: Entries may be pending in this consumer's name that are not in hand.
        self._uncollected = False
        #: What is pending in others' names is to be claimed at once.
        self._takes_over = False
        self._cursor: bytes | str = "0-0"
        self._claim_at = self._tidy_at = self._away_until = 0.0
        #: When what is in hand was last known to be this consumer's.
        self._asserted = 0.0
        #: Bytes of the largest entry of the last read; before the first, of one that is very large.
        self._largest = MAX_UNFINISHED_BYTES // 8
        self._link: Link | None = None
        self._nap: Deferred[None] | None = None
        self._stopping = False
        self._ended: Deferred[None] = Deferred()
        self._error: Exception | None = None
        self._failing_since = 0.0
        self.announcement = f"Starting Redis broadcaster at {self._redis.log_name}"

    def problem(self) -> str:
        """Why publications may not be heard, '' when all is well; standing by is well."""
        if self._error is None or self.reactor.seconds() - self._failing_since < DEAF_AFTER:
            return ""
        return f"the Redis stream {self._stream!r} is not read: {self._error}"

    async def start(self) -> None:
        """The group exists if Redis is there; else it is made as soon as it is. Then entries are read."""
        await self._redis.start()
        try:
            await self._make_group()
        except BrokerUnavailable as e:
            self._failed(e)
        self.spawn(self._read())
        self.spawn(self._keep())

    async def stop(self) -> None:
        """Read no more, finish what is in hand if that succeeds soon, and leave the rest to others.

        The consumer is removed only if nothing is pending in its name: what is would be lost with it.
        """
        self._stopping = True
        self._wake()
        await self._ended
        try:
            await self._finish()
        finally:
            self.cancel_all()
            self._done.cancel_all()
            if self._tenure is not None:
                self._tenure.end()
                self._tenure.cancel_all()
        try:
            await self._leave()
        except BrokerUnavailable as e:
            self.log.warn("cannot leave the consumer group: {error}", error=e, attrs=self._attrs)
        await self._redis.stop()

    async def _finish(self) -> None:
        """What is in hand is published and acknowledged, as far as that succeeds soon."""
        tenure = self._tenure
        if tenure is not None:
            await self._within(FINISH, lambda: tenure.ended or not tenure.in_hand)
            tenure.end()
        await self._within(1.0, lambda: not self._done)

    async def _leave(self) -> None:
        if self._lease is not None and self._tenure is not None:
            await self._lease.release()
        await self._group.leave()

    async def _within(self, seconds: float, condition: Callable[[], bool]) -> None:
        until = self.reactor.seconds() + seconds
        while not condition() and self.reactor.seconds() < until:
            await sleep(self.reactor, 0.02)

    # -- reading

    async def _read(self) -> None:
        delay = 0.0
        try:
            while not self._stopping:
                try:
                    await self._pass()
                except CancelledError:
                    raise
                except Exception as e:
                    self._drop_link()
                    if isinstance(e, RedisError) and e.kind == "NOGROUP" and self._has_group:
                        self.log.warn("the consumer group is gone: it is made again", attrs=self._attrs)
                        self._has_group = False
                        continue
                    if not isinstance(e, BrokerUnavailable):
                        self.metrics.count("internal_errors_total")
                        self.log.failure("reading the Redis stream failed", attrs=self._attrs)
                    self._failed(e)
                    delay = min(max(0.25, 2 * delay), 5.0)
                    await self._rest(delay * random.uniform(0.5, 1))
                else:
                    self._succeeded()
                    delay = 0.0
        finally:
            self._drop_link()
            self._ended.callback(None)

    async def _pass(self) -> None:
        """One step: take the lead, collect what was left unfinished, read, or wait for more."""
        if not self._has_group:
            await self._make_group()
        tenure = self._tenure
        if tenure is None or tenure.ended:
            tenure = None if self.reactor.seconds() < self._away_until else await self._begin()
            if tenure is None:
                self._succeeded()
                await self._rest(STANDBY)
                return
        if self._takes_over:
            await self._claim_all()
        elif self.reactor.seconds() >= self._claim_at:
            await self._claim(IDLE)
        if self._uncollected:
            await self._collect(tenure)
        if not await self._room(tenure):
            return
        last = await self._take(tenure)
        if last and not self._stopping:
            await self._more_than(last)

    async def _begin(self) -> Tenure | None:
        """A new tenure, or None while another node leads."""
        lease = self._lease
        if lease is None:
            self._asserted = self.reactor.seconds()
            holds: Callable[[], bool] = self._trusts
        else:
            if not await lease.acquire():
                return None
            self.log.info("reading the Redis stream, as the one that does", attrs=self._attrs)
            holds = self._leads
        self._tenure = tenure = Tenure(
            self._node, self.reactor, self.metrics,
            stream=self._stream, lenient=self._lenient, holds=holds, done=self._done, morgue=self._morgue,
        )  # fmt: skip
        # Entries come in their order only if everything that was read before is finished first.
        self._takes_over = lease is not None
        self._uncollected = True
        return tenure

    def _leads(self) -> bool:
        return self._lease is not None and self._lease.held

    def _trusts(self) -> bool:
        return bool(self.reactor.seconds() - self._asserted < TRUST)

    async def _make_group(self) -> None:
        """What was added before there ever was a group is nobody's; after a flush everything is new."""
        await self._group.make("0" if self._had_group else "$")
        self._had_group = self._has_group = True

    async def _claim_all(self) -> None:
        """Make everything that is pending this consumer's, whoever had it."""
        self._cursor = "0-0"
        while await self._claim(0):
            pass
        self._takes_over = False

    async def _claim(self, idle: float) -> bool:
        """Claim a hundred of what others left for *idle* seconds. True if there may be more."""
        self._cursor, count = await self._group.claim(idle, self._cursor)
        self._claim_at = self.reactor.seconds() + CLAIM_EACH
        if count:
            self._uncollected = True
        return self._cursor != b"0-0"

    async def _collect(self, tenure: Tenure) -> None:
        """Take in hand whatever is pending in this consumer's name."""
        after: bytes | str = "0-0"
        while await self._room(tenure):
            entries = await self._group.own(after, self._fitting(tenure))
            if not entries:
                self._uncollected = False
                return
            self._hand_over(tenure, entries)
            after = entries[-1][0]

    async def _room(self, tenure: Tenure) -> bool:
        """Wait until more may be read. False: it may not, because the tenure ended or this node stops."""
        while not self._stopping and not tenure.ended:
            if len(tenure.in_hand) + len(self._done) <= MAX_UNFINISHED and tenure.size <= MAX_UNFINISHED_BYTES:
                return True
            await sleep(self.reactor, 0.02)
        return False

    def _fitting(self, tenure: Tenure) -> int:
        """How many entries to read, if they are as large as the last ones."""
        return min(max((MAX_UNFINISHED_BYTES - tenure.size) // self._largest, 1), BATCH)

    async def _take(self, tenure: Tenure) -> str:
        """Read what is new. The id after which there is nothing, or '' if there may be more."""
        try:
            taken = await self._group.take(self._fitting(tenure), self._lease.key if self._lease else "")
        except RedisUnavailable:
            self._uncollected = True
            raise
        if taken is None:
            self._lose_lead(tenure)
            return ""
        if taken.entries:
            self._hand_over(tenure, taken.entries)
        return taken.last

    def _hand_over(self, tenure: Tenure, entries: list[Entry]) -> None:
        self._largest = max(1, *(sum(map(len, fields or ())) for _, fields in entries))
        for id, fields in entries:
            tenure.take(id.decode(), fields)

    async def _more_than(self, last: str) -> None:
        """Wait until there is an entry after *last*, or for the time one read may take. It takes nothing."""
        if self._link is None:
            link = await self._redis.link(self._stream)
            if self._stopping:
                link.close()
                return
            self._link = link
        await self._link.command("XREAD", "COUNT", 1, "BLOCK", self._block, "STREAMS", self._stream, last)

    # -- beside reading

    async def _keep(self) -> None:
        """Keep the lease and the entries in hand, and the group tidy."""
        while True:
            await sleep(self.reactor, TICK)
            tenure = self._tenure
            if tenure is None or tenure.ended:
                continue
            try:
                await self._hold_on(tenure)
            except BrokerUnavailable as e:  # reading fails too then, and says so
                self.log.debug("cannot keep hold of entries: {error}", error=e, attrs=self._attrs)
            except CancelledError:
                raise
            except Exception:
                self.metrics.count("internal_errors_total")
                self.log.failure("cannot keep hold of entries", attrs=self._attrs)

    async def _hold_on(self, tenure: Tenure) -> None:
        now = self.reactor.seconds()
        lease = self._lease
        if tenure.stuck_for() >= STUCK:
            await self._step_aside(tenure)
            return
        if lease is not None and lease.due and not await lease.renew():
            self._lose_lead(tenure)
            return
        if now - self._asserted >= HOLD_ON:
            if tenure.in_hand:
                await self._group.hold(tenure.in_hand)
            self._asserted = now
        if now >= self._tidy_at:
            self._tidy_at = now + TIDY_EACH
            await self._group.remove_stale(STALE)

    async def _step_aside(self, tenure: Tenure) -> None:
        """What this node cannot store another one may be able to."""
        self.log.warn("nothing of what was read can be stored: another node may try", attrs=self._attrs)
        self._away_until = self.reactor.seconds() + AWAY
        tenure.end()
        self._drop_link()
        if self._lease is not None:
            await self._lease.release()

    def _lose_lead(self, tenure: Tenure) -> None:
        if not tenure.ended:
            self.log.warn("no longer the one that reads the Redis stream", attrs=self._attrs)
        tenure.end()
        self._drop_link()

    def _drop_link(self) -> None:
        link, self._link = self._link, None
        if link is not None:
            link.close()

    async def _rest(self, seconds: float) -> None:
        """Do nothing for a while, or until this node stops."""
        if self._stopping:
            return
        nap: Deferred[None] = Deferred()
        self._nap = nap
        call = self.reactor.callLater(seconds, self._wake)
        try:
            await nap
        finally:
            if call.active():
                call.cancel()

    def _wake(self) -> None:
        nap, self._nap = self._nap, None
        if nap is not None:
            nap.callback(None)
        self._drop_link()

    def _failed(self, error: Exception) -> None:
        if self._stopping:
            return
        if self._error is None:
            self._failing_since = self.reactor.seconds()
            self.log.warn("cannot read the Redis stream: {error}", error=error, attrs=self._attrs)
        self._error = error

    def _succeeded(self) -> None:
        if self._error is not None:
            self._error = None
            self.log.info("the Redis stream can be read again", attrs=self._attrs)
