"""Commands between nodes over NATS: each node carries out each one once, also one sent while it was cut off."""

from __future__ import annotations

from contextlib import suppress
from typing import Any

from twisted.logger import Logger

from anycable_tx.background import sleep
from anycable_tx.cable.messages import RemoteCommand
from anycable_tx.errors import BrokerUnavailable
from anycable_tx.nats.api import Nats
from anycable_tx.nats.jetstream import JetStream, JetStreamError
from anycable_tx.nats.names import Names
from anycable_tx.pubsub.commands import KEPT, KEPT_FOR, SeenCommands, encode

__all__ = ["Commands"]

#: So many seconds a command waits for the word that it is kept.
PATIENCE = 1.0
#: The log is looked at so often, and more often while there is none.
LOOK_EACH, TRY_EACH = 30.0, 5.0
#: ``err_code`` of JetStream: there is no such log; there is one already; so many replicas cannot be had.
_NO_LOG, _EXISTS, _TOO_MANY_REPLICAS = 10059, 10058, (10005, 10074)


class Commands(SeenCommands):
    """What is sent to all nodes, and what of that this one has seen.

    Where there is JetStream, it keeps the commands of the last minute, on *replicas* servers or on one. Where there
    is none, a node that is cut off when a command is sent never hears of it: at most once. So it is with commands of
    AnyCable servers, which are on *internal*; '' if there are no such servers.
    """

    log = Logger()

    def __init__(self, nats: Nats, names: Names, *, internal: str = "", replicas: int = 1) -> None:
        super().__init__()
        self._nats = nats
        self._jetstream = JetStream(nats)
        self._subject = names.commands
        self._internal = internal
        self._replicas = replicas
        self._log = f"{names.prefix.upper()}_C"
        #: Is there a log? None: nobody knows yet.
        self._kept: bool | None = None
        #: Has there ever been one?
        self.ever_kept = False

    async def send(self, command: RemoteCommand) -> None:
        """Publish it, and have it kept for a while. Raises NatsUnavailable: nobody may have heard it.

        All that are connected hear it even if nobody says that it is kept.
        """
        text = encode(command)
        if self._internal:
            self._nats.publish(self._internal, text)
        if not self._kept:
            self._nats.publish(self._subject, text)
            return
        try:
            await self._jetstream.publish(self._subject, text, within=PATIENCE)
        except BrokerUnavailable as e:
            if self._nats.problem():
                raise
            self._is_kept(False, e)

    async def missed(self, since: float) -> list[bytes]:
        """What was sent in the last minute, but not before the Unix time *since*.

        Raises JetStreamError or NatsUnavailable.
        """
        tail = await self._jetstream.last(self._log, self._subject)
        if tail is None:
            return []
        found = await self._jetstream.read(self._log, self._subject, 1, KEPT)
        # The replica that was read may not have all of it.
        while not found or found[-1].offset < tail.offset:
            offset = found[-1].offset + 1 if found else 1
            more = await self._jetstream.next(self._log, self._subject, offset)
            if more is None:
                break
            found.append(more)
        return [each.data for each in found if each.time >= since]

    async def keep(self, reactor: Any) -> None:
        """See to it that there is a log, until this is cancelled."""
        while True:
            await sleep(reactor, LOOK_EACH if self._kept else TRY_EACH)
            await self.look()

    async def look(self) -> None:
        """See to it that there is a log, if that can be done now."""
        if self._nats.problem():
            return
        try:
            await self._ensure()
        except BrokerUnavailable as e:
            if not self._nats.problem():
                self._is_kept(False, e)
        else:
            self._is_kept(True)

    async def _ensure(self) -> None:
        try:
            config = (await self._jetstream.api(f"STREAM.INFO.{self._log}"))["config"]
        except JetStreamError as e:
            if e.err_code != _NO_LOG:
                raise
            await self._create()
            return
        if config["num_replicas"] < self._replicas:
            with suppress(JetStreamError):
                await self._jetstream.api(f"STREAM.UPDATE.{self._log}", {**config, "num_replicas": self._replicas})

    async def _create(self) -> None:
        config = {
            "name": self._log,
            "subjects": [self._subject],
            "storage": "file",
            "max_msgs": KEPT,
            "max_age": round(KEPT_FOR * 1e9),
            "discard": "old",
            "allow_direct": True,
            "num_replicas": self._replicas,
        }
        try:
            await self._jetstream.api(f"STREAM.CREATE.{self._log}", config)
        except JetStreamError as e:
            if e.err_code == _EXISTS:  # another node was faster
                return
            if e.err_code not in _TOO_MANY_REPLICAS or self._replicas == 1:
                raise
            await self._jetstream.api(f"STREAM.CREATE.{self._log}", {**config, "num_replicas": 1})

    def _is_kept(self, kept: bool, why: BrokerUnavailable | None = None) -> None:
        if kept:
            self.ever_kept = True
            if self._kept is False:
                self.log.info("commands between nodes are kept for a minute again", attrs={"context": "pubsub"})
        elif self._kept is not False:
            self.log.warn(
                "commands sent while a node is cut off do not reach it, since JetStream does not keep them: {why}",
                why=why,
                attrs={"context": "pubsub"},
            )
        self._kept = kept
