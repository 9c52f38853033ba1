"""The node: ties sessions, streams, controllers and providers together."""

from __future__ import annotations

from collections import deque
from collections.abc import Coroutine, Mapping
from functools import partial
from typing import Any

from twisted.internet.defer import Deferred
from twisted.internet.task import LoopingCall
from zope.interface import implementer

from anycable_tx.audit import TailAudit
from anycable_tx.background import sleep
from anycable_tx.cable import codec
from anycable_tx.cable.admission import Arrival, admit
from anycable_tx.cable.fanout import Fanout, Outlet
from anycable_tx.cable.ids import new_sid
from anycable_tx.cable.live import open_barriers
from anycable_tx.cable.messages import (
    Claim,
    Publication,
    Receipt,
    RemoteCommand,
)
from anycable_tx.cable.pace import Pace
from anycable_tx.cable.records import SessionRecord
from anycable_tx.cable.replies import ConnectReply, RequestEnv, SessionView
from anycable_tx.cable.session import Session
from anycable_tx.interfaces import IController, INode
from anycable_tx.metrics import Metrics, aged
from anycable_tx.sessions import Sessions
from anycable_tx.streams import NodeStreams

__all__ = ["Node"]


@implementer(INode)
class Node(NodeStreams):
    """One server process. ``broker``, ``pubsub`` and ``controllers`` are set before ``start``."""

    controllers: IController

    def __init__(self, settings: Mapping[str, Any], reactor: Any, metrics: Metrics, fanout: Fanout) -> None:
        self.settings = settings
        self.sessions = Sessions()
        super().__init__(reactor, metrics, fanout, self.sessions)
        self.max_pending: int = settings["max_commands_pending"]
        self.max_subscriptions: int = settings["max_subscriptions"]
        rate = settings["max_commands_rate"]
        self.pace = Pace(rate, reactor.seconds) if rate else None
        self._mode: str = settings.get("disconnect_mode", "auto")
        self._resumable: bool = False
        self._barrier: float = settings["history_barrier"]
        self._releasing = 0
        self._awaiting: deque[tuple[float, Session]] = deque()
        self._changed: dict[Session, None] = {}
        #: The time, to a tenth of a second: one object for all sessions that begin in it.
        self._now: float = reactor.seconds()
        self._ticker = LoopingCall(self._tick)
        self._ticker.clock = reactor
        self._audit = TailAudit(self)
        metrics.gauge("clients_num", self.sessions.__len__)
        metrics.gauge("clients_uniq_num", self.sessions.distinct)
        age: float = settings.get("stats_refresh_interval", 0)
        metrics.gauge("broadcast_streams_num", aged(self._streams_in_use, age, reactor.seconds))
        metrics.gauge("disconnect_queue_size", lambda: 0)  # until there is a backend that is told

    def refused(self, session: Session, counter: str, reason: str = "") -> None:
        """The session's client does not get something. What it asked for may be signed, and is not for the log."""
        self.metrics.count(counter, reason=reason)
        attrs = {"context": "node", "counter": counter, "reason": reason, "sid": session.sid}
        self.log.debug("a client was refused something", attrs=attrs)

    def _streams_in_use(self) -> int:
        return sum(not stream.idle for stream in self.hub.streams.values())

    async def start(self) -> None:
        """Begin to serve; the providers have started."""
        self._resumable = self.broker.stores and self.settings["sessions_ttl"] > 0
        self._ticker.start(0.1, now=False)
        self._audit.start()

    async def released(self) -> None:
        """Done when every session whose connection ended is in the broker's keeping and controllers know (P8).

        Those that end with this server, and whose end was waited for, are reported too.
        """
        await self._seen_to()
        await self.broker.give_up_sessions()
        await self._seen_to()

    async def _seen_to(self) -> None:
        while self._releasing:
            await sleep(self.reactor, 0.05)

    async def stop(self) -> None:
        """End background work. Sessions have been closed."""
        if self._ticker.running:
            self._ticker.stop()
        self._audit.stop()
        self.cancel_all()

    def _tick(self) -> None:
        now = self._now = self.reactor.seconds()
        while self._awaiting and self._awaiting[0][0] <= now:
            session = self._awaiting.popleft()[1]
            if session.is_open():
                session.enqueue(partial(open_barriers, session))
        self.let_go(now)
        changed, self._changed = self._changed, {}
        for session in changed:
            self.spawn(self.save(session))

    # -- connections (called by transports)

    def connected(
        self, outlet: Outlet, arrival: Arrival, *, extended: bool, resumable: bool = True, sid: str = ""
    ) -> Session:
        """A client's connection is open: make its session and let it in. *resumable*: its transport knows sids."""
        session = Session(
            self.sessions.unused(sid) or new_sid(),
            outlet,
            self,
            extended=extended,
            resumable=extended and resumable and self._resumable,
            since=self._now,
        )
        self.metrics.count("connections_total")
        if session.sid == sid:
            self.sessions.arrives(session)
        session.begin(lambda: admit(session, arrival, self))
        return session

    def disconnected(self, session: Session) -> None:
        """The client's connection is gone."""
        if not session.was_admitted():
            session.lost()
            self.sessions.remove(session)
            self.controllers.gone(session.sid)
            if session.busy:
                self._see_to(self._idle(session))
            return
        record = self._record(session)
        session.lost()
        self.sessions.remove(session)
        self.controllers.gone(session.sid)
        if session.displaced:
            return
        self._see_to(self._release(session, record))

    def _record(self, session: Session, *, at_rest: bool = True) -> SessionRecord:
        record = session.record(at_rest=at_rest)
        if self._mode == "deferred" and session.disconnectable:
            record.env = session.env
        return record

    async def _release(self, session: Session, record: SessionRecord) -> None:
        """Give the session to the broker at once, and report its end when the command under way has ended."""
        sid = session.sid
        await self._attempt("cannot let presence expire", self.broker.release_presence(sid), sid=sid)
        kept = session.resumable and await self._keep(sid, record)
        if session.busy:
            await self._idle(session)
            kept = await self._add_what_was_done(session, record, kept=kept)
        if self._mode != "deferred" or not kept:
            await self._report_end(sid, record, session.env, resumable=kept)

    async def _idle(self, session: Session) -> None:
        """Done when the command under way has ended, which may have to be reported."""
        ended: Deferred[None] = Deferred()
        session.afterwards(lambda: ended.callback(None))
        await ended

    async def _add_what_was_done(self, session: Session, record: SessionRecord, *, kept: bool) -> bool:
        """A command that was under way may have told the backend more than the record says (RA-16)."""
        unfinished = dict(session.unfinished or ())
        if session.disconnectable is record.disconnectable and unfinished == record.unfinished:
            return kept
        record.disconnectable, record.unfinished = session.disconnectable, unfinished
        if self._mode == "deferred" and kept:
            record.env = session.env
            return await self._keep(session.sid, record)
        return kept

    async def _keep(self, sid: str, record: SessionRecord) -> bool:
        """Release the session to the broker. False: it is not kept there."""
        try:
            return bool(await self.broker.release_session(sid, record.encode()))
        except Exception:
            self._broker_failed("cannot keep a session", sid=sid)
            return False

    def _see_to(self, work: Coroutine[Any, Any, object]) -> None:
        """Do *work*, and let a stop wait for its end."""
        self._releasing += 1
        self.spawn(self._counted(work))

    async def _counted(self, work: Coroutine[Any, Any, object]) -> None:
        try:
            await work
        finally:
            self._releasing -= 1

    async def _report_end(
        self, sid: str, record: SessionRecord, env: RequestEnv | None, *, resumable: bool = False
    ) -> None:
        """Tell the controllers that a session ended, if any of them is interested."""
        if record.disconnectable:
            view = SessionView(sid, record.identifiers, env, record.cstate, resumable=resumable)
            await self.controllers.disconnect(view, record.known())

    async def ended(self, sid: str, record: SessionRecord, env: RequestEnv, *, resumable: bool) -> None:
        """A session that was being resumed is nobody's any more; *resumable*: it may still be claimed.

        A deferred report of one that may be claimed is the broker's to ask for.
        """
        if self._mode != "deferred" or not resumable:
            await self._report_end(sid, record, record.env or env, resumable=resumable)

    async def left(self, sid: str, reply: ConnectReply, env: RequestEnv) -> None:
        """A client was accepted and had left meanwhile (RA-16)."""
        if self.interested(reply.disconnect_interest):
            await self.controllers.disconnect(SessionView(sid, reply.identifiers, env, reply.cstate), {})

    def interested(self, interest: int) -> bool:
        """Is the end of a session to be reported after a reply with this interest?"""
        return self._mode == "always" or (self._mode != "never" and interest >= 0)

    def arrives(self, session: Session) -> None:
        """Others can know the session's sid."""
        self.sessions.arrives(session)

    def register(self, session: Session) -> None:
        """The session is authenticated."""
        self.sessions.add(session)

    def rename(self, session: Session, identifiers: str) -> None:
        """The session has other identifiers now."""
        self.sessions.remove(session)
        session.identifiers = identifiers
        self.sessions.add(session)

    def keeps_env(self) -> bool:
        """Only some controllers look at the request again."""
        return bool(getattr(self.controllers, "keeps_env", False))

    async def save(self, session: Session) -> None:
        """Keep the session's record, if it is resumable. A broker that cannot holds nothing up."""
        if session.resumable and session.is_open():
            record = self._record(session, at_rest=False).encode()
            previous = session.previous[-1] if session.previous else ""
            saving = self.broker.save_session(session.sid, session.identifiers, record, previous)
            await self._attempt("cannot keep a session", saving, sid=session.sid)

    def store_lost(self) -> None:
        """Keep the records of all sessions anew."""
        self.spawn(self._save_all())

    async def _save_all(self) -> None:
        for session in self.sessions:
            await self.save(session)

    def changed(self, session: Session) -> None:
        """Keep the session's record with the next tick: once, however many subscriptions a client makes at once.

        If its connection ends before, the record is kept then.
        """
        self._changed[session] = None

    def acted(self, session: Session, previous: str) -> None:
        """The resumed client has its new sid: the one before cannot be claimed any more."""
        self.spawn(self.spend(previous))

    async def spend(self, sid: str) -> None:
        """Nobody may claim *sid* any more. A broker that cannot be told holds nothing up."""
        await self._attempt("cannot forget a session", self.broker.forget_session(sid), sid=sid)

    def await_history(self, session: Session) -> None:
        """Open the session's barriers ``history_barrier`` seconds from now."""
        self._awaiting.append((self.reactor.seconds() + self._barrier, session))

    async def claim(self, sid: str, heir: str) -> Claim | None:
        """What the broker keeps of *sid*."""
        return await self._patiently(lambda: self.broker.claim_session(sid, heir))

    async def take_over(self, sid: str) -> SessionRecord | None:
        """Close the socket of *sid*, here or on another node; its record if it was here."""
        session = self.sessions.get(sid)
        if session is None:
            if self.pubsub.distributed:
                await self.pubsub.publish_command(RemoteCommand("takeover", {"sid": sid}))
            return None
        return await self._hand_on(session)

    async def _hand_on(self, session: Session) -> SessionRecord | None:
        """Close a session that was resumed elsewhere; its record stays for another claim: the heir may be lost."""
        if not session.was_admitted():
            self._displace(session)
            return None
        record = self._record(session)
        self._displace(session)
        await self._keep(session.sid, record)
        return record

    def _displace(self, session: Session) -> None:
        """Close its socket with no ``disconnect`` frame; its presence is the heir's (D-22)."""
        session.displaced = True
        self.metrics.count("sessions_taken_over_total")
        session.disconnect(1000, "Session resumed elsewhere")
        self.disconnected(session)

    # -- INode: what providers call

    async def publish(self, publication: Publication) -> Receipt:
        """Store and fan out (P6)."""
        return await self.broker.publish(publication)

    async def broadcast_command(self, command: RemoteCommand) -> None:
        """Send to every node."""
        await self.pubsub.publish_command(command)

    def execute(self, command: RemoteCommand) -> None:
        """Take a command from the bus."""
        self.metrics.count("remote_commands_total")
        payload = command.payload
        if command.command == "takeover":
            session = self.sessions.get(str(payload.get("sid", "")))
            if session is not None:
                self._see_to(self._hand_on(session))
            else:
                self.spawn(self._withdraw(str(payload.get("sid", ""))))
        elif command.command == "disconnect":
            identifier, reconnect = payload.get("identifier"), payload.get("reconnect", False)
            if not isinstance(identifier, str) or not isinstance(reconnect, bool):
                self.metrics.count("failed_bus_msg_total")
                self.log.warn("failed to parse remote disconnect command", attrs={"context": "node"})
                return
            self.spawn(self._disconnect_all(identifier, reconnect))
        else:
            self.metrics.count("failed_bus_msg_total")
            self.log.warn("unknown remote command", attrs={"context": "node", "command": command.command[:100]})

    async def _disconnect_all(self, identifiers: str, reconnect: bool) -> None:
        """Close all sessions with these identifiers; none of them, nor an absent one, can resume (CP-102)."""
        self.metrics.count("broadcast_msg_total")
        for session in self.sessions.of(identifiers):
            session.resumable = False
            session.disconnect(1000, "Closed remotely", "remote", reconnect=reconnect)
        await self.broker.forget_sessions(identifiers)

    async def _withdraw(self, sid: str) -> None:
        """The session came back on another node: its end, if that still waits to be reported, was none."""
        await self.controllers.withdraw(sid)

    def session_expired(self, sid: str, record: bytes) -> None:
        """The session cannot be resumed any more: now its end is reported, where that waited for this."""
        decoded = SessionRecord.decode(record) if self._mode == "deferred" else None
        if decoded is not None:
            self._see_to(self._report_end(sid, decoded, decoded.env))

    def presence_expired(self, stream: str, id: str) -> None:
        """A member's time ran out."""
        self.spawn(self._announce_leave(stream, id))

    async def _announce_leave(self, stream: str, id: str) -> None:
        event = codec.member_event("leave", id)
        await self.publish(Publication(stream, event, broadcast_type="presence", transient=True))
