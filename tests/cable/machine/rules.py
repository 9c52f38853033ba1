"""What may happen to the clients, the node and the messages: the rules that every machine shares."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import orjson
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from anycable_tx.transports.frames import DEFLATE
from tests.cable.machine.client import Client
from tests.cable.machine.world import BARRIER, SESSIONS_TTL, TTL, World

__all__ = ["COUNTS", "WHO", "Delivery"]

WHO = st.integers(0, 2)
WHICH = st.integers(0, 7)
#: So many frames or commands: few, or all.
COUNTS = st.one_of(st.integers(0, 6), st.just(1 << 30))
TIMES = st.sampled_from([0.25, 1.0, BARRIER, BARRIER + 0.25, SESSIONS_TTL - 1, SESSIONS_TTL + 1, TTL + 1])


class Delivery(RuleBasedStateMachine):
    """Clients come, go, lose frames and come back while messages are published."""

    channels: dict[str, tuple[str, ...]] = {"one": ("s0",), "two": ("s1", "s2")}
    extra = "s3"
    distributed = False

    def __init__(self) -> None:
        super().__init__()
        self.world = World(self.channels, self.extra, distributed=self.distributed)
        self.published = 0
        now = int(self.world.clock.seconds())
        self.world.clients = [
            Client(self.world, "clock", extended=True, since=now),
            Client(self.world, "no clock", extended=True, compression=DEFLATE),
            Client(self.world, "base", extended=False),
        ]

    @initialize(ready=st.booleans(), history=st.booleans())
    def begin(self, ready: bool, history: bool) -> None:
        """Half of the time everybody is there and subscribed to everything already."""
        if ready:
            for n, client in enumerate(self.world.clients):
                client.connect(n)
                for identifier in self.channels:
                    client.subscribe(identifier, history=history)
            self.world.calm()

    def teardown(self) -> None:
        try:
            self.world.settle()
            self.world.judge()
            self.world.end()
        finally:
            self.world.close()

    @invariant()
    def every_promise_is_kept(self) -> None:
        self.world.check()

    # -- publishing

    def stream(self, which: int) -> str:
        return self.world.streams[which % len(self.world.streams)]

    @rule(stream=WHICH, count=st.integers(1, 3), node=WHO)
    def publish(self, stream: int, count: int, node: int) -> None:
        for _ in range(count):
            self.world.publish(self.stream(stream), node=node)

    @rule(stream=WHICH, node=WHO)
    def publish_more_than_is_kept(self, stream: int, node: int) -> None:
        self.publish(stream, 7, node)

    @rule(stream=WHICH, node=WHO)
    def publish_transient(self, stream: int, node: int) -> None:
        self.world.publish(self.stream(stream), transient=True, node=node)

    @rule(stream=WHICH, who=WHO, transient=st.booleans(), earlier=st.booleans())
    def publish_for_others(self, stream: int, who: int, transient: bool, earlier: bool) -> None:
        client = self.world.clients[who]
        wire = client.wire
        sid = client.sid
        if earlier and wire is not None and wire.sid == sid and len(wire.chain) > 1:
            sid = wire.chain[-1]
        self.world.publish(self.stream(stream), excluded=sid, transient=transient)

    @rule(stream=WHICH, again=st.booleans())
    def publish_with_an_id(self, stream: int, again: bool) -> None:
        name = self.stream(stream)
        if not again:
            self.published += 1
            self.world.publish(name, id=f"{name}:{self.published}")
        elif self.world.ids:
            id = list(self.world.ids)[-1]
            self.world.retry(id.partition(":")[0], id)

    # -- time

    @rule(count=st.integers(1, 3))
    def turn(self, count: int) -> None:
        self.world.turn(count)

    @rule(seconds=TIMES)
    def time_passes(self, seconds: float) -> None:
        self.world.clock.advance(seconds)

    @rule()
    def settle(self) -> None:
        self.world.settle()
        self.world.judge()

    # -- connections

    def some(self, who: int, which: Callable[[Client], Any]) -> Client | None:
        """A client for which *which* holds, if there is one."""
        clients = [client for client in self.world.clients if which(client)]
        return clients[who % len(clients)] if clients else None

    @rule(who=WHO, node=WHO, reads=COUNTS, sends=COUNTS)
    def connect(self, who: int, node: int, reads: int, sends: int) -> None:
        client = self.some(who, lambda c: c.wire is None)
        if client is not None:
            client.connect(node)
            client.read(reads)
            client.send(sends)

    @rule(who=WHO, node=WHO, mine=st.booleans())
    def connect_twice_at_once(self, who: int, node: int, mine: bool) -> None:
        client = self.some(who, lambda c: c.wire is None and c.sid)
        if client is None:
            return
        sid = client.sid
        if mine:
            self.world.open(client, sid, node)
            client.connect(node + 1)
        else:
            client.connect(node)
            self.world.open(client, sid, node + 1)

    @rule(who=WHO, reads=COUNTS, noticed=st.booleans())
    def cut(self, who: int, reads: int, noticed: bool) -> None:
        client = self.some(who, lambda c: c.wire is not None)
        if client is not None:
            client.read(reads)
            if client.wire is not None:
                wire = client.cut()
                if noticed:
                    wire.lose()

    @rule(
        who=WHO,
        node=WHO,
        reads=COUNTS,
        sends=COUNTS,
        noticed=st.booleans(),
        slow=st.booleans(),
        stream=WHICH,
        published=st.sampled_from([0, 1, 2, 3, 8]),
    )
    def cut_and_come_back(
        self, who: int, node: int, reads: int, sends: int, noticed: bool, slow: bool, stream: int, published: int
    ) -> None:
        client = self.some(who, lambda c: c.wire is not None)
        if client is None:
            return
        client.read(reads)
        if client.wire is not None:
            wire = client.cut()
            if noticed:
                wire.lose()
        self.publish(stream, published, node)
        wire = client.connect(node)
        if slow:
            wire.slow_down()
        client.read(1)
        client.send(sends)

    @rule(who=WHO, stream=WHICH, lost=st.integers(0, 2), reads=COUNTS, sends=COUNTS, again=st.booleans())
    def come_back_and_be_late(self, who: int, stream: int, lost: int, reads: int, sends: int, again: bool) -> None:
        """A client loses messages, comes back, and asks, or not, when its barrier has opened by itself."""
        client = self.some(who, lambda c: c.ready)
        if client is None:
            return
        client.read()
        self.publish(stream, lost, who)
        self.world.turn(4)
        if client.wire is None:
            return
        client.cut()
        client.connect(who)
        client.read(1)
        self.world.clock.advance(BARRIER + 0.25)
        self.publish(stream, 1, who)
        self.world.turn(4)
        client.read(reads)
        if not again:
            client.send(sends)
        elif client.wire is not None:
            client.cut()
            client.connect(who)
            client.read(1)
            client.send(sends)

    @rule(which=WHICH)
    def notice_a_dead_connection(self, which: int) -> None:
        wires = [w for w in self.world.open_wires if w.alive and w.owner.wire is not w]
        if wires:
            wires[which % len(wires)].lose()

    @rule(who=WHO)
    def disconnect_remotely(self, who: int) -> None:
        self.world.banned(self.world.clients[who])

    @rule(who=WHO, slow=st.booleans())
    def slow_down_or_catch_up(self, who: int, slow: bool) -> None:
        client = self.some(who, lambda c: c.wire is not None and c.wire.slow is not slow)
        if client is not None and client.wire is not None:
            if slow:
                client.wire.slow_down()
            else:
                client.wire.catch_up()

    @rule(who=WHO, count=COUNTS)
    def read(self, who: int, count: int) -> None:
        client = self.some(who, lambda c: c.wire is not None and c.wire.down)
        if client is not None:
            client.read(count)

    @rule(who=WHO, count=COUNTS)
    def send(self, who: int, count: int) -> None:
        client = self.some(who, lambda c: c.wire is not None and c.wire.up)
        if client is not None:
            client.send(count)

    @rule(who=WHO)
    def talk(self, who: int) -> None:
        client = self.some(who, lambda c: c.wire is not None)
        if client is not None:
            while client.read() | client.send():
                pass

    # -- commands

    @rule(who=WHO, channel=WHICH, history=st.booleans(), sends=COUNTS)
    def subscribe(self, who: int, channel: int, history: bool, sends: int) -> None:
        identifier = list(self.channels)[channel % len(self.channels)]
        client = self.some(who, lambda c: not c.channels[identifier].wanted and not c.channels[identifier].unread)
        if client is not None:
            client.subscribe(identifier, history=history)
            client.send(sends)

    @rule(who=WHO, channel=WHICH, sends=COUNTS)
    def unsubscribe(self, who: int, channel: int, sends: int) -> None:
        identifier = list(self.channels)[channel % len(self.channels)]
        client = self.some(who, lambda c: c.channels[identifier].confirmed)
        if client is not None:
            client.unsubscribe(identifier)
            client.send(sends)

    @rule(who=WHO, channel=WHICH, back=st.integers(-1, 8), kind=st.sampled_from(["all", "first", "epoch", "since"]))
    def ask_for_history(self, who: int, channel: int, back: int, kind: str) -> None:
        identifier = list(self.channels)[channel % len(self.channels)]
        client = self.some(who, lambda c: c.extended and c.ready and c.channels[identifier].confirmed)
        if client is None:
            return
        if client.first_ask(identifier) or self.distributed:
            # It is believed, and must not claim what it has not got; the future may have come when it is read.
            back = max(0, back)
        positions = {}
        for stream in self.channels[identifier]:
            epoch, offset = client.positions.get(stream, (self.world.epoch, 0))
            offset = self.world.ledger.top(stream) + 1 if back < 0 else max(0, offset - back)
            positions[stream] = (epoch if kind != "epoch" else "another", offset)
        if kind == "first":
            positions = dict(list(positions.items())[:1])
        since = int(self.world.clock.seconds()) - back if kind == "since" else 0
        client.ask(identifier, {} if since else positions, since)
        client.send()

    @rule(who=WHO, asks=st.booleans())
    def ask_or_not_after_a_resume(self, who: int, asks: bool) -> None:
        self.world.clients[who].asks = asks

    @precondition(lambda self: self.extra and not self.distributed)
    @rule(who=WHO, done=st.sampled_from(["followed", "unfollowed"]))
    def follow_or_not(self, who: int, done: str) -> None:
        identifier = next(iter(self.channels))
        client = self.some(who, lambda c: c.ready and c.channels[identifier].confirmed)
        if client is not None:
            data = orjson.dumps([done, self.extra]).decode()
            client.say({"command": "message", "identifier": identifier, "data": data})
            client.send()
