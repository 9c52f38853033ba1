"""The Redis broker's stream logs: what is stored, and what can be proven from it (P1, P4, P6).

A stream has a record and a log under one hash tag. The record counts, and outlives the messages by far. It belongs
to one history of writes of its master (a *generation*): a restart or a failover begins a new epoch of the stream,
because nobody can tell whether the end of what was written before is still there. So does any loss of the record that
leaves a trace. Within an epoch the offsets have no holes: whatever else is gone from the log is missed by its number.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, NamedTuple

import orjson

from anycable_tx.brokers import redis_scripts as scripts
from anycable_tx.cable.ids import new_epoch
from anycable_tx.cable.messages import (
    History,
    HistoryRequest,
    Position,
    Publication,
    Receipt,
    StreamMessage,
)
from anycable_tx.cable.rules import Rule, Rules
from anycable_tx.cable.stream_log import StreamLog
from anycable_tx.errors import BrokerUnavailable, HistoryRefused
from anycable_tx.redis import wire
from anycable_tx.redis.api import Arg, Redis, RedisError, Script
from anycable_tx.tokens import token

__all__ = ["MARKER", "Mark", "Marker", "Streams"]

#: The key that tells whether all data were lost, and which epoch streams begin with.
MARKER = "ac:epoch"
#: A record outlives the newest message of its stream by so many seconds, if not longer.
COUNTER_TTL = 86_400.0
#: Keys live longer than they count, by so many seconds: the clocks of nodes are not the same.
SPARE = 60.0
#: How long the replicas are waited for, in milliseconds.
REPLICAS_TIMEOUT = 500
#: The largest number that every client keeps exactly.
_MAX_OFFSET = 2**53

_REPLICATION = re.compile(rb"role:(\w+).*?master_replid:(\w+)", re.DOTALL)


class Mark(NamedTuple):
    """What the marker says: the ``epoch`` streams begin with; since when there has been a marker, and when data
    were lost last (-1: never), in milliseconds."""

    epoch: str
    since: int
    lost: int

    def floor(self, now: float, keep: float) -> int:
        """The newest time of which nobody knows now (s) what was stored then (-1: none), records living *keep* s."""
        forgotten = round((now - keep) * 1000)
        return max(self.lost, forgotten if self.since < forgotten else -1)


class Marker:
    """The marker as this node sees it; *wiped* is called when all data were lost since it was seen before."""

    def __init__(self, redis: Redis, wiped: Callable[[], None]) -> None:
        self._redis = redis
        self._wiped = wiped
        self._wipe = ""

    async def check(self) -> Mark:
        """What it says now; set anew if it is gone, if it is of another generation or if Redis has evicted keys."""
        now = round(self._redis.now() * 1000)
        answer = await self._redis.run(scripts.MARK, [MARKER], now, self._wipe, new_epoch())
        epoch, wipe, since, lost = (each.decode() for each in answer)
        known, self._wipe = self._wipe, wipe
        if known and known != wipe:
            self._wiped()
        return Mark(epoch, int(since), int(lost))


@dataclass(slots=True)
class _Record:
    """A stream's record: the newest ``offset``, the ``base`` its ``epoch`` began after, the newest message's time."""

    offset: int
    base: int
    epoch: str
    time: int

    @property
    def position(self) -> Position:
        return Position(self.epoch, self.shown(self.offset))

    def shown(self, offset: int) -> int:
        """0 for the beginning of the epoch."""
        return offset if offset != self.base else 0


class Streams:
    """All stream logs. *slack* as in ``StreamLog.prove``; *sessions_ttl* is how long positions are remembered."""

    def __init__(
        self,
        redis: Redis,
        marker: Marker,
        rules: Rules,
        *,
        slack: float,
        idempotency_ttl: float,
        sessions_ttl: float,
        verbatim: bool,
        min_replicas: int,
    ) -> None:
        self._redis = redis
        self._marker = marker
        self._rules = rules
        self._slack = slack
        self._ids_ttl = round(idempotency_ttl * 1000)
        self._sessions_ttl = sessions_ttl
        self._verbatim = verbatim
        self._min_replicas = min_replicas

    async def publish(self, publication: Publication) -> Receipt:
        """Store *publication* and hand it to the bus, in one step."""
        rule = self._rules.rule_for(publication.stream)
        if publication.transient or not rule.limit:
            return await self._announce(publication)
        tag = _tag(publication.stream)
        keys = [tag + "m", tag + "l"]
        if publication.id and self._ids_ttl > 0:
            keys.append(f"{tag}i:{publication.id}")
        epoch, floor = "", -1
        for _ in range(3):
            now = round(self._redis.now() * 1000)
            what, *position = await self._run(
                scripts.PUBLISH,
                keys,
                now,
                wire.opening_of(publication.stream),
                wire.body_of(publication),
                wire.channel_of(publication.stream, self._verbatim),
                rule.limit,
                _milliseconds(rule.ttl + SPARE),
                _milliseconds(self._keep(rule) + SPARE),
                now + self._ids_ttl,
                self._ids_ttl + _milliseconds(SPARE),
                epoch,
                new_epoch(),
                floor,
            )
            if what != b"begin":
                offset, of_epoch = position
                return Receipt(int(offset), of_epoch.decode(), what == b"duplicate")
            mark = await self._marker.check()
            epoch, floor = mark.epoch, mark.floor(self._redis.now(), self._keep(rule))
        raise BrokerUnavailable(f"the stream {publication.stream!r} could not be begun")

    async def tail(self, stream: str) -> Position:
        """The newest position; of a stream nothing is known of, the one it will begin with."""
        rule = self._rules.rule_for(stream)
        if rule.limit:
            record, _ = await self._read(stream, rule, None)
            if record is not None:
                return record.position
        return Position((await self._marker.check()).epoch, 0)

    async def history(self, stream: str, request: HistoryRequest) -> History:
        """All of it or HistoryRefused, by the rules of ``StreamLog.prove``."""
        rule = self._rules.rule_for(stream)
        record: _Record | None = None
        entries: list[StreamMessage] = []
        position = request.position
        if position is not None and position.offset >= _MAX_OFFSET:
            raise HistoryRefused("future_offset")
        if rule.limit:
            record, entries = await self._read(stream, rule, position.offset if position is not None else 0)
        now = self._redis.now()
        if record is None:
            mark = await self._marker.check()
            if entries:  # the record is gone, and with it what these follow
                raise HistoryRefused("unknown_epoch" if position is not None else "expired")
            record = _Record(0, 0, mark.epoch, mark.floor(now, self._keep(rule)))
            lost = record.time
        elif position is None:
            lost = (await self._marker.check()).lost
        else:
            lost = -1
        if position is not None:
            if position.offset > record.offset:
                raise HistoryRefused("future_offset")
            if not position.offset:
                request = HistoryRequest(Position(position.epoch, record.base))
        log = _log(record, entries, rule, lost, now)
        messages = log.prove(request, record.epoch, now, now, self._slack)
        return History([self._whole(stream, record, message) for message in messages], record.position)

    async def _announce(self, publication: Publication) -> Receipt:
        """Hand a message that is not stored to the bus."""
        stream, id = publication.stream, publication.id
        channel = wire.channel_of(stream, self._verbatim)
        now = round(self._redis.now() * 1000)
        payload = b'%b%b,"time":%d}' % (wire.opening_of(stream), wire.body_of(publication), now)
        if not id or self._ids_ttl <= 0:
            await self._redis.execute(channel, "PUBLISH", channel, payload)
            return Receipt(0, "")
        duplicate = await self._redis.run(
            scripts.ANNOUNCE,
            [f"{_tag(stream)}i:{id}"],
            now,
            channel,
            payload,
            now + self._ids_ttl,
            self._ids_ttl + _milliseconds(SPARE),
        )
        return Receipt(0, "", duplicate=bool(duplicate))

    async def _run(self, script: Script, keys: list[str], *args: Arg) -> Any:
        """The script's answer, once enough replicas have what it wrote."""
        if not self._min_replicas:
            return await self._redis.run(script, keys, *args)
        wait: tuple[Arg, ...] = ("WAIT", self._min_replicas, REPLICAS_TIMEOUT)
        answer, count = await self._redis.pipeline(keys[0], [("EVALSHA", script.sha, len(keys), *keys, *args), wait])
        if isinstance(answer, RedisError) and answer.kind == "NOSCRIPT":
            answer, count = await self._redis.pipeline(
                keys[0], [("EVAL", script.source, len(keys), *keys, *args), wait]
            )
        for each in (answer, count):
            if isinstance(each, RedisError):
                raise each
        if answer[0] != b"begin" and count < self._min_replicas:
            raise BrokerUnavailable(f"stored, but by {count} replicas and not by {self._min_replicas}")
        return answer

    async def _read(self, stream: str, rule: Rule, after: int | None) -> tuple[_Record | None, list[StreamMessage]]:
        """The record, and, unless *after* is None, what the log has after that offset: its bodies only.

        A record that is of another generation is renewed first.
        """
        tag = _tag(stream)
        keep = _milliseconds(self._keep(rule) + SPARE)
        commands: list[tuple[Arg, ...]] = [
            ("INFO", "replication"),
            ("HMGET", tag + "m", "o", "b", "e", "t", "g"),
            ("PEXPIRE", tag + "m", keep),
        ]
        if after is not None:
            commands.append(("XRANGE", tag + "l", f"({after}-0" if after else "-", "+"))
        for _ in range(3):
            answers = await self._redis.pipeline(tag + "m", commands)
            for answer in answers:
                if isinstance(answer, RedisError):
                    raise answer
            found = _REPLICATION.search(answers[0])
            if found is None or found[1] != b"master":
                raise BrokerUnavailable("this Redis server is not a master")
            entries = [_entry(stream, *each) for each in answers[3]] if after is not None else []
            *fields, generation = answers[1]
            if generation is None or None in fields:
                return None, entries
            if generation == found[2]:
                offset, base, epoch, time = fields
                return _Record(int(offset), int(base), epoch.decode(), int(time)), entries
            mark = await self._marker.check()
            floor = mark.floor(self._redis.now(), self._keep(rule))
            now = round(self._redis.now() * 1000)
            keys = [tag + "m", tag + "l"]
            await self._redis.run(scripts.RENEW, keys, now, mark.epoch, new_epoch(), floor, keep)
        raise BrokerUnavailable(f"the record of the stream {stream!r} does not come to rest")

    def _keep(self, rule: Rule) -> float:
        """How long records outlive their newest message: longer than anybody's position does."""
        return max(COUNTER_TTL, 10 * rule.ttl, 2 * self._sessions_ttl)

    def _whole(self, stream: str, record: _Record, entry: StreamMessage) -> StreamMessage:
        """The message of an entry of the log."""
        try:
            message = wire.message_of(orjson.loads(b'%b%b,"time":0}' % (wire.opening_of(stream), entry.payload)))
        except ValueError:
            message = None
        if message is None:
            raise HistoryRefused("unavailable")
        message.epoch, message.offset = record.epoch, entry.offset
        message.prev = record.shown(entry.offset - 1)
        message.time = entry.time
        return message


