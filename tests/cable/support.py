"""A whole node without sockets: recording clients, a clock, a scripted backend, and answers that come late."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Iterable
from typing import Any

import orjson
from twisted.internet.defer import Deferred
from twisted.internet.task import Clock
from zope.interface import implementer

from anycable_tx.brokers.memory import MemoryBroker
from anycable_tx.brokers.none import NoBroker
from anycable_tx.cable.admission import Arrival
from anycable_tx.cable.codec import confirm_frame, reject_frame
from anycable_tx.cable.commands import receive
from anycable_tx.cable.messages import Publication, Receipt, RemoteCommand, StreamMessage
from anycable_tx.cable.publications import decode
from anycable_tx.cable.replies import (
    ConnectReply,
    Reply,
    RequestEnv,
    Restored,
    RestoreReply,
    SessionView,
    Status,
)
from anycable_tx.config.load import defaults
from anycable_tx.controllers.base import BaseController
from anycable_tx.controllers.chain import Chain
from anycable_tx.errors import BadCommand
from anycable_tx.interfaces import IController, IPubSub, ProviderContext
from anycable_tx.metrics import Metrics
from anycable_tx.node import Node
from anycable_tx.providers import create, find
from anycable_tx.pubsub.local import LocalPubSub
from anycable_tx.testing.identifiers import identifier_of
from anycable_tx.testing.sync import result_of
from anycable_tx.transports.frames import PLAIN
from anycable_tx.transports.groups import Flusher

Frame = dict[str, Any]

#: The Unix time at the clock's second 0.
WALL = 1_700_000_000


def pubsub(stream: str) -> str:
    """The identifier of a public subscription to *stream*."""
    return identifier_of("$pubsub", stream_name=stream)


def room(*streams: str, **more: Any) -> str:
    """An identifier that ``Backend`` subscribes to these streams."""
    return identifier_of("Room", streams=list(streams), **more)


A, B = pubsub("a"), pubsub("b")


def payloads(data: bytes) -> Iterable[bytes]:
    """The messages in framed bytes."""
    while data:
        size, start = data[1], 2
        if size == 126:
            size, start = int.from_bytes(data[2:4], "big"), 4
        elif size == 127:
            size, start = int.from_bytes(data[2:10], "big"), 10
        yield data[start : start + size]
        data = data[start + size :]


class Late:
    """Calls of *target* whose answers wait for ``answer``, where their method is in ``slow``.

    A slow call does its work at once and only its answer is late; with ``asking`` the work is late too. A method in
    ``failing`` raises what stands there.
    """

    def __init__(self, target: Any) -> None:
        self.target = target
        self.slow: set[str] = set()
        self.asking = False
        self.failing: dict[str, Exception] = {}
        self.calls: list[str] = []
        self.waiting: list[tuple[str, Deferred[None]]] = []

    def __getattr__(self, name: str) -> Any:
        value = getattr(self.target, name)
        if not callable(value):
            return value

        async def call(*args: Any) -> Any:
            self.calls.append(name)
            if name in self.failing:
                raise self.failing[name]
            if name not in self.slow:
                return await value(*args)
            if self.asking:
                await self._wait(name)
                return await value(*args)
            error: Exception | None = None
            result: Any = None
            try:
                result = await value(*args)
            except Exception as e:
                error = e
            await self._wait(name)
            if error is not None:
                raise error
            return result

        return call

    def _wait(self, name: str) -> Deferred[None]:
        deferred: Deferred[None] = Deferred()
        self.waiting.append((name, deferred))
        return deferred

    def answer(self, name: str = "") -> None:
        """Let the oldest waiting call, of that name if one is given, go on."""
        index = next(i for i, (called, _) in enumerate(self.waiting) if name in ("", called))
        self.waiting.pop(index)[1].callback(None)

    def answer_all(self) -> None:
        """Let everything go on, and nothing wait any more."""
        self.slow.clear()
        while self.waiting:
            self.answer()


@implementer(IPubSub)
class Bus:
    """One node's end of a bus. While ``holding``, messages stay in ``pending``, where a test can spoil them."""

    announcement = ""
    distributed = True

    def __init__(self, node: Node, ends: list[Bus]) -> None:
        self.node = node
        self.ends = ends
        self.streams: set[str] = set()
        self.unsubscribed: list[str] = []
        self.holding = False
        self.pending: list[StreamMessage] = []
        self.commands: list[RemoteCommand] = []
        ends.append(self)

    async def subscribe(self, stream: str) -> None:
        self.streams.add(stream)

    async def unsubscribe(self, stream: str) -> None:
        self.streams.discard(stream)
        self.unsubscribed.append(stream)

    async def publish(self, message: StreamMessage) -> None:
        for end in self.ends:
            if message.stream in end.streams:
                end.pending.append(message)
                if not end.holding:
                    end.release()

    async def publish_command(self, command: RemoteCommand) -> None:
        for end in self.ends:
            end.commands.append(command)
            end.node.execute(command)

    def release(self) -> None:
        """Deliver what is pending, in its order, and hold nothing any more."""
        self.holding = False
        pending, self.pending = self.pending, []
        for message in pending:
            self.node.deliver(message)

    def lose(self) -> None:
        """Drop what is pending, and hold nothing any more."""
        self.holding = False
        self.pending = []


