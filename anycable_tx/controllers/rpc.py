"""Asks the application's backend: who may connect, what a subscription means, and what a message does."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import suppress
from importlib import import_module
from typing import Any

import orjson
from twisted.logger import Logger
from zope.interface import implementer

from anycable_tx.cable.codec import reject_frame
from anycable_tx.cable.replies import (
    ConnectReply,
    PresenceChange,
    Reply,
    RequestEnv,
    Restored,
    RestoreReply,
    SessionView,
    Status,
    StreamsChange,
)
from anycable_tx.controllers.base import BaseController
from anycable_tx.interfaces import IController, ProviderContext
from anycable_tx.logs import masked_url, shorten
from anycable_tx.metrics import Metrics
from anycable_tx.rpc.calls import CANCELLED, Caller
from anycable_tx.rpc.disconnector import Disconnector
from anycable_tx.rpc.transport import CallFailed, Code, RpcReply, RpcStatus, Transport

__all__ = ["RESTORE_PAUSE", "RpcController", "create_grpc", "create_http"]

#: A backend without ``restore`` is asked again after so many seconds, or once it was unavailable.
RESTORE_PAUSE = 300.0

#: So many characters of what the application says about its error are logged.
LONGEST_ERROR = 300

_STATUS = {RpcStatus.SUCCESS: Status.SUCCESS, RpcStatus.FAILURE: Status.FAILURE}


@implementer(IController)
class RpcController(BaseController):
    """Leaves every decision to the backend behind *transport*.

    What the backend answers with status ERROR, and every call that fails, is a Reply (or ConnectReply) with
    Status.ERROR and the reason ``error`` or the failure's code, after a log record that names session, channel, code
    and the error's text, but nothing that was asked or answered. *settings* are the options of the backend; *impl*
    names the way of calling it.
    """

    log = Logger()
    keeps_env = True

    def __init__(
        self, transport: Transport, settings: Mapping[str, Any], reactor: Any, metrics: Metrics, *, impl: str = "grpc"
    ) -> None:
        self._transport = transport
        self._reactor = reactor
        self._metrics = metrics
        self._caller = Caller(transport, settings, reactor, metrics)
        self._disconnector = Disconnector(
            self._report_end,
            settings,
            reactor,
            metrics,
            workers=lambda: self._caller.concurrency // 2,
            hold=settings["disconnect_grace"],
        )
        self._rejects = settings["rpc_failed_subscribe"] == "reject"
        self._restores = settings["rpc_restore"] != "off"
        self.verifies_restores = settings["rpc_restore"] == "verify"
        #: The backend is known to have no ``restore`` until this time, if it was there all the while.
        self._without_restore = 0.0
        self._outages = 0
        self._told_without_restore = False
        self.announcement = _announcement(settings, impl)

    async def start(self) -> None:
        """Ready to call; the backend need not be there. Raises ConfigurationError."""
        await self._transport.start()

    async def stop(self) -> None:
        """Report the ends of sessions that wait, let the calls under way end, and close the connections.

        Cancelled, it gives up what has not ended (RA-27, RA-40).
        """
        try:
            await self._disconnector.drain()
            await self._caller.stop()
        except CANCELLED:
            self._caller.cancel()
            raise
        finally:
            await self._transport.stop()

    # -- what sessions ask

    async def authenticate(self, sid: str, env: RequestEnv) -> ConnectReply | None:
        """The backend's ``connect``."""
        try:
            reply = await self._call("connect", {"env": _env(env)}, sid)
        except CallFailed as e:
            return ConnectReply(Status.ERROR, reason=e.reason.value)
        status = _STATUS.get(reply.status)
        if status is None:
            return ConnectReply(Status.ERROR, reason="error")
        return ConnectReply(
            status,
            identifiers=reply.identifiers,
            transmissions=_texts(reply.transmissions),
            cstate=reply.cstate,
        )

    async def subscribe(self, session: SessionView, identifier: str) -> Reply | None:
        """The backend's ``subscribe``.

        With ``rpc_failed_subscribe=reject`` a call that failed refuses the subscription (RA-13).
        """
        reply = await self._command("subscribe", session, identifier)
        if reply.status is Status.ERROR and self._rejects:
            self._metrics.count("failed_client_msg_total", reason="undecided")
            return Reply(
                Status.FAILURE,
                transmissions=[reject_frame(identifier)],
                disconnect_interest=0 if reply.reached else -1,
                reason=reply.reason,
                reached=reply.reached,
            )
        return reply

    async def unsubscribe(self, session: SessionView, identifier: str) -> Reply | None:
        """The backend's ``unsubscribe``; whatever it answers, all streams are left."""
        reply = await self._command("unsubscribe", session, identifier)
        reply.stop_streams = True
        return reply

    async def perform(self, session: SessionView, identifier: str, data: str) -> Reply | None:
        """The backend's ``message``, which it is never asked twice unless the first cannot have counted (RA-22)."""
        return await self._command("message", session, identifier, data)

    async def _command(self, command: str, session: SessionView, identifier: str, data: str = "") -> Reply:
        request = _without_empty(
            command=command,
            identifier=identifier,
            connection_identifiers=session.identifiers,
            data=data,
        )
        request["env"] = _env(session.env, session.cstate, session.istate)
        try:
            reply = await self._call("command", request, session.sid, identifier, again=command != "message")
        except CallFailed as e:
            return Reply(Status.ERROR, reason=e.reason.value, reached=e.delivered)
        status = _STATUS.get(reply.status)
        if status is None:
            return Reply(Status.ERROR, reason="error")
        return Reply(
            status,
            transmissions=_texts(reply.transmissions),
            streams=reply.streams,
            stopped_streams=reply.stopped_streams,
            stop_streams=reply.stop_streams,
            cstate=reply.cstate,
            istate=reply.istate,
            presence=_presence(reply.presence),
            disconnect=reply.disconnect,
        )

    # -- the end of a session, and its return

    def gone(self, sid: str) -> None:
        """Calls for the session that wait for their turn fail; its Disconnect, and what runs, goes on."""
        self._caller.gone(sid)

    async def disconnect(self, session: SessionView, subscriptions: dict[str, dict[str, str]]) -> None:
        """Queue the backend's ``disconnect``; a resumable session's waits for the session to come back."""
        request = _without_empty(identifiers=session.identifiers, subscriptions=list(subscriptions))
        request["env"] = _env(session.env, session.cstate, _states(subscriptions))
        self._disconnector.enqueue(session.sid, request, resumable=session.resumable)

    async def withdraw(self, sid: str) -> bool:
        """Take the session's end back if it was not reported yet; True if it was, or may have been."""
        return await self._disconnector.withdraw(sid)

    async def restore(self, restored: Restored) -> RestoreReply | None:
        """The backend's ``restore``; None if it is not to be asked, or has no such method.

        Where it verifies restores, a call that failed is FAILURE: the client authenticates anew.
        """
        if not self._restores or self._has_no_restore():
            return None
        session = restored.session
        request = _without_empty(identifiers=session.identifiers, subscriptions=list(restored.subscriptions))
        request["env"] = _env(session.env, session.cstate, _states(restored.subscriptions))
        request |= _without_empty(prev_sid=restored.previous, disconnect_notified=restored.notified)
        try:
            reply = await self._call("restore", request, session.sid)
        except CallFailed as e:
            if e.reason is Code.UNIMPLEMENTED:
                return None
            return self._not_restored(e.reason.value)
        self._told_without_restore = False
        status = _STATUS.get(reply.status)
        if status is None:
            return self._not_restored("error")
        try:
            istate = {identifier: _state(text) for identifier, text in reply.istate.items()}
        except ValueError as e:
            self._warn("restore", session.sid, "", f"unreadable state: {e}")
            return self._not_restored("unreadable")
        return RestoreReply(
            status,
            identifiers=reply.identifiers,
            transmissions=_texts(reply.transmissions),
            cstate=reply.cstate,
            istate=istate,
            streams={
                change.identifier: StreamsChange(change.stop_streams, change.stopped_streams, change.streams)
                for change in reply.restored_streams
            },
            rejected=reply.rejected_subscriptions,
        )

    def _not_restored(self, reason: str) -> RestoreReply:
        return RestoreReply(Status.FAILURE if self.verifies_restores else Status.ERROR, reason=reason)

    def problem(self) -> str:
        """Why the backend cannot be reached now, '' when nothing is known to be wrong (RA-41)."""
        return self._transport.problem()

    # -- calls

    async def _call(
        self, method: str, request: dict[str, Any], sid: str, identifier: str = "", *, again: bool = True
    ) -> RpcReply:
        """Make the call, and log what went wrong. Raises CallFailed."""
        try:
            reply = await self._caller.call(method, request, sid, again=again)
        except CallFailed as e:
            if method == "restore" and e.reason is Code.UNIMPLEMENTED:
                self._do_without_restore()
            elif e.reason is not Code.CANCELED:
                self._warn(method, sid, identifier, f"{e.reason.value}: {e}")
            raise
        if reply.status not in _STATUS:
            self._warn(method, sid, identifier, f"error: {shorten(reply.error_msg, LONGEST_ERROR)}")
        return reply

    async def _report_end(self, request: dict[str, Any], sid: str) -> RpcReply:
        return await self._call("disconnect", request, sid)

    def _has_no_restore(self) -> bool:
        # After an outage the backend may be a newer one.
        return self._reactor.seconds() < self._without_restore and self._caller.outages == self._outages

    def _do_without_restore(self) -> None:
        self._without_restore = self._reactor.seconds() + RESTORE_PAUSE
        self._outages = self._caller.outages
        if not self._told_without_restore:
            self._told_without_restore = True
            self.log.info("the backend has no restore: sessions resume without asking it", attrs={"context": "rpc"})

    def _warn(self, method: str, sid: str, identifier: str, text: str) -> None:
        attrs = _without_empty(context="rpc", sid=sid, identifier=identifier)
        self.log.warn("{method} call failed: {text}", method=method, text=text, attrs=attrs)


