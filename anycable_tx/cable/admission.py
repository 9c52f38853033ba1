"""Let a client in: resume the session it names, or authenticate it (P5)."""

from __future__ import annotations

from collections.abc import Awaitable
from typing import NamedTuple, Protocol

from anycable_tx.cable import codec
from anycable_tx.cable.attachments import Attachment, Barrier
from anycable_tx.cable.messages import Position
from anycable_tx.cable.records import SessionRecord, StreamRecord
from anycable_tx.cable.replies import ConnectReply, RequestEnv, Status
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

    def save(self, session: Session) -> Awaitable[None]:
        """Keep the session's record, if it is resumable."""

    def register(self, session: Session) -> None:
        """The session is authenticated: it can be found by its sid and identifiers."""

    async def take_over(self, sid: str) -> SessionRecord | None:
        """Close the socket of *sid* wherever it is, with no ``disconnect`` frame; its record if it was here."""

    def await_history(self, session: Session) -> None:
        """Open the session's barriers when its time to ask for history is up."""

    def keeps_env(self) -> bool:
        """Do controllers need the request environment after authentication?"""


async def admit(session: Session, arrival: Arrival, registry: Registry) -> None:
    """Resume or authenticate; the session's queued commands run afterwards.

    If that fails for a reason nobody expected, the connection is closed without a ``disconnect`` frame: the client
    keeps its session and tries again.
    """
    try:
        if session.resumable and arrival.previous_sid and await _resume(session, arrival, registry):
            return
        await _authenticate(session, arrival, registry)
    except BaseException:
        session.disconnect(1011, "Auth Error")
        raise


async def _authenticate(session: Session, arrival: Arrival, registry: Registry) -> None:
    reply = await registry.controllers.authenticate(session.sid, arrival.env)
    if session.is_closed():
        return
    if reply is None or reply.status is Status.ERROR:
        registry.metrics.count("failed_auths_total", reason="error")
        session.resumable = False
        session.disconnect(1011, "Auth Error")
        return
    if reply.status is Status.FAILURE:
        _refuse(session, reply, registry)
        return
    session.identifiers = reply.identifiers
    session.disconnectable = reply.disconnect_interest >= 0
    session.merge(reply.cstate)
    _open(session, arrival, registry)
    session.transmit(reply.transmissions)
    await registry.save(session)


def _open(session: Session, arrival: Arrival, registry: Registry) -> None:
    if registry.keeps_env():
        session.env = arrival.env
    session.admitted()
    registry.register(session)


def _refuse(session: Session, reply: ConnectReply, registry: Registry) -> None:
    """A refused client leaves nothing that could be resumed (CP-29)."""
    registry.metrics.count("failed_auths_total", reason=reply.reason or "unauthorized")
    session.resumable = False
    session.transmit(reply.transmissions)
    session.disconnect(1000, "Auth Failed")


async def _resume(session: Session, arrival: Arrival, registry: Registry) -> bool:
    """Resume the session the client names. False: it has to authenticate."""
    previous, broker = arrival.previous_sid, registry.broker
    registry.arrives(session)
    try:
        claim = await broker.claim_session(previous, session.sid)
    except BrokerUnavailable:
        registry.metrics.count("sessions_refused_total", reason="unavailable")
        return False
    record = SessionRecord.decode(claim.record) if claim else None
    if claim is None or record is None:
        registry.metrics.count("sessions_refused_total", reason="unknown")
        return False
    session.identifiers = record.identifiers  # from here on a remote disconnect finds it
    verdict = await registry.controllers.check_restore(record.identifiers, arrival.env)
    if session.is_closed():
        return True
    if verdict is not None and verdict.status is Status.FAILURE:
        _refuse(session, verdict, registry)
        return True
    if verdict is not None and verdict.status is Status.ERROR:
        registry.metrics.count("sessions_refused_total", reason=verdict.reason or "identity")
        return False
    record = await registry.take_over(previous) or record
    if claim.rival:
        # Somebody resumed this session before and never acted: its welcome was lost, or it lost the race.
        await registry.take_over(claim.rival)
        await broker.forget_session(claim.rival)
    try:
        joined = await broker.move_presence(previous, session.sid)
        if claim.rival:
            joined |= await broker.move_presence(claim.rival, session.sid)
    finally:
        if session.is_closed():
            await broker.release_presence(session.sid)
    if session.is_closed():
        return True
    registry.metrics.count("sessions_restored_total")
    session.resumes(record, previous)
    for identifier in record.subscriptions:
        subscription = session.subscriptions[identifier] = Subscription(session, identifier)
        subscription.merge(record.istate.get(identifier, {}))
        subscription.joined = bool(subscription.presence) and subscription.presence in joined
    _open(session, arrival, registry)
    await registry.save(session)  # before the client can know its new sid
    if not session.is_open():
        return True
    session.send(codec.welcome_frame(session.sid, list(record.subscriptions)))  # the first frame (CP-99)
    for subscription in list(session.subscriptions.values()):
        await _reattach(subscription, record.subscriptions[subscription.identifier], registry)
    registry.await_history(session)
    return True


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
            Position(cursor.epoch, place.base) if place.base >= 0 else Position("", -1),
            Barrier(cursor, restored=True, behind=place.held, doubt=place.doubt),
        )
        stream.hold(attachment)
        subscription.attachments = (*subscription.attachments, attachment)
