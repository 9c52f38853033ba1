"""The server: builds the parts from the settings, starts them in order, and drains them in order (P8)."""

from __future__ import annotations

import math
import random
import socket
from collections.abc import Awaitable, Iterable, Mapping
from typing import TYPE_CHECKING, Any

from twisted.internet.defer import CancelledError, Deferred, gatherResults
from twisted.logger import Logger
from twisted.python.failure import Failure

from anycable_tx.announce import announce_start
from anycable_tx.api.rest import RestAPI, has_api
from anycable_tx.cable.session import Session
from anycable_tx.controllers.chain import Chain
from anycable_tx.interfaces import IBroadcaster, IController, ProviderContext
from anycable_tx.metrics import Metrics
from anycable_tx.monitoring.monitor import Monitor
from anycable_tx.node import Node
from anycable_tx.providers import create, find
from anycable_tx.transports.direct import DirectFlusher
from anycable_tx.transports.event_endpoint import EventEndpoint
from anycable_tx.transports.factory import CableFactory
from anycable_tx.transports.groups import Flusher
from anycable_tx.transports.listeners import Listeners, direct_path_applies
from anycable_tx.transports.site import Readiness, Sites

if TYPE_CHECKING:
    from anycable_tx.admin.console import AdminConsole
    from anycable_tx.nats.embedded import EmbeddedNats

__all__ = ["GRACE", "Server", "embedded_nats"]

#: How often a waiting stop looks again, in seconds.
GLANCE = 0.05
#: All steps of a stop together end so many seconds after the time is up.
GRACE = 0.8


