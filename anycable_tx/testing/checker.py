"""The delivery checker: reads what publishers and clients saw and says what was lost, repeated, misordered or leaked.

It knows nothing of the server. An event is a mapping with the key ``event`` and, in the order in which one observer
saw them, these others (``t``, seconds, is optional everywhere):

==================  =======================================================================================
``publishing``      ``id, stream``: about to be sent. Record it to make "published after" exact.
``published``       ``id, stream`` and, if known, ``offset, epoch``: the server acknowledged it.
``publish_failed``  ``id, stream``: definitely refused.
``publish_unknown`` ``id, stream``: no answer. It may appear once or not at all.
``connected``       ``client, connection, restored`` and, if restored, ``identifiers``: still subscribed ones.
``subscribed``      ``client, identifier, stream`` (or ``streams``), ``from``: None for "from now on", or the
                    positions ``{stream: {epoch, offset}}`` the client asked to be caught up from. ``{}`` means
                    it asked without positions: what it was owed before stays owed.
``asked``           ``client, identifier, from``: asked again for history from these positions, so what lies
                    behind them may come once more (``{}``: everything may).
``received``        ``client, connection, identifier, id``, ``how`` (``live`` or ``replay``) and, if the message
                    carried them, ``stream, epoch, offset``. An ``id`` of None is not judged.
``refused``         ``client, identifier``: ``reject_history``; what was missing until now is not charged.
``new_epochs``      No members: streams may begin new epochs from now on. That explains the next refusal of each
                    subscription, and further ones for as long as it has received nothing of another epoch
                    than before. Any other is counted in ``unexplained_refusals`` too.
``unsubscribing``   ``client, identifier``: sent, still in flight. Optional.
``unsubscribed``    ``client, identifier``: nothing may arrive any more.
``cut``             ``client, connection``: the connection is lost.
``gone``            ``client``: it will not come back.
==================  =======================================================================================

The log must end at rest: whoever is connected and subscribed at its end is charged with everything missing. A client
that left, or never came back, is charged only with holes: messages that lie before one it received.
"""

from __future__ import annotations

import heapq
import json
import sys
import time
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from contextlib import ExitStack
from dataclasses import dataclass, field
from threading import Lock
from typing import IO, Any

__all__ = ["Event", "EventLog", "Report", "Witness", "check", "main", "read"]

Event = Mapping[str, Any]
_NEVER = sys.maxsize


@dataclass(frozen=True)
class Witness:
    """One finding: which message, and whose."""

    client: str
    identifier: str
    stream: str
    id: Any
    epoch: str | None = None
    offset: int | None = None
    detail: str = ""

    def __str__(self) -> str:
        where = f"offset {self.offset} of epoch {self.epoch}" if self.epoch else "no position"
        detail = f" ({self.detail})" if self.detail else ""
        return f"{self.client}: stream {self.stream!r}, id {self.id!r}, {where}{detail}"


@dataclass
class Report:
    """What was found. ``ok`` is true when nothing was; the counts tell how much was looked at."""

    lost: list[Witness] = field(default_factory=list)
    duplicate: list[Witness] = field(default_factory=list)
    misordered: list[Witness] = field(default_factory=list)
    leaked: list[Witness] = field(default_factory=list)
    phantom: list[Witness] = field(default_factory=list)
    counts: Counter[str] = field(default_factory=Counter)

    @property
    def findings(self) -> dict[str, list[Witness]]:
        """The five lists by name."""
        return {name: getattr(self, name) for name in ("lost", "duplicate", "misordered", "leaked", "phantom")}

    @property
    def ok(self) -> bool:
        """No finding of any kind."""
        return not any(self.findings.values())

    def __str__(self) -> str:
        lines = [f"{name:<22} {len(found)}" for name, found in self.findings.items()]
        lines += [f"{name:<22} {self.counts[name]}" for name in _COUNTS]
        for name, found in self.findings.items():
            lines += [f"  {name}: {witness}" for witness in found[:5]]
            if len(found) > 5:
                lines.append(f"  {name}: and {len(found) - 5} more")
        return "\n".join(lines)


_COUNTS = (
    "publications",
    "deliveries",
    "replayed",
    "clients",
    "cuts",
    "resumes",
    "fresh_authentications",
    "refusals",
    "unexplained_refusals",
)


