"""The streams of this node, kept whole: opened on the bus, healed from the broker, let go of again (P1 to P3)."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator
from typing import Any

from twisted.internet.defer import CancelledError, Deferred
from twisted.python.failure import Failure

from anycable_tx.background import RETRIES, Background, sleep
from anycable_tx.cable import codec
from anycable_tx.cable.fanout import Fanout
from anycable_tx.cable.hub import Hub, LocalStream
from anycable_tx.cable.messages import History, HistoryRequest, Position, StreamMessage
from anycable_tx.cable.positions import Verdict
from anycable_tx.errors import HistoryRefused
from anycable_tx.interfaces import IBroker, IPubSub
from anycable_tx.metrics import Metrics
from anycable_tx.sessions import Sessions

__all__ = ["NodeStreams"]

#: A stream whose last subscriber left stays subscribed on the bus for so many seconds.
LINGER = 5.0
#: So many streams are healed at a time when the bus is back.
HEALED_AT_ONCE = 64


class NodeStreams(Background):
    """The part of a node that looks after streams. ``broker`` and ``pubsub`` are set before it is used."""

    broker: IBroker
    pubsub: IPubSub

    def __init__(self, reactor: Any, metrics: Metrics, fanout: Fanout, sessions: Sessions) -> None:
        super().__init__(reactor, metrics)
        self.fanout = fanout
        self.hub = Hub(fanout, metrics, sessions.find)
        self._lingering: deque[tuple[float, LocalStream]] = deque()

    def let_go(self, now: float) -> None:
        """Leave the streams on the bus that have had no subscriber for a while."""
        while self._lingering and self._lingering[0][0] <= now:
            stream = self._lingering.popleft()[1]
            if stream.idle and self.hub.streams.get(stream.name) is stream and stream.opening is None:
                del self.hub.streams[stream.name]
                self.spawn(self._unsubscribe(stream.name))

    async def _unsubscribe(self, name: str) -> None:
        await self.pubsub.unsubscribe(name)

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
        return await self.read(stream.name, request)

    async def read(self, name: str, request: HistoryRequest) -> History:
        """The broker's answer for any stream, subscribed here or not. Raises HistoryRefused and nothing else."""
        try:
            return await self._patiently(lambda: self.broker.history(name, request))
        except HistoryRefused:
            raise
        except Exception:
            self._broker_failed("cannot read history", stream=name)
            raise HistoryRefused("unavailable") from None

    def advance(self, stream: LocalStream, history: History) -> None:
        """Hand messages that a read has shown before the bus brought them to everybody."""
        for message in history.messages:
            if message.prev == stream.position.last and stream.position.fetched(message):
                self.hub.hand_over(stream, message)

    async def catch_up(self, stream: LocalStream, target: int) -> None:
        """Read what lies behind the stream's position, at least to *target*, and hand it to everybody."""
        if stream.position.suspect(target) is Verdict.HEAL:
            await self._heal(stream)
        while stream.position.healing:
            await sleep(self.reactor, 0.05)

    async def _heal(self, stream: LocalStream) -> None:
        """Fill a hole from the broker; no client takes part (P3). What cannot be filled is told to clients."""
        position = stream.position
        delays = iter(RETRIES)
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
                    self.log.debug("a stream is whole again", attrs={"context": "node", "stream": stream.name})
                    return
                if position.position != before:
                    delays = iter(RETRIES)  # more came meanwhile: the broker answers, so it is asked again
                    continue
            delay = next(delays, None)
            if delay is None:
                break
            await sleep(self.reactor, delay)
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
        self._tell_lost(stream, stream.position.position)

    def _tell_lost(self, stream: LocalStream, upto: Position) -> None:
        """One unasked ``reject_history`` for each live subscription of a client that understands it (CP-82)."""
        for attachment in stream.attachments():
            session = attachment.subscription.session
            if session.extended and not attachment.held:
                attachment.lost(upto)
                session.send(codec.history_frame(codec.REJECT_HISTORY, attachment.subscription.json))

    def deliver(self, message: StreamMessage) -> None:
        """Take a message from the bus: in order, once, nothing skipped (P1, P2, P3)."""
        stream = self.hub.streams.get(message.stream)
        if stream is None:
            self.metrics.count("broadcast_msg_total")  # to nobody
            return
        verdict = stream.position.arrived(message)
        if verdict is Verdict.DELIVER:
            self.hub.hand_over(stream, message)
        elif verdict is Verdict.HEAL:
            self.saw_gap(stream)
            self.spawn(self._heal(stream))
        elif verdict is Verdict.DROP:
            reason = "healing" if stream.position.healing else "repeated"
            self.metrics.count("dropped_bus_msg_total", reason=reason)
            self.log.debug(
                "a message from the bus was dropped",
                attrs={"context": "node", "stream": stream.name, "offset": message.offset, "reason": reason},
            )
        elif verdict is Verdict.RESET:
            self.metrics.count("stream_resets_total")
            self.log.warn("the stream has a new epoch", attrs={"context": "node", "stream": stream.name})
            self._tell_lost(stream, Position(message.epoch, message.offset - 1))
            self.hub.hand_over(stream, message)

    def saw_gap(self, stream: LocalStream) -> None:
        """Say that messages of a stream did not come."""
        self.metrics.count("gaps_total")
        self.log.debug("messages of a stream were missed", attrs={"context": "node", "stream": stream.name})

    def bus_lost(self) -> None:
        """Messages may be missed from now on; positions are kept and checked when the bus is back."""
        self.log.warn("the bus is lost", attrs={"context": "pubsub"})

    def bus_restored(self) -> None:
        """Compare every stream with the broker and fill the holes."""
        self.log.info("the bus is back", attrs={"context": "pubsub"})
        streams = self.hub.streams.values()
        doubtful = [s for s in streams if s.opening is None and s.position.suspect() is Verdict.HEAL]
        queue = iter(doubtful)
        for _ in range(min(HEALED_AT_ONCE, len(doubtful))):
            self.spawn(self._heal_each(queue))

    async def _heal_each(self, queue: Iterator[LocalStream]) -> None:
        """Heal one stream after the other; several do so at once, and no broker is asked for all of them (P7)."""
        for stream in queue:
            try:
                await self._heal(stream)
            except CancelledError:
                raise
            except Exception:  # the others have nothing to do with it
                self._report(Failure())  # type: ignore[no-untyped-call]