# -- requests


def _without_empty(**fields: Any) -> dict[str, Any]:
    """The fields of a request that say something."""
    return {name: value for name, value in fields.items() if value}


def _env(
    env: RequestEnv | None, cstate: dict[str, str] | None = None, istate: dict[str, str] | None = None
) -> dict[str, Any]:
    url, headers = (env.url, env.headers) if env is not None else ("", {})
    return _without_empty(url=url, headers=headers, cstate=cstate, istate=istate)


def _states(subscriptions: dict[str, dict[str, str]]) -> dict[str, str]:
    """The states of several subscriptions, each as JSON text."""
    return {identifier: orjson.dumps(state).decode() for identifier, state in subscriptions.items() if state}


# -- replies


def _texts(transmissions: list[str]) -> list[bytes]:
    # A text frame has to be UTF-8, even if the backend's JSON named half a character.
    return [text.encode("utf-8", "replace") for text in transmissions]


def _state(text: str) -> dict[str, str]:
    """The state in a reply to ``restore``. Raises ValueError."""
    state = orjson.loads(text)
    if not isinstance(state, dict) or not all(isinstance(value, str) for value in state.values()):
        raise ValueError("not a JSON object of strings")
    return state


def _presence(presence: dict[str, str] | None) -> PresenceChange | None:
    """Its info is JSON, or else plain text."""
    if presence is None:
        return None
    info: Any = presence.get("info") or None
    if info is not None:
        with suppress(ValueError):
            info = orjson.loads(info)
    return PresenceChange(presence.get("type", ""), presence.get("id", ""), info)


