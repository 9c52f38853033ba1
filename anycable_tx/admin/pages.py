"""The pages that are open: who may open one, what each is sent every second, and what it may ask for."""

from __future__ import annotations

import math
from typing import Any

import orjson
from twisted.internet.task import LoopingCall
from twisted.logger import Logger
from zope.interface import implementer

from anycable_tx.admin.endpoints import ATTRS
from anycable_tx.admin.overview import Filters, Overview
from anycable_tx.admin.tickets import Tickets
from anycable_tx.admin.troubles import LastTroubles, LastWarnings
from anycable_tx.cable.codec import confirm_frame, disconnect_frame, reject_frame, welcome_frame
from anycable_tx.cable.messages import RemoteCommand
from anycable_tx.cable.replies import ConnectReply, Reply, RequestEnv, SessionView, Status
from anycable_tx.controllers.base import BaseController
from anycable_tx.errors import BrokerUnavailable
from anycable_tx.interfaces import IController
from anycable_tx.node import Node

__all__ = ["IDENTIFIER", "PERIOD", "Pages"]

#: What a page subscribes to.
IDENTIFIER = '{"channel":"admin"}'
#: Seconds between what it is sent.
PERIOD = 1.0
#: A page that has not taken so many bytes yet is sent nothing more for now.
HIGH_WATER = 1 << 16
#: The longest filter.
MAX_FILTER = 200


@implementer(IController)
class Pages(BaseController):
    """The controller of the pages' own *node*, and what they are sent. *main* is the node they are about.

    It lets in who shows a ticket, in *header*, and knows one channel. While no page is subscribed nothing is running.
    """

    log = Logger()

    def __init__(self, node: Node, main: Node, tickets: Tickets, overview: Overview, header: str) -> None:
        self._node = node
        self._main = main
        self._tickets = tickets
        self._overview = overview
        self._header = header
        self.warnings = LastWarnings()
        self._troubles = LastTroubles()
        self._looked = -math.inf
        self._filters: dict[str, Filters] = {}
        self._loop = LoopingCall(self._tick)
        self._loop.clock = node.reactor

    async def stop(self) -> None:
        """No page is sent anything any more."""
        self._filters.clear()
        self._rest()

    async def authenticate(self, sid: str, env: RequestEnv) -> ConnectReply | None:
        """SUCCESS for a ticket, FAILURE without one."""
        if self._tickets.take(env.headers.get(self._header, "")):
            return ConnectReply(Status.SUCCESS, sid, [welcome_frame(sid)], disconnect_interest=-1)
        self._main.metrics.count("admin_refusals_total", reason="ticket")
        self.log.warn(
            "an admin page without a ticket was refused", attrs={**ATTRS, "peer": env.headers["REMOTE_ADDR"]}
        )
        refusal = disconnect_frame("unauthorized", reconnect=False)
        return ConnectReply(Status.FAILURE, transmissions=[refusal], reason="ticket")

    async def subscribe(self, session: SessionView, identifier: str) -> Reply | None:
        """What there is to see, at once and from now on."""
        if identifier != IDENTIFIER:
            return Reply(Status.FAILURE, transmissions=[reject_frame(identifier)], disconnect_interest=-1)
        self._filters[session.sid] = Filters()
        if not self._loop.running:
            self._loop.start(PERIOD, now=False)
        return Reply(
            Status.SUCCESS,
            transmissions=[confirm_frame(identifier), self._frame(session.sid)],
            disconnect_interest=-1,
        )

    async def unsubscribe(self, session: SessionView, identifier: str) -> Reply | None:
        """Nothing more."""
        self.gone(session.sid)
        return Reply(Status.SUCCESS, disconnect_interest=-1)

    async def perform(self, session: SessionView, identifier: str, data: str) -> Reply | None:
        """Look at something else, or disconnect a client. ERROR: the page does not ask for such a thing."""
        try:
            asked = orjson.loads(data)
        except orjson.JSONDecodeError:
            return Reply(Status.ERROR)
        match asked:
            case {"action": "show", "clients": str(clients), "streams": str(streams)}:
                self._filters[session.sid] = Filters(clients[:MAX_FILTER], streams[:MAX_FILTER])
                notice = ""
            case {"action": "disconnect", "sid": str(sid)}:
                notice = await self._disconnect(sid)
            case _:
                return Reply(Status.ERROR)
        return Reply(Status.SUCCESS, transmissions=[self._frame(session.sid, notice)], disconnect_interest=-1)

    def gone(self, sid: str) -> None:
        """A page was closed; with the last one everything rests."""
        self._filters.pop(sid, None)
        if not self._filters:
            self._rest()

    def _rest(self) -> None:
        if self._loop.running:
            self._loop.stop()

    async def _disconnect(self, sid: str) -> str:
        """Close the client *sid*, and all others with its identifiers, on every node; answers what to say of it."""
        session = self._main.sessions.get(sid)
        if session is None:
            return "this client is gone"
        command = RemoteCommand("disconnect", {"identifier": session.identifiers, "reconnect": False})
        self.log.info("a client is disconnected from the admin page", attrs={**ATTRS, "sid": session.sid})
        try:
            await self._main.broadcast_command(command)
        except BrokerUnavailable as e:
            return f"it could not be disconnected: {e}"
        return "disconnected"

    # -- what they are sent

    def _tick(self) -> None:
        self._node.spawn(self._send())

    async def _send(self) -> None:
        for sid in list(self._filters):
            session = self._node.sessions.get(sid)
            outlet: Any = session and session.outlet
            if session is not None and outlet.backlog < HIGH_WATER:
                outlet.write(outlet.wire.frame(self._frame(sid)))  # not counted: it is no delivery

    def _frame(self, sid: str, notice: str = "") -> bytes:
        """The message for one page."""
        state = self._overview.read(self._filters.get(sid, Filters()))
        recent = state["now"] - self._looked <= 2 * PERIOD
        self._looked = state["now"]
        self._troubles.look(self._main.metrics, state["time"] if recent else None)
        state["troubles"] = self._troubles.newest_first()
        state["warnings"] = self.warnings.newest_first()
        state["notice"] = notice
        return b'{"identifier":%b,"message":%b}' % (orjson.dumps(IDENTIFIER), orjson.dumps(state))