@dataclass
class _Publication:
    id: Any
    stream: str
    sent: int
    acked: int = _NEVER
    refused: bool = False
    epoch: str | None = None
    offset: int | None = None


class _Span:
    """A stretch of the log in which one subscription is owed one stream's messages."""

    def __init__(self, start: int, origin: Mapping[str, Any] | None = None):
        self.start = start
        self.origin = origin
        self.got: set[Any] = set()
        self.low: dict[str, int] = {}
        self.high: dict[str, int] = {}
        self.last_sent = -1

    def take(self, message: _Publication) -> None:
        self.got.add(message.id)
        self.last_sent = max(self.last_sent, message.sent)
        if message.epoch is not None and message.offset is not None:
            self.low[message.epoch] = min(message.offset, self.low.get(message.epoch, _NEVER))
            self.high[message.epoch] = max(message.offset, self.high.get(message.epoch, -1))

    def owes(self, message: _Publication, ended: bool) -> bool:
        """Should *message* have arrived in this span? ``ended``: only if something after it did."""
        if message.acked == _NEVER or message.id in self.got:
            return False
        epoch, offset = message.epoch, message.offset
        begun = message.sent > self.start
        if epoch is not None and offset is not None:
            begun = begun or self.low.get(epoch, _NEVER) < offset
            if self.origin and self.origin.get("epoch") == epoch:
                begun = begun or offset > self.origin["offset"]
        if not begun or not ended:
            return begun
        later = epoch is not None and offset is not None and offset < self.high.get(epoch, -1)
        return later or message.acked < self.last_sent


class _Feed:
    """One subscription's view of one stream, over all connections of the client."""

    def __init__(self) -> None:
        self.span: _Span | None = None
        self.seen: set[Any] = set()
        self.repeatable: set[Any] = set()
        self.tops: dict[str, int] = {}
        self.last_sent = -1

    def rewind(self, origin: Mapping[str, Any] | None, publications: Mapping[Any, _Publication]) -> None:
        """What lies after *origin* (all, if None) may come again."""
        for id in self.seen:
            message = publications[id]
            if origin is None or (
                message.epoch == origin["epoch"] and message.offset is not None and message.offset > origin["offset"]
            ):
                self.repeatable.add(id)
        if origin is None:
            self.tops.clear()
        else:
            self.tops[origin["epoch"]] = min(origin["offset"], self.tops.get(origin["epoch"], _NEVER))
        self.last_sent = -1


class _Subscription:
    def __init__(self, client: str, identifier: str):
        self.client = client
        self.identifier = identifier
        self.streams: tuple[str, ...] = ()
        self.active = False
        self.ending = False
        self.feeds: dict[str, _Feed] = {}
        #: How many of the ``new_epochs`` have explained a refusal; and the epochs received before them, and lately.
        self.epochs = 0
        self.old: set[str | None] = {None}
        self.latest: dict[str, str | None] = {}

    def feed(self, stream: str) -> _Feed:
        return self.feeds.setdefault(stream, _Feed())


