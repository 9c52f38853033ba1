"""The service: on its own in somebody's application, and as the one service that is a twistd process."""

from __future__ import annotations

import logging
import signal
import subprocess
import sys
import time
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from twisted.application.service import Application, IService, MultiService
from twisted.internet.defer import CancelledError, Deferred
from twisted.internet.selectreactor import SelectReactor
from twisted.internet.task import Clock
from twisted.logger import ILogObserver, LogEvent, formatEvent, globalLogPublisher

from anycable_tx import service as service_module
from anycable_tx.config.load import defaults
from anycable_tx.errors import ConfigurationError
from anycable_tx.service import (
    AnyCableService,
    Options,
    StartFailed,
    install_reactor,
    makeService,
    use_monotonic_time,
)


class Reactor(Clock):
    """A clock with the parts of a reactor that the service uses; it runs."""

    def __init__(self) -> None:
        super().__init__()
        self.stopped = 0

    def listenTCP(self, *_: Any) -> Any:
        return self

    def stopListening(self) -> None:
        pass

    def callWhenRunning(self, function: Callable[[], None]) -> None:
        function()

    callFromThread = callWhenRunning

    def stop(self) -> None:
        self.stopped += 1

    def sigTerm(self, number: int, frame: Any = None) -> None:
        raise AssertionError("twistd would raise the signal again")


class Stub:
    """In place of the server: starts when, and as, told."""

    def __init__(self) -> None:
        self.start_result: Deferred[None] = Deferred()
        self.calls: list[str] = []

    async def start(self) -> None:
        self.calls.append("start")
        try:
            await self.start_result
        except CancelledError:
            self.calls.append("unwind")
            raise

    async def stop(self) -> None:
        self.calls.append("stop")

    def hurry(self) -> None:
        self.calls.append("hurry")

    def renew_certificate(self) -> None:
        self.calls.append("renew")
        raise ConfigurationError("ssl_cert: cannot use it")


class World:
    def __init__(self, twistd: dict[str, Any] | None = None, **settings: Any) -> None:
        self.reactor = Reactor()
        self.service = AnyCableService(defaults(**settings), self.reactor, twistd)
        self.stub = Stub()
        self.service.server = self.stub  # type: ignore[assignment]

    def start(self) -> None:
        self.service.privilegedStartService()
        self.service.startService()


@pytest.fixture
def log() -> Any:
    """Everything that is logged meanwhile, as text."""
    texts: list[str] = []

    def observe(event: LogEvent) -> None:
        if event["log_namespace"].startswith("anycable_tx"):
            texts.append(f"{event['log_level'].name} {formatEvent(event)}")

    globalLogPublisher.addObserver(observe)
    yield texts
    globalLogPublisher.removeObserver(observe)


@pytest.fixture
def signals(monkeypatch: pytest.MonkeyPatch) -> dict[int, Any]:
    """The handlers that would have been installed."""
    handlers: dict[int, Any] = {}
    monkeypatch.setattr(signal, "signal", handlers.__setitem__)
    return handlers