@implementer(IController)
class Backend(BaseController):
    """Accepts everybody as ``{"user":<query>}`` and every ``Room``; ``script`` overrides the next answers.

    A scripted answer is a reply, an exception to raise, or a Deferred of either.
    """

    def __init__(self) -> None:
        self.calls: list[tuple[Any, ...]] = []
        self.script: dict[str, list[Any]] = {}

    def will(self, method: str, *answers: Any) -> None:
        """The next calls of *method* get these answers."""
        self.script.setdefault(method, []).extend(answers)

    def slowly(self, method: str) -> Deferred[Any]:
        """The next call of *method* is answered when the Deferred fires."""
        answer: Deferred[Any] = Deferred()
        self.will(method, answer)
        return answer

    def called(self, method: str) -> list[tuple[Any, ...]]:
        """The arguments of each call of *method*."""
        return [call[1:] for call in self.calls if call[0] == method]

    async def _answer(self, method: str, usual: Any, *args: Any) -> Any:
        self.calls.append((method, *args))
        script = self.script.get(method)
        answer = script.pop(0) if script else usual
        if isinstance(answer, Deferred):
            answer = await answer
        if isinstance(answer, Exception):
            raise answer
        return answer

    async def authenticate(self, sid: str, env: RequestEnv) -> ConnectReply | None:
        user = env.url.partition("?")[2]
        welcome = orjson.dumps({"type": "welcome", "sid": sid})
        usual = ConnectReply(Status.SUCCESS, orjson.dumps({"user": user}).decode(), [welcome])
        reply: ConnectReply | None = await self._answer("authenticate", usual, sid, env)
        return reply

    async def check_restore(self, identifiers: str, env: RequestEnv) -> ConnectReply | None:
        reply: ConnectReply | None = await self._answer("check_restore", None, identifiers, env)
        return reply

    async def subscribe(self, session: SessionView, identifier: str) -> Reply | None:
        reply: Reply | None = await self._answer("subscribe", confirmed(identifier), session, identifier)
        return reply

    async def unsubscribe(self, session: SessionView, identifier: str) -> Reply | None:
        reply: Reply | None = await self._answer(
            "unsubscribe", Reply(Status.SUCCESS, stop_streams=True), session, identifier
        )
        return reply

    async def perform(self, session: SessionView, identifier: str, data: str) -> Reply | None:
        reply: Reply | None = await self._answer("perform", Reply(Status.SUCCESS), session, identifier, data)
        return reply

    async def disconnect(self, session: SessionView, subscriptions: dict[str, dict[str, str]]) -> None:
        await self._answer("disconnect", None, session, subscriptions)

    async def restore(self, restored: Restored) -> RestoreReply | None:
        reply: RestoreReply | None = await self._answer("restore", None, restored)
        return reply

    async def withdraw(self, sid: str) -> bool:
        notified: bool = await self._answer("withdraw", False, sid)
        return notified

    def gone(self, sid: str) -> None:
        self.calls.append(("gone", sid))


def confirmed(identifier: str, *transmissions: bytes, streams: list[str] | None = None, **more: Any) -> Reply:
    """The reply that confirms *identifier*, with the streams its parameters name."""
    if streams is None:
        streams = orjson.loads(identifier).get("streams", [])
    return Reply(Status.SUCCESS, [confirm_frame(identifier), *transmissions], streams, **more)


def rejected(identifier: str, **more: Any) -> Reply:
    """The reply that refuses *identifier*."""
    return Reply(Status.FAILURE, [reject_frame(identifier)], **more)


class _Slot:
    """What groups write to: unlike the outlet's other ways, nothing here looks at the connection's state."""

    def __init__(self, client: Client) -> None:
        self.client = client

    def write(self, data: bytes) -> None:
        for payload in payloads(data):
            if self.client.closed is None:
                self.client.got(payload)
            else:
                self.client.late.append(payload)


