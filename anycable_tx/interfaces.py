"""Every interface a provider implements, with the guarantee each method makes.

Methods described as *async* return an awaitable (a coroutine or a Deferred); the others return at once.
Unless a method says otherwise it may raise ``BrokerUnavailable`` when its backend cannot be reached.
"""

from __future__ import annotations

from collections.abc import Awaitable, Mapping
from dataclasses import dataclass
from typing import Any

from zope.interface import Attribute, Interface

from anycable_tx.cable.messages import (
    Claim,
    History,
    HistoryRequest,
    Member,
    Position,
    Publication,
    Receipt,
    RemoteCommand,
    StreamMessage,
)
from anycable_tx.cable.replies import ConnectReply, Reply, RequestEnv, Restored, RestoreReply, SessionView
from anycable_tx.metrics import Metrics

__all__ = [
    "IBroadcaster",
    "IBroker",
    "IController",
    "INode",
    "IProvider",
    "IPubSub",
    "ProviderContext",
]


class IProvider(Interface):
    """A named backend, declared in ``twisted/plugins/`` so that it can be found without importing it."""

    kind = Attribute("'broker', 'broadcaster', 'pubsub' or 'controller'.")
    name = Attribute("What the user types, e.g. 'memory' for --broker=memory. Unique within its kind.")
    factory = Attribute(
        "Dotted path 'package.module:function' of a callable taking one ProviderContext and returning an "
        "object that provides the interface of the kind. Imported when the provider is chosen, not before."
    )
    needs_asyncio = Attribute("True when the backend can only run on an asyncio reactor.")
    options = Attribute("A tuple of anycable_tx.config.Option: the provider's own options.")


@dataclass(frozen=True)
class ProviderContext:
    """What a provider's factory is given.

    ``settings`` maps every option name to its checked value. ``pubsub`` is given to brokers: unless their
    backend fans out what it stores by itself, they hand every stored message to it. ``site`` is given to
    broadcasters and has ``add_route(port, path, resource)``, which serves a twisted.web resource.
    """

    settings: Mapping[str, Any]
    reactor: Any
    node: Any
    metrics: Metrics
    pubsub: Any = None
    site: Any = None


class INode(Interface):
    """The narrow face of the server that providers see."""

    def publish(publication: Publication) -> Awaitable[Receipt]:
        """Async. Store and fan out a Publication; answers a Receipt once it is stored (P6)."""

    def broadcast_command(command: RemoteCommand) -> Awaitable[None]:
        """Async. Send a RemoteCommand to every node, this one included."""

    def deliver(message: StreamMessage) -> None:
        """Take a StreamMessage from the bus. Never raises; order, gaps and duplicates are the node's work."""

    def execute(command: RemoteCommand) -> None:
        """Take a RemoteCommand from the bus. Never raises."""

    def presence_expired(stream: str, id: str) -> None:
        """A member's time ran out and this node is the one to announce that it left. Never raises."""

    def session_expired(sid: str, record: bytes) -> None:
        """A released session cannot be resumed any more, and this node is the one to report its end. Never raises."""

    def store_lost() -> None:
        """What the broker kept is gone: sessions that are connected are to be saved again. Never raises."""

    def bus_lost() -> None:
        """The bus may be missing messages from now on."""

    def bus_restored() -> None:
        """All streams are subscribed again; the node compares its positions with the broker and heals."""


