"""An Action Cable client for tests, which resumes the way the official JavaScript client does.

It needs the package ``websockets`` (extra ``test``) and asyncio::

    async with CableClient("ws://127.0.0.1:8080/cable") as client:
        identifier = await client.subscribe(stream="chat/1")
        message = await client.message(identifier)

Like the official client it remembers the last position of each stream, whatever its order, removes no duplicates,
asks for history when it subscribes and for every subscription it gets back with a resumed session, and forgets its
session when the server says ``disconnect``.
"""

from __future__ import annotations

import asyncio
import inspect
import itertools
import json
from collections.abc import Callable, Iterable, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from types import TracebackType
from typing import Any
from urllib.parse import urlencode, urlsplit, urlunsplit

import websockets
from websockets.asyncio.client import ClientConnection, connect

from anycable_tx.testing.checker import EventLog
from anycable_tx.testing.identifiers import identifier_of, message_id, streams_of
from anycable_tx.testing.inbox import Frame, Inbox
from anycable_tx.testing.memory import Memory

__all__ = ["BASE", "EXT", "CableClient", "Disconnected", "Rejected"]

BASE = "actioncable-v1-json"
EXT = "actioncable-v1-ext-json"
_OPTIONS: dict[str, Any] = {"ping_interval": None, "max_size": None, "compression": None, "close_timeout": 2}
if "proxy" in inspect.signature(connect.__init__).parameters:
    _OPTIONS["proxy"] = None


class Disconnected(ConnectionError):
    """The connection ended: by the ``disconnect`` frame *frame*, if there was one, and the close code *code*."""

    def __init__(self, frame: Frame | None, code: int | None):
        super().__init__(f"{frame or 'no disconnect frame'}, close code {code}")
        self.frame = frame
        self.code = code


class Rejected(Exception):
    """The server rejected the subscription; it is not tried again."""


@dataclass
class _Subscription:
    identifier: str
    streams: tuple[str, ...]
    presence: dict[str, Any] | None = None
    confirmed: bool = False
    asked: dict[str, Any] | None = None
    answer: asyncio.Future[bool] = field(default_factory=lambda: asyncio.get_running_loop().create_future())


