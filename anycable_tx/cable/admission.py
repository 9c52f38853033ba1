"""Let a client in: resume the session it names, or authenticate it (P5)."""

from __future__ import annotations

from collections.abc import Awaitable
from enum import Enum
from typing import NamedTuple, Protocol

from anycable_tx.cable import codec
from anycable_tx.cable.attachments import Attachment, Barrier
from anycable_tx.cable.commands import apply_reply, leave_presence
from anycable_tx.cable.live import go_live
from anycable_tx.cable.messages import Claim, Position
from anycable_tx.cable.records import SessionRecord, StreamRecord
from anycable_tx.cable.replies import (
    ConnectReply,
    Reply,
    RequestEnv,
    Restored,
    RestoreReply,
    SessionView,
    Status,
    StreamsChange,
)
from anycable_tx.cable.session import Services, Session, Subscription
from anycable_tx.errors import BrokerUnavailable

__all__ = ["Arrival", "Registry", "admit"]


class Arrival(NamedTuple):
    """What the upgrade request said: the environment for controllers, and the sid to resume ('' for none)."""

    env: RequestEnv
    previous_sid: str = ""


class Registry(Services, Protocol):
    """What admission needs from the node besides what sessions need."""

    def arrives(self, session: Session) -> None:
        """The session may be taken over before it is authenticated, because others can know its sid."""

    def register(self, session: Session) -> None:
        """The session is authenticated: it can be found by its sid and identifiers."""

    def rename(self, session: Session, identifiers: str) -> None:
        """The session, which is registered, has other identifiers now."""

    def claim(self, sid: str, heir: str) -> Awaitable[Claim | None]:
        """What the broker keeps of *sid*, for *heir*. Raises BrokerUnavailable when it cannot be had for seconds."""

    async def take_over(self, sid: str) -> SessionRecord | None:
        """Close the socket of *sid* wherever it is, with no ``disconnect`` frame; its record if it was here."""

    async def spend(self, sid: str) -> None:
        """The session *sid* cannot be claimed any more, if the broker can be told so."""

    def await_history(self, session: Session) -> None:
        """Open the session's barriers when its time to ask for history is up."""

    def keeps_env(self) -> bool:
        """Do controllers need the request environment after authentication?"""

    async def left(self, sid: str, reply: ConnectReply, env: RequestEnv) -> None:
        """The client was accepted and had left meanwhile."""

    async def ended(self, sid: str, record: SessionRecord, env: RequestEnv, *, resumable: bool) -> None:
        """The session *sid* was being resumed and is nobody's any more; *resumable*: it may still be claimed."""


async def admit(session: Session, arrival: Arrival, registry: Registry) -> None:
    """Resume or authenticate; the session's queued commands run afterwards.

    If the broker goes away meanwhile, or it fails for a reason nobody expected, the connection is closed without a
    ``disconnect`` frame: the client keeps its session and tries again.
    """
    try:
        if session.resumable and arrival.previous_sid and await _resume(session, arrival, registry):
            return
        await _authenticate(session, arrival, registry)
    except BrokerUnavailable:
        session.refused("sessions_refused_total", "unavailable")
        session.disconnect(1011, "Auth Error")
    except BaseException:
        session.disconnect(1011, "Auth Error")
        raise


async def _authenticate(session: Session, arrival: Arrival, registry: Registry) -> None:
    reply = await registry.controllers.authenticate(session.sid, arrival.env)
    if session.is_closed():
        if reply is not None and reply.status is Status.SUCCESS:
            await registry.left(session.sid, reply, arrival.env)
        return
    if reply is None or reply.status is Status.ERROR:
        session.refused("failed_auths_total", "error")
        session.resumable = False
        session.disconnect(1011, "Auth Error")
        return
    if reply.status is Status.FAILURE:
        _refuse(session, reply, registry)
        return
    session.identifiers = reply.identifiers
    session.disconnectable = registry.interested(reply.disconnect_interest)
    session.merge(reply.cstate)
    _open(session, arrival, registry)
    frames = reply.transmissions
    session.transmit([codec.with_sid(frame, session.sid) for frame in frames] if session.extended else frames)
    await registry.save(session)


def _open(session: Session, arrival: Arrival, registry: Registry) -> None:
    if registry.keeps_env():
        session.env = arrival.env
    session.admitted()
    registry.register(session)


def _refuse(session: Session, reply: ConnectReply, registry: Registry) -> None:
    """A refused client leaves nothing that could be resumed (CP-29)."""
    session.refused("failed_auths_total", reply.reason or "unauthorized")
    session.resumable = False
    session.transmit(reply.transmissions)
    session.disconnect(1000, "Auth Failed")


async def _resume(session: Session, arrival: Arrival, registry: Registry) -> bool:
    """Resume the session the client names. False: it has to authenticate."""
    previous = arrival.previous_sid
    registry.arrives(session)
    try:
        claim = await registry.claim(previous, session.sid)
    except BrokerUnavailable:
        session.refused("sessions_refused_total", "unavailable")
        return False
    record = SessionRecord.decode(claim.record) if claim else None
    if claim is None or record is None:
        session.refused("sessions_refused_total", "unknown")
        return False
    session.identifiers = record.identifiers  # from here on a remote disconnect finds it
    verdict = await registry.controllers.check_restore(record.identifiers, arrival.env)
    if session.is_closed():
        return True
    if verdict is not None and verdict.status is Status.FAILURE:
        _refuse(session, verdict, registry)
        return True
    if verdict is not None and verdict.status is Status.ERROR:
        session.refused("sessions_refused_total", verdict.reason or "identity")
        return False
    record = await registry.take_over(previous) or record
    if claim.rival:
        # Somebody resumed this session before and never acted: its welcome was lost, or it lost the race.
        await registry.take_over(claim.rival)
    notified = record.disconnectable and await registry.controllers.withdraw(previous)
    restored = Restored(_view(session, record, arrival.env), previous, record.known(), notified)
    fate, reply = _Fate.LEFT, None
    try:
        fate, reply = await _take_up(session, record, restored, claim.rival, arrival, registry)
    finally:
        if fate is not _Fate.RESUMED and not notified:
            await registry.ended(previous, record, arrival.env, resumable=fate is _Fate.LEFT)
    if fate is _Fate.RESUMED and session.is_open():
        await _welcome_back(session, record, restored, reply, registry)
    return fate is not _Fate.REFUSED


