"""The real node, broker and fan-out on a clock that is moved by hand, with clients and what they are to find."""

from __future__ import annotations

from typing import Any
from unittest import mock

import orjson
from twisted.internet.task import Clock

from anycable_tx.brokers.memory import MemoryBroker
from anycable_tx.cable import live
from anycable_tx.cable.admission import Arrival
from anycable_tx.cable.codec import confirm_frame, welcome_frame
from anycable_tx.cable.messages import Publication, Receipt, RemoteCommand
from anycable_tx.cable.replies import ConnectReply, Reply, RequestEnv, SessionView, Status
from anycable_tx.controllers.base import BaseController
from anycable_tx.controllers.chain import Chain
from anycable_tx.interfaces import ProviderContext
from anycable_tx.metrics import Metrics
from anycable_tx.node import Node
from anycable_tx.pubsub.local import LocalPubSub
from anycable_tx.streams import LINGER
from anycable_tx.testing.broker_conformance import SETTINGS
from anycable_tx.testing.checker import EventLog
from anycable_tx.testing.fakes import RecordingNode
from anycable_tx.testing.sync import result_of
from anycable_tx.transports import groups
from tests.cable.machine.bus import Bus, Gate, LateBroker, Port
from tests.cable.machine.client import Client
from tests.cable.machine.ledger import Ledger, Message
from tests.cable.machine.wire import Wire

__all__ = ["BARRIER", "SESSIONS_TTL", "TTL", "World"]

LIMIT, TTL, SESSIONS_TTL, BARRIER = 6, 60.0, 30.0, 2.0


class Backend(BaseController):
    """Says yes to everything, sooner or later, and notes what it is asked."""

    def __init__(self, world: World, gate: Gate) -> None:
        self._world = world
        self._gate = gate

    async def authenticate(self, sid: str, env: RequestEnv) -> ConnectReply:
        await self._gate.passed()
        return ConnectReply(Status.SUCCESS, env.headers["user"], [welcome_frame(sid)], disconnect_interest=-1)

    async def check_restore(self, identifiers: str, env: RequestEnv) -> None:
        await self._gate.passed()

    async def subscribe(self, session: SessionView, identifier: str) -> Reply:
        streams = self._world.channels[identifier]
        self._world.wires[session.sid].subscribing(identifier, streams)
        await self._gate.passed()
        return Reply(Status.SUCCESS, [confirm_frame(identifier)], list(streams), disconnect_interest=-1)

    async def unsubscribe(self, session: SessionView, identifier: str) -> Reply:
        self._world.wires[session.sid].unsubscribed(identifier)
        await self._gate.passed()
        return Reply(Status.SUCCESS, stop_streams=True, disconnect_interest=-1)

    async def perform(self, session: SessionView, identifier: str, data: str) -> Reply:
        done, stream = orjson.loads(data)
        frame = orjson.dumps({"identifier": identifier, "message": {done: stream}})
        if done == "followed":
            return Reply(Status.SUCCESS, [frame], streams=[stream])
        return Reply(Status.SUCCESS, [frame], stopped_streams=[stream])