class IBroker(Interface):
    """The stream log, the session store and the presence store."""

    announcement = Attribute("The start-up log line that describes this broker.")
    stores = Attribute("False when nothing is kept: messages then carry no position and nothing is resumed.")

    def start() -> Awaitable[None]:
        """Async. Ready to serve when it is done."""

    def stop() -> Awaitable[None]:
        """Async. Nothing is accepted afterwards; what was acknowledged is kept as the broker promises."""

    def problem() -> str:
        """Why it cannot do its work now, '' when nothing is known to be wrong; for readiness."""

    # -- the stream log

    def publish(publication: Publication) -> Awaitable[Receipt]:
        """Async. Assign the next offset, store, hand to the bus; then answer a Receipt (P6).

        Offsets of a stream grow strictly and no (epoch, offset) is ever given to two messages. A publication
        whose ``id`` was stored within the idempotency window answers the first one's Receipt with
        ``duplicate`` set and is neither stored nor handed to the bus again. Transient publications, and
        those of streams whose history limit is 0, go to the bus only; their Receipt has offset 0.
        """

    def tail(stream: str) -> Awaitable[Position | None]:
        """Async. The Position of the newest stored message (offset 0: none yet), or None without a log."""

    def history(stream: str, request: HistoryRequest) -> Awaitable[History]:
        """Async. A whole History for a HistoryRequest, or HistoryRefused with the reason (P4).

        Whole: every message after the named position, or, for ``since``, every message stored in that second
        or later, up to ``top``. A client from which nothing is missing is never refused.
        """

    # -- the session store
    #
    # Every session that was saved ends exactly once: it is forgotten by its sid, an heir of it is saved, or its end
    # is told to one node by ``INode.session_expired``.

    def save_session(sid: str, identifiers: str, record: bytes, previous: str = "") -> Awaitable[None]:
        """Async. Keep *record* (bytes) for a connected session, for as long as this node lives.

        *previous* is the session that goes on in this one: it stays claimable, and its end is told to nobody.
        """

    def release_session(sid: str, record: bytes) -> Awaitable[bool]:
        """Async. The session's connection ended: keep *record* for ``sessions_ttl`` seconds from now.

        When that time is over, or the node it was connected to is, the end is told. False: the session is not kept,
        so nobody will be told.
        """

    def claim_session(sid: str, heir: str) -> Awaitable[Claim | None]:
        """Async. Hand the record of *sid* to the session *heir*: a Claim, or None if there is none.

        The record stays claimable until it is forgotten, because the heir's welcome may be lost; each claim
        answers as ``rival`` the heir of the claim before. Claims of one sid are totally ordered.
        """

    def forget_session(sid: str) -> Awaitable[None]:
        """Async. The sid can no longer be claimed. Unknown ones are ignored."""

    def forget_sessions(identifiers: str) -> Awaitable[int]:
        """Async. No session with these connection identifiers can be claimed any more; answers how many.

        The end of those that were released is told; those that are connected are the business of their nodes.
        """

    def give_up_sessions() -> Awaitable[None]:
        """Async. The server stops and has released all its sessions: tell the end of those that end with it."""

    # -- presence

    def join(stream: str, sid: str, id: str, info: Any) -> Awaitable[bool]:
        """Async. *sid* is present on *stream* as *id* for as long as it is connected.

        Answers True when the members' list changed (a new id, or other *info*): exactly one caller announces
        it. Raises PresenceRefused when *sid* is on the stream under another id.
        """

    def leave(stream: str, sid: str) -> Awaitable[str | None]:
        """Async. *sid* left *stream*. Answers the id if that was its last session, else None."""

    def release_presence(sid: str) -> Awaitable[None]:
        """Async. The connection ended: what *sid* joined expires after ``presence_ttl`` seconds."""

    def move_presence(sid: str, heir: str) -> Awaitable[dict[str, str]]:
        """Async. A resumed session: what *sid* joined is now *heir*'s, with no event. Answers {stream: id}."""

    def members(stream: str) -> Awaitable[list[Member]]:
        """Async. The list of Member of the stream. Raises PresenceRefused where there is no presence."""


