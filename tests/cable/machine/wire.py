"""One TCP connection: what the server wrote to it, what of that has arrived, and what the server may write next.

Every frame is judged the moment it is written, as if nothing were lost afterwards; a cut only takes frames away
from the end, so whatever holds for all that was written holds for each beginning of it.
"""

from __future__ import annotations

import zlib
from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import orjson
from twisted.internet.defer import Deferred

from anycable_tx.cable.commands import receive
from anycable_tx.cable.records import MAX_PREVIOUS
from tests.cable.machine.feed import Feed
from tests.cable.machine.ledger import Message

if TYPE_CHECKING:
    from anycable_tx.cable.session import Session
    from anycable_tx.node import Node
    from tests.cable.machine.client import Client
    from tests.cable.machine.world import World

__all__ = ["Ask", "Frame", "Wire"]


@dataclass(slots=True, eq=False)
class Frame:
    """A frame on its way to the client. ``told`` is where each stream goes on after a refusal.

    ``unasked``: written on a resumed connection before the client's first request for history was answered.
    ``again``: the client itself asked for it once more.
    """

    kind: str
    identifier: str = ""
    data: dict[str, Any] = field(default_factory=dict)
    message: Message | None = None
    feed: Feed | None = None
    feeds: dict[tuple[str, str], Feed] = field(default_factory=dict)
    told: dict[str, int] = field(default_factory=dict)
    unasked: bool = False
    again: bool = False


@dataclass(slots=True, eq=False)
class Ask:
    """A request for history that has reached the server, and how far the streams went then.

    ``first``: it is the one a new subscription or a resumed one begins with.
    """

    positions: dict[str, tuple[str, int]]
    since: int
    tops: dict[str, int]
    first: bool
    late: bool = False


class Track:
    """One stream of one subscription on this connection: what was written of it."""

    __slots__ = ("doubt", "fresh", "got", "inherited", "last", "proven", "replayed", "transients")

    def __init__(self, last: int, inherited: int = 0, proven: int = 0, *, fresh: bool = True) -> None:
        self.last = last
        #: It began on this connection.
        self.fresh = fresh
        #: How far an earlier connection of the session had got when this one took over, and how far at least: while
        #: an answer is on its way to a slow client it is not known which of the streams wait for its end.
        self.inherited = inherited
        self.proven = proven
        #: After what, and up to what (None: no end yet), a position does not prove that the client has everything,
        #: because an earlier connection was sent what came next before the client had asked.
        self.doubt: tuple[int, int | None] | None = None
        self.replayed = 0
        self.got: set[int] = set()
        #: Transient messages: without a bus those to come, else those that came.
        self.transients: list[int] = []


class Sub:
    """One identifier on this connection, as the server has it. ``fresh``: subscribed here, not resumed."""

    def __init__(self, *, fresh: bool) -> None:
        self.fresh = fresh
        self.confirmed = not fresh
        self.answered = fresh
        #: A resumed client was told unasked that something is missing; its own first request may be refused as well.
        self.told = False
        self.asks: list[Ask] = []
        self.begins: Ask | None = None
        self.feeds: dict[str, Feed] = {}
        self.tracks: dict[str, Track] = {}