def _log(record: _Record, entries: list[StreamMessage], rule: Rule, lost: int, now: float) -> StreamLog:
    """What is known of a stream. *lost*: before that (ms) nothing is known, whatever the record says."""
    while entries and entries[-1].offset > record.offset:  # it came after the record was read
        entries.pop()
    first = record.offset + 1
    for entry in reversed(entries):
        if entry.offset != first - 1:
            break
        first -= 1
    kept = entries[len(entries) - (record.offset + 1 - first) :]
    lost = max(lost, kept[0].prev if kept else record.time)
    log = StreamLog(rule.limit, rule.ttl, now, record.offset, lost // 1000)
    log.trimmed = first - 1 if kept and first - 1 > record.base else -1
    for entry in kept:
        log.restore(entry, entry.time)
    return log


def _entry(stream: str, id: bytes, fields: list[bytes]) -> StreamMessage:
    """An entry of the log. For the time being ``prev`` is the time (ms) of the message before it."""
    values = dict(zip(fields[::2], fields[1::2], strict=True))
    return StreamMessage(
        stream,
        values.get(b"d", b""),
        int(id.partition(b"-")[0]),
        prev=int(values.get(b"z", b"0")),
        time=int(values.get(b"t", b"0")) / 1000,
    )


def _tag(stream: str) -> str:
    """What the keys of *stream* begin with."""
    return f"ac:{{{token(stream)}}}:"


def _milliseconds(seconds: float) -> int:
    return round(seconds * 1000)
