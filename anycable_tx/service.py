"""``twistd anycable``: options, reactor, service. No other module uses the global reactor."""

from __future__ import annotations

import asyncio
import atexit
import os
import signal
import socket
import sys
import time
from collections.abc import Callable, Iterable
from typing import Any

import orjson
from twisted.application.reactors import installReactor
from twisted.application.service import Service
from twisted.internet.defer import Deferred, fail, succeed
from twisted.logger import ILogObserver, Logger
from twisted.python.components import Componentized
from twisted.python.failure import Failure
from twisted.python.logfile import LogFile

from anycable_tx.cable.messages import Publication
from anycable_tx.config.options import Options as BaseOptions
from anycable_tx.config.settings import Settings
from anycable_tx.errors import ConfigurationError
from anycable_tx.logs import make_observer, route_stdlib
from anycable_tx.providers import find
from anycable_tx.supervisor import Notifier, inherited_sockets

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
    if not needy or (settings["workers"] > 1 and not explicit):  # then each worker installs its own
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

        loop: asyncio.AbstractEventLoop = uvloop.new_event_loop()
    except ImportError:
        loop = asyncio.new_event_loop()
    # Providers start before the loop runs, when asyncio cannot find it by itself.
    asyncio.set_event_loop(loop)
    asyncioreactor.install(loop)


def reactor_of(settings: Settings, chosen: str | None) -> Any:
    """The reactor of a process that twistd does not run: the *chosen* one, or what the settings ask for."""
    if chosen:
        installReactor(chosen)
    install_reactor(settings, chosen)
    from twisted.internet import reactor

    use_monotonic_time(reactor)
    return reactor


def use_monotonic_time(reactor: Any) -> None:
    """Let timers run by a clock that never jumps: Twisted's own run by the wall clock, and stall when it is set back.

    To be called before anything is scheduled.
    """
    if getattr(reactor, "seconds", None) is time.time:
        reactor.seconds = time.monotonic


class Options(BaseOptions):
    """The command line of ``twistd anycable``; installs the reactor that the options ask for."""

    def parseOptions(self, options: Any = None) -> None:
        super().parseOptions(options)
        try:
            install_reactor(self.settings, self.parent.get("reactor") if self.parent else None)
        except ConfigurationError as e:
            print(f"anycable: {e}", file=sys.stderr)
            raise SystemExit(1) from None


class StartFailed(SystemExit, Exception):
    """The start failed, for a reason that is in the log.

    An Exception, so that twistd removes its pid file and tells a daemon's parent; a SystemExit, so that the
    process then ends with status 1 and without a traceback.
    """

    def __init__(self, reason: str) -> None:
        super().__init__(1)
        self.reason = reason

    def __str__(self) -> str:
        return self.reason