class Wire:
    """A connection of *owner* to *node*, and the ``Outlet`` of its session."""

    session: Session

    def __init__(self, world: World, owner: Client, node: Node, previous: str) -> None:
        self.world = world
        self.owner = owner
        self.node = node
        self.previous = previous
        self.wire = owner.compression
        self.sid = ""
        self.chain: tuple[str, ...] = ()
        self.restored = False
        self.welcomed: float | None = None
        self.ended: float | None = None
        self.alive = True
        self.closed = False
        self.slow = False
        self.was_slow = False
        self.acted = False
        self.down: deque[Frame] = deque()
        self.up: deque[dict[str, Any]] = deque()
        self.subs: dict[str, Sub] = {}
        self._left: dict[tuple[str, str], tuple[int, int]] = {}
        self._pending: dict[str, Ask | None] = {}
        self._waiter: Deferred[None] | None = None

    # -- the outlet

    @property
    def slot(self) -> Wire:
        """Groups write to the connection itself."""
        return self

    def send(self, payload: bytes) -> None:
        """One message."""
        if self.alive and not self.closed:
            self._written(payload)

    def send_all(self, payloads: list[bytes]) -> None:
        """Several messages."""
        for payload in payloads:
            self.send(payload)

    deliver = send_all

    def write(self, data: bytes) -> None:
        """WebSocket frames."""
        for payload in _payloads(data):
            self.send(payload)

    def close(self, code: int, reason: str) -> None:
        """The last thing the client reads is the close frame."""
        if self.closed or not self.alive:
            return
        self._overtakes("close")
        self._leave()
        self.closed = True
        self.down.append(Frame("close"))
        if reason == "Session resumed elsewhere":
            self.world.released(self.sid)

    def drained(self) -> Deferred[None] | None:
        """A slow client takes no more until it catches up or is gone."""
        if not self.slow or not self.alive:
            return None
        if self._waiter is None:
            self._waiter = Deferred()
        return self._waiter

    def pause(self) -> None:
        """The client is read all the same: the bound is tested elsewhere."""

    def resume(self) -> None:
        """See ``pause``."""

    # -- what happens to the connection

    def slow_down(self) -> None:
        """From now on the client does not take what it is sent."""
        self.slow = self.was_slow = True

    def catch_up(self) -> None:
        """The client has taken everything."""
        self.slow = False
        waiter, self._waiter = self._waiter, None
        if waiter is not None:
            waiter.callback(None)

    def lose(self) -> None:
        """The server sees that the connection is gone."""
        if not self.alive:
            return
        self.catch_up()
        self._leave()
        self.alive = False
        if not self.closed:
            self.world.released(self.sid)
        self.node.disconnected(self.session)

    def _leave(self) -> None:
        if self.ended is None:
            self.ended = self.world.clock.seconds()
            self._left = {(i, stream): self.left(i, stream) for i, sub in self.subs.items() for stream in sub.tracks}

    def left(self, identifier: str, stream: str) -> tuple[int, int]:
        """How far the subscription had got, at least and at most, when the connection ended, or until now."""
        if (identifier, stream) in self._left:
            return self._left[identifier, stream]
        sub = self.subs.get(identifier)
        if sub is None or stream not in sub.tracks:
            return 0, 0
        track = sub.tracks[stream]
        if self._is_held(sub) and not track.fresh:
            return max(track.proven, track.last), max(track.inherited, track.last)
        reached = max(track.last, self.world.reached(self.node, stream))
        return (track.last if self.slow else reached), reached

    def _is_held(self, sub: Sub) -> bool:
        """Is this a resumed subscription whose client may still ask in time?"""
        now = self.world.clock.seconds() if self.ended is None else self.ended
        return not sub.fresh and not sub.answered and not sub.asks and now < (self.welcomed or 0) + self.world.barrier

    def _doubt(self, sub: Sub, stream: str) -> tuple[int, int | None] | None:
        track = sub.tracks[stream]
        if track.fresh or sub.answered or self._is_held(sub):
            return track.doubt
        if track.inherited <= sub.feeds[stream].start:
            return track.doubt  # there was nothing before that it could have lost
        return (track.proven if track.doubt is None else min(track.proven, track.doubt[0]), None)

    def arrive(self, command: dict[str, Any]) -> None:
        """A command reaches the server."""
        if not self.alive or self.closed:
            return
        self._note(command)
        receive(self.session, orjson.dumps(command))

    def _note(self, command: dict[str, Any]) -> None:
        if self.welcomed is None:
            return
        if not self.acted and self.restored:
            self.world.spent(self.previous)
        self.acted = True
        history, identifier = command.get("history"), command["identifier"]
        sub = self.subs.get(identifier)
        if command["command"] == "subscribe":
            self._pending[identifier] = None if history is None else self._ask(history, first=True)
        elif command["command"] == "history" and sub is not None:
            self._note_ask(sub, self._ask(history, first=not sub.fresh and not sub.answered and not sub.asks))

    def _ask(self, history: dict[str, Any], *, first: bool) -> Ask:
        ledger = self.world.ledger
        positions = {s: (p["epoch"], p["offset"]) for s, p in history["streams"].items()}
        late = self.world.clock.seconds() >= (self.welcomed or 0) + self.world.barrier
        since = min(int(history["since"]), int(self.world.clock.seconds()))  # one in the future means now
        return Ask(positions, since, {s: ledger.top(s) for s in self.world.streams}, first, late)

    def _note_ask(self, sub: Sub, ask: Ask) -> None:
        sub.asks.append(ask)
        if not ask.first:
            return
        for stream, track in sub.tracks.items():
            if track.got:
                continue  # the barrier opened by itself: the order of this connection stands
            if self.world.shared or (self.world.distributed and stream not in ask.positions):
                track.last = 0  # a node may begin where the bus has got to, and the store is further
            else:
                after = self._after(sub, ask, stream)
                # A stream that began at some time may be replayed from there though the time is not named again.
                track.last = min(track.last, sub.feeds[stream].start) if after is None else after

    # -- what the controller hears

    def subscribing(self, identifier: str, streams: tuple[str, ...]) -> None:
        """The server is about to subscribe *identifier*."""
        if identifier in self.subs:
            self._fail(f"{identifier} is subscribed a second time")
        sub = self.subs[identifier] = Sub(fresh=True)
        ask = self._pending.pop(identifier, None)
        if ask is not None:
            sub.begins = ask
            sub.asks.append(ask)
        for stream in streams:
            sub.tracks[stream] = Track(self._begin(ask, stream))

    def _begin(self, ask: Ask | None, stream: str) -> int:
        if ask is not None and stream in ask.positions:
            return ask.positions[stream][1]
        if self.world.distributed or (ask is not None and ask.since):
            return 0
        return self.world.ledger.top(stream)

    def unsubscribed(self, identifier: str) -> None:
        """The server has left *identifier*."""
        self.subs.pop(identifier, None)

    # -- what is written

    def expects(self, message: Message) -> None:
        """A transient message was published: without a bus, who is subscribed now has to get it, and nobody else."""
        for sub in self.subs.values():
            if sub.confirmed and message.stream in sub.tracks and message.excluded not in self.chain:
                sub.tracks[message.stream].transients.append(message.id)

    def _fail(self, what: str) -> None:
        self.world.violations.append(f"{self.owner.name}, connection {self.sid}: {what}")

    def _written(self, payload: bytes) -> None:
        data = orjson.loads(payload)
        kind = data.get("type", "message")
        frame = Frame(kind, data.get("identifier", ""), data)
        if self.welcomed is None and kind not in ("welcome", "disconnect"):
            self._fail(f"{kind} before the welcome")
            return
        if kind != "message" or "id" not in data["message"]:
            self._overtakes(kind, data["message"].get("unfollowed", "") if kind == "message" else "")
        getattr(self, f"_{kind}")(frame, data)
        self.down.append(frame)

    def _overtakes(self, kind: str, unfollowed: str = "") -> None:
        """Nothing is written before what the connection was given earlier; transient messages tell when that was.

        Those of a stream that is *unfollowed* with this need not come any more.
        """
        if self.world.distributed or self.was_slow:
            return
        for sub in self.subs.values():
            if sub.confirmed and (sub.fresh or (sub.answered and not sub.told)):
                for stream, track in sub.tracks.items():
                    if track.transients and stream != unfollowed:
                        self._fail(f"{kind} overtakes transient messages {track.transients}")

    def _disconnect(self, frame: Frame, data: dict[str, Any]) -> None:
        """Nothing to judge."""

    def _welcome(self, frame: Frame, data: dict[str, Any]) -> None:
        if self.welcomed is not None:
            self._fail("a second welcome")
        self.sid = data["sid"]
        self.welcomed = self.world.clock.seconds()
        self.restored = data.get("restored", False)
        self.chain = (self.sid,)
        if self.restored:
            self._inherit(self.world.wires[self.previous], data["restored_ids"])
        self.world.welcomed(self)
        for identifier, sub in self.subs.items():
            frame.feeds.update({(identifier, stream): feed for stream, feed in sub.feeds.items()})
            for stream, track in sub.tracks.items():
                frame.told[stream] = max(frame.told.get(stream, 0), track.inherited)

    def _inherit(self, before: Wire, identifiers: list[str]) -> None:
        self.chain = (self.sid, *(before.chain[1:] + before.chain[:1])[-MAX_PREVIOUS:])
        known = {i: sub for i, sub in before.subs.items() if sub.confirmed}
        if not self.world.distributed and sorted(known) != sorted(identifiers):
            self._fail(f"resumed {identifiers} instead of {list(known)}")
        for identifier in identifiers:
            sub = self.subs[identifier] = Sub(fresh=False)
            if identifier in known:
                sub.feeds = dict(known[identifier].feeds)
            else:  # it was unsubscribed after the record that came back had been saved
                ledger = self.world.ledger
                streams = self.world.channels[identifier]
                sub.feeds = {s: Feed(ledger, identifier, s, ledger.top(s)) for s in streams}
            for stream, feed in sub.feeds.items():
                proven, inherited = before.left(identifier, stream)
                last = 0 if self.world.distributed else max(proven, feed.start)
                sub.tracks[stream] = Track(last, inherited, proven, fresh=False)
                if identifier in known:
                    sub.tracks[stream].doubt = before._doubt(known[identifier], stream)

    def _confirm_subscription(self, frame: Frame, data: dict[str, Any]) -> None:
        sub = self.subs.get(frame.identifier)
        if sub is None or sub.confirmed:
            self._fail(f"{frame.identifier} is confirmed though nobody waits for that")
            return
        sub.confirmed = True
        ledger, ask = self.world.ledger, sub.begins
        for stream in sub.tracks:
            start = ledger.top(stream)
            if ask is not None and stream in ask.positions:
                start = ask.positions[stream][1]
            elif ask is not None and ask.since:
                start = ledger.before(stream, ask.since)
            feed = sub.feeds[stream] = Feed(ledger, frame.identifier, stream, start)
            feed.timed = ask is not None and ask.since > 0 and stream not in ask.positions
        frame.feeds = {(frame.identifier, s): feed for s, feed in sub.feeds.items()}

    def _message(self, frame: Frame, data: dict[str, Any]) -> None:
        sub = self.subs.get(frame.identifier)
        if sub is None or not sub.confirmed:
            self._fail(f"a message for {frame.identifier}, which is not subscribed")
            return
        if "followed" in data["message"]:
            stream = data["message"]["followed"]
            if stream not in sub.tracks:
                sub.tracks[stream] = Track(self._begin(None, stream))
                sub.feeds[stream] = Feed(self.world.ledger, frame.identifier, stream, self.world.ledger.top(stream))
            frame.feeds = {(frame.identifier, s): feed for s, feed in sub.feeds.items()}
            return
        if "unfollowed" in data["message"]:
            sub.tracks.pop(data["message"]["unfollowed"], None)
            sub.feeds.pop(data["message"]["unfollowed"], None)
            frame.feeds = {(frame.identifier, s): feed for s, feed in sub.feeds.items()}
            return
        message = frame.message = self.world.ledger.messages[data["message"]["id"]]
        if message.stream not in sub.tracks:
            self._fail(f"a message of {message.stream} for {frame.identifier}")
            return
        if message.excluded in self.chain:
            self._fail(f"message {message.id}, which {message.excluded} must not get")
        frame.feed = sub.feeds[message.stream]
        track = sub.tracks[message.stream]
        frame.unasked = not track.fresh and (sub.told or not sub.answered)
        if self._is_held(sub) and not track.fresh:
            self._fail(f"message {message.id} was not held back for the client to ask")
        transients = track.transients
        if message.offset:
            self._stored(sub, message, frame)
        elif "offset" in data or "epoch" in data:
            self._fail(f"transient message {message.id} with a position")
        elif self.world.distributed:
            if message.id in transients:
                self._fail(f"transient message {message.id} twice")
            transients.append(message.id)
        elif not transients or transients.pop(0) != message.id:
            self._fail(f"transient message {message.id} out of its turn")

    def _stored(self, sub: Sub, message: Message, frame: Frame) -> None:
        offset, stream, data = message.offset, message.stream, frame.data
        if (data["stream_id"], data["epoch"], data["offset"]) != (stream, self.world.epoch, offset):
            self._fail(f"message {message.id} with a wrong position")
        track, feed = sub.tracks[stream], sub.feeds[stream]
        asked = self._asked_again(sub, track, message)
        if self.world.shared:  # the first request counts as well: it may go back behind what one of the two has
            asked = asked or any(ask.positions.get(stream, ("", 0))[1] < offset for ask in sub.asks)
        if offset > track.last:
            track.last = offset
            frame.again = self.world.shared and asked  # nothing is known there of what the client has
        elif not asked:
            repeated = "again" if offset in track.got else "late"
            self._fail(f"{stream} {offset} {repeated}, after {track.last}")
        else:
            track.replayed, frame.again = offset, True
        if self.world.shared and not sub.fresh and not asked and offset not in track.got and offset in feed.got:
            self._fail(f"{stream} {offset} again under {feed.identifier}, which has it")
        track.got.add(offset)

    def _asked_again(self, sub: Sub, track: Track, message: Message) -> bool:
        """Does the client itself want this message once more? Then it comes in order as well."""
        for ask in sub.asks:
            if not ask.first and track.replayed < message.offset:
                epoch, after = ask.positions.get(message.stream, (self.world.epoch, -1))
                if message.stream not in ask.positions and ask.since:
                    after = self.world.ledger.before(message.stream, ask.since)
                if epoch == self.world.epoch and 0 <= after < message.offset:
                    return True
        return False

    # -- the answers

    def _confirm_history(self, frame: Frame, data: dict[str, Any]) -> None:
        sub = self.subs.get(frame.identifier)
        if sub is None or not sub.asks:
            self._fail(f"history of {frame.identifier} is confirmed though nobody asked")
            return
        whole = [n for n, ask in enumerate(sub.asks) if not self._lacks(sub, ask)]
        if not whole or (whole[0] and not self._ambiguous):
            self._fail(f"history of {frame.identifier} is confirmed without {self._lacks(sub, sub.asks[0])}")
            return
        for stream, feed in sub.feeds.items():
            after = self._after(sub, sub.asks[whole[0]], stream)
            if after is not None:
                feed.start = min(feed.start, after)  # from where it is served if none of this arrives
            if not sub.answered:
                sub.tracks[stream].doubt = None
        del sub.asks[: whole[0] + 1]
        sub.told = False
        self._answered(sub)

    def _reject_history(self, frame: Frame, data: dict[str, Any]) -> None:
        if not self.owner.extended:
            self._fail("the base protocol has no history")
        sub = self.subs.get(frame.identifier)
        if sub is None or not sub.confirmed:
            self._fail(f"history of {frame.identifier}, which is not subscribed, is refused")
            return
        if not self.world.distributed and not self._refusable(sub):
            self._fail(f"history of {frame.identifier} is refused though nothing is missing")
        for stream in sub.feeds:
            frame.told[stream] = self.world.reached(self.node, stream)
            doubt = self._doubt(sub, stream)
            if doubt is not None and not sub.answered:
                sub.tracks[stream].doubt = (doubt[0], frame.told[stream])
        sub.told = not sub.asks and (sub.told or not sub.answered)
        if sub.asks and not self._ambiguous:
            del sub.asks[0]
        self._answered(sub)

    def _answered(self, sub: Sub) -> None:
        sub.answered = True
        for track in sub.tracks.values():
            track.replayed = 0

    @property
    def _ambiguous(self) -> bool:
        """A refusal may be the answer to a request, or say what was lost later."""
        return self.world.distributed or self.was_slow

    def _after(self, sub: Sub, ask: Ask, stream: str) -> int | None:
        """What the request says the client has of the stream; None when it says nothing."""
        if stream in ask.positions:
            return ask.positions[stream][1]
        if ask.first and not sub.tracks[stream].fresh and (ask.since or not sub.feeds[stream].timed):
            return sub.feeds[stream].start
        return self.world.ledger.before(stream, ask.since) if ask.since else None

    def _lacks(self, sub: Sub, ask: Ask) -> list[str]:
        """What was asked for and not sent (P4)."""
        ledger, lacking = self.world.ledger, []
        for stream, track in sub.tracks.items():
            after = self._after(sub, ask, stream)
            for offset in range(after + 1, ask.tops[stream] + 1) if after is not None else ():
                if offset not in track.got and ledger.at(stream, offset).excluded not in self.chain:
                    if self.world.shared and offset in sub.feeds[stream].got:
                        continue
                    lacking.append(f"{stream} {offset}")
        return lacking

    def _refusable(self, sub: Sub) -> bool:
        """Is anything gone that a client was to get? (P4)"""
        ledger = self.world.ledger
        if sub.told:
            return True
        for stream, track in sub.tracks.items():
            if ledger.lowest(stream) > track.last + 1:
                return True
            if self.world.shared and ledger.lowest(stream) > track.inherited + 1:
                return True  # the client's position comes from the other identifier
            for ask in sub.asks:
                epoch, _ = ask.positions.get(stream, (self.world.epoch, 0))
                after = self._after(sub, ask, stream)
                if epoch != self.world.epoch:
                    return True
                if after is None:
                    continue
                if after > ledger.top(stream) or ledger.lowest(stream) > after + 1:
                    return True
                if ask.first and stream in ask.positions and track.doubt is not None:
                    beyond, upto = track.doubt
                    if beyond < after and (upto is None or after <= upto):
                        return True
                if ask.first and ask.late and not track.fresh and after < self._sent_before(track, stream):
                    return True
        return False

    def _sent_before(self, track: Track, stream: str) -> int:
        """How far earlier connections got, counting what was not for this client."""
        ledger, offset = self.world.ledger, track.inherited
        while offset < ledger.top(stream) and ledger.at(stream, offset + 1).excluded in self.chain:
            offset += 1
        return offset


def _payloads(data: bytes) -> Iterator[bytes]:
    """The payloads of unmasked text frames."""
    while data:
        size, start = data[1], 2
        if size == 126:
            size, start = int.from_bytes(data[2:4], "big"), 4
        payload = data[start : start + size]
        yield zlib.decompressobj(-15).decompress(payload + b"\x00\x00\xff\xff") if data[0] & 0x40 else payload
        data = data[start + size :]
