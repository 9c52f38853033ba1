"""gRPC channels to the hosts of a backend: which of them is ready, and what is done when none is."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Callable, Sequence
from typing import Any

import grpc
from grpc import ChannelConnectivity, aio
from twisted.logger import Logger

from anycable_tx.rpc.definition import METHODS
from anycable_tx.rpc.grpc_address import Host
from anycable_tx.rpc.grpc_tls import Tunnel
from anycable_tx.rpc.transport import CallFailed, Code

__all__ = ["Channel", "Hosts", "channel_options"]

READY = ChannelConnectivity.READY
FAILING = ChannelConnectivity.TRANSIENT_FAILURE

#: Seconds that calls under way have left on a channel that was given up.
GRACE = 60.0
#: A method that does no harm, should it be called by mistake.
HEALTH = "/grpc.health.v1.Health/Check"


def channel_options(max_answer: int) -> tuple[tuple[str, Any], ...]:
    """The options of every channel; answers have at most *max_answer* bytes."""
    balancing = json.dumps({"loadBalancingConfig": [{"round_robin": {}}]})
    return (
        # Found dead in half a minute even when no calls are made; Ruby backends allow just this.
        ("grpc.keepalive_time_ms", 10_000),
        ("grpc.keepalive_timeout_ms", 20_000),
        ("grpc.keepalive_permit_without_calls", 1),
        ("grpc.http2.max_pings_without_data", 0),
        # What may be tried again is decided elsewhere.
        ("grpc.enable_retries", 0),
        # Calls fail until a connection is back, so it is sought more eagerly than by default (1 s to 120 s).
        ("grpc.initial_reconnect_backoff_ms", 200),
        ("grpc.max_reconnect_backoff_ms", 5_000),
        # Else a new channel would go on with the old one's wait.
        ("grpc.use_local_subchannel_pool", 1),
        ("grpc.enable_http_proxy", 0),
        ("grpc.max_receive_message_length", max_answer),
        ("grpc.max_send_message_length", -1),
        ("grpc.service_config", balancing),
    )


class Channel:
    """The channel to one host. *changed* is called when its state did; *tunnel* leads it around checks."""

    log = Logger()

    def __init__(
        self,
        host: Host,
        options: Sequence[tuple[str, Any]],
        credentials: Any,
        changed: Callable[[], None],
        tunnel: Tunnel | None = None,
    ) -> None:
        self._host = host
        self._options = options
        self._credentials = credentials
        self._changed = changed
        self._tunnel = tunnel
        self._told = ""
        self._work: set[asyncio.Task[None]] = set()
        self._old: list[aio.Channel] = []
        #: The last state that was told of.
        self._known = ChannelConnectivity.IDLE
        #: No connection since the channel was made anew because of that.
        self.recovering = False
        #: Why there is no connection, as far as known.
        self.problem = ""
        if tunnel is not None:
            self._spawn(tunnel.run())
        self._open()

    @property
    def state(self) -> ChannelConnectivity:
        """The state now; a channel that nobody used for long begins to connect."""
        return self._channel.get_state(try_to_connect=True)

    @property
    def failing(self) -> bool:
        """There is no connection, and it is known why."""
        return self._known is FAILING and self.state is FAILING

    def reset(self) -> None:
        """Try to connect now, instead of when the wait since the last failure is over."""
        self.recovering = True
        self._known = ChannelConnectivity.IDLE
        self._watching.cancel()
        # A connection that is being closed by the backend may still carry calls.
        self._spawn(self._retire(self._channel))
        self._open()

    async def close(self) -> None:
        """End the connections and the calls they carry."""
        for task in self._work:
            task.cancel()
        for channel in (*self._old, self._channel):
            await channel.close()
        await asyncio.gather(*self._work, return_exceptions=True)

    def _open(self) -> None:
        target = self._tunnel.target if self._tunnel else self._host.target
        if self._credentials is None:
            self._channel = aio.insecure_channel(target, self._options)
        else:
            self._channel = aio.secure_channel(target, self._credentials, self._options)
        #: Method -> how it is called, with bytes both ways.
        self.calls = {name: self._channel.unary_unary(method.path) for name, method in METHODS.items()}
        self._watching = self._spawn(self._watch(self._channel))

    async def _watch(self, channel: aio.Channel) -> None:
        """Tell of every change of state, of failures after their reason is known."""
        while (state := channel.get_state(try_to_connect=True)) is not ChannelConnectivity.SHUTDOWN:
            if state is READY:
                self.recovering = False
                self._tell("")
            elif state is FAILING:
                self._tell(await self._reason(channel))
            self._known = state
            self._changed()
            await channel.wait_for_state_change(state)

    async def _reason(self, channel: aio.Channel) -> str:
        """Why *channel* fails. Only a call is told that; this one fails at once."""
        text = ""
        try:
            await channel.unary_unary(HEALTH)(b"", timeout=1)
        except grpc.RpcError as e:
            if e.code() is grpc.StatusCode.UNAVAILABLE:
                text = (e.details() or "").rpartition("last error: ")[2].removeprefix("UNKNOWN: ")
        if self._tunnel is not None and self._tunnel.problem:
            text = self._tunnel.problem
        return text or "the connection failed"

    def _tell(self, problem: str) -> None:
        self.problem = problem
        attrs = {"context": "rpc", "host": self._host.target}
        if problem and problem != self._told:
            self.log.warn("No connection to the backend: {problem}", problem=problem, attrs=attrs)
        elif not problem and self._told:
            self.log.info("Connected to the backend again", attrs=attrs)
        self._told = problem

    async def _retire(self, channel: aio.Channel) -> None:
        self._old.append(channel)
        await channel.close(GRACE)
        self._old.remove(channel)

    def _spawn(self, work: Any) -> asyncio.Task[None]:
        task: asyncio.Task[None] = asyncio.ensure_future(work)
        self._work.add(task)
        task.add_done_callback(self._work.discard)
        return task


class Hosts:
    """The channels to all hosts, used in turn. To be made while the event loop runs."""

    def __init__(self, make: Callable[[Callable[[], None]], list[Channel]]) -> None:
        self._event = asyncio.Event()
        self._closed = False
        self._next = 0
        self._channels = make(self._changed)

    def pick(self) -> Channel | None:
        """The next channel that is ready, None if there is none."""
        channels = self._channels
        number = len(channels)
        for _ in range(number):
            channel = channels[self._next]
            self._next = (self._next + 1) % number
            if channel.state is READY:
                return channel
        return None

    async def wait(self, until: float | None) -> Channel:
        """The first channel that becomes ready, up to *until* in the loop's time.

        Raises CallFailed: UNAVAILABLE when no host can be reached, but UNREACHABLE if that was so before and they
        were tried out of turn already; TIMEOUT. Nothing was sent then.
        """
        if not self._closed and self._all_failing():
            fresh = [channel for channel in self._channels if not channel.recovering]
            if not fresh:
                raise CallFailed(Code.UNREACHABLE, self.problem(), delivered=False)
            for channel in fresh:
                channel.reset()
        try:
            async with asyncio.timeout_at(until):
                while not self._closed:
                    await self._event.wait()
                    ready = self.pick()
                    if ready is not None:
                        return ready
                    if self._all_failing():
                        raise CallFailed(Code.UNAVAILABLE, self.problem(), delivered=False)
        except TimeoutError:
            raise CallFailed(
                Code.TIMEOUT, "there was no connection to the backend in time", delivered=False
            ) from None
        raise CallFailed(Code.CANCELED, "the server is stopping", delivered=False)

    def problem(self) -> str:
        """Why no host can be reached, '' unless that is known of all."""
        if self._closed or not self._all_failing():
            return ""
        reasons = dict.fromkeys(channel.problem for channel in self._channels if channel.problem)
        return "; ".join(["no connection to the backend", *reasons])

    def connections(self) -> int:
        """How many channels are ready."""
        return 0 if self._closed else sum(channel.state is READY for channel in self._channels)

    async def close(self) -> None:
        """End everything; calls that wait for a connection fail."""
        self._closed = True
        self._changed()
        for channel in self._channels:
            await channel.close()

    def _all_failing(self) -> bool:
        return all(channel.failing for channel in self._channels)

    def _changed(self) -> None:
        # Wakes those that wait now, and nobody after them.
        self._event.set()
        self._event.clear()
