"""A worker process. Its parent starts it, with what ``handover`` describes; nobody else does."""

from __future__ import annotations

import os
import signal
import sys
import threading
import time
from io import RawIOBase
from typing import Any

from twisted.internet.defer import CancelledError, Deferred
from twisted.logger import Logger, globalLogBeginner
from twisted.python.failure import Failure

from anycable_tx.errors import ConfigurationError
from anycable_tx.logs import Observer, route_stdlib
from anycable_tx.server import Server
from anycable_tx.service import reactor_of
from anycable_tx.workers.handover import CONTROL, REPORTS, unpack
from anycable_tx.workers.reports import ReportPipe, record

#: A worker whose parent is gone stops within so many seconds, whatever it is doing.
ORPHAN = 2.0
#: At its end it waits so many seconds for its parent to read.
FAREWELL = 1.0


class Worker:
    """One node, from its start to its end, as its parent tells it."""

    log = Logger()

    def __init__(self, server: Server, reactor: Any, reports: ReportPipe) -> None:
        self._server = server
        self._reactor = reactor
        self._reports = reports
        self._starting: Deferred[None] | None = None
        self._stopping: Deferred[None] = Deferred()
        self.status = 0

    async def run(self) -> None:
        """Start, serve until told to stop, and stop."""
        self._starting = Deferred.fromCoroutine(self._server.start())
        try:
            await self._starting
        except CancelledError:
            return
        except Exception:
            self._reports.failed(Failure())  # type: ignore[no-untyped-call]
            self.status = 1
            return
        self._reports.ready()
        await self._stopping
        await self._server.stop()

    def stop(self) -> None:
        """Stop gracefully, or give up the start."""
        if self._starting is not None:
            self._starting.cancel()
        if not self._stopping.called:
            self._stopping.callback(None)

    def hurry(self) -> None:
        """Stop at once."""
        self._server.hurry()
        self.stop()

    def renew(self) -> None:
        """Read the certificate again."""
        try:
            self._server.renew_certificate()
        except ConfigurationError as e:
            self.log.error("the certificate stays as it was: {error}", error=e)


def obey(worker: Worker, reactor: Any, orders: RawIOBase) -> None:
    """Do what the parent says, until it is gone; then end. In a thread, so that a reactor that is stuck ends too."""
    for line in orders:
        order = line.decode().strip()
        if order in ("stop", "hurry", "renew"):
            reactor.callFromThread(getattr(worker, order))
    reactor.callFromThread(worker.hurry)
    time.sleep(ORPHAN)
    os.kill(os.getpid(), signal.SIGKILL)


def main() -> None:
    """The whole life of the process."""
    # What a terminal sends to everybody in front of it, the parent hears too, and decides.
    for number in (signal.SIGINT, signal.SIGHUP, signal.SIGUSR1):
        signal.signal(number, signal.SIG_IGN)
    orders = os.fdopen(CONTROL, "rb", buffering=0)  # a buffer would have a lock, held by a thread that never ends
    try:
        handover = unpack(orders)
    except EOFError:
        sys.exit(1)
    sys.path[:] = handover.path
    settings = handover.settings
    reactor = reactor_of(settings, handover.reactor)
    server = Server(settings, reactor, handover.adopt())
    for how, times in handover.restarts.items():
        server.metrics.count("worker_restarts_total", times, reason=how)
    reports = ReportPipe(reactor, REPORTS, server.metrics)
    observer = Observer(reports, record, settings["log_level"], settings["node_id"])
    globalLogBeginner.beginLoggingTo([observer], redirectStandardIO=True)
    route_stdlib()
    worker = Worker(server, reactor, reports)

    def begin() -> None:
        signal.signal(signal.SIGTERM, lambda *_: reactor.callFromThread(worker.stop))
        threading.Thread(target=obey, args=(worker, reactor, orders), daemon=True).start()
        life = Deferred.fromCoroutine(worker.run())
        life.addErrback(lambda failure: worker.log.failure("unexpected error", failure))
        life.addBoth(lambda _: reactor.stop())

    reactor.callWhenRunning(begin)
    reactor.run(installSignalHandlers=False)
    reports.drain(FAREWELL)
    os._exit(worker.status)  # all has ended: taking the interpreter apart would only cost the parent's time


if __name__ == "__main__":
    main()
