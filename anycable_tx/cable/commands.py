"""What each client command does."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from sys import intern
from typing import NamedTuple

import orjson

from anycable_tx.cable import codec
from anycable_tx.cable.attachments import Attachment
from anycable_tx.cable.codec import Command
from anycable_tx.cable.live import answer_history, go_live
from anycable_tx.cable.messages import Publication
from anycable_tx.cable.replies import Reply, Status
from anycable_tx.cable.session import Session, Subscription
from anycable_tx.errors import BadCommand, BrokerUnavailable, PresenceRefused

__all__ = ["COMMANDS", "Opening", "apply_reply", "leave_presence", "open_subscription", "receive", "settle"]

#: The latest time (Unix seconds) that a record of a session can hold, as all that reads JSON.
LATEST = 2**53


def receive(session: Session, text: bytes) -> None:
    """Take one frame from the client. Raises BadCommand if it cannot be understood (CP-41).

    A client that sends too many, whatever they are, is let go. Pings are answered at once, pongs need nothing more
    than to arrive (D-31); other commands run one after another in the order of arrival (CP-44).
    """
    pace = session.services.pace
    if pace is not None:
        session.clear = pace.spent(session.clear)
        if session.clear < 0:
            session.disconnect(1008, "Too many commands", "too_many_commands", reconnect=True)
            return
    command = codec.decode_command(text)
    session.services.metrics.count("client_msg_total")
    if command is None or command.name == "pong":
        return
    if command.name == "ping":
        session.send(codec.PONG)
        return
    if command.name not in COMMANDS:
        raise BadCommand(f"unknown command {command.name!r}; there are: {', '.join(COMMANDS)}, ping, pong")
    session.enqueue(lambda: _execute(session, command))


async def _execute(session: Session, command: Command) -> None:
    if not session.is_open():
        return
    session.spend()
    try:
        await COMMANDS[command.name](session, command)
    except BrokerUnavailable:
        # Silence: official clients ask again by themselves.
        session.services.metrics.count("broker_errors_total")
        session.refused("failed_client_msg_total", "unavailable")


class Opening(NamedTuple):
    """What became of a ``subscribe``, up to the ``subscription``'s confirmation; the rest is for ``settle``."""

    status: Status
    session: Session
    command: Command
    reply: Reply | None = None
    subscription: Subscription | None = None
    held: tuple[Attachment, ...] = ()


async def _subscribe(session: Session, command: Command) -> None:
    await settle(await open_subscription(session, command))


async def open_subscription(session: Session, command: Command) -> Opening:
    """Ask the controllers, join the streams and confirm. Nothing of the streams is sent before ``settle``.

    ERROR: nobody could decide, or the client is gone. SUCCESS without a subscription: there was one already.
    """
    identifier = intern(command.identifier)
    if identifier in session.subscriptions:
        # Confirmed already; a second confirmation would make clients unsubscribe (CP-32).
        return Opening(Status.SUCCESS, session, command)
    services = session.services
    if 0 < services.max_subscriptions <= len(session.subscriptions):
        session.refused("subscription_rejects_total", "too_many_subscriptions")
        session.send(codec.reject_frame(identifier))
        return Opening(Status.FAILURE, session, command)
    reply = await services.controllers.subscribe(session.view(), identifier)
    if reply is not None and (reply.reached or reply.status is not Status.ERROR):
        session.disconnectable |= services.interested(reply.disconnect_interest)
    if not session.is_open():
        if reply is not None and reply.reached and reply.status is not Status.FAILURE:
            session.leave_unfinished(identifier, reply.istate)  # the backend may have carried it out (RA-16)
        return Opening(Status.ERROR, session, command)
    if reply is None or reply.status is Status.ERROR:
        # Silence: official clients ask again by themselves (RA-13).
        session.refused("failed_client_msg_total", "undecided")
        return Opening(Status.ERROR, session, command)
    if reply.status is Status.FAILURE:
        # A refused subscription joins no stream and leaves no state (RA-3).
        session.refused("subscription_rejects_total", reply.reason or "rejected")
        session.merge(reply.cstate)
        session.transmit(reply.transmissions)
        return Opening(Status.FAILURE, session, command, reply)
    subscription = Subscription(session, identifier)
    held = await apply_reply(subscription, reply)
    return Opening(Status.SUCCESS, session, command, reply, subscription, held)