class CableClient:
    """One client over all its connections. An async context manager: connects, and leaves for good.

    ``frames`` holds every frame of the current connection, ``sid`` the session, ``restored`` whether the last
    welcome said so, ``memory`` the positions, ``connection`` counts from 1, ``disconnect`` is the last
    connection's disconnect frame, ``close_code`` and ``close_reason`` tell how it ended.
    """

    def __init__(
        self,
        url: str,
        *,
        name: str = "client",
        protocol: str = EXT,
        protocols: Iterable[str] | None = None,
        token: str | None = None,
        token_in: str = "param",
        params: Mapping[str, str] | None = None,
        headers: Mapping[str, str] | None = None,
        log: EventLog | None = None,
        id_of: Callable[[Any], Any] = message_id,
        since: int | bool | None = None,
        pongs: bool = False,
        reconnect_after: Callable[[int], float] | None = None,
        keep_frames: bool = True,
    ):
        """*token_in*: "param", "header" or "protocol". *protocols* replaces the list that is offered.

        *since*: seconds, or False for no clock; by default the client's own, moved on with each ping.
        *reconnect_after*: attempt number (from 0) -> seconds to wait; without it nothing reconnects by itself.
        *log* gets events for the checker; *id_of* finds the id in a message. Without *keep_frames* nothing is
        kept for ``expect`` and ``messages``.
        """
        self.url = url
        self.name = name
        self.protocol = protocol
        self.frames: list[Frame] = []
        self.sid: str | None = None
        self.restored = False
        self.memory = Memory(since)
        self.connection = 0
        self.pings = 0
        self.close_code: int | None = None
        self.close_reason = ""
        self.disconnect: Frame | None = None
        self._offered = list(protocols) if protocols is not None else [protocol]
        self._params = dict(params or {})
        self._headers = dict(headers or {})
        self.set_token(token, token_in)
        self._log = log
        self._id_of = id_of
        self._pongs = pongs
        self._reconnect_after = reconnect_after
        self._keep_frames = keep_frames
        self._subscriptions: dict[str, _Subscription] = {}
        self._pending_history: dict[str, asyncio.Future[bool]] = {}
        self._pending_presence: dict[str, asyncio.Future[Frame]] = {}
        self._pending_pongs: list[asyncio.Future[None]] = []
        self._inbox = Inbox()
        self._ws: ClientConnection | None = None
        self._welcome: asyncio.Future[Frame] | None = None
        self._reader: asyncio.Task[None] | None = None
        self._return: asyncio.Task[None] | None = None
        self._leaving = False

    # -- the connection

    async def connect(self, within: float = 10.0) -> Frame:
        """Open a connection, resuming if there is a session to resume; answers the welcome frame.

        Raises Disconnected when the server ends it first, TimeoutError, and what ``websockets`` raises when it
        is refused.
        """
        parts = urlsplit(self.url)
        params = dict(self._params)
        if self.sid is not None and self.protocol == EXT:
            params["sid"] = self.sid
        url = urlunsplit(parts._replace(query="&".join(filter(None, (parts.query, urlencode(params))))))
        protocols: Any = self._offered + self._token_protocol
        headers = {**self._headers, **self._token_header}
        ws = await connect(
            url, subprotocols=protocols or None, additional_headers=headers, open_timeout=within, **_OPTIONS
        )
        self._ws = ws
        self._leaving = False
        self.connection += 1
        self.frames, self._inbox.frames, self.disconnect = [], [], None
        self._welcome = asyncio.get_running_loop().create_future()
        self._reader = asyncio.create_task(self._read(ws))
        try:
            return await asyncio.wait_for(asyncio.shield(self._welcome), within)
        except TimeoutError:
            ws.transport.abort()
            raise

    async def resume(self, within: float = 10.0) -> bool:
        """Connect again and catch up; answers whether the server restored the session."""
        await self.connect(within)
        await self.caught_up(within)
        return self.restored

    async def caught_up(self, within: float = 10.0) -> None:
        """Return once every subscription is confirmed and every history request answered. Raises TimeoutError."""
        subscriptions = self._subscriptions.values()
        await self._inbox.until(
            lambda: not self._pending_history and all(one.confirmed for one in subscriptions), within
        )

    async def cut(self) -> None:
        """Break the TCP connection without a word."""
        if self._ws is not None:
            self._ws.transport.abort()
        await self.ended()

    async def ended(self, within: float = 10.0) -> Disconnected:
        """Wait until the connection has ended; answers how. Raises TimeoutError."""
        if self._reader is not None:
            await asyncio.wait_for(asyncio.shield(self._reader), within)
        return Disconnected(self.disconnect, self.close_code)

    async def close(self, code: int = 1000) -> None:
        """Leave for good."""
        self._leaving = True
        if self._return is not None:
            self._return.cancel()
            with suppress(asyncio.CancelledError):
                await self._return
        if self._ws is not None:
            await self._ws.close(code)
            await self.ended()
        self._record("gone")

    async def __aenter__(self) -> CableClient:
        await self.connect()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, e: BaseException | None, tb: TracebackType | None
    ) -> None:
        await self.close()

    def set_token(self, token: str | None, token_in: str = "param") -> None:
        """Use another token from the next connection on."""
        self._token_protocol = [f"anycable-token.{token}"] if token and token_in == "protocol" else []
        self._token_header = {"x-jid": token} if token and token_in == "header" else {}
        if token and token_in == "param":
            self._params["jid"] = token

    # -- commands

    async def send(self, command: str, **fields: Any) -> None:
        """Send one command as it is. Raises Disconnected."""
        await self.send_text(json.dumps({"command": command, **fields}, separators=(",", ":")))

    async def send_text(self, text: str | bytes) -> None:
        """Send one message, whatever is in it; bytes go in a binary frame. Raises Disconnected."""
        if self._ws is None:
            raise Disconnected(self.disconnect, self.close_code)
        await self._ws.send(text)

    async def subscribe(
        self,
        identifier: str | None = None,
        *,
        stream: str | None = None,
        streams: Iterable[str] | None = None,
        presence: dict[str, Any] | None = None,
        within: float = 10.0,
    ) -> str:
        """Subscribe to *identifier*, or to the public stream *stream*; answers the identifier once confirmed.

        *streams* names, for the checker, what the server subscribes it to, where the identifier does not say.
        Asked twice within *within*, as the official client does. Raises Rejected, TimeoutError or Disconnected.
        """
        identifier = identifier or identifier_of("$pubsub", stream_name=stream)
        subscription = _Subscription(identifier, tuple(streams or streams_of(identifier)), presence)
        if self._log is not None and not subscription.streams:
            raise ValueError(f"streams: the checker needs to be told the streams of {identifier}")
        self._subscriptions[identifier] = subscription
        await self._ask_to_subscribe(subscription)
        for attempt in range(2):
            if attempt and self._ws is not None:
                await self._ask_to_subscribe(subscription)
            with suppress(TimeoutError):
                await asyncio.wait_for(asyncio.shield(subscription.answer), within / 2)
                return identifier
        self._subscriptions.pop(identifier, None)
        raise TimeoutError(f"no answer to the subscription to {identifier} within {within} s")

    async def unsubscribe(self, identifier: str) -> None:
        """Unsubscribe, and wait until the server must have read that."""
        self._subscriptions.pop(identifier, None)
        self._pending_history.pop(identifier, None)
        self._record("unsubscribing", identifier=identifier)
        await self.send("unsubscribe", identifier=identifier)
        await self.ping()
        self._record("unsubscribed", identifier=identifier)

    async def ping(self, within: float = 10.0) -> None:
        """Send a ping and wait for its pong. Raises TimeoutError or Disconnected."""
        pong: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._pending_pongs.append(pong)
        await self.send("ping")
        await asyncio.wait_for(pong, within)

    async def perform(self, identifier: str, action: str, **data: Any) -> None:
        """Call an action of the channel."""
        await self.send("message", identifier=identifier, data=json.dumps({**data, "action": action}))

    async def whisper(self, identifier: str, data: Any) -> None:
        """Send *data* to the other subscribers."""
        await self.send("whisper", identifier=identifier, data=data)

    async def history(
        self, identifier: str, streams: dict[str, Any] | None = None, since: int | None = None, within: float = 10.0
    ) -> bool:
        """Ask for history by positions ``{stream: {"epoch", "offset"}}`` or seconds; True if it was given.

        The messages arrive as usual, before this returns. Raises TimeoutError.
        """
        request = {k: v for k, v in (("since", since), ("streams", streams)) if v is not None}
        self._record("asked", identifier=identifier, **{"from": streams or {}})
        answer = self._expect_history(identifier)
        await self.send("history", identifier=identifier, history=request)
        return await asyncio.wait_for(answer, within)

    async def join(self, identifier: str, id: str, info: Any = None) -> None:
        """Be present as *id*, again after every resume."""
        presence = {"id": id} if info is None else {"id": id, "info": info}
        if identifier in self._subscriptions:
            self._subscriptions[identifier].presence = presence
        await self.send("join", identifier=identifier, presence=presence)

    async def leave(self, identifier: str) -> None:
        """Be present no more."""
        if identifier in self._subscriptions:
            self._subscriptions[identifier].presence = None
        await self.send("leave", identifier=identifier)

    async def presence(self, identifier: str, within: float = 10.0, **data: Any) -> Frame:
        """Who is there: the message of type ``info`` or ``error``. Raises TimeoutError or Disconnected."""
        answer = self._pending_presence[identifier] = asyncio.get_running_loop().create_future()
        await self.send("presence", identifier=identifier, data=data)
        return await asyncio.wait_for(answer, within)

    # -- expectations

    async def expect(self, within: float = 5.0, **fields: Any) -> Frame:
        """Take the first frame with these *fields* that was not taken yet. Raises TimeoutError, naming the others.

        Frames that a call has waited for (welcome, pong, confirmation, presence) are taken already.
        """
        return await self._inbox.take(within, **fields)

    async def message(self, identifier: str, within: float = 5.0) -> Any:
        """Take the next message of a subscription and answer what is in it. Raises TimeoutError."""
        return (await self.messages(identifier, 1, within))[0]

    async def messages(self, identifier: str, count: int, within: float = 5.0) -> list[Any]:
        """Take the next *count* messages of a subscription, in order of arrival. Raises TimeoutError."""
        return await self._inbox.take_messages(identifier, count, within)

    async def expect_silence(self, seconds: float = 0.3) -> None:
        """Raise AssertionError if anything but pings arrives, or was not taken yet."""
        await self._inbox.silence(seconds)

    # -- what arrives

    async def _read(self, ws: ClientConnection) -> None:
        try:
            async for text in ws:
                frame = json.loads(text)
                taken = await self._handle(frame)
                if self._keep_frames:
                    self.frames.append(frame)
                    if not taken:
                        self._inbox.frames.append(frame)
                self._inbox.changed()
        except (websockets.ConnectionClosed, OSError):
            pass  # how it ended is in close_code
        finally:
            self._end(ws)

    def _end(self, ws: ClientConnection) -> None:
        self._ws = None
        self.close_code, self.close_reason = ws.close_code, ws.close_reason or ""
        waiting: list[asyncio.Future[Any]] = [*self._pending_presence.values(), *self._pending_pongs]
        waiting += [*self._pending_history.values(), *([self._welcome] if self._welcome is not None else [])]
        for future in waiting:
            if not future.done():
                future.set_exception(Disconnected(self.disconnect, ws.close_code))
                future.exception()  # nobody has to look
        self._pending_history.clear()
        self._pending_presence.clear()
        self._pending_pongs.clear()
        for subscription in self._subscriptions.values():
            subscription.confirmed = False
        self._inbox.changed()
        if not self._leaving:
            self._record("cut", connection=self.connection)
        self._schedule_return()

    def _schedule_return(self) -> None:
        wanted = self.disconnect is None or self.disconnect.get("reconnect")
        idle = self._ws is None and self._return is None
        if self._reconnect_after is not None and wanted and idle and not self._leaving:
            self._return = asyncio.create_task(self._come_back(self._reconnect_after))

    async def _come_back(self, delay: Callable[[int], float]) -> None:
        for attempt in itertools.count():
            await asyncio.sleep(delay(attempt))
            try:
                await self.connect()
                break
            except (OSError, TimeoutError, websockets.WebSocketException):
                if self.disconnect is not None and not self.disconnect.get("reconnect"):
                    break
        self._return = None
        self._schedule_return()

    async def _handle(self, frame: Frame) -> bool:
        """Act on a frame; answers True if a call was waiting for it."""
        kind, identifier = frame.get("type"), frame.get("identifier", "")
        if kind == "welcome":
            await self._welcomed(frame)
            return True
        if kind == "confirm_subscription":
            return await self._confirmed(identifier)
        if kind == "reject_subscription":
            subscription = self._subscriptions.pop(identifier, None)
            if subscription is not None and not subscription.answer.done():
                subscription.answer.set_exception(Rejected(identifier))
                return True
        elif kind == "presence":
            pending = self._pending_presence.get(identifier)
            if pending is not None and frame["message"].get("type") in ("info", "error"):
                del self._pending_presence[identifier]
                pending.set_result(frame["message"])
                return True
        elif kind == "pong":
            if self._pending_pongs:
                self._pending_pongs.pop(0).set_result(None)
                return True
        elif kind == "ping":
            self.pings += 1
            self.memory.tick()
            if self._pongs:
                await self.send("pong")
        elif kind == "disconnect":
            self.disconnect, self.sid = frame, None
        elif kind in ("confirm_history", "reject_history"):
            self._history_answered(identifier, kind == "confirm_history")
        elif "message" in frame:
            self._received(identifier, frame)
        return False

    async def _welcomed(self, frame: Frame) -> None:
        self.sid = frame.get("sid")
        self.restored = bool(frame.get("restored"))
        kept = frame.get("restored_ids", list(self.memory.streams)) if self.restored else []
        self._record("connected", connection=self.connection, restored=self.restored, identifiers=kept)
        for identifier in kept:
            self._expect_history(identifier)
            await self.send("history", identifier=identifier, history=self.memory.request(identifier))
            subscription = self._subscriptions.get(identifier)
            if subscription is not None:
                subscription.confirmed = True
                if not subscription.answer.done():
                    self._subscribed(subscription)
                if subscription.presence is not None:
                    await self.send("join", identifier=identifier, presence=subscription.presence)
        for subscription in list(self._subscriptions.values()):
            if not subscription.confirmed:
                await self._ask_to_subscribe(subscription)
        if self._welcome is not None and not self._welcome.done():
            self._welcome.set_result(frame)

    async def _confirmed(self, identifier: str) -> bool:
        subscription = self._subscriptions.get(identifier)
        if subscription is None or subscription.confirmed:
            await self.send("unsubscribe", identifier=identifier)
            return False
        subscription.confirmed = True
        self.memory.confirmed(identifier)
        if subscription.asked is not None:
            self._expect_history(identifier)
        return self._subscribed(subscription)

    def _subscribed(self, subscription: _Subscription) -> bool:
        values = {"identifier": subscription.identifier, "streams": subscription.streams}
        self._record("subscribed", **values, **{"from": subscription.asked})
        if subscription.answer.done():
            return False
        subscription.answer.set_result(True)
        return True

    def _history_answered(self, identifier: str, confirmed: bool) -> None:
        if not confirmed:
            self._record("refused", identifier=identifier)
        pending = self._pending_history.pop(identifier, None)
        if pending is not None and not pending.done():
            pending.set_result(confirmed)

    def _received(self, identifier: str, frame: Frame) -> None:
        stream, epoch, offset = frame.get("stream_id"), frame.get("epoch"), frame.get("offset")
        position = {"stream": stream, "epoch": epoch, "offset": offset} if stream and epoch else {}
        if stream and epoch and frame["message"]:
            self.memory.track(identifier, stream, epoch, offset)
        how = "replay" if identifier in self._pending_history else "live"
        id = self._id_of(frame["message"])
        self._record("received", connection=self.connection, identifier=identifier, id=id, how=how, **position)

    # -- what is asked

    async def _ask_to_subscribe(self, subscription: _Subscription) -> None:
        request: dict[str, Any] = {"identifier": subscription.identifier}
        subscription.asked = None
        if self.protocol == EXT:
            history = self.memory.request(subscription.identifier)
            if history is not None:
                request["history"] = history
                subscription.asked = dict(history["streams"])
            if subscription.presence is not None:
                request["presence"] = subscription.presence
        await self.send("subscribe", **request)

    def _expect_history(self, identifier: str) -> asyncio.Future[bool]:
        answer: asyncio.Future[bool] = asyncio.get_running_loop().create_future()
        self._pending_history[identifier] = answer
        return answer

    def _record(self, event: str, **values: Any) -> None:
        if self._log is not None:
            self._log.record(event, client=self.name, **values)