class World:
    """Nodes on one memory broker: one without a bus, or two with one that has every fault a bus may have.

    *channels* maps each identifier to its streams. ``shared``: a stream may belong to several of them.
    """

    def __init__(self, channels: dict[str, tuple[str, ...]], extra: str = "", *, distributed: bool = False) -> None:
        self.channels = channels
        self.extra = extra
        self.streams = tuple(
            dict.fromkeys([s for streams in channels.values() for s in streams] + [extra] * bool(extra))
        )
        self.shared = sum(map(len, channels.values())) > len({s for ss in channels.values() for s in ss})
        self.distributed = distributed
        self.barrier = BARRIER
        self.violations: list[str] = []
        self.log = EventLog()
        self.unasked = False
        self.clients: list[Client] = []
        self.wires: dict[str, Wire] = {}
        self.open_wires: list[Wire] = []
        self.lives: dict[str, float | None] = {}
        self.ids: dict[str, Receipt] = {}
        self.clock = Clock()
        self.clock.advance(1000)
        self.gate = Gate()
        self.bus = Bus()
        self.ledger = Ledger(self.clock, LIMIT, TTL)
        self._patches = [mock.patch.object(groups, "SLICE", 2), mock.patch.object(live, "REPLAY_PART", 100)]
        for patch in self._patches:
            patch.start()
        self._settings = {
            **SETTINGS,
            "history_limit": LIMIT,
            "history_ttl": TTL,
            "sessions_ttl": SESSIONS_TTL,
            "history_barrier": BARRIER,
            "history_since_slack": 0,
            "max_commands_pending": 100,
            "max_subscriptions": 0,
            "max_commands_rate": 0,
            "broker_rules": (),
            "idempotency_ttl": 1e6,
        }
        self._start()

    def _start(self) -> None:
        nodes = [self._node() for _ in range(2 if self.distributed else 1)]
        pubsub: Any = self.bus if self.distributed else LocalPubSub(nodes[0])
        member = RecordingNode() if self.distributed else nodes[0]
        context = ProviderContext(self._settings, self.clock, member, Metrics(), pubsub=pubsub)
        self.broker = MemoryBroker(context, self.clock.seconds)
        result_of(self.broker.start())
        self.epoch = self.broker.epoch
        self.nodes = nodes
        for node in nodes:
            node.broker = LateBroker(self.broker, self.gate) if self.distributed else self.broker
            node.pubsub = Port(self.bus, node, self.gate) if self.distributed else pubsub
            if self.distributed:
                self.bus.ports.append(node.pubsub)
            result_of(node.start())

    def _node(self) -> Node:
        metrics = Metrics()
        node = Node(self._settings, self.clock, metrics, groups.Flusher(self.clock, metrics))
        node.controllers = Chain([Backend(self, self.gate)], metrics)
        return node

    def close(self) -> None:
        """Take back what was changed for this world."""
        for patch in self._patches:
            patch.stop()

    # -- connections

    def open(self, client: Client, sid: str, node: int) -> Wire:
        """A new connection of *client*; with *sid* it wants to resume that session."""
        node_ = self.nodes[node % len(self.nodes)]
        due = self._resumable(sid)
        wire = Wire(self, client, node_, sid)
        self.open_wires.append(wire)
        arrival = Arrival(RequestEnv("http://test/cable", {"user": client.name}), sid if client.extended else "")
        wire.session = node_.connected(wire, arrival, extended=client.extended)
        if not self.distributed and wire.restored is not due:
            words = ("resumed though it may not", "not resumed though it could")
            self.violations.append(f"{client.name}: session {sid} is {words[due]}")
        return wire

    def _resumable(self, sid: str) -> bool:
        if sid not in self.lives:
            return False
        released = self.lives[sid]
        return released is None or self.clock.seconds() < released + SESSIONS_TTL

    def welcomed(self, wire: Wire) -> None:
        """A session begins or comes back: whoever resumed the same one before is out."""
        self.wires[wire.sid] = wire
        if wire.owner.extended:
            self.lives[wire.sid] = None
        for other in self.wires.values():
            if wire.restored and other is not wire and other.restored and other.previous == wire.previous:
                self.lives.pop(other.sid, None)

    def released(self, sid: str) -> None:
        """The session's connection is gone, or it was resumed elsewhere."""
        if sid in self.lives:
            self.lives[sid] = self.clock.seconds()

    def spent(self, sid: str) -> None:
        """The client has acted under its new sid."""
        self.lives.pop(sid, None)

    def banned(self, client: Client) -> None:
        """Disconnect *client* remotely, for good."""
        for wire in self.wires.values():
            if wire.owner is client:
                self.lives.pop(wire.sid, None)
        command = RemoteCommand("disconnect", {"identifier": client.name, "reconnect": True})
        result_of(self.nodes[0].broadcast_command(command))

    def send(self, wire: Wire, count: int = 1 << 30) -> bool:
        """So many of the client's commands reach the server."""
        sent = False
        while count and wire.up:
            wire.arrive(wire.up.popleft())
            sent = True
            count -= 1
        return sent

    # -- publications

    def publish(
        self, stream: str, *, excluded: str = "", transient: bool = False, id: str = "", node: int = 0
    ) -> None:
        """Publish one message; the broker gives it the offset the model gives it."""
        message = self.ledger.add(stream, excluded, transient)
        if transient and not self.distributed:
            for wire in self.open_wires:
                if wire.alive and not wire.closed:
                    wire.expects(message)
        self.log.record("publishing", id=message.id, stream=stream)
        receipt = self._publish(message, transient, id, node)
        if receipt != Receipt(message.offset, self.epoch if message.offset else ""):
            self.violations.append(f"message {message.id}: {receipt} instead of offset {message.offset}")
        if excluded or transient:  # who has to get it is not for the checker to know
            self.log.record("publish_unknown", id=message.id, stream=stream)
        else:
            position = {"epoch": receipt.epoch, "offset": receipt.offset}
            self.log.record("published", id=message.id, stream=stream, **position)
        if id:
            self.ids[id] = receipt

    def _publish(self, message: Message, transient: bool, id: str, node: int) -> Receipt:
        payload = orjson.dumps({"id": message.id})
        publication = Publication(message.stream, payload, message.excluded, transient=transient, id=id)
        return result_of(self.nodes[node % len(self.nodes)].publish(publication))

    def retry(self, stream: str, id: str) -> None:
        """Publish something again that was stored, with its id."""
        again = Publication(stream, b'{"id":-1}', id=id)
        if result_of(self.nodes[0].publish(again)) != self.ids[id]._replace(duplicate=True):
            self.violations.append(f"publication {id} was stored twice")

    def reached(self, node: Node, stream: str) -> int:
        """Where *node* goes on in *stream*."""
        local, top = node.hub.streams.get(stream), self.ledger.top(stream)
        return top if local is None else min(top, local.position.last)

    def gave_up(self) -> bool:
        """Did any node lose messages for good? Clients of the base protocol can not be told."""
        return any(node.metrics.value("broadcast_gaps_unhealed_total") for node in self.nodes)

    # -- time

    def turn(self, count: int = 1) -> bool:
        """Turns of the reactor in which no time passes; was anything left to flush?"""
        busy = False
        for _ in range(count):
            busy = busy or any(node.fanout.pending for node in self.nodes)
            self.clock.advance(0)
        return busy

    def calm(self) -> None:
        """Everything that is under way arrives."""
        for _ in range(10_000):
            moved = [self.turn(), self.gate.open(), self.bus.flush()]
            for wire in self.open_wires:
                wire.catch_up()
            for client in self.clients:
                moved += [client.read(), client.send()]
            if not any(moved):
                return
        raise AssertionError("it never ends")

    def settle(self) -> None:
        """The faults end, everybody comes back, and what is to happen by itself has happened."""
        self.bus.lagging = False
        for wire in self.open_wires:
            wire.catch_up()
            if wire.owner.wire is not wire:
                wire.lose()
        self.calm()
        for port in self.bus.ports:
            port.restore()
        for _ in range(3):
            for n, client in enumerate(self.clients):
                if client.wire is None:
                    client.connect(n)
            self.calm()
        for _ in range(10):
            self.clock.advance(0.5)
            self.calm()
        self.open_wires = [wire for wire in self.open_wires if wire.alive]

    def judge(self) -> None:
        """To be called when all has settled."""
        for client in self.clients:
            client.judge()
        if not self.distributed:
            for wire in self.open_wires:
                late = [id for sub in wire.subs.values() for track in sub.tracks.values() for id in track.transients]
                if late:
                    self.violations.append(f"transient messages {late} never came on connection {wire.sid}")
        report = self.log.check()
        doubtful = ("lost", "duplicate", "misordered") if self.unasked else ("lost",) if self.gave_up() else ()
        for name, found in report.findings.items():
            if found and name not in doubtful:
                self.violations.append(f"the checker: {name}: {found[0]}")
        self.check()

    def check(self) -> None:
        """Raise AssertionError if any promise was broken until now."""
        for node in self.nodes:
            for name in ("internal_errors_total", "controller_errors_total"):
                if node.metrics.value(name):
                    self.violations.append(f"{name}: see the log")
        assert not self.violations, "\n".join(self.violations)

    def end(self) -> None:
        """Everybody leaves; after a while nothing of them is left."""
        for wire in self.open_wires:
            wire.lose()
        self.gate.open()
        self.calm()
        self.clock.advance(LINGER + 1)
        self.clock.advance(SESSIONS_TTL + 2)
        self.clock.advance(1)
        assert not len(self.broker._sessions), "sessions are kept for ever"
        for node in self.nodes:
            assert not node.hub.streams, "streams without subscribers are kept"
            assert not len(node.sessions), "sessions without connections are kept"
            assert not node._running, "something never ends"
