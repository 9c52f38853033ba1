"""One client's session: its commands, one after another, and what each sends.

The session owns no socket and no clock. What it needs from the server comes as ``Services``; what it says goes
to its outlet. The order on the wire is always: confirmation, replayed messages, the history answer, live
messages (P1, P2); see ``attachments`` for what each stream of each subscription knows.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Awaitable, Callable, Coroutine
from enum import IntEnum
from sys import intern
from typing import Any, Protocol

import orjson

from anycable_tx.cable import codec
from anycable_tx.cable.attachments import Attachment
from anycable_tx.cable.fanout import Fanout, Outlet
from anycable_tx.cable.hub import LocalStream
from anycable_tx.cable.messages import History, HistoryRequest, Publication, Receipt, StreamMessage
from anycable_tx.cable.pace import Pace
from anycable_tx.cable.records import MAX_PREVIOUS, SessionRecord, StreamRecord
from anycable_tx.cable.replies import PRESENCE_STREAM, WHISPER_STREAM, RequestEnv, SessionView
from anycable_tx.interfaces import IBroker, IController
from anycable_tx.metrics import Metrics

__all__ = ["Services", "Session", "State", "Subscription"]


class Services(Protocol):
    """What a session needs from the node."""

    broker: IBroker
    controllers: IController
    metrics: Metrics
    fanout: Fanout
    #: How many commands may wait for the one under way before the client is not read any more.
    max_pending: int
    #: How many identifiers a session may be subscribed to, 0: any number.
    max_subscriptions: int
    #: How fast a client may send; None: as fast as it can.
    pace: Pace | None

    def spawn(self, work: Coroutine[Any, Any, None]) -> None:
        """Run *work* to its end, now as far as it goes; report what it raises."""

    def refused(self, session: Session, counter: str, reason: str = "") -> None:
        """The session's client does not get something, or not now: count it, and let the log say so (P9)."""

    def open_stream(self, name: str) -> Awaitable[LocalStream]:
        """The local stream, subscribed on the bus and at the broker's tail."""

    def close_stream(self, stream: LocalStream) -> None:
        """An attachment left it."""

    def history(self, stream: LocalStream, request: HistoryRequest) -> Awaitable[History]:
        """The broker's answer, or HistoryRefused, whatever went wrong."""

    def advance(self, stream: LocalStream, history: History) -> None:
        """A read from the broker showed messages the bus has not brought yet: hand them to everybody."""

    def catch_up(self, stream: LocalStream, target: int) -> Awaitable[None]:
        """Read what the bus has not brought yet, at least to the offset *target*, and hand it to everybody."""

    def publish(self, publication: Publication) -> Awaitable[Receipt]:
        """Store and fan out."""

    def disconnected(self, session: Session) -> None:
        """Its connection is gone."""

    def save(self, session: Session) -> Awaitable[None]:
        """Keep the session's record now, if it is resumable."""

    def changed(self, session: Session) -> None:
        """The session's record is not what the broker has: keep it anew, soon."""

    def acted(self, session: Session, previous: str) -> None:
        """A resumed client sent its first command: the sid it came with is spent."""

    def interested(self, interest: int) -> bool:
        """Does a reply with this ``disconnect_interest`` mean that the session's end is to be reported?"""


class State(IntEnum):
    """The life of a session. CLOSING: our close frame was written, and the connection is still there."""

    OPENING = 0
    OPEN = 1
    CLOSING = 2
    CLOSED = 3


class Subscription:
    """One confirmed identifier of a session. ``whisper`` and ``presence`` are the streams it may use so."""

    __slots__ = ("attachments", "identifier", "istate", "joined", "presence", "session", "whisper")

    def __init__(self, session: Session, identifier: str) -> None:
        self.session = session
        self.identifier = identifier
        self.attachments: tuple[Attachment, ...] = ()
        self.istate: dict[str, str] | None = None
        self.whisper = ""
        self.presence = ""
        self.joined = False

    @property
    def json(self) -> bytes:
        """The identifier as JSON text."""
        return orjson.dumps(self.identifier)

    def merge(self, changes: dict[str, str]) -> None:
        """Merge channel state; an empty value deletes the key."""
        for key, value in changes.items():
            if key == WHISPER_STREAM:
                self.whisper = intern(value)
            elif key == PRESENCE_STREAM:
                self.presence = intern(value)
            elif value:
                self.istate = {**(self.istate or {}), key: value}
            elif self.istate:
                self.istate.pop(key, None)

    def state(self) -> dict[str, str]:
        """The channel state as backends see it."""
        state = dict(self.istate or ())
        if self.whisper:
            state[WHISPER_STREAM] = self.whisper
        if self.presence:
            state[PRESENCE_STREAM] = self.presence
        return state


