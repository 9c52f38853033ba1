"""A NATS server of our own: a child process, started, watched, started again, and ended with this one."""

from __future__ import annotations

import secrets
from collections.abc import Mapping
from signal import SIGKILL, SIGTERM, SIGUSR2
from typing import Any

from twisted.internet.defer import CancelledError, Deferred
from twisted.logger import Logger, LogLevel

from anycable_tx.background import Background, sleep
from anycable_tx.errors import ConfigurationError
from anycable_tx.metrics import Metrics
from anycable_tx.nats.binary import INSTALL, find
from anycable_tx.nats.child import Child
from anycable_tx.nats.embedded_plan import Plan
from anycable_tx.nats.monitor import Monitor, Unanswered
from anycable_tx.pause import Pause

__all__ = ["EmbeddedNats"]

#: For so many seconds a start tries again what may pass, such as a port that the last run has not left yet.
STUBBORN = 5.0
#: So long after it accepts, a server of a cluster has met the others, and knows if one of them has its name.
MEETING = 1.5
#: Seconds that a stop waits: for what others lack, for clients to leave, for the end after TERM, and after KILL.
CATCHING_UP, LEAVING, ENDING, DYING = 5.0, 5.0, 5.0, 2.0
GLANCE = 0.1


class EmbeddedNats:
    """What *settings* say, as a child process. Raises ConfigurationError, also when there is no nats-server.

    It needs nothing else of this server, and no asyncio. ``start`` and ``stop`` are called once each.
    """

    log = Logger()

    def __init__(self, settings: Mapping[str, Any], reactor: Any, metrics: Metrics) -> None:
        self._settings = settings
        self._reactor = reactor
        self._metrics = metrics
        metrics.has("embedded_nats")
        self._plan = Plan(settings)
        self._binary = find(settings["enats_binary"])
        if not self._binary:
            named = settings["enats_binary"]
            wrong = f"enats_binary: {named!r} is no program" if named else "embed_nats: there is no nats-server"
            raise ConfigurationError(f"{wrong}; {INSTALL}")
        self._base_path = f"/{secrets.token_urlsafe(16)}"
        self._child: Child | None = None
        self._background = Background(reactor, metrics)
        self._stopping = False
        self._why = "not started"

    @property
    def announcement(self) -> str:
        """The start-up log line."""
        return self._plan.announcement

    @property
    def pid(self) -> int:
        """The process id of the server, 0 while there is none."""
        child = self._child
        return 0 if child is None or child.end else child.pid

    def problem(self) -> str:
        """Why it does not serve now, '' when nothing is known to be wrong."""
        return f"the embedded NATS server: {self._why}" if self._why else ""

    # -- start

    async def start(self) -> None:
        """Clients can connect, and JetStream answers if there is to be one.

        JetStream of a cluster may have to wait for other servers: after ``enats_ready_timeout`` it is waited for no
        longer, which is logged, and ``problem`` says so until it does. Whatever is stored there is refused
        meanwhile. Raises ConfigurationError when the server does not run; then nothing is left of it.
        """
        running: Deferred[None] = Deferred()
        # Before that this process may have other rights, and nothing would tell of a child's end.
        self._reactor.callWhenRunning(running.callback, None)
        await running
        try:
            self._plan.prepare()
            self._background.spawn(self._run())
            await self._wait()
        except BaseException:
            await self._end(0)
            raise

    async def _wait(self) -> None:
        begun = self._reactor.seconds()
        accepts = None
        while True:
            await sleep(self._reactor, GLANCE)
            now, child = self._reactor.seconds(), self._child
            if child is None:
                continue
            if child.duplicate:
                raise ConfigurationError(
                    f"enats_server_name: a server of the name {self._plan.name!r} is in the cluster already"
                )
            if not child.accepts:
                if child.end and now - begun >= STUBBORN:
                    raise self._failed(child.complaint or child.end)
                if now - begun >= self._settings["enats_ready_timeout"]:
                    raise self._failed("it does not accept connections in time; see enats_ready_timeout")
                continue
            accepts = accepts or now
            if self._plan.cluster and self._plan.routes and now - accepts < MEETING:
                continue
            if not self._why:
                return
            if now - begun >= self._settings["enats_ready_timeout"]:
                self.log.warn("{why}; going on without it", why=self.problem(), attrs={"context": "enats"})
                return

    def _failed(self, why: str) -> ConfigurationError:
        return ConfigurationError(f"the embedded NATS server ({self._binary}) does not start: {why}")

    # -- while it runs

    async def _run(self) -> None:
        """Run one child after the other, until it is stopped."""
        pause = Pause(self._reactor)
        while True:
            lasted = await self._run_once()
            if self._stopping:
                return
            pause.lasted(lasted)
            await pause.wait()

    async def _run_once(self) -> float:
        """Run a child, until it ends. Answers for how many seconds it did."""
        loud = self._settings["enats_debug"] or self._settings["enats_trace"]
        self._why = "it is starting"
        chatter = LogLevel.info if loud else LogLevel.debug
        child = self._child = Child(self._reactor, secrets=self._plan.secrets, chatter=chatter)
        begun = self._reactor.seconds()
        child.run([self._binary, "-c", "/dev/stdin"], self._plan.configuration(self._base_path), self._plan.lock)
        self._background.spawn(self._watch(child))
        await child.ended()
        if not self._stopping:
            self._why = child.end
            self._metrics.count("embedded_nats_restarts_total")
            self.log.error("the embedded NATS server is gone: {end}", end=child.end, attrs={"context": "enats"})
        return float(self._reactor.seconds() - begun)

    async def _watch(self, child: Child) -> None:
        """Ask it, until it has said once that all is well."""
        why = self._why
        while why and not child.end:
            await sleep(self._reactor, GLANCE)
            if child.accepts and child.monitor_port:
                why = await Monitor(self._reactor, child.monitor_port, self._base_path).problem()
                if not child.end and not self._stopping:
                    self._why = why

    # -- stop

    async def stop(self) -> None:
        """End it, in at most 17 seconds, and at once when this is cancelled.

        A server of a cluster first waits until the others have what it has, hands over what it leads, and sends its
        clients to them: one that follows another in a rolling restart takes nothing away.
        """
        self._stopping = True
        patience = 0.0
        try:
            if self._plan.cluster and self._plan.jetstream:
                await self._hand_over()
            patience = ENDING
        finally:
            await self._end(patience)

    async def _hand_over(self) -> None:
        child = self._child
        if child is not None and child.accepts and not child.end:
            await self._others_caught_up(child)
            child.signal(SIGUSR2)
            await child.ends_within(LEAVING)

    async def _others_caught_up(self, child: Child) -> None:
        monitor = Monitor(self._reactor, child.monitor_port, self._base_path)
        until = self._reactor.seconds() + CATCHING_UP
        while not child.end:
            try:
                lagging = await monitor.lagging(self._plan.name)
            except Unanswered:
                return
            if not lagging:
                return
            if self._reactor.seconds() >= until:
                self.log.warn(
                    "the embedded NATS server ends although others do not have all it has: {names}",
                    names=", ".join(lagging), attrs={"context": "enats"},
                )  # fmt: skip
                return
            await sleep(self._reactor, GLANCE)

    async def _end(self, patience: float) -> None:
        """End the child, by TERM, and by KILL after so many seconds; and start no other."""
        self._stopping = True
        self._why = "stopped"
        child = self._child
        try:
            if child is not None and not child.end:
                child.signal(SIGTERM)
                if not patience or not await child.ends_within(patience):
                    child.signal(SIGKILL)
                    await child.ends_within(DYING)
        except CancelledError:
            if child is not None:
                child.signal(SIGKILL)
            raise
        finally:
            self._background.cancel_all()