class _Check:
    def __init__(self, events: list[Event]):
        self.events = events
        self.report = Report()
        self.publications: dict[Any, _Publication] = {}
        self.by_stream: dict[str, list[_Publication]] = {}
        self.subscriptions: dict[str, dict[str, _Subscription]] = {}
        self.connected: set[str] = set()
        self.epochs = 0

    def run(self) -> Report:
        self._gather()
        for index, event in enumerate(self.events):
            visit = getattr(self, f"_on_{event['event']}", None)
            if visit is None:
                raise ValueError(f"event {index}: there is no event {event['event']!r}")
            visit(index, event)
        for client, subscriptions in self.subscriptions.items():
            for subscription in subscriptions.values():
                self._close(subscription, ended=client not in self.connected or not subscription.active)
        counts = self.report.counts
        counts["publications"] = sum(p.acked != _NEVER for p in self.publications.values())
        counts["clients"] = len(self.subscriptions)
        return self.report

    # -- publications

    def _gather(self) -> None:
        """Learn every publication first: a client may see a message before its publisher sees the answer."""
        for index, event in enumerate(self.events):
            name = event["event"]
            if name in ("publishing", "published", "publish_failed", "publish_unknown"):
                id, stream = event["id"], event["stream"]
                message = self.publications.get(id)
                if message is None:
                    message = self.publications[id] = _Publication(id, stream, index)
                    self.by_stream.setdefault(stream, []).append(message)
                if name == "published":
                    message.acked = min(message.acked, index)
                message.refused = name == "publish_failed"
        holders: dict[tuple[str, Any, Any], Any] = {}
        for event in self.events:
            if event["event"] in ("received", "published") and event.get("epoch") is not None:
                self._place(event, holders)

    def _place(self, event: Event, holders: dict[tuple[str, Any, Any], Any]) -> None:
        message = self.publications.get(event["id"])
        if message is None or event.get("stream", message.stream) != message.stream:
            return
        holder = holders.setdefault((message.stream, event["epoch"], event["offset"]), message.id)
        if holder != message.id:
            self._found("misordered", event, message, f"the same position was given to id {holder!r}")
        if message.epoch is None:
            message.epoch, message.offset = event["epoch"], event["offset"]

    def _nothing(self, index: int, event: Event) -> None:
        """Publications are learnt in advance."""

    _on_publishing = _on_published = _on_publish_failed = _on_publish_unknown = _nothing

    # -- connections

    def _on_connected(self, index: int, event: Event) -> None:
        client = event["client"]
        subscriptions = self.subscriptions.setdefault(client, {})
        if event["restored"]:
            self.report.counts["resumes"] += 1
        elif event["connection"] > 1:
            self.report.counts["fresh_authentications"] += 1
        kept = event.get("identifiers") if event["restored"] else ()
        for identifier, subscription in subscriptions.items():
            if kept is not None and identifier not in kept:
                subscription.active = False
        self.connected.add(client)

    def _on_cut(self, index: int, event: Event) -> None:
        self.report.counts["cuts"] += 1
        self.connected.discard(event["client"])

    def _on_gone(self, index: int, event: Event) -> None:
        self.connected.discard(event["client"])
        for subscription in self.subscriptions.get(event["client"], {}).values():
            self._close(subscription, ended=True)
            subscription.active = False

    # -- subscriptions

    def _subscription(self, event: Event) -> _Subscription:
        client, identifier = event["client"], event["identifier"]
        of_client = self.subscriptions.setdefault(client, {})
        return of_client.setdefault(identifier, _Subscription(client, identifier))

    def _on_subscribed(self, index: int, event: Event) -> None:
        subscription = self._subscription(event)
        subscription.active, subscription.ending = True, False
        subscription.streams = tuple(event["streams"]) if "streams" in event else (event["stream"],)
        positions = event.get("from")
        for stream in subscription.streams:
            feed = subscription.feed(stream)
            if positions is None and feed.span is not None:
                self._judge(subscription, stream, ended=True)
            if feed.span is None:
                feed.span = _Span(index, (positions or {}).get(stream))

    def _on_asked(self, index: int, event: Event) -> None:
        subscription = self._subscription(event)
        for stream, feed in subscription.feeds.items():
            if not event["from"] or stream in event["from"]:
                feed.rewind(event["from"].get(stream), self.publications)

    def _on_refused(self, index: int, event: Event) -> None:
        subscription = self._subscription(event)
        self.report.counts["refusals"] += 1
        stale = any(subscription.latest.get(stream) in subscription.old for stream in subscription.streams)
        explained = self.epochs and (subscription.epochs != self.epochs or stale)
        self.report.counts["unexplained_refusals"] += not explained
        subscription.epochs = self.epochs
        for stream, feed in subscription.feeds.items():
            if feed.span is not None:
                self._judge(subscription, stream, ended=True)
                feed.span = _Span(index)

    def _on_new_epochs(self, index: int, event: Event) -> None:
        self.epochs += 1
        for subscriptions in self.subscriptions.values():
            for subscription in subscriptions.values():
                subscription.old.update(subscription.latest.values())

    def _on_unsubscribing(self, index: int, event: Event) -> None:
        subscription = self._subscription(event)
        self._close(subscription, ended=True)
        subscription.ending = True

    def _on_unsubscribed(self, index: int, event: Event) -> None:
        subscription = self._subscription(event)
        self._close(subscription, ended=True)
        subscription.active = False

    def _close(self, subscription: _Subscription, ended: bool) -> None:
        for stream, feed in subscription.feeds.items():
            if feed.span is not None:
                self._judge(subscription, stream, ended)

    def _judge(self, subscription: _Subscription, stream: str, ended: bool) -> None:
        feed = subscription.feeds[stream]
        assert feed.span is not None
        owner = {"client": subscription.client, "identifier": subscription.identifier}
        for message in self.by_stream.get(stream, ()):
            if feed.span.owes(message, ended):
                self._found("lost", owner, message)
        feed.span = None

    # -- deliveries

    def _on_received(self, index: int, event: Event) -> None:
        self.report.counts["deliveries"] += 1
        self.report.counts["replayed"] += event.get("how") == "replay"
        if event["id"] is None:
            return
        message = self.publications.get(event["id"])
        if message is None:
            self._found("phantom", event, None, "never published")
            return
        if message.refused and message.acked == _NEVER:
            self._found("phantom", event, message, "its publication failed")
            return
        subscription = self._subscription(event)
        if not subscription.active:
            self._found("leaked", event, message, "not subscribed")
            return
        if message.stream not in subscription.streams or event.get("stream", message.stream) != message.stream:
            self._found("leaked", event, message, "of a stream it is not subscribed to")
            return
        subscription.latest[message.stream] = event.get("epoch")
        self._order(subscription.feed(message.stream), message, event)

    def _order(self, feed: _Feed, message: _Publication, event: Event) -> None:
        epoch, offset = event.get("epoch"), event.get("offset")
        late = message.acked < feed.last_sent
        if epoch is not None and offset is not None:
            late = late or offset <= feed.tops.get(epoch, -1)
            feed.tops[epoch] = max(offset, feed.tops.get(epoch, -1))
        feed.last_sent = max(feed.last_sent, message.sent)
        if message.id in feed.seen and message.id not in feed.repeatable:
            self._found("duplicate", event, message, event.get("how", ""))
        elif late:
            self._found("misordered", event, message, "after a later one")
        feed.repeatable.discard(message.id)
        feed.seen.add(message.id)
        if feed.span is not None:
            feed.span.take(message)

    def _found(self, kind: str, event: Event, message: _Publication | None, detail: str = "") -> None:
        stream = message.stream if message else event.get("stream", "")
        epoch, offset = event.get("epoch"), event.get("offset")
        if epoch is None and message is not None:
            epoch, offset = message.epoch, message.offset
        id = message.id if message else event.get("id")
        client, identifier = event.get("client", ""), event.get("identifier", "")
        witness = Witness(client, identifier, stream, id, epoch, offset, detail)
        self.report.findings[kind].append(witness)


