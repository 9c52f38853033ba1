"""The server: builds the parts from the settings, starts them in order, and drains them in order (P8)."""

from __future__ import annotations

import math
import os
import random
import resource
from collections.abc import Awaitable, Mapping
from typing import Any

from twisted.internet.defer import Deferred
from twisted.logger import Logger

from anycable_tx import __version__
from anycable_tx.cable.session import Session
from anycable_tx.controllers.chain import Chain
from anycable_tx.interfaces import IBroadcaster, ProviderContext
from anycable_tx.metrics import Metrics
from anycable_tx.node import Node
from anycable_tx.providers import create, find
from anycable_tx.transports.direct import DirectFlusher
from anycable_tx.transports.factory import CableFactory
from anycable_tx.transports.groups import Flusher
from anycable_tx.transports.listeners import Listeners, direct_path_applies
from anycable_tx.transports.site import Readiness, Sites

__all__ = ["Server"]

#: How often a waiting stop looks again, in seconds.
GLANCE = 0.05


class Server:
    """One node and everything it needs. ``start`` and ``stop`` are called once each."""

    log = Logger()

    def __init__(self, settings: Mapping[str, Any], reactor: Any) -> None:
        self.settings = settings
        self.reactor = reactor
        self.metrics = Metrics()
        direct = direct_path_applies(settings, reactor)
        self.flusher = (DirectFlusher if direct else Flusher)(reactor, self.metrics)
        self.node = Node(settings, reactor, self.metrics, self.flusher)
        self.sites = Sites(settings, reactor, self.metrics)
        self.broadcasters: list[IBroadcaster] = []
        self._build_providers()
        main = settings["port"]
        self.sites.add_health(main, settings["health_path"])
        self.sites.add_route(main, settings["ready_path"], Readiness(self.not_ready))
        self.factory = CableFactory(
            settings, reactor, self.node, self.flusher, self.sites.site_for(main), direct=direct
        )
        self.listeners = Listeners(settings, reactor, self.factory, self.sites)
        self._ready = False
        self._hurry = False
        self._waiting: Deferred[None] | None = None

    def _build_providers(self) -> None:
        """Make the chosen providers; a name that is not found raises ProviderError."""
        settings, node = self.settings, self.node

        def make(kind: str, name: str, **more: Any) -> Any:
            context = ProviderContext(settings, self.reactor, node, self.metrics, **more)
            return create(find(kind, name), context)

        node.pubsub = make("pubsub", settings["pubsub"])
        node.broker = make("broker", settings["broker"], pubsub=node.pubsub)
        node.controllers = Chain([make("controller", name) for name in settings["controllers"]], self.metrics)
        self.broadcasters = [make("broadcaster", name, site=self.sites) for name in settings["broadcast_adapter"]]

    def not_ready(self) -> list[str]:
        """Why no traffic should be sent here; empty when all is well."""
        if self.sites.draining:
            return ["draining"]
        return [] if self._ready else ["starting"]

    # -- start

    async def start(self) -> None:
        """Start everything; done when all ports accept. Raises ConfigurationError for what cannot start."""
        settings, node = self.settings, self.node
        self._announce_start()
        await node.broker.start()
        self.log.info(node.broker.announcement)
        await node.pubsub.start()
        self._announce(node.pubsub.announcement, context="pubsub")
        await node.controllers.start()
        await node.start()
        for broadcaster in self.broadcasters:
            await broadcaster.start()
        self.listeners.open()
        self.factory.start()
        self._ready = True
        for broadcaster in self.broadcasters:
            self._announce(broadcaster.announcement, context="broadcast")
        for line in str(node.controllers.announcement).splitlines():
            self._announce(line)
        origin = f"{self.factory.scheme}://{settings['host']}:{settings['port']}"
        for path in settings["path"]:
            self.log.info("Handle WebSocket connections at {url}", url=origin + path)
        self.log.info("Handle health requests at {url}", url=origin + settings["health_path"])
        self.log.info("Handle readiness requests at {url}", url=origin + settings["ready_path"])

    def _announce_start(self) -> None:
        settings: Any = self.settings
        if settings.presets:
            presets = ",".join(settings.presets)
            self.log.info("load presets", attrs={"context": "config", "presets": presets})
        self.log.info(
            "Starting AnyCable {version} (pid: {pid}, open file limit: {files}, reactor: {name})",
            version=f"{__version__}-tx",
            pid=os.getpid(),
            files=resource.getrlimit(resource.RLIMIT_NOFILE)[0],
            name=type(self.reactor).__name__,
        )
        if settings.config_file:
            self.log.info("Using configuration from file: {path}", path=settings.config_file)
        for notice in settings.notices:
            self.log.warn("{notice}", notice=notice, attrs={"context": "config"})

    def _announce(self, line: str, **attrs: str) -> None:
        if line:
            self.log.info("{line}", line=line, attrs=attrs)

    # -- stop

    def hurry(self) -> None:
        """Do not wait for anybody any more: the stop ends within a second."""
        self._hurry = True
        if self._waiting is not None:
            waiting, self._waiting = self._waiting, None
            waiting.callback(None)

    async def stop(self) -> None:
        """Stop gracefully, within ``shutdown_delay`` and ``shutdown_timeout`` seconds.

        Order: no new connections and publications, those under way finish; clients are closed, paced; then the
        providers stop. Sessions of the extended protocol that can be resumed stay so (P8).
        """
        settings = self.settings
        self.log.info("Shutting down...", attrs={"context": "main"})
        self.sites.draining = True
        await self._sleep(settings["shutdown_delay"])
        deadline = self.reactor.seconds() + settings["shutdown_timeout"]
        await self._bounded("closing ports", self.listeners.close(), deadline)
        await self._bounded("running requests", self.sites.drain(), deadline)
        for broadcaster in self.broadcasters:
            await self._bounded("broadcasters", broadcaster.stop(), deadline)
        await self._close_clients(deadline)
        self.factory.stop()
        await self._bounded("controllers", self.node.controllers.stop(), deadline)
        await self._bounded("background work", self.node.stop(), deadline)
        await self._bounded("broker", self.node.broker.stop(), deadline)
        await self._bounded("pub/sub", self.node.pubsub.stop(), deadline)
        self.log.info("Stopped", attrs={"context": "main"})

    async def _bounded(self, what: str, work: Awaitable[None], deadline: float) -> None:
        """Wait for *work* until the deadline, or half a second once in a hurry; report what did not end or failed."""

        async def run() -> None:
            await work

        task = Deferred.fromCoroutine(run())
        task.addErrback(lambda f: self.log.failure("{what}: failed to stop", f, what=what))
        limit = None
        while not task.called or task.paused:
            now = self.reactor.seconds()
            if self._hurry and limit is None:
                limit = now + 0.5
            if now >= min(deadline, deadline if limit is None else limit):
                self.log.warn("{what}: gave up waiting", what=what, attrs={"context": "main"})
                task.cancel()
                return
            await self._sleep(GLANCE, always=True)

    async def _sleep(self, seconds: float, *, always: bool = False) -> None:
        """Wait, unless in a hurry."""
        if seconds <= 0 or (self._hurry and not always):
            return
        done: Deferred[None] = Deferred()
        call = self.reactor.callLater(seconds, done.callback, None)
        if not always:
            self._waiting = done
        await done
        if call.active():
            call.cancel()
        self._waiting = None

    async def _close_clients(self, deadline: float) -> None:
        """Close every session, paced, and wait until their sockets took what was written."""
        sessions = list(self.node.sessions)
        if sessions:
            self.log.info("closing active connections", attrs={"context": "node", "num": str(len(sessions))})
        random.shuffle(sessions)
        size, gap = self._pace(len(sessions))
        for start in range(0, len(sessions), size):
            for session in sessions[start : start + size]:
                close_for_restart(session)
            if start + size < len(sessions):
                await self._sleep(gap)
        while self.factory.connections > 0 and self.reactor.seconds() < deadline and not self._hurry:
            await self._sleep(GLANCE)
        if self.factory.connections:
            self.log.warn(
                "connections were still open", attrs={"context": "node", "num": str(self.factory.connections)}
            )

    def _pace(self, count: int) -> tuple[int, float]:
        """How many sessions to close at once, and the seconds between: (size, gap)."""
        if not count:
            return 1, 0.0
        timeout = float(self.settings["shutdown_timeout"])
        if self.settings["shutdown_slowdrain"]:
            return 1, min(0.82 * timeout / count, 0.5)
        # At most a third of the time, in steps of 50 ms.
        steps = max(1.0, timeout / 3 / GLANCE)
        return max(int(self.settings["shutdown_pool_size"]), math.ceil(count / steps)), GLANCE


def close_for_restart(session: Session) -> None:
    """Say goodbye before a restart: without a ``disconnect`` frame where the client can resume (P8, D-26)."""
    if session.resumable:
        session.disconnect(1001, "Server restart")
    else:
        session.disconnect(1001, "Server restart", "server_restart", reconnect=True)
