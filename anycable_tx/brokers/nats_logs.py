"""The JetStream streams of the NATS broker, here called logs: one for each class of streams, and its epoch its name.

A log that is gone is made anew under another name, so no (epoch, offset) is ever that of two messages. The server
keeps the epoch: it refuses what is published for a log of another name, and says in which one it stored a message.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any, NamedTuple

from twisted.internet.defer import Deferred
from twisted.logger import Logger
from twisted.python.failure import Failure

from anycable_tx.brokers.nats_facts import BEGIN, NANOSECONDS, Facts, description, facts_of, skew
from anycable_tx.cable.ids import new_epoch, new_sid
from anycable_tx.cable.messages import Position
from anycable_tx.errors import BrokerUnavailable
from anycable_tx.nats.jetstream import Ack, JetStream, JetStreamError
from anycable_tx.nats.names import Names

__all__ = ["GONE", "OTHER_LOG", "Kind", "Log", "Logs"]

#: Messages are kept for so many times as long as they are served, for the sake of proofs.
KEEP_FACTOR = 10
#: Marks are left so many times within that.
MARKS = 4
#: So long a repeated attempt to publish is recognised where ids are not to be.
LEAST_WINDOW = 10.0

#: ``err_code`` of JetStream: no such log; what was published was meant for another one.
GONE = 10059
OTHER_LOG = 10060
_OVERLAP = 10065
_TOO_FEW_SERVERS = (10005, 10074)
#: So long it is waited for who knows all logs.
_LOOKING = 2.0
#: No stream of a client has this token.
_MARK = "_"
_SLOTS = 8

_log = Logger()


class Kind(NamedTuple):
    """A class of streams: ``limit`` messages of each are served, for as long as the rule of each says.

    Its log keeps one more of each, for ``keep`` seconds. Who publishes an id again within ``window`` is recognised.
    """

    name: str
    limit: int
    keep: float
    window: float

    @classmethod
    def of(cls, name: str, limit: int, ttl: float, sessions_ttl: float, idempotency_ttl: float) -> Kind:
        """Positions in the records of sessions have to be provable for as long as these are kept."""
        window = idempotency_ttl or LEAST_WINDOW
        return cls(name, limit, max(KEEP_FACTOR * ttl, 2 * sessions_ttl, window), window)


class Log:
    """What this node knows of a log.

    ``highest`` is the highest offset it has seen. Marks are messages of no stream: a position like any other, of
    which every node can tell for how long nothing that came after it can have grown too old.
    """

    __slots__ = ("epoch", "highest", "kind", "name", "newest", "previous")

    def __init__(self, kind: Kind, name: str, epoch: str) -> None:
        self.kind, self.name, self.epoch = kind, name, epoch
        self.highest = self.newest = self.previous = 0

    def saw(self, offset: int) -> None:
        """Remember that this offset has been given to a message."""
        self.highest = max(self.highest, offset)

    def marked(self, mark: int) -> None:
        """Remember a mark."""
        self.saw(mark)
        if mark > self.newest:
            self.previous, self.newest = self.newest, mark

    def end(self, last: int) -> Position:
        """The position of a stream whose newest message is *last* (0: it has none).

        That is the newest mark when the message will not be there for long any more. It never goes back.
        """
        return Position(self.epoch, self.newest if last < self.previous or not last else last)

    def reached(self, mark: int, last: int) -> None:
        """Another node said that a stream, whose newest message is *last*, ends at *mark*."""
        self.marked(mark)
        self.previous = max(self.previous, min(last + 1, self.newest))


class Logs:
    """The logs of all *kinds*. *changed* is called when one was replaced by another.

    Everything that asks raises BrokerUnavailable. *now* is the Unix time.
    """

    def __init__(
        self,
        js: JetStream,
        names: Names,
        kinds: Iterable[Kind],
        *,
        replicas: int,
        now: Callable[[], float],
        changed: Callable[[], None],
    ) -> None:
        self._js = js
        self._names = names
        self._kinds = {kind.name: kind for kind in kinds}
        self._replicas = replicas
        self._now = now
        self._changed = changed
        self._logs: dict[str, Log] = {}
        self._looking: dict[str, list[Deferred[None]]] = {}

    @property
    def missing(self) -> list[str]:
        """The classes whose log has not been found yet."""
        return [name for name in self._kinds if name not in self._logs]

    @property
    def epochs(self) -> list[str]:
        """The epochs of the logs that were found."""
        return [log.epoch for log in self._logs.values()]

    async def log(self, kind: str) -> Log:
        """The log of a class, as far as is known."""
        return self._logs.get(kind) or await self.look(kind)

    async def look(self, kind: str) -> Log:
        """Ask which log there is for a class, and make one if there is none."""
        waiting = self._looking.get(kind)
        if waiting is None:
            waiting = self._looking[kind] = []
            try:
                await self._look(self._kinds[kind])
            finally:
                del self._looking[kind]
                for each in waiting:
                    each.callback(None)
        else:
            looked: Deferred[None] = Deferred()
            waiting.append(looked)
            await looked
        if kind not in self._logs:
            raise BrokerUnavailable(f"JetStream: the log of the class {kind} is not there yet")
        return self._logs[kind]

    def doubt(self, kind: str) -> None:
        """Look in the background: the log of a class may be gone."""
        if kind not in self._looking:
            Deferred.fromCoroutine(self.look(kind)).addErrback(_unavailable)

    async def check(self, probe: bool) -> None:
        """Make sure that all logs are there and are those they were, and leave marks.

        With *probe* it is also made sure that something can be stored.
        """
        for kind in self._kinds:
            log = self._logs.get(kind)
            if log is not await self.look(kind):
                continue
            highest = log.highest
            facts = await self.facts(log)
            log.saw(facts.last)
            if facts.last < highest:
                # Only a suspicion: this may be the word of a leader that is none any more.
                _log.warn(
                    "JetStream may have lost messages: {log} ends at {last}, and {highest} was seen",
                    log=log.name,
                    last=facts.last,
                    highest=highest,
                    attrs={"context": "broker"},
                )
            if (facts.last < highest or probe) and not await self._probe(log, new_sid()):
                continue
            await self._mark(log, facts)

    async def raise_replicas(self) -> None:
        """Where there were too few servers for the replicas that are wanted, try again."""
        for log in list(self._logs.values()):
            facts = await self.facts(log)
            if facts.config["num_replicas"] < self._replicas:
                await self._update(log, facts, num_replicas=self._replicas)

    async def facts(self, log: Log) -> Facts:
        """What is true of it now, by the word of its leader."""
        return facts_of(await self._js.api(f"STREAM.INFO.{log.name}"))

    async def stored(self, log: Log, ack: Ack, highest: int) -> bool:
        """Is what was acknowledged, and sent when *highest* had been seen, at an offset of its own?

        If not, the log has lost what was acknowledged before. It is thrown away then, and another one made.
        """
        if ack.duplicate or ack.offset > highest:
            log.saw(ack.offset)
            return True
        _log.warn(
            "JetStream lost messages: {log} gave away {offset} again, it is replaced, clients are told",
            log=log.name,
            offset=ack.offset,
            attrs={"context": "broker"},
        )
        await self._delete(log.name)
        await self.look(log.kind.name)
        return False

    def is_mark(self, kind: str, subject: str) -> bool:
        """Is what has this subject a mark?"""
        return subject.startswith(self._names.all_stored(kind)[:-1] + _MARK + ".")

    async def _look(self, kind: Kind) -> None:
        known = self._logs.get(kind.name)
        subject = self._names.all_stored(kind.name)
        for _ in range(3):
            found = (await self._js.api("STREAM.NAMES", {"subject": subject}, _LOOKING)).get("streams") or []
            ours = sorted(name for name in found if self._names.epoch_of(kind.name, name))
            if found and not ours:
                raise BrokerUnavailable(f"JetStream: {subject} belongs to the stream {found[0]}, which is not ours")
            if len(ours) > 1:
                await self._keep_one(ours)
            if known is not None and known.name in ours[:1]:
                return
            if ours:
                await self._adopt(kind, ours[0], known)
                return
            await self._create(kind, lost=known is not None)
        raise BrokerUnavailable(f"JetStream: the log of the class {kind.name} does not come to rest")

    async def _create(self, kind: Kind, lost: bool) -> None:
        name = self._names.log(kind.name, new_epoch())
        config = {
            "name": name,
            "retention": "limits",
            "discard": "old",
            "storage": "file",
            "max_msgs": -1,
            "max_bytes": -1,
            "max_consumers": -1,
            "allow_direct": True,
            "deny_delete": True,
            "deny_purge": True,
            "description": description(lost=BEGIN if lost else -1.0),
            **self._wanted(kind),
        }
        for replicas in dict.fromkeys((self._replicas, 1)):
            try:
                await self._js.api(f"STREAM.CREATE.{name}", {**config, "num_replicas": replicas})
                return
            except JetStreamError as e:
                if e.err_code == _OVERLAP:  # another node was faster
                    return
                if e.err_code not in _TOO_FEW_SERVERS or replicas == 1:
                    raise

    async def _keep_one(self, names: list[str]) -> None:
        """A single server that two nodes ask at once may make two logs of a class: all nodes keep the same one."""
        first, *others = names
        await self._js.api(f"STREAM.INFO.{first}")
        for name in others:
            _log.warn(
                "JetStream made two logs of one class: {log} is removed, {first} stays",
                log=name,
                first=first,
                attrs={"context": "broker"},
            )
            await self._delete(name)

    async def _delete(self, name: str) -> None:
        try:
            await self._js.api(f"STREAM.DELETE.{name}")
        except JetStreamError as e:
            if e.err_code != GONE:
                raise

    def _wanted(self, kind: Kind) -> dict[str, Any]:
        """The part of the configuration that follows this node's."""
        return {
            "subjects": [self._names.all_stored(kind.name)],
            "republish": {"src": self._names.all_stored(kind.name), "dest": self._names.all_live(kind.name)},
            "max_msgs_per_subject": kind.limit + 1,
            "max_age": round(kind.keep * NANOSECONDS),
            "duplicate_window": round(kind.window * NANOSECONDS),
        }

    async def _adopt(self, kind: Kind, name: str, known: Log | None) -> None:
        log = Log(kind, name, self._names.epoch_of(kind.name, name))
        facts = await self.facts(log)
        if known is None:
            facts = await self._update(log, facts, num_replicas=self._replicas, **self._wanted(kind))
        elif facts.lost < facts.created:  # who made it did not know of the other one
            facts = await self._update(log, facts, description=facts.with_description(lost=facts.created))
        log.saw(facts.last)
        for mark in await self._js.read(name, self._marks(kind.name), 0, 2 * _SLOTS * (kind.limit + 1)):
            log.marked(mark.offset)
        self._logs[kind.name] = log
        if known is not None:
            _log.warn(
                "JetStream has another log now, {log}: positions are compared, clients are told",
                log=name,
                attrs={"context": "broker"},
            )
            self._changed()

    async def _update(self, log: Log, facts: Facts, **wanted: Any) -> Facts:
        """Change what is not as *wanted*; the log keeps its messages, and says what can no longer be known."""
        config = facts.config
        if all(config.get(key) == value for key, value in wanted.items()):
            return facts
        changes: dict[str, Any] = {}
        now = self._now()
        if wanted.get("max_msgs_per_subject", 0) > config["max_msgs_per_subject"]:
            changes["least"] = min(config["max_msgs_per_subject"], facts.least or config["max_msgs_per_subject"])
            changes["until"] = now + skew(facts.keep)
        if wanted.get("max_age", 0) > config["max_age"]:
            changes["lost"] = max(facts.lost, facts.grown_too_old(now))
        if changes:
            wanted["description"] = facts.with_description(**changes)
        try:
            return facts_of(await self._js.api(f"STREAM.UPDATE.{log.name}", {**config, **wanted}))
        except JetStreamError as e:
            if e.err_code not in _TOO_FEW_SERVERS:
                raise
        wanted["num_replicas"] = config["num_replicas"]
        if all(config.get(key) == value for key, value in wanted.items()):
            return facts
        return facts_of(await self._js.api(f"STREAM.UPDATE.{log.name}", {**config, **wanted}))

    async def _mark(self, log: Log, facts: Facts) -> None:
        """Leave a mark, if something was stored since the newest one and that is old enough."""
        interval = log.kind.keep / MARKS
        newest = await self._js.last(log.name, self._marks(log.kind.name))
        if newest is not None:
            log.marked(newest.offset)
            if newest.time > self._now() - interval / 2:
                return
        if facts.last > log.newest and (newest is None or int(newest.time / interval) < int(self._now() / interval)):
            await self._probe(log, str(int(self._now() / interval)))

    async def _probe(self, log: Log, id: str) -> bool:
        """Leave a mark; False: the log had to be replaced. With an *id* that another node used nothing is left."""
        highest = log.highest
        slot = int(self._now() / (log.kind.keep / MARKS)) % _SLOTS
        subject = self._marks(log.kind.name)[:-1] + str(slot)
        ack = await self._js.publish(subject, b"", {"Nats-Expected-Stream": log.name, "Nats-Msg-Id": f"{_MARK}/{id}"})
        if not await self.stored(log, ack, highest):
            return False
        log.marked(ack.offset)
        return True

    def _marks(self, kind: str) -> str:
        return f"{self._names.all_stored(kind)[:-1]}{_MARK}.*"


def _unavailable(failure: Failure) -> None:
    failure.trap(BrokerUnavailable)  # type: ignore[no-untyped-call]