def check(events: Iterable[Event]) -> Report:
    """Judge a whole log, in the order in which it was observed.

    Raises ValueError for an event of an unknown name and KeyError for one that lacks a key.
    """
    return _Check(list(events)).run()


class EventLog:
    """Collects events; with *file* also writes each as a JSON line. Appending is safe from several threads."""

    def __init__(self, file: IO[str] | None = None):
        self.events: list[Event] = []
        self._file = file
        self._lock = Lock()

    def record(self, event: str, **values: Any) -> None:
        """Append one event."""
        with self._lock:
            entry = {"event": event, "t": time.time(), **values}
            self.events.append(entry)
            if self._file is not None:
                self._file.write(json.dumps(entry) + "\n")

    def check(self) -> Report:
        """Judge what was recorded so far."""
        return check(self.events)


def read(*paths: str) -> Iterator[Event]:
    """The events of JSON-lines files; those of several files are merged by ``t``, which they then need."""
    with ExitStack() as stack:
        files = [stack.enter_context(open(path, encoding="utf-8")) for path in paths]
        logs = [(json.loads(line) for line in file if line.strip()) for file in files]
        yield from logs[0] if len(logs) == 1 else heapq.merge(*logs, key=lambda event: event["t"])


def main(argv: list[str] | None = None) -> int:
    """``python -m anycable_tx.testing.checker LOG...``: prints the report; 0 when it is clean, 1 when not."""
    paths = sys.argv[1:] if argv is None else argv
    if not paths:
        print("usage: python -m anycable_tx.testing.checker EVENTS.jsonl...", file=sys.stderr)
        return 2
    report = check(read(*paths))
    print(report)
    return 0 if report.ok else 1


if __name__ == "__main__":
    sys.exit(main())
