"""The workers of one machine: started together, replaced when they end, stopped together."""

from __future__ import annotations

import math
import socket
import sys
from collections import Counter, defaultdict
from collections.abc import Iterable
from typing import Any

from twisted.internet.defer import CancelledError, Deferred, DeferredList, FirstError, gatherResults
from twisted.logger import Logger, LogLevel, globalLogPublisher
from twisted.python.failure import Failure

from anycable_tx.announce import announce_start
from anycable_tx.config.settings import Settings
from anycable_tx.errors import ConfigurationError
from anycable_tx.metrics import Metrics
from anycable_tx.pause import Pause
from anycable_tx.server import GRACE, Server, embedded_nats
from anycable_tx.transports.listeners import tls_context
from anycable_tx.workers.handover import Handover
from anycable_tx.workers.ports import bind
from anycable_tx.workers.process import WorkerProcess

__all__ = ["Workers"]

#: What has not ended so many seconds after its time was up is killed.
MERCY = 1.0


class Workers:
    """What ``Server`` is for one process, for as many as the settings ask for.

    This process binds the ports and hands their sockets to every worker; it serves nobody itself. Each worker is a
    whole node. One that ends is replaced: at once, and after growing pauses when that ends at once too.
    """

    log = Logger()

    def __init__(
        self, settings: Settings, reactor: Any, sockets: Iterable[socket.socket] = (), chosen: str | None = None
    ) -> None:
        """*sockets* listen already, for ports that need not be bound then; *chosen* is the reactor asked for."""
        self.settings = settings
        self.reactor = reactor
        self.metrics = Metrics()
        #: The NATS server that the workers share, if there is one.
        self.embedded = embedded_nats(settings, reactor, self.metrics)
        # What cannot be made is known here, and said once.
        shared = settings.part(embed_nats=False, metrics_http="")
        self._places = Server(shared, reactor).sites.ports()
        self._sockets = list(sockets)
        self._chosen = chosen
        self._workers: dict[int, WorkerProcess] = {}
        self._pauses: list[Pause] = []
        #: By worker, how its predecessors ended. It counts them with what it counts itself.
        self._restarts: defaultdict[int, Counter[str]] = defaultdict(Counter)
        self._lives: list[Deferred[None]] = []
        self._ending = False
        self._deadline = math.inf
        self._killing: Any = None
        self._leaving: Deferred[None] | None = None

    # -- start

    async def start(self) -> None:
        """Start all; done when each of them accepts.

        Raises ConfigurationError for what cannot start, once for all of them, and WorkerFailed for what nobody
        expected. Then, and when it is cancelled, none is left.
        """
        announce_start(self.log, self.settings, self.reactor, workers=self.settings["workers"])
        self._bind()
        try:
            await self._running()
            if self.embedded is not None:
                await self.embedded.start()
                self.log.info("{line}", line=self.embedded.announcement)
            started = [self._begin(number) for number in range(1, self.settings["workers"] + 1)]
            await gatherResults(started, consumeErrors=True)
        except FirstError as e:
            await self._end("hurry", MERCY)
            e.subFailure.raiseException()
        except BaseException:
            await self._end("hurry", MERCY)
            raise
        self.log.info("Workers are ready", attrs={"context": "workers", "num": len(started)})

    def _bind(self) -> None:
        there = {sock.getsockname()[1] for sock in self._sockets}
        places = [(host or self.settings["host"], port) for host, port in self._places]
        twice = [port for port, count in Counter(port for _, port in places).items() if count > 1]
        if twice:
            raise ConfigurationError(f"workers: they cannot have a port on several addresses, as {twice[0]} is")
        self._sockets += bind(place for place in places if place[1] not in there)

    async def _running(self) -> None:
        """Done when the reactor runs: privileges are dropped then, and no worker may have them."""
        running: Deferred[None] = Deferred()
        self.reactor.callWhenRunning(running.callback, None)
        await running

    def _begin(self, number: int) -> Deferred[None]:
        """Begin the life of a worker and its successors; the Deferred is fired when the first one serves."""
        worker = self._spawn(number)
        life = Deferred.fromCoroutine(self._keep(number, worker))
        life.addErrback(lambda failure: self.log.failure("unexpected error", failure))
        self._lives.append(life)
        return worker.started

    def _spawn(self, number: int) -> WorkerProcess:
        settings = self.settings
        own = settings.part(
            node_id=f"{settings['node_id']}-{number}",
            workers=1,
            embed_nats=False,
            max_conn=math.ceil(settings["max_conn"] / settings["workers"]),
            metrics_port=settings["metrics_port"] + number - 1,
            metrics_tags={**settings["metrics_tags"], "worker": str(number)},
        )
        handover = Handover(own, self._chosen, tuple(sys.path), len(self._sockets), self._restarts[number])
        worker = self._workers[number] = WorkerProcess(handover, self.reactor, globalLogPublisher)
        worker.spawn(self._sockets)
        return worker

    # -- looking after them

    def _is_ending(self) -> bool:
        return self._ending

    async def _keep(self, number: int, worker: WorkerProcess) -> None:
        """Replace the worker whenever it has ended, until all end."""
        pause = Pause(self.reactor)
        self._pauses.append(pause)
        while True:
            begun = self.reactor.seconds()
            how = await worker.ended
            if self._ending:
                return
            pause.lasted(self.reactor.seconds() - begun)
            self._restarts[number][how] += 1
            self._tell_of(worker, "a worker ended and is replaced", LogLevel.error, how=how)
            await pause.wait()
            if self._is_ending():
                return
            worker = self._spawn(number)
            worker.started.addCallbacks(
                self._replaced, self._not_replaced, callbackArgs=(worker,), errbackArgs=(worker,)
            )

    def _tell_of(self, worker: WorkerProcess, text: str, level: Any, **attrs: Any) -> None:
        self.log.emit(level, text, attrs={"context": "workers", "worker": worker.node_id, **attrs})

    def _replaced(self, _: None, worker: WorkerProcess) -> None:
        self._tell_of(worker, "a worker is ready", LogLevel.info, pid=worker.pid)

    def _not_replaced(self, failure: Failure, worker: WorkerProcess) -> None:
        if not self._ending:
            self._tell_of(worker, "a worker cannot start", LogLevel.error, error=failure.value)

    def renew_certificate(self) -> None:
        """Let every worker use what the TLS files hold now. Raises ConfigurationError; then nothing changes."""
        if self.settings["ssl_cert"]:
            tls_context(self.settings)
            self._tell("renew")

    # -- stop

    def hurry(self) -> None:
        """Do not wait for anybody any more: the stop ends within two seconds."""
        self._tell("hurry")
        self._deadline = min(self._deadline, self.reactor.seconds() + MERCY)
        if self._killing is not None and self._killing.active():
            self._killing.reset(max(0.0, self._deadline - self.reactor.seconds()))

    async def stop(self) -> None:
        """Let all workers stop as ``Server.stop`` does, all at a time; kill those that do not. Never raises."""
        if self._ending:  # the start failed, or was given up: all has ended
            return
        settings = self.settings
        self.log.info("Shutting down...", attrs={"context": "workers", "num": len(self._workers)})
        await self._end("stop", settings["shutdown_delay"] + settings["shutdown_timeout"] + GRACE + MERCY)
        self.log.info("Stopped", attrs={"context": "workers"})

    async def _end(self, order: str, within: float) -> None:
        """End all lives. The sockets are closed here too: what nobody accepts from must not take connections."""
        self._ending = True
        now = self.reactor.seconds()
        self._deadline = min(self._deadline, now + within)
        for sock in self._sockets:
            sock.close()
        self._tell(order)
        for pause in self._pauses:
            pause.skip()
        self._killing = self.reactor.callLater(self._deadline - now, self._kill)
        await DeferredList(self._lives)
        if self.embedded is not None:
            self._leaving = Deferred.fromCoroutine(self.embedded.stop())
            self._leaving.addErrback(self._failed_to_stop)
            await self._leaving
        if self._killing.active():
            self._killing.cancel()

    def _failed_to_stop(self, failure: Failure) -> None:
        if not isinstance(failure.value, CancelledError):
            self.log.failure("embedded NATS: failed to stop", failure)

    def _kill(self) -> None:
        for worker in self._workers.values():
            if not worker.ended.called:
                self._tell_of(worker, "a worker did not stop and is killed", LogLevel.warn)
                worker.kill()
        if self._leaving is not None:
            self._leaving.cancel()

    def _tell(self, order: str) -> None:
        for worker in self._workers.values():
            worker.tell(order)
