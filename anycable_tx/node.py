"""The node: ties sessions, the hub, controllers and providers together, and keeps streams whole."""

from __future__ import annotations

from collections import deque
from collections.abc import Awaitable, Coroutine, Mapping
from functools import partial
from typing import Any

from twisted.internet.defer import CancelledError, Deferred
from twisted.internet.task import LoopingCall
from twisted.logger import Logger
from twisted.python.failure import Failure
from zope.interface import implementer

from anycable_tx.cable import codec
from anycable_tx.cable.admission import Arrival, admit
from anycable_tx.cable.fanout import Fanout, Outlet
from anycable_tx.cable.hub import Hub, LocalStream
from anycable_tx.cable.ids import new_sid
from anycable_tx.cable.live import open_barriers
from anycable_tx.cable.messages import (
    History,
    HistoryRequest,
    Publication,
    Receipt,
    RemoteCommand,
    StreamMessage,
)
from anycable_tx.cable.positions import Verdict
from anycable_tx.cable.records import SessionRecord
from anycable_tx.cable.session import Session
from anycable_tx.errors import HistoryRefused
from anycable_tx.interfaces import IBroker, IController, INode, IPubSub
from anycable_tx.metrics import Metrics
from anycable_tx.sessions import Sessions

__all__ = ["Node"]

#: A stream whose last subscriber left stays subscribed on the bus for so many seconds.
LINGER = 5.0
#: A hole is read from the broker again after these many seconds, until the last attempt failed too.
HEAL_RETRIES = (0.1, 0.3, 1.0, 2.0)