async def settle(opening: Opening) -> None:
    """Answer what was asked for with the subscription, and let it live; or do what goes with a rejection."""
    _, session, command, reply, subscription, held = opening
    if reply is None:
        return
    if subscription is None:
        _disconnect_if_asked(session, reply)
        return
    ask = command.history
    if ask is not None and ask.since > 0:
        for attachment in held:
            attachment.base = -min(ask.since, LATEST)
    try:
        await _act(subscription, reply)
        session.services.changed(session)
        if ask is not None and (ask.since > 0 or ask.streams is not None):
            await answer_history(subscription, ask, own=True)
    finally:
        await go_live(subscription, held)
    if command.presence is not None:
        await _join(session, command)


async def apply_reply(subscription: Subscription, reply: Reply) -> tuple[Attachment, ...]:
    """Carry out a controller's reply up to its transmissions; answers the new attachments, held.

    A new subscription is the session's once all its streams are open, when it is confirmed: what is not confirmed
    must not come back in a resumed session. If one of the streams cannot be opened, none is.
    """
    session = subscription.session
    if reply.stop_streams:
        session.detach(subscription)
    elif reply.stopped_streams:
        session.detach(subscription, set(reply.stopped_streams))
    attached: list[Attachment] = []
    complete = False
    try:
        for name in dict.fromkeys(reply.streams):
            stream = await session.services.open_stream(name)
            if not session.is_open():
                session.services.close_stream(stream)
                return ()
            if all(a.stream is not stream for a in subscription.attachments):
                attachment = Attachment(subscription, stream, stream.position.position)
                stream.hold(attachment)
                subscription.attachments = (*subscription.attachments, attachment)
                attached.append(attachment)
        complete = True
    finally:
        if not complete:
            session.detach(subscription, {a.stream.name for a in attached})
    session.subscriptions[subscription.identifier] = subscription
    if session.unfinished:
        session.unfinished.pop(subscription.identifier, None)
    subscription.merge(reply.istate)
    if reply.cstate:
        session.merge(reply.cstate)
    session.transmit(reply.transmissions)
    return tuple(attached)


async def _act(subscription: Subscription, reply: Reply) -> None:
    """Carry out what a controller's reply asks for behind its transmissions."""
    session = subscription.session
    if not session.is_open():
        return
    if reply.presence is not None and subscription.presence:
        if reply.presence.type == "join":
            await _announce_join(subscription, reply.presence.id, reply.presence.info)
        elif reply.presence.type == "leave":
            await leave_presence(subscription)
    _disconnect_if_asked(session, reply)


def _disconnect_if_asked(session: Session, reply: Reply) -> None:
    if reply.disconnect:
        session.disconnect(1000, "Command Failed")  # 1006 must not be sent (RA-11)


def _subscribed(session: Session, command: Command) -> Subscription | None:
    """The subscription that *command* is about; a command about none is ignored, and counted."""
    subscription = session.subscriptions.get(command.identifier)
    if subscription is None:
        session.refused("failed_client_msg_total", "not_subscribed")
    return subscription


async def _unsubscribe(session: Session, command: Command) -> None:
    subscription = _subscribed(session, command)
    if subscription is None:
        return
    view = session.view(subscription)
    # Gone here whatever the controller says, so that a new subscription can be confirmed (D-13).
    session.detach(subscription)
    del session.subscriptions[command.identifier]
    reply = await session.services.controllers.unsubscribe(view, command.identifier)
    if reply is not None and reply.status is Status.ERROR:
        session.leave_unfinished(command.identifier, view.istate)
    await leave_presence(subscription)
    if not session.is_open():
        return
    if reply is not None and reply.status is Status.ERROR:
        session.refused("failed_client_msg_total", "undecided")
    elif reply is not None:
        session.merge(reply.cstate)
        session.transmit(reply.transmissions)
        _disconnect_if_asked(session, reply)
    session.services.changed(session)