class _Fate(Enum):
    """What became of a session that was claimed: its heir has it, may not have it, or left before."""

    RESUMED = 0
    REFUSED = 1
    LEFT = 2


def _view(session: Session, record: SessionRecord, env: RequestEnv) -> SessionView:
    return SessionView(session.sid, record.identifiers, env, dict(record.cstate), resumable=True)


async def _take_up(
    session: Session, record: SessionRecord, restored: Restored, rival: str, arrival: Arrival, registry: Registry
) -> tuple[_Fate, RestoreReply | None]:
    """Let *session* go on where *record* ends, if the backend agrees; from here on its own end counts."""
    broker, controllers, previous = registry.broker, registry.controllers, restored.previous
    reply: RestoreReply | None = None
    if record.disconnectable and controllers.verifies_restores:
        reply = await controllers.restore(restored)
        if session.is_closed():
            return _Fate.LEFT, None
        if reply is not None and reply.status is not Status.SUCCESS:
            session.refused("sessions_refused_total", "backend")
            session.identifiers = ""
            await registry.spend(previous)
            return _Fate.REFUSED, None
    try:
        joined = await broker.move_presence(previous, session.sid)
        if rival:
            joined |= await broker.move_presence(rival, session.sid)
    finally:
        if session.is_closed():
            await broker.release_presence(session.sid)
    if session.is_closed():
        return _Fate.LEFT, None
    session.resumes(record, previous)
    for identifier in record.subscriptions:
        subscription = session.subscriptions[identifier] = Subscription(session, identifier)
        subscription.merge(record.istate.get(identifier, {}))
        subscription.joined = bool(subscription.presence) and subscription.presence in joined
    if reply is not None and reply.identifiers:
        session.identifiers = reply.identifiers
    _open(session, arrival, registry)
    registry.metrics.count("sessions_restored_total")
    await registry.save(session)  # before the client can know its new sid
    if rival:
        await registry.spend(rival)
    return _Fate.RESUMED, reply


async def _welcome_back(
    session: Session, record: SessionRecord, restored: Restored, reply: RestoreReply | None, registry: Registry
) -> None:
    """Tell the client, attach its streams, and carry out what the backend has to say."""
    rejected = () if reply is None else reply.rejected
    kept = [identifier for identifier in record.subscriptions if identifier not in rejected]
    session.send(codec.welcome_frame(session.sid, kept))  # the first frame (CP-99)
    for identifier in kept:
        await _reattach(session.subscriptions[identifier], record.subscriptions[identifier], registry)
    if record.disconnectable and not registry.controllers.verifies_restores and session.is_open():
        reply = await registry.controllers.restore(restored)
    if reply is not None and session.is_open():
        await _apply_restore(session, reply, registry)
    registry.await_history(session)


async def _apply_restore(session: Session, reply: RestoreReply, registry: Registry) -> None:
    """Carry out what the backend has to say about a session that came back."""
    if reply.status is Status.ERROR:
        return
    if reply.status is Status.FAILURE:
        session.refused("failed_auths_total", "restore")
        session.resumable = False
        session.transmit(reply.transmissions)
        session.disconnect(1000, "Auth Failed")
        for sid in (session.sid, session.previous[-1]):
            await registry.spend(sid)
        return
    if reply.identifiers not in ("", session.identifiers):
        registry.rename(session, reply.identifiers)
    session.merge(reply.cstate)
    for identifier in reply.rejected:
        subscription = session.subscriptions.pop(identifier, None)
        if subscription is not None:
            session.refused("subscription_rejects_total", "restore")
            session.detach(subscription)
            await leave_presence(subscription)
            session.send(codec.reject_frame(identifier))
    for identifier in {**reply.istate, **reply.streams}:
        subscription = session.subscriptions.get(identifier)
        if subscription is None or not session.is_open():
            continue
        change = reply.streams.get(identifier) or StreamsChange()
        held = await apply_reply(
            subscription,
            Reply(
                Status.SUCCESS,
                streams=change.streams,
                stopped_streams=change.stopped_streams,
                stop_streams=change.stop_streams,
                istate=reply.istate.get(identifier, {}),
            ),
        )
        await go_live(subscription, held)
    if session.is_open():
        session.transmit(reply.transmissions)
    registry.changed(session)


async def _reattach(subscription: Subscription, places: dict[str, StreamRecord], registry: Registry) -> None:
    """Attach the streams of a resumed subscription, held until the client asks for what it missed."""
    session = subscription.session
    for name, place in places.items():
        stream = await registry.open_stream(name)
        if not session.is_open():
            registry.close_stream(stream)
            return
        cursor = place.cursor if place.cursor.epoch else stream.position.position
        attachment = Attachment(
            subscription,
            stream,
            Position(cursor.epoch if place.base >= 0 else stream.position.epoch, place.base),
            Barrier(cursor, restored=True, behind=place.held, exact=place.exact, doubt=place.doubt),
        )
        stream.hold(attachment)
        subscription.attachments = (*subscription.attachments, attachment)