@implementer(INode)
class Node:
    """One server process. ``broker``, ``pubsub`` and ``controllers`` are set before ``start``."""

    log = Logger()
    broker: IBroker
    pubsub: IPubSub
    controllers: IController

    def __init__(self, settings: Mapping[str, Any], reactor: Any, metrics: Metrics, fanout: Fanout) -> None:
        self.settings = settings
        self.reactor = reactor
        self.metrics = metrics
        self.fanout = fanout
        self.sessions = Sessions()
        self.hub = Hub(fanout, metrics, self.sessions.find)
        self.max_pending: int = settings["max_commands_pending"]
        self._resumable: bool = False
        self._barrier: float = settings["history_barrier"]
        self._running: set[Deferred[None]] = set()
        self._releasing = 0
        self._lingering: deque[tuple[float, LocalStream]] = deque()
        self._awaiting: deque[tuple[float, Session]] = deque()
        self._ticker = LoopingCall(self._tick)
        self._ticker.clock = reactor
        metrics.gauge("clients_num", self.sessions.__len__)
        metrics.gauge("clients_uniq_num", self.sessions.distinct)
        metrics.gauge("broadcast_streams_num", lambda: sum(not s.idle for s in self.hub.streams.values()))

    async def start(self) -> None:
        """Begin to serve; the providers have started."""
        self._resumable = self.broker.stores and self.settings["sessions_ttl"] > 0
        self._ticker.start(0.1, now=False)

    async def released(self) -> None:
        """Done when every session whose connection ended is in the broker's keeping and controllers know (P8)."""
        while self._releasing:
            await _sleep(self.reactor, 0.05)

    async def stop(self) -> None:
        """End background work. Sessions have been closed."""
        if self._ticker.running:
            self._ticker.stop()
        for deferred in list(self._running):
            deferred.cancel()

    def spawn(self, work: Coroutine[Any, Any, None]) -> None:
        """Run *work* now as far as it goes; hold it until it ends, and report what it raises.

        Most work ends at once, and then costs no Deferred.
        """
        try:
            waiting = work.send(None)
        except StopIteration:
            return
        except Exception:
            self._report(Failure())  # type: ignore[no-untyped-call]
            return
        deferred = Deferred.fromCoroutine(_go_on(work, waiting))
        if not deferred.called or deferred.paused:
            self._running.add(deferred)
            deferred.addBoth(self._forget, deferred)
        deferred.addErrback(self._report)

    def _forget(self, result: Any, deferred: Deferred[None]) -> Any:
        self._running.discard(deferred)
        return result

    def _report(self, failure: Failure) -> None:
        if isinstance(failure.value, CancelledError):  # the node is stopping
            return
        self.metrics.count("internal_errors_total")
        self.log.failure("unexpected error", failure=failure)

    def _tick(self) -> None:
        now = self.reactor.seconds()
        while self._awaiting and self._awaiting[0][0] <= now:
            session = self._awaiting.popleft()[1]
            if session.is_open():
                session.enqueue(partial(open_barriers, session))
        while self._lingering and self._lingering[0][0] <= now:
            stream = self._lingering.popleft()[1]
            if stream.idle and self.hub.streams.get(stream.name) is stream and stream.opening is None:
                del self.hub.streams[stream.name]
                self.spawn(self._unsubscribe(stream.name))

    async def _unsubscribe(self, name: str) -> None:
        await self.pubsub.unsubscribe(name)

    # -- connections (called by transports)

    def connected(self, outlet: Outlet, arrival: Arrival, *, extended: bool, sid: str = "") -> Session:
        """A client's connection is open: make its session and let it in."""
        session = Session(
            self.sessions.unused(sid) or new_sid(),
            outlet,
            self,
            extended=extended,
            resumable=extended and self._resumable,
        )
        if session.sid == sid:
            self.sessions.arrives(session)
        session.begin(lambda: admit(session, arrival, self))
        return session

    def disconnected(self, session: Session) -> None:
        """The client's connection is gone."""
        if not session.was_admitted():
            session.lost()
            self.sessions.remove(session)
            return
        record = session.record()
        view = session.view()
        subscriptions = {i: s.state() for i, s in session.subscriptions.items()}
        session.lost()
        self.sessions.remove(session)
        if session.displaced:
            return
        self.spawn(self._counted(self._release(session, record)))
        if session.disconnectable:
            self.spawn(self._counted(self._notify(view, subscriptions)))

    async def _counted(self, work: Coroutine[Any, Any, object]) -> None:
        self._releasing += 1
        try:
            await work
        finally:
            self._releasing -= 1

    async def _release(self, session: Session, record: SessionRecord) -> None:
        sid = session.sid
        await self._attempt("cannot let presence expire", self.broker.release_presence(sid), sid=sid)
        if session.resumable:
            await self._attempt("cannot keep a session", self.broker.release_session(sid, record.encode()), sid=sid)

    async def _notify(self, view: Any, subscriptions: dict[str, dict[str, str]]) -> None:
        await self.controllers.disconnect(view, subscriptions)

    def arrives(self, session: Session) -> None:
        """Others can know the session's sid."""
        self.sessions.arrives(session)

    def register(self, session: Session) -> None:
        """The session is authenticated."""
        self.sessions.add(session)

    def keeps_env(self) -> bool:
        """Only some controllers look at the request again."""
        return bool(getattr(self.controllers, "keeps_env", False))

    async def save(self, session: Session) -> None:
        """Keep the session's record, if it is resumable. A broker that cannot holds nothing up."""
        if session.resumable and session.is_open():
            record = session.record(at_rest=False).encode()
            saving = self.broker.save_session(session.sid, session.identifiers, record)
            await self._attempt("cannot keep a session", saving, sid=session.sid)

    async def _attempt(self, failed: str, work: Awaitable[object], **attrs: str) -> None:
        """Let the broker do *work*; when it cannot, count that and go on."""
        try:
            await work
        except Exception:
            self._broker_failed(failed, **attrs)

    def _broker_failed(self, text: str, **attrs: str) -> None:
        self.metrics.count("broker_errors_total")
        self.log.failure("{text}", text=text, attrs={"context": "broker", **attrs})

    def acted(self, session: Session, previous: str) -> None:
        """The resumed client has its new sid: the one before cannot be claimed any more."""
        self.spawn(self._spend(previous))

    async def _spend(self, sid: str) -> None:
        await self._attempt("cannot forget a session", self.broker.forget_session(sid), sid=sid)

    def await_history(self, session: Session) -> None:
        """Open the session's barriers ``history_barrier`` seconds from now."""
        self._awaiting.append((self.reactor.seconds() + self._barrier, session))

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
        record = session.record()
        self._displace(session)
        releasing = self.broker.release_session(session.sid, record.encode())
        await self._attempt("cannot keep a session", releasing, sid=session.sid)
        return record

    def _displace(self, session: Session) -> None:
        """Close its socket with no ``disconnect`` frame; its presence is the heir's (D-22)."""
        session.displaced = True
        self.metrics.count("sessions_taken_over_total")
        session.disconnect(1000, "Session resumed elsewhere")
        self.disconnected(session)

    # -- streams

    async def open_stream(self, name: str) -> LocalStream:
        """The local stream, with the bus subscription confirmed and the broker's tail read after it (D-38)."""
        stream = self.hub.streams.get(name)
        if stream is None:
            stream = self.hub.streams[name] = LocalStream(name, self.fanout)
            stream.opening = []
            try:
                await self.pubsub.subscribe(name)
                healing = stream.position.open(await self.broker.tail(name))
            except BaseException:
                del self.hub.streams[name]
                waiting, stream.opening = stream.opening, None
                for deferred in waiting:
                    deferred.errback()
                self.spawn(self._unsubscribe(name))
                raise
            waiting, stream.opening = stream.opening, None
            for deferred in waiting:
                deferred.callback(None)
            if healing:
                self.spawn(self._heal(stream))
        elif stream.opening is not None:
            opened: Deferred[None] = Deferred()
            stream.opening.append(opened)
            await opened
        return stream

    def close_stream(self, stream: LocalStream) -> None:
        """An attachment left; the bus subscription lingers a while."""
        if stream.idle:
            self._lingering.append((self.reactor.seconds() + LINGER, stream))

    async def history(self, stream: LocalStream, request: HistoryRequest) -> History:
        """The broker's answer. Raises HistoryRefused and nothing else."""
        try:
            return await self.broker.history(stream.name, request)
        except HistoryRefused:
            raise
        except Exception:
            self._broker_failed("cannot read history", stream=stream.name)
            raise HistoryRefused("unavailable") from None

    def advance(self, stream: LocalStream, history: History) -> None:
        """Hand messages that a read has shown before the bus brought them to everybody."""
        for message in history.messages:
            if message.prev == stream.position.last and stream.position.fetched(message):
                self.hub.hand_over(stream, message)

    async def catch_up(self, stream: LocalStream) -> None:
        """Read what lies behind the stream's position and hand it to everybody."""
        if stream.position.suspect() is Verdict.HEAL:
            await self._heal(stream)
        while stream.position.healing:
            await _sleep(self.reactor, 0.05)

    async def _heal(self, stream: LocalStream) -> None:
        """Fill a hole from the broker; no client takes part (P3). What cannot be filled is told to clients."""
        position = stream.position
        delays = iter(HEAL_RETRIES)
        while True:
            before = position.position
            try:
                history = await self.broker.history(stream.name, HistoryRequest(position.position))
            except HistoryRefused as e:
                await self._give_up(stream, e.reason)
                return
            except Exception:
                self._broker_failed("cannot read what is missing", stream=stream.name)
            else:
                for message in history.messages:
                    if position.fetched(message):
                        self.hub.hand_over(stream, message)
                if position.healed(history.top):
                    self.metrics.count("gaps_healed_total")
                    return
                if position.position != before:
                    delays = iter(HEAL_RETRIES)  # more came meanwhile: the broker answers, so it is asked again
                    continue
            delay = next(delays, None)
            if delay is None:
                break
            await _sleep(self.reactor, delay)
        await self._give_up(stream, "unavailable")

    async def _give_up(self, stream: LocalStream, reason: str) -> None:
        try:
            tail = await self.broker.tail(stream.name)
        except Exception:
            self._broker_failed("cannot read the end of a stream", stream=stream.name)
            tail = None
        stream.position.unhealed(tail)
        self.metrics.count("broadcast_gaps_unhealed_total", reason=reason)
        self.log.warn(
            "messages of a stream are lost", attrs={"context": "node", "stream": stream.name, "reason": reason}
        )
        self._tell_lost(stream)

    def _tell_lost(self, stream: LocalStream) -> None:
        """One unasked ``reject_history`` for each live subscription of a client that understands it (CP-82)."""
        for attachment in stream.attachments():
            session = attachment.subscription.session
            if session.extended and not attachment.held:
                session.send(codec.history_frame(codec.REJECT_HISTORY, attachment.subscription.json))

    # -- INode: what providers call

    async def publish(self, publication: Publication) -> Receipt:
        """Store and fan out (P6)."""
        return await self.broker.publish(publication)

    async def broadcast_command(self, command: RemoteCommand) -> None:
        """Send to every node."""
        await self.pubsub.publish_command(command)

    def deliver(self, message: StreamMessage) -> None:
        """Take a message from the bus: in order, once, nothing skipped (P1, P2, P3)."""
        stream = self.hub.streams.get(message.stream)
        if stream is None:
            return
        verdict = stream.position.arrived(message)
        if verdict is Verdict.DELIVER:
            self.hub.hand_over(stream, message)
        elif verdict is Verdict.HEAL:
            self.metrics.count("gaps_total")
            self.spawn(self._heal(stream))
        elif verdict is Verdict.RESET:
            self.log.warn("the stream has a new epoch", attrs={"context": "node", "stream": stream.name})
            self._tell_lost(stream)
            self.hub.hand_over(stream, message)

    def execute(self, command: RemoteCommand) -> None:
        """Take a command from the bus."""
        self.metrics.count("remote_commands_total")
        payload = command.payload
        if command.command == "takeover":
            session = self.sessions.get(str(payload.get("sid", "")))
            if session is not None:
                self.spawn(self._counted(self._hand_on(session)))
        elif command.command == "disconnect":
            identifier, reconnect = payload.get("identifier"), payload.get("reconnect", False)
            if not isinstance(identifier, str) or not isinstance(reconnect, bool):
                self.log.warn("failed to parse remote disconnect command", attrs={"context": "node"})
                return
            self.spawn(self._disconnect_all(identifier, reconnect))
        else:
            self.log.warn("unknown remote command", attrs={"context": "node", "command": command.command[:100]})

    async def _disconnect_all(self, identifiers: str, reconnect: bool) -> None:
        """Close all sessions with these identifiers; none of them, nor an absent one, can resume (CP-102)."""
        self.metrics.count("broadcast_msg_total")
        for session in self.sessions.of(identifiers):
            session.resumable = False
            session.disconnect(1000, "Closed remotely", "remote", reconnect=reconnect)
        await self.broker.forget_sessions(identifiers)

    def presence_expired(self, stream: str, id: str) -> None:
        """A member's time ran out."""
        self.spawn(self._announce_leave(stream, id))

    async def _announce_leave(self, stream: str, id: str) -> None:
        event = codec.member_event("leave", id)
        await self.publish(Publication(stream, event, broadcast_type="presence", transient=True))

    def bus_lost(self) -> None:
        """Messages may be missed from now on; positions are kept and checked when the bus is back."""
        self.log.warn("the bus is lost", attrs={"context": "pubsub"})

    def bus_restored(self) -> None:
        """Compare every stream with the broker and fill the holes."""
        self.log.info("the bus is back", attrs={"context": "pubsub"})
        for stream in self.hub.streams.values():
            if stream.opening is None and stream.position.suspect() is Verdict.HEAL:
                self.spawn(self._heal(stream))


async def _sleep(reactor: Any, seconds: float) -> None:
    done: Deferred[None] = Deferred(lambda d: call.cancel())
    call = reactor.callLater(seconds, done.callback, None)
    await done


async def _go_on(work: Coroutine[Any, Any, None], waiting: Any) -> None:
    """Run *work*, which has begun and waits for the Deferred *waiting*, to its end."""
    while True:
        try:
            await waiting
        except GeneratorExit:  # it was forgotten: nothing can end it any more
            work.close()
            raise
        except BaseException as e:
            failure: BaseException | None = e
        else:
            failure = None
        try:
            waiting = work.send(None) if failure is None else work.throw(failure)
        except StopIteration:
            return