async def _message(session: Session, command: Command) -> None:
    subscription = _subscribed(session, command)
    if subscription is None or type(command.data) is not str:
        return
    reply = await session.services.controllers.perform(session.view(subscription), command.identifier, command.data)
    if reply is None or not session.is_open():
        return
    if reply.status is Status.ERROR:
        session.refused("failed_client_msg_total", "undecided")
        return
    held = await apply_reply(subscription, reply)
    try:
        await _act(subscription, reply)
    finally:
        await go_live(subscription, held)
    if reply.streams or reply.stopped_streams or reply.stop_streams or reply.cstate or reply.istate:
        session.services.changed(session)


async def _history(session: Session, command: Command) -> None:
    subscription = _subscribed(session, command)
    ask = command.history
    if subscription is None or ask is None or (ask.since == 0 and ask.streams is None):
        return
    try:
        await answer_history(subscription, ask)
    finally:
        await go_live(subscription, subscription.attachments)


async def _whisper(session: Session, command: Command) -> None:
    subscription = _subscribed(session, command)
    if subscription is None or not subscription.whisper:
        return
    payload = b'"null"' if command.data is None else orjson.dumps(command.data)
    await session.services.publish(
        Publication(subscription.whisper, payload, exclude_socket=session.sid, transient=True)
    )


async def _join(session: Session, command: Command) -> None:
    subscription = _subscribed(session, command)
    if subscription is None or command.presence is None or not subscription.presence:
        return
    id, info = command.presence
    await _announce_join(subscription, id, info)


async def _announce_join(subscription: Subscription, id: str, info: object) -> None:
    session, stream = subscription.session, subscription.presence
    if not session.is_open():
        return
    try:
        changed = await session.services.broker.join(stream, session.sid, id, info)
    except PresenceRefused:
        session.refused("presence_refused_total", "join")
        return
    subscription.joined = True
    if session.is_closed():
        await session.services.broker.release_presence(session.sid)
    if changed:
        await _announce(session, stream, codec.member_event("join", id, info))


async def _announce(session: Session, stream: str, event: bytes) -> None:
    await session.services.publish(Publication(stream, event, broadcast_type="presence", transient=True))


async def _leave(session: Session, command: Command) -> None:
    subscription = _subscribed(session, command)
    if subscription is not None:
        await leave_presence(subscription)


async def leave_presence(subscription: Subscription) -> None:
    """Leave, if joined; the event is sent only when it was the id's last session."""
    if not subscription.joined:
        return
    subscription.joined = False
    session, stream = subscription.session, subscription.presence
    id = await session.services.broker.leave(stream, session.sid)
    if id is not None:
        await _announce(session, stream, codec.member_event("leave", id))


async def _presence(session: Session, command: Command) -> None:
    subscription = _subscribed(session, command)
    if subscription is None or not subscription.presence:
        return
    asked = command.data if type(command.data) is dict else {}
    try:
        members = await session.services.broker.members(subscription.presence)
    except (PresenceRefused, BrokerUnavailable) as e:
        session.refused("presence_refused_total", e.code)
        session.send(codec.presence_error(subscription.json))
        return
    if session.is_open():
        records = asked.get("return_records") is not False
        session.send(codec.presence_info(subscription.json, members, records=records))


#: Command name -> what it does.
COMMANDS: dict[str, Callable[[Session, Command], Awaitable[None]]] = {
    "subscribe": _subscribe,
    "unsubscribe": _unsubscribe,
    "message": _message,
    "history": _history,
    "whisper": _whisper,
    "join": _join,
    "leave": _leave,
    "presence": _presence,
}
