"""A client with the memory of the official one: its sid, the last position of each stream, and no more."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from anycable_tx.cable.fanout import Wire as WireFormat
from anycable_tx.transports.frames import PLAIN
from tests.cable.machine.feed import Feed
from tests.cable.machine.ledger import Message
from tests.cable.machine.wire import Frame, Wire

if TYPE_CHECKING:
    from tests.cable.machine.world import World

__all__ = ["Channel", "Client"]


class Channel:
    """A subscription as the application sees it. ``unread``: confirmations still to come on this connection."""

    def __init__(self) -> None:
        self.wanted = False
        self.history = False
        self.confirmed = False
        self.unread = 0
        self.asked: dict[str, Any] | None = None
        self.feeds: dict[str, Feed] = {}


class Client:
    """One user's client over all its connections. ``since``: when its clock stands, 0 without one.

    It overwrites its position of a stream with whatever comes, and asks by positions for what it missed: when it
    subscribes and, while ``asks``, for every subscription that a resumed session brings back.
    """

    def __init__(
        self, world: World, name: str, *, extended: bool, since: int = 0, compression: WireFormat = PLAIN
    ) -> None:
        self.world = world
        self.name = name
        self.extended = extended
        self.since = since
        self.compression = compression
        self.asks = True
        self.wire: Wire | None = None
        self.connection = 0
        self.sid = ""
        self.sids: set[str] = set()
        self.positions: dict[str, tuple[str, int]] = {}
        self.learned: dict[str, set[str]] = {i: set() for i in world.channels}
        self.channels = {i: Channel() for i in world.channels}

    # -- what the application and the network do

    def connect(self, node: int = 0) -> Wire:
        """Open a connection, to resume if there is a session to resume."""
        self.wire = self.world.open(self, self.sid, node)
        self.connection += 1
        for channel in self.channels.values():
            channel.unread = 0
        return self.wire

    def subscribe(self, identifier: str, *, history: bool) -> None:
        """Want *identifier*, from now on or with what is known to be missing."""
        channel = self.channels[identifier]
        channel.wanted, channel.history = True, history
        if self.ready:
            self._subscribe(identifier, history=history)

    def _subscribe(self, identifier: str, *, history: bool) -> None:
        channel = self.channels[identifier]
        channel.confirmed = False
        channel.unread += 1
        channel.asked = self.request(identifier) if history and self.extended else None
        request = {} if channel.asked is None else {"history": channel.asked}
        self.say({"command": "subscribe", "identifier": identifier, **request})

    def unsubscribe(self, identifier: str) -> None:
        """Want it no more."""
        channel = self.channels[identifier]
        channel.wanted = channel.confirmed = False
        channel.feeds = {}
        self.record("unsubscribing", identifier=identifier)
        self.record("unsubscribed", identifier=identifier)
        if self.ready:
            self.say({"command": "unsubscribe", "identifier": identifier})

    def ask(self, identifier: str, positions: dict[str, tuple[str, int]], since: int) -> None:
        """Ask for history once more."""
        streams = {s: {"epoch": epoch, "offset": offset} for s, (epoch, offset) in positions.items()}
        request = {"since": since or False, "streams": streams}
        self.say({"command": "history", "identifier": identifier, "history": request})

    def say(self, command: dict[str, Any]) -> None:
        """Write a command to the connection; it is on its way until ``send``."""
        assert self.wire is not None
        self.wire.up.append(command)

    @property
    def ready(self) -> bool:
        """Has it been welcomed on its connection?"""
        return self.wire is not None and bool(self.sid) and self.sid == self.wire.sid

    def first_ask(self, identifier: str) -> bool:
        """Is the next request for history the one that a resumed subscription waits for?"""
        sub = None if self.wire is None else self.wire.subs.get(identifier)
        return sub is None or not (sub.fresh or sub.answered)

    def send(self, count: int = 1 << 30) -> bool:
        """So many commands reach the server."""
        return self.wire is not None and self.world.send(self.wire, count)

    def read(self, count: int = 1 << 30) -> bool:
        """So many frames reach the client."""
        wire, any_read = self.wire, False
        while count and wire is not None and wire is self.wire and wire.down:
            self._take(wire, wire.down.popleft())
            any_read = True
            count -= 1
        return any_read

    def cut(self) -> Wire:
        """The client's end of the connection is gone, with all that is on its way; the server may not know."""
        wire, self.wire = self.wire, None
        assert wire is not None
        wire.down.clear()
        wire.up.clear()
        self.record("cut", connection=self.connection)
        for channel in self.channels.values():
            channel.unread = 0
        return wire

    # -- what the client does with a frame

    def request(self, identifier: str) -> dict[str, Any]:
        """What it says it has."""
        known = sorted(s for s in self.learned[identifier] if s in self.positions)
        streams = {s: dict(zip(("epoch", "offset"), self.positions[s], strict=True)) for s in known}
        return {"since": self.since or False, "streams": streams}

    def _take(self, wire: Wire, frame: Frame) -> None:
        kind, identifier = frame.kind, frame.identifier
        if kind == "close":
            self.cut().lose()
        elif kind == "disconnect":
            self.sid = ""
        elif kind == "welcome":
            self._welcomed(frame)
        elif kind == "confirm_subscription":
            self._confirmed(frame, self.channels[identifier])
        elif kind == "reject_history":
            self._refused(frame, identifier)
        elif kind == "message":
            self._received(frame, self.channels[identifier])

    def _welcomed(self, frame: Frame) -> None:
        data = frame.data
        self.sid = data["sid"]
        self.sids.add(self.sid)
        restored = data.get("restored_ids", ()) if data.get("restored") else ()
        self.record(
            "connected", connection=self.connection, restored=bool(data.get("restored")), identifiers=list(restored)
        )
        for identifier in restored:
            channel = self.channels[identifier]
            if not channel.wanted:
                self.say({"command": "unsubscribe", "identifier": identifier})
                continue
            feeds = {s: feed for (i, s), feed in frame.feeds.items() if i == identifier}
            if not channel.confirmed or channel.feeds != feeds:
                if not channel.confirmed:  # what came while nobody listened counts: the client keeps one position
                    for stream, feed in feeds.items():
                        feed.told(self.positions.get(stream, ("", 0))[1])
                channel.confirmed = True
                self._begin(identifier, feeds, channel.asked)
            if self.asks:
                request = self.request(identifier)
                self.say({"command": "history", "identifier": identifier, "history": request})
            else:  # then it does not care for what had been on its way to it
                self._refused(frame, identifier)
        for identifier, channel in self.channels.items():
            if channel.wanted and identifier not in restored:
                # The official client asks whenever it comes back; one that never heard of a position has nothing
                # to lose by asking.
                self._subscribe(identifier, history=channel.history or bool(channel.feeds))

    def _confirmed(self, frame: Frame, channel: Channel) -> None:
        channel.unread -= 1
        if channel.wanted and not channel.unread:
            channel.confirmed = True
            self._begin(frame.identifier, {s: feed for (_, s), feed in frame.feeds.items()}, channel.asked)

    def _begin(self, identifier: str, feeds: dict[str, Feed], asked: dict[str, Any] | None) -> None:
        # What a feed of an earlier session passed over is forgotten with it: only who resumed in time has to be told.
        channel = self.channels[identifier]
        positions = {} if asked is None else asked["streams"]
        # A new session serves one identifier from the position that the client has of another: it has no other.
        anew = asked is None or self.world.shared or (not self.since and set(feeds) - set(positions))
        self._record_subscribed(identifier, channel, feeds, None if asked is None else positions, bool(anew))

    def _record_subscribed(
        self, identifier: str, channel: Channel, feeds: dict[str, Feed], where: dict[str, Any] | None, anew: bool
    ) -> None:
        if anew or set(channel.feeds) - set(feeds):
            self.record("unsubscribed", identifier=identifier)
            if self.world.distributed:  # a node that lags brings again what another one had brought before
                self.record("asked", identifier=identifier, **{"from": {}})
        channel.feeds = feeds
        self.record("subscribed", identifier=identifier, streams=list(feeds), **{"from": where})

    def _refused(self, frame: Frame, identifier: str) -> None:
        channel = self.channels[identifier]
        if channel.wanted and channel.confirmed:
            self.record("refused", identifier=identifier)
            for stream, feed in channel.feeds.items():
                feed.told(frame.told.get(stream, 0))

    def _received(self, frame: Frame, channel: Channel) -> None:
        message = frame.message
        if message is None:  # a stream was followed, or is not any more
            if channel.wanted and channel.confirmed:
                feeds = {s: feed for (_, s), feed in frame.feeds.items()}
                self._record_subscribed(frame.identifier, channel, feeds, {}, anew=False)
            return
        if message.offset:
            self.positions[message.stream] = (self.world.epoch, message.offset)
            self.learned[frame.identifier].add(message.stream)
        feed = channel.feeds.get(message.stream)
        if not channel.wanted or not channel.confirmed or feed is None or feed is not frame.feed:
            return
        position = (
            {"stream": message.stream, "epoch": self.world.epoch, "offset": message.offset} if message.offset else {}
        )
        self.world.unasked = self.world.unasked or frame.unasked
        id = message.id if message.offset else None
        if frame.again:
            before = {message.stream: {"epoch": self.world.epoch, "offset": message.offset - 1}}
            self.record("asked", identifier=frame.identifier, **{"from": before})
        self.record("received", connection=self.connection, identifier=frame.identifier, id=id, **position)
        if message.offset:
            missing = feed.missing(message.offset, self.excuses)
            if missing and not frame.unasked:
                self.fail(f"{feed.stream} {missing} passed over by {message.offset}")
            feed.holes.update(missing)
            feed.take(message.offset)

    # -- the verdict

    def excuses(self, message: Message) -> bool:
        """Is the message not for this client?"""
        return message.excluded in self.sids or (not self.extended and self.world.gave_up())

    def judge(self) -> None:
        """Everything has arrived that ever will: is all of it here? (P3)"""
        if self.wire is None or not self.wire.alive:
            self.fail("is not connected")
            return
        subs = {i for i, sub in self.wire.subs.items() if sub.confirmed}
        wanted = {i for i, channel in self.channels.items() if channel.wanted}
        if subs != wanted:
            self.fail(f"is subscribed to {sorted(subs)} and wants {sorted(wanted)}")
            return
        for identifier in wanted:
            channel = self.channels[identifier]
            if not channel.confirmed or channel.feeds != self.wire.subs[identifier].feeds:
                self.fail(f"does not know that {identifier} stands as it does")
            for feed in channel.feeds.values():
                missing = feed.missing(self.world.ledger.top(feed.stream) + 1, self.excuses)
                if missing or feed.holes:
                    self.fail(f"{feed.stream} {missing or sorted(feed.holes)} never came, and it was not told")

    def fail(self, what: str) -> None:
        """Report a broken promise."""
        self.world.violations.append(f"{self.name}, connection {self.sid}: {what}")

    def record(self, event: str, **values: Any) -> None:
        """For the checker."""
        self.world.log.record(event, client=self.name, **values)