class AnyCableService(Service):
    """The server as a Twisted service.

    *twistd* is the parsed options of twistd, for the one service that is the process: it leads every log into
    the server's, and handles signals. INT and TERM stop gracefully and the process ends with status 0, a second
    one ends it within a second; a start that fails ends it with status 1. HUP opens the log file anew and reads the
    TLS certificate again, USR1 rotates the log file.

    *sockets* listen already; those with the number of one of our ports are used in its place, and they are ours then.
    Without *listen* no port is opened: clients come through a CableResource (see ``embedding``).
    *notify* is called with ``READY=1`` when all ports accept, and with ``STOPPING=1`` when the stop begins.

    Without *twistd* the service touches neither signals nor logs. A start that fails raises from
    ``startService``, or, when that has returned, is logged; ``when_started`` tells.
    """

    log = Logger()
    name = "anycable"

    def __init__(
        self,
        settings: Settings,
        reactor: Any,
        twistd: Any = None,
        *,
        sockets: Iterable[socket.socket] = (),
        listen: bool = True,
        notify: Callable[[str], None] = lambda state: None,
    ) -> None:
        self._reactor = reactor
        self._settings = settings
        self._twistd = twistd
        self._log_file: LogFile | None = None
        self._starting: Deferred[None] | None = None
        self._waiting: list[Deferred[None]] = []
        self._failure: Failure | None = None
        self._ending = False
        self._notify = notify
        self.server = self._served(sockets, listen, twistd.get("reactor") if twistd else None)

    def publish(self, stream: str, data: Any, id: str = "") -> Deferred[None]:
        """Publish *data*, anything that JSON can say, to *stream*; done when it is stored (P6).

        The same *id* is stored and delivered once. Fails with BrokerUnavailable when it could not be stored.
        """

        async def publish() -> None:
            if self._settings["workers"] > 1:
                raise ConfigurationError("workers: this process has no node; publish over HTTP, or with one worker")
            await self.server.node.publish(Publication(stream, orjson.dumps(data), id=id))

        return Deferred.fromCoroutine(publish())

    def _served(self, sockets: Iterable[socket.socket], listen: bool, chosen: str | None) -> Any:
        """What serves: a server in this process, or workers."""
        settings = self._settings
        if settings["workers"] == 1:
            from anycable_tx.server import Server

            return Server(settings, self._reactor, sockets, listen=listen)
        if not listen:
            raise ConfigurationError("workers: what listens on no port of its own cannot have several; give 1")
        from anycable_tx.workers.pool import Workers

        return Workers(settings, self._reactor, sockets, chosen=chosen)

    # -- the log

    def setServiceParent(self, parent: Any) -> None:
        """Become a part of *parent*; of twistd's application: be what its log looks like."""
        super().setServiceParent(parent)
        if self._twistd is not None and isinstance(parent, Componentized):
            route_stdlib()
            observer = self._observer()
            if observer is not None:
                parent.setComponent(ILogObserver, observer)

    def _observer(self) -> Any:
        """Our log format on twistd's sink: stdout, or the log file it was told; None: twistd's own choice stays."""
        twistd, settings = self._twistd, self._settings
        name, daemon = twistd.get("logfile"), not twistd.get("nodaemon")
        if twistd.get("syslog") or twistd.get("logger") or (daemon and name == "-"):
            return None
        stream: Any = sys.stdout
        if daemon or name not in (None, "", "-"):
            stream = self._log_file = LogFile.fromFullPath(name or "twistd.log")
        return make_observer(
            stream, format=settings["log_format"], level=settings["log_level"], node_id=settings["node_id"]
        )

    # -- start

    def privilegedStartService(self) -> None:
        """Start before privileges are dropped, so that low ports can be bound."""
        super().privilegedStartService()
        self._begin()

    def startService(self) -> None:
        """Start, if that has not begun."""
        super().startService()
        if self._starting is None:
            self._begin()

    def when_started(self) -> Deferred[None]:
        """Done when all ports accept; fails with what the start failed with. A Deferred for each caller."""
        if self._starting is None or not self._ended(self._starting):
            self._waiting.append(Deferred())
            return self._waiting[-1]
        return succeed(None) if self._failure is None else fail(self._failure)

    @staticmethod
    def _ended(deferred: Deferred[None]) -> bool:
        return deferred.called and not deferred.paused

    def _begin(self) -> None:
        if self._twistd is not None:
            # Now, because a port that accepts is taken for a server that stops cleanly; and again when the reactor
            # has put its own handlers in their place.
            self._handle_signals()
            self._reactor.callWhenRunning(self._handle_signals)
            # Between the two the reactor's own is in force.
            self._reactor.sigTerm = self._handler(self._interrupted)
        self._start()

    def _start(self) -> None:
        self._starting = Deferred.fromCoroutine(self.server.start())
        self._starting.addErrback(self._note)
        self._starting.addCallback(self._tell)
        if not self._ended(self._starting):
            self._starting.addCallback(self._started_later)
        elif self._failure is not None:
            self._refuse(self._failure)

    def _note(self, failure: Failure) -> None:
        self._failure = failure

    def _tell(self, result: None) -> None:
        if self._failure is None:
            self._notify("READY=1")
        waiting, self._waiting = self._waiting, []
        for deferred in waiting:
            if self._failure is None:
                deferred.callback(None)
            else:
                deferred.errback(self._failure)

    def _refuse(self, failure: Failure) -> None:
        """The start failed at once."""
        if self._twistd is None:
            failure.raiseException()
        self._report(failure)
        raise StartFailed(str(failure.value))

    def _started_later(self, result: None) -> None:
        """The start took a while."""
        failure = self._failure
        if failure is not None and self.running:
            self._report(failure)
            if self._twistd is not None:
                # twistd cannot be told a status; at this point it has done everything else.
                atexit.register(_exit, 1)
                self._end()

    def _report(self, failure: Failure) -> None:
        if failure.check(ConfigurationError):
            self.log.error("cannot start: {error}", error=failure.value)
        else:
            self.log.failure("cannot start", failure)

    # -- signals

    def _handle_signals(self) -> None:
        # The reactor's own handlers would have twistd raise INT and TERM again after a clean stop.
        self._on(signal.SIGINT, self._interrupted)
        self._on(signal.SIGTERM, self._interrupted)
        self._on(signal.SIGHUP, self._renew)
        if self._log_file is not None:
            self._on(signal.SIGUSR1, self._log_file.rotate)

    def _on(self, number: int, action: Callable[[], None]) -> None:
        signal.signal(number, self._handler(action))

    def _handler(self, action: Callable[[], None]) -> Callable[..., None]:
        return lambda *_: self._reactor.callFromThread(action)

    def _interrupted(self) -> None:
        if self.running and not self._ending:
            self._end()
        else:
            self.log.warn("interrupted again: not waiting any more", attrs={"context": "main"})
            self.server.hurry()

    def _end(self) -> None:
        self._ending = True
        self._reactor.stop()

    def _renew(self) -> None:
        if self._log_file is not None:
            self._log_file.reopen()
        try:
            self.server.renew_certificate()
        except ConfigurationError as e:
            self.log.error("the certificate stays as it was: {error}", error=e)

    # -- stop

    def stopService(self) -> Deferred[None]:
        """Stop gracefully; done when everything has ended. A start that is under way is given up."""
        super().stopService()
        self._notify("STOPPING=1")
        return Deferred.fromCoroutine(self._stop())

    async def _stop(self) -> None:
        if self._starting is not None and not self._ended(self._starting):
            unwound: Deferred[None] = Deferred()
            self._starting.addCallback(unwound.callback)
            self._starting.cancel()
            await unwound
        await self.server.stop()


def _exit(status: int) -> None:
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(status)


def makeService(options: Options) -> AnyCableService:
    """Called by twistd with the parsed options."""
    from twisted.internet import reactor

    use_monotonic_time(reactor)
    try:
        sockets = inherited_sockets(os.environ)
        return AnyCableService(
            options.settings, reactor, options.parent, sockets=sockets, notify=Notifier(os.environ)
        )
    except ConfigurationError as e:
        print(f"anycable: {e}", file=sys.stderr)
        raise SystemExit(1) from None