class Server:
    """One node and everything it needs. ``start`` and ``stop`` are called once each.

    For *sockets* see Listeners. Without *listen* no port is opened: connections come by ``factory.build_mounted``.
    """

    log = Logger()

    def __init__(
        self,
        settings: Mapping[str, Any],
        reactor: Any,
        sockets: Iterable[socket.socket] = (),
        *,
        listen: bool = True,
    ) -> None:
        self.settings = settings
        self.reactor = reactor
        self.metrics = Metrics()
        direct = direct_path_applies(settings, reactor)
        self.flusher = (DirectFlusher if direct else Flusher)(reactor, self.metrics)
        self.node = Node(settings, reactor, self.metrics, self.flusher)
        self.sites = Sites(settings, reactor, self.metrics)
        self.monitor = Monitor(settings, reactor, self.metrics, self.sites)
        self.controllers: list[IController] = []
        self.broadcasters: list[IBroadcaster] = []
        #: The NATS server that runs beside this one, if there is one.
        self.embedded = embedded_nats(settings, reactor, self.metrics)
        self._build_providers()
        main = settings["port"]
        if settings["health_path"]:
            self.sites.add_health(main, settings["health_path"])
        if settings["ready_path"]:
            self.sites.add_route(main, settings["ready_path"], Readiness(self.not_ready))
        self.api = RestAPI(settings, reactor, self.node, self.sites) if has_api(settings) else None
        self.factory = CableFactory(
            settings, reactor, self.node, self.flusher, self.sites.site_for(main), direct=direct
        )
        if settings["sse"]:
            self.sites.add_route(main, settings["sse_path"], EventEndpoint(self.factory))
        self.listeners = Listeners(settings, reactor, self.factory, self.sites, sockets)
        self.admin = _admin(settings, reactor, self)
        #: What has been started and not been stopped.
        self._started: list[Any] = []
        self._listen = listen
        self._ready = False
        self._hurried = False
        self._deadline = 0.0

    def _build_providers(self) -> None:
        """Make the chosen providers; a name that is not found raises ProviderError."""
        settings, node = self.settings, self.node

        def make(kind: str, name: str, **more: Any) -> Any:
            context = ProviderContext(settings, self.reactor, node, self.metrics, **more)
            return create(find(kind, name), context)

        node.pubsub = make("pubsub", settings["pubsub"])
        node.broker = make("broker", settings["broker"], pubsub=node.pubsub)
        self.controllers = [make("controller", name) for name in settings["controllers"]]
        node.controllers = Chain(self.controllers, self.metrics)
        self.broadcasters = [make("broadcaster", name, site=self.sites) for name in settings["broadcast_adapter"]]

    def not_ready(self) -> list[str]:
        """Why no traffic should be sent here; empty when all is well."""
        if self.sites.draining:
            return ["draining"]
        if not self._ready:
            return ["starting"]
        parts: list[Any] = [self.node.controllers, self.node.broker, self.node.pubsub, *self.broadcasters]
        if self.embedded is not None:
            parts.append(self.embedded)
        return [problem for part in parts if (problem := part.problem())]

    # -- start

    async def start(self) -> None:
        """Start everything; done when all ports accept.

        Raises ConfigurationError for what cannot start, and whatever a provider raises. Then, and when it is
        cancelled, what had been started is stopped again.
        """
        announce_start(self.log, self.settings, self.reactor)
        try:
            await self._start_parts()
            if self._listen:
                self.listeners.open()
        except BaseException:
            self._deadline = self.reactor.seconds() + self.settings["shutdown_timeout"]
            # The ports close in the reactor's next turn; the failure is known now, before a daemon says it runs.
            Deferred.fromCoroutine(self.listeners.close()).addErrback(self._failed_to_stop, "ports")
            await self._stop_parts()
            raise
        self.factory.start()
        self._ready = True
        self._announce_service()

    async def _start_parts(self) -> None:
        node = self.node
        await self._start(self.monitor)
        await self._start(node.controllers)
        # The last of them is the application, or its absence: it is named with the ways in.
        for controller in self.controllers[:-1]:
            self._announce(controller.announcement)
        if self.embedded is not None:
            await self._start(self.embedded)
        await self._start(node.broker)
        self._announce(node.broker.announcement)
        if self.embedded is not None:
            self._announce(self.embedded.announcement)
        await self._start(node.pubsub)
        self._announce(node.pubsub.announcement, context="pubsub")
        await self._start(node)
        for broadcaster in self.broadcasters:
            await self._start(broadcaster)
        for part in (self.api, self.admin):
            if part is not None:
                await self._start(part)

    async def _start(self, part: Any) -> None:
        await part.start()
        self._started.append(part)

    def _announce_service(self) -> None:
        settings = self.settings
        for name, broadcaster in zip(settings["broadcast_adapter"], self.broadcasters, strict=True):
            self._announce(broadcaster.announcement, context="broadcast", provider=name)
        for controller in self.controllers[-1:]:
            self._announce(controller.announcement)
        if not self._listen:
            return
        origin = f"{self.factory.scheme}://{settings['host']}:{settings['port']}"
        for path in settings["path"]:
            self.log.info("Handle WebSocket connections at {url}", url=origin + path)
        paths = {"health": settings["health_path"], "readiness": settings["ready_path"]}
        if settings["sse"]:
            paths["SSE"] = settings["sse_path"]
        for what, path in paths.items():
            if path:
                self.log.info("Handle {what} requests at {url}", what=what, url=origin + path)
        if self.api is not None:
            self._announce(self.api.announcement, context="api")
        if self.admin is not None:
            self._announce(self.admin.announcement, context="admin")
        self.monitor.announce()

    def _announce(self, text: str, **attrs: str) -> None:
        for line in text.splitlines():
            self.log.info("{line}", line=line, attrs=attrs)

    def renew_certificate(self) -> None:
        """Use what the TLS files hold now for new connections. Raises ConfigurationError; then nothing changes."""
        self.listeners.renew_certificate()

    # -- stop

    def hurry(self) -> None:
        """Do not wait for anybody any more: the stop ends within a second."""
        self._hurried = True
        self._deadline = min(self._deadline, self.reactor.seconds())

    async def stop(self) -> None:
        """Stop gracefully, within ``shutdown_delay`` and ``shutdown_timeout`` seconds; never raises.

        Order: no new connections and publications, those under way finish; clients are closed, paced; then the
        providers stop. Sessions of the extended protocol that can be resumed stay so (P8). What does not end in
        time is given up and named; a second later at the latest all is over.
        """
        if not self._started:
            return
        self.log.info("Shutting down...", attrs={"context": "main"})
        self.sites.draining = True
        await self._wait_until(self.reactor.seconds() + self.settings["shutdown_delay"])
        now = self.reactor.seconds()
        self._deadline = now if self._hurried else now + self.settings["shutdown_timeout"]
        # A publisher that takes its time must not cost the clients theirs.
        half = (now + self._deadline) / 2
        await self._bounded("ports", self.listeners.close(), half)
        await self._bounded("running requests", self.sites.drain(), half)
        await self._stop_broadcasters(half)
        await self._stop_part("admin page", self.admin, half)
        await self._close_clients()
        await self._bounded("sessions", self.node.released())
        self.factory.stop()
        await self._stop_parts()
        self.log.info("Stopped", attrs={"context": "main"})

    async def _stop_broadcasters(self, until: float) -> None:
        """All at once, and the API: they do not depend on each other."""
        names = [f"broadcaster {name}" for name in self.settings["broadcast_adapter"]]
        await gatherResults(
            Deferred.fromCoroutine(self._stop_part(what, part, until))
            for what, part in zip([*names, "API"], [*self.broadcasters, self.api], strict=True)
        )

    async def _stop_parts(self) -> None:
        """Stop what has been started, but for listeners and clients."""
        node = self.node
        await self._stop_broadcasters(self._deadline)
        await self._stop_part("admin page", self.admin)
        await self._stop_part("controllers", node.controllers)
        await self._stop_part("background work", node)
        await self._stop_part("broker", node.broker)
        await self._stop_part("pub/sub", node.pubsub)
        await self._stop_part("embedded NATS", self.embedded)
        await self._stop_part("metrics", self.monitor)

    async def _stop_part(self, what: str, part: Any, until: float | None = None) -> None:
        if part in self._started:
            self._started.remove(part)
            await self._bounded(what, part.stop(), until)

    async def _bounded(self, what: str, work: Awaitable[None], until: float | None = None) -> None:
        """Wait for *work*, and report what failed or did not end.

        It has time until *until*. Without one it has time until the deadline, and beyond that half of what is
        left of GRACE, so that the steps behind a stuck one get to do their work.
        """

        async def run() -> None:
            try:
                await work
            except CancelledError:
                if not given_up:
                    raise

        begun = self.reactor.seconds()
        given_up = False
        task = Deferred.fromCoroutine(run())
        task.addErrback(self._failed_to_stop, what)
        while not task.called or task.paused:
            await self._pause(GLANCE)
            if until is None:
                late = max(begun, self._deadline)
                limit = late + (self._deadline + GRACE - late) / 2
            else:
                limit = min(until, self._deadline)
            if self.reactor.seconds() >= limit and (not task.called or task.paused):
                self.log.warn("{what}: gave up waiting", what=what, attrs={"context": "main"})
                given_up = True
                task.cancel()
                return

    def _failed_to_stop(self, failure: Failure, what: str) -> None:
        self.metrics.count("internal_errors_total")
        self.log.failure("{what}: failed to stop", failure, what=what)

    async def _pause(self, seconds: float) -> None:
        done: Deferred[None] = Deferred(lambda _: call.cancel())
        call = self.reactor.callLater(seconds, done.callback, None)
        await done

    async def _wait_until(self, time: float) -> None:
        """Wait, unless in a hurry."""
        while not self._hurried and (left := time - self.reactor.seconds()) > 0:
            await self._pause(min(left, GLANCE))

    async def _close_clients(self) -> None:
        """Close every session, paced, and wait until their sockets took what was written."""
        sessions = list(self.node.sessions)
        if sessions:
            self.log.info("closing active connections", attrs={"context": "node", "num": len(sessions)})
        random.shuffle(sessions)
        begun = self.reactor.seconds()
        size, gap = self._pace(len(sessions), max(0.0, self._deadline - begun))
        for step, start in enumerate(range(0, len(sessions), size)):
            await self._wait_until(begun + step * gap)
            for session in sessions[start : start + size]:
                close_for_restart(session)
        told = set(sessions)
        while self.factory.connections > 0 and self.reactor.seconds() < self._deadline:
            # Who was still being let in when the ports closed is told too.
            for session in self.node.sessions:
                if session not in told:
                    told.add(session)
                    close_for_restart(session)
            await self._pause(GLANCE)
        if self.factory.connections:
            self.log.warn("connections were still open", attrs={"context": "node", "num": self.factory.connections})
        for session in self.node.sessions:
            # Those that did not answer are gone now, while there is a broker to keep their sessions.
            self.node.disconnected(session)

    def _pace(self, count: int, seconds: float) -> tuple[int, float]:
        """How many of *count* sessions to close at once, and the seconds between, to be done in *seconds*."""
        if self.settings["shutdown_slowdrain"]:
            return 1, min(0.82 * seconds / max(count, 1), 0.5)
        # At most a third of the time, in steps of 50 ms.
        steps = max(1.0, seconds / 3 / GLANCE)
        return max(int(self.settings["shutdown_pool_size"]), math.ceil(count / steps)), GLANCE


def _admin(settings: Mapping[str, Any], reactor: Any, server: Server) -> AdminConsole | None:
    if not settings["admin"]:
        return None
    from anycable_tx.admin.console import AdminConsole

    return AdminConsole(settings, reactor, server)


def embedded_nats(settings: Mapping[str, Any], reactor: Any, metrics: Metrics) -> EmbeddedNats | None:
    """The NATS server that runs beside this one, if the settings want it."""
    if not settings["embed_nats"]:
        return None
    from anycable_tx.nats.embedded import EmbeddedNats

    return EmbeddedNats(settings, reactor, metrics)


def close_for_restart(session: Session) -> None:
    """Say goodbye before a restart: without a ``disconnect`` frame where the client can resume (P8, D-26)."""
    if session.resumable:
        session.disconnect(1001, "Server restart")
    else:
        session.disconnect(1001, "Server restart", "server_restart", reconnect=True)