class Client:
    """A client seen from both ends: it is its session's outlet, and remembers what the client was sent, in order.

    ``positions`` and ``sid`` are what the official client would remember. ``closed`` is the close frame's code and
    text; ``late`` is what would have been written behind it.
    """

    wire = PLAIN

    def __init__(self, world: World, *, stalled: bool = False) -> None:
        self.world = world
        self.sent: list[bytes] = []
        self.frames: list[Frame] = []
        self.late: list[bytes] = []
        self.closed: tuple[int, str] | None = None
        self.positions: dict[str, dict[str, Any]] = {}
        self.sid = ""
        self.paused = False
        self.bad: list[BadCommand] = []
        self.stalled = stalled
        self.stalls = 0
        self._waiter: Deferred[None] | None = None
        self._taken = 0
        self.session: Any = None
        self.slot = _Slot(self)

    # -- the outlet

    def send(self, payload: bytes) -> None:
        if self.closed is None:
            self.got(payload)

    def send_all(self, payloads: list[bytes]) -> None:
        for payload in payloads:
            self.send(payload)

    deliver = send_all

    def write(self, data: bytes) -> None:
        for payload in payloads(data):
            self.send(payload)

    def close(self, code: int, reason: str) -> None:
        if self.closed is None:
            self.closed = (code, reason)

    def drained(self) -> Awaitable[None] | None:
        if not self.stalled:
            return None
        self.stalls += 1
        self._waiter = Deferred()
        return self._waiter

    def drain(self) -> None:
        """The stalled client read what was waiting for it."""
        waiter, self._waiter = self._waiter, None
        if waiter is not None:
            waiter.callback(None)

    def pause(self) -> None:
        self.paused = True

    def resume(self) -> None:
        self.paused = False

    # -- what it was sent

    def got(self, payload: bytes) -> None:
        """A message arrived."""
        self.sent.append(payload)
        frame = orjson.loads(payload)
        self.frames.append(frame)
        if frame.get("type") == "welcome":
            self.sid = frame.get("sid", "")
        elif "offset" in frame:
            self.positions[frame["stream_id"]] = {"epoch": frame["epoch"], "offset": frame["offset"]}

    def take(self) -> list[Frame]:
        """The frames that came since the last time, once all that was sent has left."""
        self.world.turn()
        frames = self.frames[self._taken :]
        self._taken = len(self.frames)
        return frames

    def heard(self, identifier: str = "") -> list[Any]:
        """``take`` in short: offsets of stored messages, types, else the message itself; of one identifier only."""
        return [brief(frame) for frame in self.take() if not identifier or frame.get("identifier") == identifier]

    # -- what it says

    def say(self, frame: Any = None, **keys: Any) -> None:
        """Send a frame: bytes as they are, anything else, or the keys, as JSON."""
        text = frame if isinstance(frame, bytes) else orjson.dumps(keys if frame is None else frame)
        if self.closed is not None:
            return
        try:
            receive(self.session, text)
        except BadCommand as e:
            self.bad.append(e)

    def subscribe(self, identifier: str, **more: Any) -> None:
        self.say(command="subscribe", identifier=identifier, **more)

    def unsubscribe(self, identifier: str) -> None:
        self.say(command="unsubscribe", identifier=identifier)

    def ask(self, identifier: str, offset: int | None = None, stream: str = "a", **history: Any) -> None:
        """Ask for history: from *offset* of the stream in the current epoch, or as *history* says."""
        if offset is not None:
            history["streams"] = {stream: {"epoch": self.world.epoch, "offset": offset}}
        self.say(command="history", identifier=identifier, history=history)

    def perform(self, identifier: str, data: Any) -> None:
        self.say(command="message", identifier=identifier, data=data)

    def whisper(self, identifier: str, data: Any) -> None:
        self.say(command="whisper", identifier=identifier, data=data)

    def join(self, identifier: str, id: Any, info: Any = None) -> None:
        self.say(command="join", identifier=identifier, presence={"id": id, "info": info})

    def leave(self, identifier: str) -> None:
        self.say(command="leave", identifier=identifier)

    def present(self, identifier: str, **data: Any) -> None:
        self.say(command="presence", identifier=identifier, data=data)

    # -- the connection

    def cut(self) -> None:
        """The connection is gone."""
        self.session.services.disconnected(self.session)

    def again(self, **how: Any) -> Client:
        """The same client on a new connection, naming the session it had; ``positions`` come along."""
        client = self.world.connect(sid=self.sid, **how)
        client.positions = dict(self.positions)
        return client

    def catch_up(self, *identifiers: str) -> None:
        """Ask for the history of each identifier as the official client does after a restored welcome."""
        for identifier in identifiers:
            self.say(command="history", identifier=identifier, history={"streams": self.positions})


def brief(frame: Frame) -> Any:
    """A frame in one word: its offset, else its type, else its message."""
    if "offset" in frame:
        return frame["offset"]
    return frame["type"] if "type" in frame else frame["message"]