class IPubSub(Interface):
    """The bus between nodes. Delivery may lose, repeat and reorder; the node repairs that (P1 to P3)."""

    announcement = Attribute("The start-up log line, or '' for none.")
    distributed = Attribute("True when other nodes may be on the same bus.")

    def start() -> Awaitable[None]:
        """Async. Connected, or trying to; ``INode.bus_lost`` and ``bus_restored`` tell which."""

    def stop() -> Awaitable[None]:
        """Async. Nothing is delivered afterwards."""

    def problem() -> str:
        """Why it cannot do its work now, '' when nothing is known to be wrong; for readiness."""

    def subscribe(stream: str) -> Awaitable[None]:
        """Async. Done when every later message of *stream* will arrive. Called once per stream."""

    def unsubscribe(stream: str) -> Awaitable[None]:
        """Async. The last local subscriber of *stream* left."""

    def publish(message: StreamMessage) -> Awaitable[None]:
        """Async. Hand a StreamMessage to every node that subscribed to its stream."""

    def publish_command(command: RemoteCommand) -> Awaitable[None]:
        """Async. Hand a RemoteCommand to every node, this one included."""


class IBroadcaster(Interface):
    """A way in for publications."""

    announcement = Attribute("The start-up log line, written once it accepts publications.")

    def start() -> Awaitable[None]:
        """Async. Accepts publications when it is done."""

    def stop() -> Awaitable[None]:
        """Async. Accepts nothing more; what was accepted has been handed to the node when it is done."""

    def problem() -> str:
        """Why it cannot do its work now, '' when nothing is known to be wrong; for readiness."""


class IController(Interface):
    """Decides who may connect and what a subscription means.

    Every method may answer status ERROR (or raise ControllerError) when it cannot decide. A method that does
    not handle the request at all answers None, and the next controller of the chain is asked.
    """

    announcement = Attribute("The start-up log line, or '' for none.")

    def start() -> Awaitable[None]:
        """Async."""

    def stop() -> Awaitable[None]:
        """Async. Calls under way have ended."""

    def authenticate(sid: str, env: RequestEnv) -> Awaitable[ConnectReply | None]:
        """Async. A ConnectReply for the request *env* (RequestEnv), or None."""

    def check_restore(identifiers: str, env: RequestEnv) -> Awaitable[ConnectReply | None]:
        """Async. May a session of *identifiers* resume with this request?

        A ConnectReply with SUCCESS (yes), with FAILURE (refuse the connection with its transmissions), with
        ERROR (do not resume, authenticate instead), or None (no opinion).
        """

    def subscribe(session: SessionView, identifier: str) -> Awaitable[Reply | None]:
        """Async. A Reply for the SessionView *session*, or None."""

    def unsubscribe(session: SessionView, identifier: str) -> Awaitable[Reply | None]:
        """Async. A Reply, or None."""

    def perform(session: SessionView, identifier: str, data: str) -> Awaitable[Reply | None]:
        """Async. A Reply to a ``message`` command with the text *data*, or None."""

    def restore(restored: Restored) -> Awaitable[RestoreReply | None]:
        """Async. A session that ``check_restore`` let pass comes back; None: nothing to say about it.

        Asked before the client is welcomed where ``verifies_restores`` is true, and afterwards otherwise. SUCCESS:
        what the reply changes is applied. FAILURE: the session does not come back; the client authenticates anew,
        or, if it was welcomed already, is closed after the transmissions. ERROR counts as FAILURE before the
        welcome, and as nothing said after it.
        """

    verifies_restores = Attribute("True for a controller whose answer to ``restore`` the client's welcome waits for.")

    def gone(sid: str) -> None:
        """The connection of *sid* ended: calls for it that were not made yet need not be made. Never raises."""

    def withdraw(sid: str) -> Awaitable[bool]:
        """Async. The session *sid* came back under another sid: do not report its end, if that can be helped.

        Answers True when its end was, or may have been, reported; a report under way has ended then.
        """

    def disconnect(session: SessionView, subscriptions: dict[str, dict[str, str]]) -> Awaitable[None]:
        """Async. The session ended; *subscriptions* maps identifiers to their state. Done when the report is queued.

        Called at most once for a session, and only for one in whose end a controller showed interest.
        """

    def problem() -> str:
        """Why no answer can be expected now, '' when nothing is known to be wrong."""
