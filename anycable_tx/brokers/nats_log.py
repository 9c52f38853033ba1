"""The NATS broker's stream log: what is stored, and what is read from it (P1, P4, P6)."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import Any, TypeVar
from urllib.parse import quote

from twisted.internet.defer import Deferred, DeferredSemaphore
from twisted.python.failure import Failure

from anycable_tx.background import sleep
from anycable_tx.brokers import nats_proof as proof
from anycable_tx.brokers.nats_logs import GONE, OTHER_LOG, Log, Logs
from anycable_tx.brokers.nats_proof import Held
from anycable_tx.cable.ids import new_sid
from anycable_tx.cable.messages import History, HistoryRequest, Position, Publication, Receipt, StreamMessage
from anycable_tx.cable.rules import Rules
from anycable_tx.errors import BrokerUnavailable, HistoryRefused
from anycable_tx.nats import wire
from anycable_tx.nats.api import Nats, NatsUnavailable, TooLarge
from anycable_tx.nats.jetstream import JetStream, JetStreamError, Stored
from anycable_tx.nats.names import Names
from anycable_tx.tokens import token

__all__ = ["ATTEMPT", "NO_LOG", "PATIENCE", "READS", "Streams"]

T = TypeVar("T")

#: The position of streams whose messages are not stored.
NO_LOG = Position("none", 0)
#: So long an attempt to publish waits for its answer, and so long attempts are repeated.
ATTEMPT, PATIENCE = 1.0, 5.0
#: The first pause between attempts, and the longest.
_FIRST_PAUSE, _LONGEST_PAUSE = 0.1, 0.5
#: So long a read waits for an answer.
_READING = 2.0
#: So many histories are read at a time.
READS = 32
#: The largest number that every client keeps exactly.
_MAX_OFFSET = 2**53
#: "Temporarily unavailable", and "it is being stored already".
_UNAVAILABLE, _IN_PROCESS = 503, 10158


class Streams:
    """All stream logs. *slack* as in ``StreamLog.prove``; *now* is the Unix time, *reactor* the one for pauses."""

    def __init__(
        self,
        nats: Nats,
        js: JetStream,
        names: Names,
        logs: Logs,
        rules: Rules,
        reactor: Any,
        *,
        slack: float,
        ids: bool,
        now: Callable[[], float],
    ) -> None:
        self._nats = nats
        self._js = js
        self._names = names
        self._logs = logs
        self._rules = rules
        self._reactor = reactor
        self._slack = slack
        self._ids = ids
        self._now = now
        self._reads = DeferredSemaphore(READS)

    async def publish(self, publication: Publication) -> Receipt:
        """Store *publication*, which the server hands on in the same step.

        An attempt that comes to nothing is repeated, for five seconds, in a way that it cannot be stored twice.
        """
        stream = publication.stream
        rule = self._rules.rule_for(stream)
        headers = wire.headers_of(publication)
        if publication.transient or not rule.limit:
            self._nats.publish(self._names.live(rule.name, stream), publication.payload, headers)
            return Receipt(0, "")
        own = quote(publication.id) if self._ids and publication.id else ""
        headers["Nats-Msg-Id"] = f"{token(stream)}/{own}" if own else new_sid()
        subject = self._names.stored(rule.name, stream)
        deadline = self._reactor.seconds() + PATIENCE
        pause = _FIRST_PAUSE
        while True:
            try:
                receipt = await self._store(rule.name, subject, publication.payload, headers)
            except TooLarge:
                raise
            except JetStreamError as e:
                again = e.status == _UNAVAILABLE or e.err_code in (GONE, OTHER_LOG, _IN_PROCESS)
                if not again or self._reactor.seconds() + pause > deadline:
                    raise
            except NatsUnavailable:
                if self._reactor.seconds() + pause > deadline:
                    raise
            else:
                if receipt is not None:
                    return receipt
                continue
            await sleep(self._reactor, pause)
            pause = min(2 * pause, _LONGEST_PAUSE)

    async def tail(self, stream: str) -> Position:
        """The newest position; of a stream without messages one of which that can be proven for a while."""
        rule = self._rules.rule_for(stream)
        if not rule.limit:
            return NO_LOG
        return await self._of_log(rule.name, lambda log: self._tail(log, self._names.stored(rule.name, stream)))

    async def history(self, stream: str, request: HistoryRequest) -> History:
        """All of it or HistoryRefused."""
        rule = self._rules.rule_for(stream)
        position = request.position
        if position is not None and position.offset >= _MAX_OFFSET:
            raise HistoryRefused("future_offset")
        if not rule.limit:
            if position is not None and position != NO_LOG:
                raise HistoryRefused("future_offset" if position.epoch == NO_LOG.epoch else "unknown_epoch")
            return History([], NO_LOG)
        await self._reads.acquire()
        try:
            return await self._of_log(rule.name, lambda log: self._history(log, stream, request))
        finally:
            self._reads.release()

    async def _store(self, kind: str, subject: str, payload: bytes, headers: dict[str, str]) -> Receipt | None:
        """One attempt; None: it is to be repeated at once, because the log was replaced."""
        log = await self._logs.log(kind)
        highest = log.highest
        try:
            ack = await self._js.publish(
                subject, payload, {**headers, "Nats-Expected-Stream": log.name}, within=ATTEMPT
            )
        except JetStreamError as e:
            if e.err_code in (GONE, OTHER_LOG):
                await self._logs.look(kind)
            raise
        except TooLarge:
            raise
        except NatsUnavailable:
            self._logs.doubt(kind)  # nobody answers for a subject whose log was deleted
            raise
        if ack.duplicate and not ack.offset:
            raise JetStreamError(_UNAVAILABLE, _IN_PROCESS, "it is being stored already")
        if not await self._logs.stored(log, ack, highest):
            return None
        return Receipt(ack.offset, log.epoch, ack.duplicate)

    async def _of_log(self, kind: str, ask: Callable[[Log], Awaitable[T]]) -> T:
        """What *ask* finds in the log of a class; asked again if that was replaced."""
        log = await self._logs.log(kind)
        try:
            return await ask(log)
        except JetStreamError as e:
            if e.err_code != GONE:
                raise
            other = await self._logs.look(kind)
            if other is log:
                raise
        return await ask(other)

    async def _tail(self, log: Log, subject: str) -> Position:
        message = await self._js.last(log.name, subject, _READING)
        if message is not None:
            log.saw(message.offset)
        return log.end(message.offset if message is not None else 0)

    async def _history(self, log: Log, stream: str, request: HistoryRequest) -> History:
        subject = self._names.stored(log.kind.name, stream)
        position = request.position
        if position is None:
            asked = 0
            messages, last = await self._since(log, stream, subject, request.since)
        elif position.epoch != log.epoch:
            await self._js.last(log.name, subject, _READING)  # its leader can tell whether there is still this log
            raise HistoryRefused("unknown_epoch")
        else:
            asked = position.offset
            messages, last = await self._after(log, stream, subject, asked)
        end = log.end(last)
        return History(self._linked(stream, log, asked, messages), max(end, Position(log.epoch, asked)))

    async def _since(self, log: Log, stream: str, subject: str, since: int) -> tuple[Any, int]:
        rule = self._rules.rule_for(stream)
        held = await self._read(log, subject, 0) or await self._read_without_leader(log, subject, 0)
        now = self._now()
        earliest = min(since, int(now)) - self._slack
        older = bool(held.messages) and held.messages[0].time < earliest
        facts = None if older or len(held.messages) > rule.limit else await self._logs.facts(log)
        return proof.since(held, earliest, rule, now, facts), held.last

    async def _after(self, log: Log, stream: str, subject: str, asked: int) -> tuple[Any, int]:
        rule = self._rules.rule_for(stream)
        held = await self._read(log, subject, asked)
        if held is None:
            held = await self._read_without_leader(log, subject, asked)
            if not held.begins_with(asked):
                raise BrokerUnavailable(f"JetStream: {log.name} has no leader that could tell what is missing")
        if not held.begins_with(asked):
            held = Held(await self._read_on(log, subject, asked, held.last), held.last)
        if not held.begins_with(asked) and len(held.messages) <= rule.limit:
            await self._prove(log, subject, asked, held)
        return proof.after(held, asked, rule, self._now()), held.last

    async def _prove(self, log: Log, subject: str, asked: int, held: Held) -> None:
        """That *held* is everything after *asked*, which is no message of this stream that is still there."""
        found = await self._message(log, asked) if asked else None
        if found is not None and found.subject == subject:
            raise BrokerUnavailable(f"JetStream: the leader of {log.name} did not know {asked} yet")
        is_mark = found is not None and self._logs.is_mark(log.kind.name, found.subject)
        facts = await self._logs.facts(log)
        if asked:
            proof.check_position(found, is_mark, asked, held.last, facts)
        elif not facts.knows_all(self._now()):
            raise HistoryRefused("expired")
        time = found.time if found is not None else -1.0 if asked else facts.created
        proof.check_complete(len(held.messages), time, facts)
        if is_mark:
            log.reached(asked, held.last)

    # -- reads

    async def _read(self, log: Log, subject: str, offset: int) -> Held | None:
        """The messages of a subject from *offset* on, up to the one that its leader says is the last.

        None without a leader.
        """
        number = log.kind.limit + 2
        leader = _begun(self._js.last(log.name, subject, _READING))
        reading = _begun(self._js.read(log.name, subject, offset, number, _READING))
        reading.addErrback(_nothing)
        try:
            last = await leader
        except JetStreamError as e:
            if e.status != _UNAVAILABLE:
                raise
            return None
        except NatsUnavailable:
            return None
        finally:
            messages: list[Stored] = await reading
        tail = last.offset if last is not None else 0
        log.saw(tail)
        newest = messages[-1].offset if messages else 0
        if newest < tail and tail >= offset:  # it came from a replica that lags behind, or failed
            messages += await self._read_on(log, subject, max(newest + 1, offset), tail)
        return Held(messages, max(tail, newest))

    async def _read_without_leader(self, log: Log, subject: str, offset: int) -> Held:
        """What a replica has; newer messages may be elsewhere, so this only goes as far as it goes."""
        messages = await self._js.read(log.name, subject, offset, log.kind.limit + 2, _READING)
        return Held(messages, messages[-1].offset if messages else 0)

    async def _read_on(self, log: Log, subject: str, offset: int, upto: int) -> list[Stored]:
        """The messages of a subject from *offset* to *upto*, one by one by the word of the leader."""
        found: list[Stored] = []
        while offset <= upto and len(found) < log.kind.limit + 2:
            message = await self._js.next(log.name, subject, offset, _READING)
            if message is None:
                break
            found.append(message)
            offset = message.offset + 1
        return found

    async def _message(self, log: Log, offset: int) -> Stored | None:
        """The message of the log that has this offset, of whatever stream."""
        found = await self._js.next(log.name, ">", offset, _READING)
        return found if found is not None and found.offset == offset else None

    def _linked(self, stream: str, log: Log, prev: int, messages: Any) -> list[StreamMessage]:
        """*messages* as such; one that nobody here can have meant is left out, as it is on the bus."""
        linked = []
        for stored in messages:
            try:
                linked.append(wire.stored_message(stream, stored, log.epoch, prev))
            except ValueError:
                continue
            prev = stored.offset
        return linked


def _begun(work: Any) -> Deferred[Any]:
    return Deferred.fromCoroutine(work)


def _nothing(failure: Failure) -> list[Stored]:
    failure.trap(BrokerUnavailable)  # type: ignore[no-untyped-call]
    return []