@pytest.fixture
def at_exit(monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """What would happen at the process's exit."""
    calls: list[Any] = []
    monkeypatch.setattr("atexit.register", lambda *call: calls.append(call))
    return calls


@pytest.fixture
def unrouted(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Counts the calls that would lead ``logging`` into the log."""
    calls: list[str] = []
    monkeypatch.setattr(service_module, "route_stdlib", lambda: calls.append("routed"))
    return calls


# -- in an application of one's own


def test_a_service_among_others_starts_and_stops_and_touches_neither_signals_nor_logs(
    signals: dict[int, Any], unrouted: list[str]
) -> None:
    reactor = Reactor()
    service = AnyCableService(defaults(public=True, broker="memory"), reactor)
    application = MultiService()
    service.setServiceParent(application)
    before = warnings.showwarning, list(logging.getLogger().handlers), sys.stdout, sys.stderr
    started: list[Any] = []
    service.when_started().addBoth(started.append)
    application.startService()
    assert started == [None]
    assert application.getServiceNamed("anycable") is service
    stopped: list[Any] = []
    application.stopService().addBoth(stopped.append)
    reactor.pump([0.05] * 20)
    assert stopped
    assert (warnings.showwarning, list(logging.getLogger().handlers), sys.stdout, sys.stderr) == before
    assert (signals, unrouted, reactor.stopped) == ({}, [], 0)
    assert reactor.getDelayedCalls() == []


def test_an_application_object_of_ones_own_keeps_its_log(unrouted: list[str]) -> None:
    application = Application("mine")
    AnyCableService(defaults(public=True), Reactor()).setServiceParent(application)
    assert application.getComponent(ILogObserver) is None
    assert unrouted == []


def test_a_start_that_fails_at_once_raises() -> None:
    it = World()
    waiting: list[Any] = []
    it.service.when_started().addErrback(waiting.append)
    it.stub.start_result.errback(ConfigurationError("no luck"))
    with pytest.raises(ConfigurationError, match="no luck"):
        it.start()
    assert [failure.type for failure in waiting] == [ConfigurationError]


@pytest.mark.parametrize("error", [ConfigurationError("no luck"), ValueError("surprise")])
def test_a_start_that_fails_later_is_logged_and_told_and_ends_nobodys_process(
    error: Exception, log: list[str], at_exit: list[Any]
) -> None:
    it = World()
    it.start()
    told: list[Any] = []
    it.service.when_started().addErrback(told.append)
    assert told == []
    it.stub.start_result.errback(error)
    it.service.when_started().addErrback(told.append)
    assert [failure.value for failure in told] == [error, error]
    assert log == [
        "error cannot start: no luck" if isinstance(error, ConfigurationError) else "critical cannot start"
    ]
    assert (it.reactor.stopped, at_exit) == (0, [])


def test_each_who_asks_is_told_of_the_start() -> None:
    it = World()
    told: list[Any] = []
    it.service.when_started().addCallback(told.append)
    it.start()
    it.service.when_started().addCallback(told.append)
    assert told == []
    it.stub.start_result.callback(None)
    it.service.when_started().addCallback(told.append)
    assert told == [None, None, None]


def test_a_stop_gives_up_a_start_that_is_under_way(log: list[str]) -> None:
    it = World()
    it.start()
    told: list[Any] = []
    it.service.when_started().addErrback(told.append)
    stopped: list[Any] = []
    it.service.stopService().addBoth(stopped.append)
    assert stopped == [None]
    assert it.stub.calls == ["start", "unwind", "stop"]
    assert [failure.type for failure in told] == [CancelledError]
    assert log == []


def test_starting_happens_once_whether_there_are_privileges_to_shed_or_not() -> None:
    it = World()
    it.service.startService()
    assert it.stub.calls == ["start"]
    it = World()
    it.start()
    assert it.stub.calls == ["start"]


# -- as a process


def test_under_twistd_a_start_that_fails_at_once_ends_the_process_with_status_1(
    log: list[str], signals: dict[int, Any]
) -> None:
    it = World({"nodaemon": True})
    it.stub.start_result.errback(ConfigurationError("no luck"))
    with pytest.raises(StartFailed, match=r"^no luck$") as raised:
        it.start()
    # twistd cleans up for an Exception; the interpreter ends quietly for a SystemExit.
    assert isinstance(raised.value, Exception)
    assert isinstance(raised.value, SystemExit)
    assert raised.value.code == 1
    assert log == ["error cannot start: no luck"]


@pytest.mark.statement("CO-39")
def test_under_twistd_a_start_that_fails_later_stops_the_reactor_and_the_status_is_1(
    log: list[str], signals: dict[int, Any], at_exit: list[Any]
) -> None:
    it = World({"nodaemon": True})
    it.start()
    it.stub.start_result.errback(ConfigurationError("no luck"))
    assert it.reactor.stopped == 1
    assert [status for _, status in at_exit] == [1]
    assert log == ["error cannot start: no luck"]
    signals[signal.SIGTERM](signal.SIGTERM, None)
    assert it.reactor.stopped == 1


@pytest.mark.statement("CO-43")
@pytest.mark.parametrize(("first", "second"), [(signal.SIGINT, signal.SIGTERM), (signal.SIGTERM, signal.SIGINT)])
def test_the_first_signal_stops_and_the_second_hurries(signals: dict[int, Any], first: int, second: int) -> None:
    it = World({"nodaemon": True})
    it.start()
    it.stub.start_result.callback(None)
    signals[first](first, None)
    assert it.reactor.stopped == 1
    assert "hurry" not in it.stub.calls
    it.service.stopService()
    signals[second](second, None)
    assert it.reactor.stopped == 1
    assert it.stub.calls[-1] == "hurry"


@pytest.mark.statement("CO-39")
def test_a_signal_that_comes_while_the_reactor_begins_to_run_is_no_other_than_a_later_one(
    signals: dict[int, Any],
) -> None:
    """Then the handler of TERM is the reactor's own, and the process would end with the signal."""
    it = World({"nodaemon": True})
    it.start()
    it.reactor.sigTerm(signal.SIGTERM, None)
    assert it.reactor.stopped == 1
    it.service.stopService()
    it.reactor.sigTerm(signal.SIGTERM, None)
    assert it.stub.calls[-1] == "hurry"


def test_a_signal_while_somebody_else_stops_the_reactor_hurries(signals: dict[int, Any]) -> None:
    it = World({"nodaemon": True})
    it.start()
    it.service.stopService()
    signals[signal.SIGTERM](signal.SIGTERM, None)
    assert it.reactor.stopped == 0
    assert it.stub.calls[-1] == "hurry"


def observed(twistd: dict[str, Any], **settings: Any) -> tuple[AnyCableService, Any]:
    """The service and the observer it gave to twistd's application."""
    application = Application("anycable")
    service = AnyCableService(defaults(public=True, **settings), Reactor(), twistd)
    service.setServiceParent(application)
    assert IService(application).getServiceNamed("anycable") is service  # type: ignore[attr-defined]
    return service, application.getComponent(ILogObserver)


EVENT: LogEvent = {"log_time": 0.0, "log_format": "hello", "log_namespace": "x"}


@pytest.mark.statement("CO-32")
@pytest.mark.parametrize("logfile", [None, "", "-"])
def test_in_the_foreground_records_go_to_standard_output(
    logfile: str | None, capsys: pytest.CaptureFixture[str], unrouted: list[str]
) -> None:
    _, observer = observed({"nodaemon": True, "logfile": logfile}, node_id="me")
    observer(EVENT)
    out = capsys.readouterr()
    assert out.out.endswith(" INF hello nodeid=me\n")
    assert out.err == ""
    assert unrouted == ["routed"]


@pytest.mark.parametrize(
    ("twistd", "name"),
    [
        ({"nodaemon": True, "logfile": "a.log"}, "a.log"),
        ({"nodaemon": False, "logfile": "b.log"}, "b.log"),
        ({"nodaemon": False, "logfile": None}, "twistd.log"),
    ],
)
def test_a_log_file_gets_our_records(
    twistd: dict[str, Any], name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, unrouted: list[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    service, observer = observed(twistd, log_format="json", node_id="me")
    observer(EVENT)
    assert '"msg": "hello", "nodeid": "me"' in (tmp_path / name).read_text()
    assert service._log_file is not None
    service._log_file.close()


@pytest.mark.parametrize("option", [{"syslog": True}, {"logger": print}, {"nodaemon": False, "logfile": "-"}])
def test_what_twistd_was_told_about_its_log_stays(option: dict[str, Any], unrouted: list[str]) -> None:
    _, observer = observed({"nodaemon": True, **option})
    assert observer is None
    assert unrouted == ["routed"]


def test_hup_opens_the_log_file_anew_and_usr1_rotates_it(
    signals: dict[int, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, unrouted: list[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    service, observer = observed({"nodaemon": True, "logfile": "it.log"})
    service.server = Stub()  # type: ignore[assignment]
    service.startService()
    observer(EVENT)
    Path("it.log").rename("moved.log")
    signals[signal.SIGHUP](signal.SIGHUP, None)
    observer(EVENT)
    signals[signal.SIGUSR1](signal.SIGUSR1, None)
    observer(EVENT)
    lines = {path.name: len(path.read_text().splitlines()) for path in tmp_path.iterdir()}
    assert lines == {"moved.log": 1, "it.log.1": 1, "it.log": 1}
    assert service._log_file is not None
    service._log_file.close()


def test_without_a_log_file_hup_does_not_end_the_process_and_usr1_is_left_alone(
    signals: dict[int, Any], unrouted: list[str]
) -> None:
    it = World({"nodaemon": True})
    it.start()
    signals[signal.SIGHUP](signal.SIGHUP, None)
    assert it.stub.calls[-1] == "renew"
    assert it.reactor.stopped == 0
    assert set(signals) == {signal.SIGINT, signal.SIGTERM, signal.SIGHUP}


# -- the reactor


class Needy:
    name = "needy"

    def __init__(self, needs: bool) -> None:
        self.needs_asyncio = needs


def test_without_need_no_reactor_is_installed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("twisted.internet.asyncioreactor.install", lambda *_: pytest.fail("installed"))
    monkeypatch.delitem(sys.modules, "twisted.internet.reactor", raising=False)
    install_reactor(defaults(public=True), None)
    install_reactor(defaults(public=True), "epoll")
    assert "twisted.internet.reactor" not in sys.modules


def test_the_parent_of_workers_needs_none_of_what_they_need(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("twisted.internet.asyncioreactor.install", lambda *_: pytest.fail("installed"))
    monkeypatch.delitem(sys.modules, "twisted.internet.reactor", raising=False)
    install_reactor(defaults(public=True, workers=2), None)
    assert "twisted.internet.reactor" not in sys.modules


def test_a_provider_that_needs_asyncio_gets_a_reactor_on_uvloop(monkeypatch: pytest.MonkeyPatch) -> None:
    loops: list[Any] = []
    monkeypatch.setattr("twisted.internet.asyncioreactor.install", loops.append)
    monkeypatch.setattr(service_module, "find", lambda kind, _: Needy(kind == "pubsub"))
    monkeypatch.delitem(sys.modules, "twisted.internet.reactor", raising=False)
    current: list[Any] = []
    monkeypatch.setattr("asyncio.set_event_loop", current.append)
    install_reactor(defaults(public=True), None)
    [loop] = loops
    assert current == [loop]
    assert type(loop).__module__.startswith("uvloop")
    loop.close()


@pytest.mark.parametrize("kind", ["broker", "pubsub", "broadcaster", "controller"])
def test_an_explicit_reactor_without_asyncio_is_refused_in_one_sentence(
    kind: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    class SelectReactor:
        pass

    monkeypatch.setattr(service_module, "find", lambda k, _: Needy(k == kind))
    monkeypatch.setitem(sys.modules, "twisted.internet.reactor", SelectReactor())  # type: ignore[arg-type]
    monkeypatch.setattr("twisted.internet.reactor", sys.modules["twisted.internet.reactor"], raising=False)
    sentence = (
        r"^reactor: the provider 'needy' needs asyncio and the reactor 'select' has none; "
        r"leave out -r, or use -r asyncio$"
    )
    with pytest.raises(ConfigurationError, match=sentence):
        install_reactor(defaults(public=True), "select")


def test_an_explicit_asyncio_reactor_is_respected(monkeypatch: pytest.MonkeyPatch) -> None:
    class AsyncioSelectorReactor:
        pass

    monkeypatch.setattr("twisted.internet.asyncioreactor.install", lambda *_: pytest.fail("installed"))
    monkeypatch.setattr(service_module, "find", lambda *_: Needy(True))
    monkeypatch.setitem(sys.modules, "twisted.internet.reactor", AsyncioSelectorReactor())  # type: ignore[arg-type]
    monkeypatch.setattr("twisted.internet.reactor", sys.modules["twisted.internet.reactor"], raising=False)
    install_reactor(defaults(public=True), "asyncio")


# -- options and the maker


def test_a_reactor_that_does_not_fit_ends_the_process_with_one_line(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def refuse(*_: Any, **__: Any) -> None:
        raise ConfigurationError("reactor: no")

    monkeypatch.setattr(service_module, "install_reactor", refuse)
    with pytest.raises(SystemExit) as raised:
        Options().parseOptions(["--public", "--ignore_config_path"])
    assert raised.value.code == 1
    assert capsys.readouterr().err == "anycable: reactor: no\n"


def test_the_maker_makes_the_service_of_the_options() -> None:
    options = Options()
    options.parseOptions(["--public", "--ignore_config_path", "--node_id=made"])
    service = makeService(options)
    assert isinstance(service, AnyCableService)
    assert service.server.settings["node_id"] == "made"


def test_a_part_that_cannot_be_made_ends_the_process_with_one_line(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    options = Options()
    options.parseOptions(["--public", "--ignore_config_path"])

    def refuse(*_: Any, **__: Any) -> None:
        raise ConfigurationError("broker: cannot be loaded")

    monkeypatch.setattr(service_module, "AnyCableService", refuse)
    with pytest.raises(SystemExit) as raised:
        makeService(options)
    assert raised.value.code == 1
    assert capsys.readouterr().err == "anycable: broker: cannot be loaded\n"


def test_importing_the_service_and_its_options_imports_no_reactor() -> None:
    script = (
        "import sys; from anycable_tx.service import Options; o = Options();"
        "o.parseOptions(['--public', '--ignore_config_path']); str(o);"
        "print('twisted.internet.reactor' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, timeout=30)
    assert done.stdout == "False\n", done.stderr


def test_no_other_module_imports_the_global_reactor() -> None:
    package = Path(service_module.__file__).parent
    importing = "from twisted.internet import " + "reactor"
    found = [
        path.relative_to(package).as_posix()
        for path in package.rglob("*.py")
        if importing in path.read_text("utf-8") or "twisted.internet.reactor" in path.read_text("utf-8")
    ]
    assert found == ["service.py"]


def test_timers_do_not_run_by_the_wall_clock() -> None:
    reactor = SelectReactor()
    use_monotonic_time(reactor)
    call = reactor.callLater(60, lambda: None)
    assert abs(call.getTime() - (time.monotonic() + 60)) < 5
    call.cancel()


def test_a_reactor_with_a_steady_clock_keeps_it() -> None:
    clock = Clock()
    seconds = clock.seconds
    use_monotonic_time(clock)
    assert clock.seconds == seconds