# -- settings


def _announcement(settings: Mapping[str, Any], impl: str) -> str:
    host = masked_url(settings["rpc_host"].partition("?")[0])
    concurrency = settings["rpc_concurrency"] or "auto"
    tls = settings["rpc_enable_tls"] or settings["rpc_tls_root_ca"]
    tls = bool(tls) or settings["rpc_host"].startswith(("https://", "grpcs://"))
    headers = ", ".join(settings["headers"]) or "none"
    cookies = ", ".join(settings["proxy_cookies"]) or "all"
    return (
        f'RPC controller initialized: "{host}" (concurrency: {concurrency}, impl: {impl}, '
        f"enable_tls: {str(tls).lower()}, proto_versions: v1, proxy_headers: {headers}, proxy_cookies: {cookies})"
    )


def _create(context: ProviderContext, impl: str) -> IController:
    # Only the way that was chosen is imported: gRPC's library need not be installed for HTTP (RA-42).
    module = import_module(f"anycable_tx.rpc.{impl}_transport")
    transport = module.create(context.settings, context.reactor, context.metrics)
    return RpcController(transport, context.settings, context.reactor, context.metrics, impl=impl)


def create_grpc(context: ProviderContext) -> IController:
    """The controller that calls the backend over gRPC. Raises ConfigurationError."""
    return _create(context, "grpc")


def create_http(context: ProviderContext) -> IController:
    """The controller that calls the backend over HTTP. Raises ConfigurationError."""
    return _create(context, "http")
