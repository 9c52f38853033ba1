"""Finds the last message before a silence, when the bus lost it: no later message would reveal the hole (P3)."""

from __future__ import annotations

import math
from collections import deque

from twisted.internet.task import LoopingCall

from anycable_tx.cable.messages import Position
from anycable_tx.streams import NodeStreams

__all__ = ["MAX_UNDER_WAY", "ROUND", "STEP", "TailAudit"]

#: Each stream is looked at once in so many seconds. One that has not moved since is compared with the broker, every
#: second time it is looked at; so a loss is found within three such rounds (BR-41).
ROUND = 30.0
#: Looks are spread over the round in steps of so many seconds.
STEP = 0.5
#: So many comparisons are under way at a time.
MAX_UNDER_WAY = 32


class TailAudit:
    """The rounds over the streams of *node*; nothing to do where no other node is on the bus."""

    def __init__(self, node: NodeStreams) -> None:
        self._node = node
        #: Stream -> its position at the last look, and whether it was compared then.
        self._seen: dict[str, tuple[Position, bool]] = {}
        self._queue: deque[str] = deque()
        self._round_ends = 0.0
        self._under_way = 0
        self._steps = LoopingCall(lambda: self.step(node.reactor.seconds()))
        self._steps.clock = node.reactor

    def start(self) -> None:
        """Begin; the providers have started."""
        if self._node.pubsub.distributed and self._node.broker.stores:
            self._steps.start(STEP, now=False)

    def stop(self) -> None:
        """Look at no more streams."""
        if self._steps.running:
            self._steps.stop()

    def step(self, now: float) -> None:
        """Look at as many streams as are due at *now*."""
        if not self._queue and now >= self._round_ends:
            streams = self._node.hub.streams
            self._seen = {name: seen for name, seen in self._seen.items() if name in streams}
            self._queue.extend(streams)
            self._round_ends = now + ROUND
        steps = max(1.0, (self._round_ends - now) / STEP)
        for _ in range(math.ceil(len(self._queue) / steps)):
            if self._under_way >= MAX_UNDER_WAY:
                return
            self._look(self._queue.popleft())

    def _look(self, name: str) -> None:
        stream = self._node.hub.streams.get(name)
        if stream is None or stream.opening is not None or stream.position.healing:
            return
        position = stream.position.position
        before, compared = self._seen.get(name, (None, False))
        compare = position == before and not compared
        self._seen[name] = position, compare
        if compare:
            self._under_way += 1
            self._node.spawn(self._compare(name, position))

    async def _compare(self, name: str, position: Position) -> None:
        try:
            tail = await self._node.broker.tail(name)
        except Exception:
            # Whoever reads the broker next says so; this stream is looked at again.
            self._node.metrics.count("broker_errors_total")
            self._seen.pop(name, None)
            return
        finally:
            self._under_way -= 1
        stream = self._node.hub.streams.get(name)
        if tail is None or stream is None or stream.position.position != position:
            return
        if tail.epoch != position.epoch:
            await self._node.catch_up(stream, 0)
        elif tail.offset > position.offset:
            self._node.saw_gap(stream)
            await self._node.catch_up(stream, tail.offset)