class Session:
    """A connected client.

    ``extended``: it speaks the extended protocol. ``resumable``: its record is kept when it goes, so that it
    can come back. ``previous``: the sids it had before, newest last. ``unfinished``: identifiers it is not subscribed
    to, though the backend may think so, with their state. ``clear`` is the Pace's. ``since`` is when it began, by the
    reactor's clock.
    """

    __slots__ = (
        "_busy",
        "_came",
        "_epilogue",
        "_queue",
        "clear",
        "cstate",
        "disconnectable",
        "displaced",
        "env",
        "extended",
        "identifiers",
        "outlet",
        "previous",
        "resumable",
        "services",
        "sid",
        "since",
        "state",
        "subscriptions",
        "unfinished",
    )

    def __init__(
        self,
        sid: str,
        outlet: Outlet,
        services: Services,
        *,
        extended: bool,
        resumable: bool,
        since: float = 0.0,
    ) -> None:
        self.sid = sid
        self.outlet = outlet
        self.services = services
        self.extended = extended
        self.resumable = resumable
        self.since = since
        self.state = State.OPENING
        self.identifiers = ""
        self.env: RequestEnv | None = None
        self.cstate: dict[str, str] | None = None
        self.subscriptions: dict[str, Subscription] = {}
        self.previous: tuple[str, ...] = ()
        self.disconnectable = False
        self.clear = 0.0
        #: Resumed elsewhere: whatever this session had belongs to its heir.
        self.displaced = False
        self.unfinished: dict[str, dict[str, str]] | None = None
        self._epilogue: Callable[[], None] | None = None
        self._busy = True  # until admitted, commands wait
        self._queue: deque[Callable[[], Coroutine[Any, Any, None]]] | None = None
        #: The record it came back with, until the client acts.
        self._came: SessionRecord | None = None

    # -- what it says

    def send(self, payload: bytes) -> None:
        """Write one message behind everything this connection was already given (CP-136)."""
        if self.services.fanout.pending:
            self.settle()
        self.outlet.send(payload)

    def transmit(self, payloads: list[bytes]) -> None:
        """Write several messages in their order."""
        if self.services.fanout.pending:
            self.settle()
        self.outlet.send_all(payloads)

    def deliver(self, payloads: list[bytes]) -> None:
        """Write several messages of streams, made by the outlet's wire format, in their order."""
        if self.services.fanout.pending:
            self.settle()
        self.outlet.deliver(payloads)

    def settle(self) -> None:
        """Write what was handed to this session's groups and has not left yet."""
        for subscription in self.subscriptions.values():
            for attachment in subscription.attachments:
                if attachment.group is not None:
                    attachment.group.settle(attachment)

    def refused(self, counter: str, reason: str) -> None:
        """The client was refused something: it is counted, and the log says so (P9)."""
        self.services.refused(self, counter, reason)

    def disconnect(self, code: int, text: str, reason: str = "", *, reconnect: bool = False) -> None:
        """Close the connection, after a ``disconnect`` frame if a *reason* is given.

        Nothing is written behind the close frame, and no command is carried out any more. Where the streams of a
        session that was let in stand is kept for its record.
        """
        if self.state in (State.CLOSING, State.CLOSED):
            return
        self.settle()
        if reason:
            self.outlet.send(codec.disconnect_frame(reason, reconnect))
        self.outlet.close(code, text)
        self.state = State.CLOSED if self.state is State.OPENING else State.CLOSING
        for subscription in self.subscriptions.values():
            for attachment in subscription.attachments:
                attachment.hold()

    # -- what it is told

    def begin(self, admission: Callable[[], Coroutine[Any, Any, None]]) -> None:
        """Run *admission*; commands that arrive before it ends wait for it (CP-28)."""
        self.services.spawn(self._work(admission))

    def enqueue(self, job: Callable[[], Coroutine[Any, Any, None]]) -> None:
        """Run *job* after the commands that came before it."""
        if not self._busy:
            self._busy = True
            self.services.spawn(self._work(job))
            return
        if self._queue is None:
            self._queue = deque()
        self._queue.append(job)
        if len(self._queue) == self.services.max_pending:
            self.outlet.pause()

    async def _work(self, job: Callable[[], Coroutine[Any, Any, None]] | None) -> None:
        """Run *job* and then what queued up meanwhile, whether it fails or not."""
        try:
            while job is not None:
                await job()
                job = self._next()
        except GeneratorExit:  # the whole session was forgotten
            raise
        except BaseException:
            job = self._next()
            if job is not None:
                self.services.spawn(self._work(job))
            raise

    def _next(self) -> Callable[[], Coroutine[Any, Any, None]] | None:
        """The next job; None when there is none, and then the session is idle."""
        queue = self._queue
        if not queue or self.state is State.CLOSED:
            self._queue = None
            self._busy = False
            epilogue, self._epilogue = self._epilogue, None
            if epilogue is not None:
                epilogue()
            return None
        if len(queue) == self.services.max_pending:
            self.outlet.resume()
        return queue.popleft()

    @property
    def busy(self) -> bool:
        """Is a command under way?"""
        return self._busy

    def afterwards(self, epilogue: Callable[[], None]) -> None:
        """The connection is gone: call *epilogue*, after any other, when the command under way has ended."""
        earlier = self._epilogue

        def both() -> None:
            if earlier is not None:
                earlier()
            epilogue()

        self._epilogue = both

    def is_open(self) -> bool:
        """Authenticated, and the client can be written to."""
        return self.state is State.OPEN

    def is_closed(self) -> bool:
        """The connection is gone, or was closed before the client was let in."""
        return self.state is State.CLOSED

    def was_admitted(self) -> bool:
        """The client was let in, and its end has not been dealt with yet."""
        return self.state in (State.OPEN, State.CLOSING)

    def admitted(self) -> None:
        """Authentication is over: the session is open and its commands run."""
        self.state = State.OPEN

    def spend(self) -> None:
        """The client acted: it has its new sid, so the one it came with is of no more use."""
        if self._came is not None:
            self._came = None
            self.services.acted(self, self.previous[-1])

    def resumes(self, record: SessionRecord, previous: str) -> None:
        """Take over what *record* says of the session that was *previous*."""
        self.identifiers = record.identifiers
        self.cstate = record.cstate or None
        self.disconnectable = record.disconnectable
        self.unfinished = record.unfinished or None
        self.previous = (*record.previous, previous)[-MAX_PREVIOUS:]
        self._came = record

    def lost(self) -> None:
        """The connection is gone; nothing more is written to it."""
        self.state = State.CLOSED
        for subscription in self.subscriptions.values():
            self.detach(subscription)
        self._queue = None

    # -- subscriptions and state

    def view(self, subscription: Subscription | None = None) -> SessionView:
        """What controllers see."""
        return SessionView(
            self.sid,
            self.identifiers,
            self.env,
            dict(self.cstate or ()),
            subscription.state() if subscription else {},
            self.resumable,
        )

    def known(self) -> dict[str, dict[str, str]]:
        """The identifiers that the backend may think it is subscribed to, with their state (RA-16, RA-18)."""
        return {i: s.state() for i, s in self.subscriptions.items()} | (self.unfinished or {})

    def leave_unfinished(self, identifier: str, state: dict[str, str]) -> None:
        """The backend may think that the session is subscribed to *identifier*."""
        self.unfinished = {**(self.unfinished or {}), identifier: state}

    def merge(self, changes: dict[str, str]) -> None:
        """Merge connection state; an empty value deletes the key."""
        state = {**(self.cstate or {}), **changes}
        self.cstate = {key: value for key, value in state.items() if value} or None

    def is_excluded(self, message: StreamMessage) -> bool:
        """True if the publisher asked that this session (under any of its sids) must not get *message*."""
        sid = message.exclude_socket
        return bool(sid) and (sid == self.sid or sid in self.previous)

    def detach(self, subscription: Subscription, streams: set[str] | None = None) -> None:
        """Leave *streams* of the subscription (all of them without a set); nothing more of them is sent."""
        kept = []
        for attachment in subscription.attachments:
            if streams is None or attachment.stream.name in streams:
                attachment.stream.remove(attachment)
                self.services.close_stream(attachment.stream)
            else:
                kept.append(attachment)
        subscription.attachments = tuple(kept)

    def record(self, *, at_rest: bool = True) -> SessionRecord:
        """The session as the broker is to keep it.

        Only a record of a session *at rest* can prove that nothing was sent after a held cursor: one that is
        saved while the session goes on is out of date as soon as its barriers open. What a resumed session has not
        attached yet stands where it stood, and a cursor that came out of date stays so until the client has asked.
        """
        came = self._came.subscriptions if self._came is not None else {}
        return SessionRecord(
            self.identifiers,
            {
                identifier: {
                    name: place._replace(held=at_rest and place.exact, exact=at_rest and place.exact)
                    for name, place in came.get(identifier, {}).items()
                }
                | {
                    a.stream.name: StreamRecord(
                        a.base, a.cursor, at_rest and a.untouched, a.doubt, at_rest and a.exact
                    )
                    for a in subscription.attachments
                }
                for identifier, subscription in self.subscriptions.items()
            },
            dict(self.cstate or ()),
            {i: state for i, s in self.subscriptions.items() if (state := s.state())},
            self.disconnectable,
            self.previous,
            dict(self.unfinished or ()),
        )