class World:
    """Nodes with one broker and one clock. *controllers*: 'public', 'backend', or the settings' own.

    ``broker`` and ``backend`` can be made late or broken. With *nodes* above 1, or *bus*, the nodes are on a ``Bus``;
    else each message is delivered while it is published. ``trouble`` tells that internal errors are expected.
    """

    def __init__(
        self, controllers: str = "public", *, nodes: int = 1, bus: bool = False, store: bool = True, **settings: Any
    ) -> None:
        if controllers == "public":
            settings["public"] = True
        self.settings = defaults(**settings)
        self.clock = Clock()
        self.metrics = Metrics()
        self.backend = Backend()
        self.trouble = False
        self.nodes: list[Node] = []
        self.clients: list[Client] = []
        self.buses: list[Bus] = []
        for _ in range(nodes):
            node = Node(self.settings, self.clock, self.metrics, Flusher(self.clock, self.metrics))
            node.pubsub = Bus(node, self.buses) if bus or nodes > 1 else LocalPubSub(node)
            self.nodes.append(node)
        self.node = self.nodes[0]
        context = ProviderContext(self.settings, self.clock, self.node, self.metrics, pubsub=self.node.pubsub)
        real: Any = NoBroker(context) if not store else MemoryBroker(context, lambda: WALL + self.clock.seconds())
        self.broker: Any = Late(real)
        chain = [create(find("controller", name), context) for name in self.settings["controllers"]]
        self.controllers = Chain([self.backend] if controllers == "backend" else chain, self.metrics)
        result_of(real.start())
        for node in self.nodes:
            node.broker = self.broker
            node.controllers = self.controllers
            result_of(node.start())

    @property
    def bus(self) -> Bus:
        """The first node's end of the bus."""
        return self.buses[0]

    @property
    def epoch(self) -> str:
        """The broker's epoch."""
        epoch: str = self.broker.epoch
        return epoch

    @property
    def now(self) -> int:
        """The Unix time in whole seconds."""
        return int(WALL + self.clock.seconds())

    def turn(self) -> None:
        """Let everything that is due happen. No unexpected error may have, and no frame behind a close frame."""
        self.clock.advance(0)
        if not self.trouble:
            assert not self.metrics.value("internal_errors_total")
        for client in self.clients:
            assert not client.late, "written behind the close frame"

    def advance(self, seconds: float) -> None:
        """Let time pass in steps of a tenth of a second."""
        for _ in range(round(seconds * 10)):
            self.clock.advance(0.1)
        self.turn()

    # -- clients

    def connect(
        self,
        *,
        extended: bool = True,
        sid: str = "",
        query: str = "",
        node: int = 0,
        request_id: str = "",
        stalled: bool = False,
        **headers: str,
    ) -> Client:
        """A client whose connection is open; *sid* is the session it had before."""
        client = Client(self, stalled=stalled)
        self.clients.append(client)
        url = "http://localhost/cable" + (f"?{query}" if query else "")
        env = RequestEnv(url, {name.replace("_", "-"): value for name, value in headers.items()})
        client.session = self.nodes[node].connected(client, Arrival(env, sid), extended=extended, sid=request_id)
        return client

    def subscribed(self, *identifiers: str, **how: Any) -> Client:
        """A connected client with these subscriptions, whose frames so far have been taken."""
        client = self.connect(**how)
        for identifier in identifiers:
            client.subscribe(identifier)
        client.take()
        return client

    # -- publishers

    def publish(self, stream: str, message: Any = None, *, count: int = 1, node: int = 0, **meta: Any) -> Receipt:
        """Publish *count* messages; without a *message* each says its number."""
        for number in range(count):
            value = number if message is None else message
            receipt = result_of(self.nodes[node].publish(Publication(stream, orjson.dumps(value), **meta)))
        return receipt

    def broadcast(self, body: Any) -> None:
        """Publish what a publisher sends, or run its command."""
        decoded = decode(orjson.dumps(body), lenient=True)
        if isinstance(decoded, RemoteCommand):
            result_of(self.node.broadcast_command(decoded))
        else:
            for publication in decoded:
                result_of(self.node.publish(publication))

    def ban(self, identifiers: str, **payload: Any) -> None:
        """A remote disconnect."""
        self.broadcast({"command": "disconnect", "payload": {"identifier": identifiers, **payload}})

    def every(self, seconds: float, what: Callable[[], Any]) -> Callable[[], None]:
        """Do *what* each *seconds* from now on; answers a function that ends it."""
        running = True

        def tick() -> None:
            if running:
                what()
                self.clock.callLater(seconds, tick)

        def stop() -> None:
            nonlocal running
            running = False

        self.clock.callLater(seconds, tick)
        return stop
