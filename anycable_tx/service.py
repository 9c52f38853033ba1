"""``twistd anycable``: options, reactor, service. No other module uses the global reactor."""

from __future__ import annotations

import signal
import sys
from collections.abc import Iterable
from typing import Any

from twisted.application.service import Service
from twisted.internet.defer import Deferred
from twisted.logger import ILogObserver, Logger
from twisted.python.components import Componentized
from twisted.python.failure import Failure

from anycable_tx.config.options import Options as BaseOptions
from anycable_tx.config.settings import Settings
from anycable_tx.errors import ConfigurationError
from anycable_tx.logs import make_observer
from anycable_tx.providers import find

__all__ = ["AnyCableService", "Options", "makeService"]


def _chosen(settings: Settings) -> Iterable[Any]:
    yield find("broker", settings["broker"])
    yield find("pubsub", settings["pubsub"])
    for name in settings["broadcast_adapter"]:
        yield find("broadcaster", name)
    for name in settings["controllers"]:
        yield find("controller", name)


def install_reactor(settings: Settings, explicit: str | None) -> None:
    """Install an asyncio reactor if a chosen provider needs one; otherwise leave Twisted's default (epoll).

    *explicit* is what the user gave to ``-r``. It is respected; if it cannot serve a chosen provider,
    ConfigurationError says so.
    """
    needy = [p.name for p in _chosen(settings) if p.needs_asyncio]
    if not needy:
        return
    if "twisted.internet.reactor" in sys.modules or explicit:
        from twisted.internet import reactor

        if type(reactor).__name__ != "AsyncioSelectorReactor":
            raise ConfigurationError(
                f"reactor: the provider {needy[0]!r} needs asyncio and the reactor "
                f"{explicit or type(reactor).__name__!r} has none; leave out -r, or use -r asyncio"
            )
        return
    from twisted.internet import asyncioreactor

    try:
        import uvloop

        loop = uvloop.new_event_loop()
    except ImportError:
        loop = None
    asyncioreactor.install(loop)


class Options(BaseOptions):
    """The command line of ``twistd anycable``; installs the reactor that the options ask for."""

    def parseOptions(self, options: Any = None) -> None:
        super().parseOptions(options)
        try:
            install_reactor(self.settings, self.parent.get("reactor") if self.parent else None)
        except ConfigurationError as e:
            print(f"anycable: {e}", file=sys.stderr)
            raise SystemExit(1) from None


class AnyCableService(Service):
    """The server as a Twisted service.

    Under twistd it also sets up the log and handles INT and TERM: the first stops gracefully and the process
    ends with status 0, a second one ends it within a second.
    """

    log = Logger()
    name = "anycable"

    def __init__(self, settings: Settings, reactor: Any, twistd: Any = None) -> None:
        from anycable_tx.server import Server

        self._reactor = reactor
        self._settings = settings
        self._twistd = twistd
        self._started: Deferred[None] | None = None
        self.server = Server(settings, reactor)

    def setServiceParent(self, parent: Any) -> None:
        super().setServiceParent(parent)
        if self._twistd is not None and isinstance(parent, Componentized):
            observer = self._observer()
            if observer is not None:
                parent.setComponent(ILogObserver, observer)

    def _observer(self) -> Any:
        """Our log format on twistd's sink: stdout, or the log file it was told; None: twistd's own choice stays."""
        if self._twistd.get("syslog") or self._twistd.get("logger"):
            return None
        settings = self._settings
        stream: Any = sys.stdout
        name = self._twistd.get("logfile")
        if name != "-" and (name or not self._twistd.get("nodaemon")):
            from twisted.python.logfile import LogFile

            stream = LogFile.fromFullPath(name or "twistd.log")
        return make_observer(
            stream, format=settings["log_format"], level=settings["log_level"], node_id=settings["node_id"]
        )

    def privilegedStartService(self) -> None:
        """Start before privileges are dropped, so that low ports can be bound."""
        super().privilegedStartService()
        self._start()

    def startService(self) -> None:
        """Start, if that has not begun."""
        super().startService()
        if self._started is None:
            self._start()
        if self._twistd is not None:
            self._reactor.callWhenRunning(self._handle_signals)

    def _start(self) -> None:
        self._started = Deferred.fromCoroutine(self.server.start())
        failed: list[Failure] = []
        self._started.addErrback(failed.append)
        if failed:
            self._refuse_now(failed[0])
        else:
            self._started.addCallback(self._refuse_later, failed)

    def _refuse_now(self, failure: Failure) -> None:
        """The start failed before the reactor runs: one line for a configuration error, and status 1."""
        if failure.check(ConfigurationError) and self._twistd is not None and self._twistd.get("nodaemon"):
            print(f"anycable: {failure.value}", file=sys.stderr)
            raise SystemExit(1)
        failure.raiseException()

    def _refuse_later(self, result: Any, failed: list[Failure]) -> None:
        """The start failed while the reactor runs."""
        if not failed:
            return
        if failed[0].check(ConfigurationError):
            self.log.error("cannot start: {error}", error=failed[0].value)
        else:
            self.log.failure("cannot start", failure=failed[0])
        self._reactor.addSystemEventTrigger("after", "shutdown", _end, 1)
        self._reactor.stop()

    def _handle_signals(self) -> None:
        for number in (signal.SIGINT, signal.SIGTERM):
            signal.signal(number, self._signalled)

    def _signalled(self, number: int, frame: Any) -> None:
        # The reactor's own handler would have twistd raise the signal again after a clean stop.
        self._reactor.callFromThread(self._stop_reactor)

    def _stop_reactor(self) -> None:
        if self.running and not getattr(self, "_stopping", False):
            self._stopping = True
            self._reactor.stop()
        else:
            self.log.warn("interrupted again: not waiting any more", attrs={"context": "main"})
            self.server.hurry()

    def stopService(self) -> Deferred[None]:
        """Stop gracefully; done when everything has ended."""
        super().stopService()
        return Deferred.fromCoroutine(self.server.stop())


def _end(status: int) -> None:
    import os

    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(status)


def makeService(options: Options) -> AnyCableService:
    """Called by twistd with the parsed options."""
    from twisted.internet import reactor

    try:
        return AnyCableService(options.settings, reactor, options.parent)
    except ConfigurationError as e:
        print(f"anycable: {e}", file=sys.stderr)
        raise SystemExit(1) from None
