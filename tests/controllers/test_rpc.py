"""The controller that asks the backend: what it asks, and what becomes of the answers."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from types import ModuleType
from typing import Any

import pytest
from twisted.internet.defer import CancelledError, Deferred
from twisted.internet.task import Clock
from twisted.logger import LogEvent, LogLevel, capturedLogs, formatEvent
from zope.interface.verify import verifyObject

from anycable_tx.cable.replies import (
    ConnectReply,
    PresenceChange,
    Reply,
    RequestEnv,
    Restored,
    RestoreReply,
    SessionView,
    Status,
    StreamsChange,
)
from anycable_tx.controllers import rpc
from anycable_tx.controllers.rpc import RESTORE_PAUSE, RpcController
from anycable_tx.interfaces import IController, ProviderContext
from anycable_tx.metrics import Metrics
from anycable_tx.rpc.transport import Code, RestoredStreams, RpcReply, RpcStatus
from anycable_tx.testing.sync import result_of
from tests.rpc.support import Attempt, Begun, Outcome, Scripted, counted, failed, ok, settings, spin

USER = '{"user_id":42}'
CHAT = '{"channel":"ChatChannel","id":7}'
OTHER = '{"channel":"Other"}'
ENV = RequestEnv("http://localhost:8080/cable", {"REMOTE_ADDR": "127.0.0.1", "cookie": "_sid=abc"})
WIRE_ENV = {"url": ENV.url, "headers": ENV.headers}
SESSION = SessionView("S", USER, ENV, {"plan": '"pro"'}, {"room": "7"})
ERROR = RpcReply(RpcStatus.ERROR, error_msg="oops", transmissions=["x"], streams=["s"])
REJECTED = b'{"type":"reject_subscription","identifier":"{\\"channel\\":\\"ChatChannel\\",\\"id\\":7}"}'


def refusal(**more: Any) -> RpcReply:
    return RpcReply(RpcStatus.FAILURE, **more)


class Setup:
    """A controller with a scripted backend that answers at once; failures are not tried again."""

    def __init__(self, *outcomes: Outcome, **given: Any) -> None:
        self.clock = Clock()
        self.metrics = Metrics()
        self.transport = Scripted(self.clock)
        self.transport.outcomes.extend(outcomes)
        self.rpc = RpcController(self.transport, settings(**given), self.clock, self.metrics)

    @property
    def asked(self) -> list[tuple[str, dict[str, Any], str]]:
        return [attempt[:3] for attempt in self.transport.attempts]

    def subscribe(self) -> Reply | None:
        return result_of(self.rpc.subscribe(SESSION, CHAT))

    def restore(self, *, notified: bool = True) -> RestoreReply | None:
        return result_of(self.rpc.restore(restored(notified=notified)))


def restored(*, notified: bool = True) -> Restored:
    view = SessionView("new", USER, ENV, {"plan": '"pro"'})
    return Restored(view, "old", {CHAT: {"room": "7"}, OTHER: {}}, notified)


@pytest.fixture
def logged() -> Iterator[list[LogEvent]]:
    with capturedLogs() as events:
        yield events  # type: ignore[misc]


def warnings(events: list[LogEvent]) -> list[tuple[str, dict[str, Any]]]:
    return [(formatEvent(e), e.get("attrs", {})) for e in events if e["log_level"] is LogLevel.warn]


def test_it_is_a_controller_that_needs_the_request() -> None:
    controller = Setup().rpc
    assert verifyObject(IController, controller)
    assert controller.keeps_env
    assert result_of(controller.check_restore(USER, ENV)) is None


# -- what it asks


def test_connect_is_asked_with_the_request() -> None:
    setup = Setup()
    result_of(setup.rpc.authenticate("S", ENV))
    assert setup.asked == [("connect", {"env": WIRE_ENV}, "S")]


def test_what_is_empty_is_left_out_save_the_env() -> None:
    setup = Setup()
    result_of(setup.rpc.authenticate("S", RequestEnv("")))
    result_of(setup.rpc.perform(SessionView("S", "", None), CHAT, ""))
    result_of(setup.rpc.disconnect(SessionView("S", "", None), {}))
    command = {"command": "message", "identifier": CHAT, "env": {}}
    assert [request for _, request, _ in setup.asked] == [{"env": {}}, command, {"env": {}}]


@pytest.mark.parametrize(("command", "method"), [("subscribe", "subscribe"), ("unsubscribe", "unsubscribe")])
def test_commands_are_asked_with_the_state_of_the_channel(command: str, method: str) -> None:
    setup = Setup()
    result_of(getattr(setup.rpc, method)(SESSION, CHAT))
    env = WIRE_ENV | {"cstate": {"plan": '"pro"'}, "istate": {"room": "7"}}
    body = {"command": command, "identifier": CHAT, "connection_identifiers": USER, "env": env}
    assert setup.asked == [("command", body, "S")]


def test_a_message_carries_its_data_as_it_came() -> None:
    setup = Setup()
    data = '{"action":"speak", "text":"hi"}'
    result_of(setup.rpc.perform(SESSION, CHAT, data))
    method, body, sid = setup.asked[0]
    assert (method, body["command"], body["data"], sid) == ("command", "message", data, "S")


@pytest.mark.statement("RA-18")
def test_disconnect_is_asked_with_the_state_of_every_channel_as_text() -> None:
    setup = Setup()
    result_of(setup.rpc.disconnect(SESSION, {CHAT: {"room": "7", "name": '"Zoë"'}, OTHER: {}}))
    env = WIRE_ENV | {"cstate": {"plan": '"pro"'}, "istate": {CHAT: '{"room":"7","name":"\\"Zoë\\""}'}}
    assert setup.asked == [("disconnect", {"identifiers": USER, "subscriptions": [CHAT, OTHER], "env": env}, "S")]


def test_restore_is_asked_with_both_sids() -> None:
    setup = Setup(rpc_restore="notify")
    setup.restore()
    setup.restore(notified=False)
    env = WIRE_ENV | {"cstate": {"plan": '"pro"'}, "istate": {CHAT: '{"room":"7"}'}}
    body = {"identifiers": USER, "subscriptions": [CHAT, OTHER], "env": env, "prev_sid": "old"}
    assert setup.asked == [
        ("restore", body | {"disconnect_notified": True}, "new"),
        ("restore", body, "new"),
    ]


# -- what becomes of the answers


def test_who_is_accepted_gets_what_the_backend_says() -> None:
    setup = Setup(ok(identifiers=USER, transmissions=['{"type":"welcome"}', "Zoë"], cstate={"a": "1", "b": ""}))
    assert result_of(setup.rpc.authenticate("S", ENV)) == ConnectReply(
        Status.SUCCESS,
        identifiers=USER,
        transmissions=[b'{"type":"welcome"}', "Zoë".encode()],
        cstate={"a": "1", "b": ""},
        disconnect_interest=0,
    )


@pytest.mark.statement("RA-14")
def test_who_is_refused_gets_what_the_backend_says() -> None:
    setup = Setup(refusal(transmissions=["bye"]))
    reply = result_of(setup.rpc.authenticate("S", ENV))
    assert reply == ConnectReply(Status.FAILURE, transmissions=[b"bye"], disconnect_interest=0)


@pytest.mark.parametrize("status", [RpcStatus.SUCCESS, RpcStatus.FAILURE])
@pytest.mark.parametrize("method", ["subscribe", "perform"])
def test_commands_are_answered_with_all_that_the_backend_says(method: str, status: int) -> None:
    said = RpcReply(
        status,
        transmissions=["t"],
        streams=["a", "b"],
        stopped_streams=["c"],
        stop_streams=True,
        cstate={"x": "1"},
        istate={"y": ""},
        disconnect=True,
        presence={"type": "join", "id": "7", "info": '{"name":"Zoë"}'},
    )
    setup = Setup(said)
    args = (SESSION, CHAT, "data") if method == "perform" else (SESSION, CHAT)
    assert result_of(getattr(setup.rpc, method)(*args)) == Reply(
        Status.SUCCESS if status == RpcStatus.SUCCESS else Status.FAILURE,
        transmissions=[b"t"],
        streams=["a", "b"],
        stopped_streams=["c"],
        stop_streams=True,
        cstate={"x": "1"},
        istate={"y": ""},
        presence=PresenceChange("join", "7", {"name": "Zoë"}),
        disconnect=True,
        disconnect_interest=0,
    )


@pytest.mark.parametrize(
    ("info", "read"), [("", None), ("plain text", "plain text"), ('"text"', "text"), ("[1,2]", [1, 2]), ("{", "{")]
)
def test_what_is_said_of_who_is_present_is_json_or_plain_text(info: str, read: Any) -> None:
    setup = Setup(ok(presence={"type": "join", "id": "7", "info": info}), ok(presence={"type": "leave"}))
    first, second = setup.subscribe(), setup.subscribe()
    assert first is not None
    assert second is not None
    assert first.presence == PresenceChange("join", "7", read)
    assert second.presence == PresenceChange("leave")


def test_an_unsubscribe_leaves_all_streams_whatever_the_backend_says() -> None:
    for said in (ok(streams=["a"]), refusal(), ERROR):
        reply = result_of(Setup(said).rpc.unsubscribe(SESSION, CHAT))
        assert reply is not None
        assert reply.stop_streams


def test_half_a_character_does_not_spoil_a_frame() -> None:
    reply = Setup(ok(transmissions=["a\ud800b"])).subscribe()
    assert reply is not None
    assert reply.transmissions == [b"a?b"]


# -- errors


@pytest.mark.parametrize("status", [RpcStatus.ERROR, 3, 99])
def test_of_an_error_nothing_is_kept(status: int, logged: list[LogEvent]) -> None:
    said = RpcReply(status, identifiers="x", transmissions=["t"], streams=["s"], cstate={"a": "b"}, disconnect=True)
    setup = Setup(said, said, said)
    assert result_of(setup.rpc.authenticate("S", ENV)) == ConnectReply(Status.ERROR, reason="error")
    assert setup.subscribe() == Reply(Status.ERROR, reason="error")
    assert result_of(setup.rpc.perform(SESSION, CHAT, "d")) == Reply(Status.ERROR, reason="error")
    assert setup.metrics.value("rpc_error_total", "error") == 3


@pytest.mark.statement("RA-16")
@pytest.mark.parametrize("delivered", [False, True])
def test_a_call_that_failed_is_an_error_that_says_whether_it_reached_the_backend(delivered: bool) -> None:
    setup = Setup(*[failed(Code.TIMEOUT, delivered=delivered) for _ in range(2)])
    assert result_of(setup.rpc.authenticate("S", ENV)) == ConnectReply(Status.ERROR, reason="timeout")
    assert setup.subscribe() == Reply(Status.ERROR, reason="timeout", reached=delivered)


@pytest.mark.statement("RA-13")
def test_an_error_is_logged_with_session_channel_and_code_and_without_secrets(logged: list[LogEvent]) -> None:
    setup = Setup(failed(Code.UNKNOWN), RpcReply(error_msg="undefined method 'x'" + "y" * 1000), failed(Code.INVALID))
    setup.subscribe()
    result_of(setup.rpc.perform(SESSION, CHAT, '{"password":"hunter2"}'))
    result_of(setup.rpc.authenticate("T", ENV))
    (first, where), (second, _), (third, at) = warnings(logged)
    assert "unknown" in first
    assert where == at | {"sid": "S", "identifier": CHAT}
    assert "undefined method 'x'" in second
    assert len(second) < 400
    assert "invalid_argument" in third
    assert at == {"context": "rpc", "sid": "T"}
    assert not any(secret in text for text, _ in warnings(logged) for secret in ("hunter2", "_sid=abc", "user_id"))


@pytest.mark.statement("RA-13")
@pytest.mark.parametrize("delivered", [False, True])
def test_a_subscribe_that_failed_is_rejected_where_that_is_wanted(delivered: bool) -> None:
    setup = Setup(failed(Code.UNAVAILABLE), failed(Code.TIMEOUT, delivered=delivered), rpc_failed_subscribe="reject")
    call = Begun(setup.rpc.subscribe(SESSION, CHAT))
    assert not call.done  # only the final failure counts
    spin(setup.clock, 3)
    assert call.result == Reply(
        Status.FAILURE,
        transmissions=[REJECTED],
        disconnect_interest=0 if delivered else -1,
        reason="timeout",
        reached=delivered,
    )
    assert setup.metrics.value("failed_client_msg_total") == 1


@pytest.mark.statement("RA-13")
def test_other_commands_that_failed_are_not_rejected() -> None:
    setup = Setup(ERROR, ERROR, ok(), rpc_failed_subscribe="reject")
    for reply in (result_of(setup.rpc.perform(SESSION, CHAT, "d")), result_of(setup.rpc.unsubscribe(SESSION, CHAT))):
        assert reply is not None
        assert reply.status is Status.ERROR
    answer = setup.subscribe()
    assert answer is not None
    assert answer.status is Status.SUCCESS


@pytest.mark.statement("RA-22")
@pytest.mark.parametrize(("method", "attempts"), [("subscribe", 2), ("unsubscribe", 2), ("perform", 1)])
def test_only_messages_are_not_repeated(method: str, attempts: int) -> None:
    setup = Setup(failed(Code.UNAVAILABLE, delivered=True))
    call = Begun(getattr(setup.rpc, method)(*((SESSION, CHAT, "d") if method == "perform" else (SESSION, CHAT))))
    spin(setup.clock, 1)
    assert call.done
    assert len(setup.asked) == attempts


# -- the end of a session


@pytest.mark.statement("RA-26")
def test_when_a_session_ends_only_its_waiting_commands_are_dropped(logged: list[LogEvent]) -> None:
    setup = Setup(Deferred(), rpc_concurrency=1)
    Begun(setup.rpc.authenticate("other", ENV))
    waiting = Begun(setup.rpc.perform(SESSION, CHAT, "d"))
    setup.rpc.gone("S")
    assert waiting.result == Reply(Status.ERROR, reason="canceled", reached=False)
    assert counted(setup.metrics) == {"rpc_canceled_total": 1}
    assert warnings(logged) == []


@pytest.mark.statement("RA-38")
def test_the_end_of_a_session_is_queued_and_holds_nobody_up() -> None:
    setup = Setup()
    setup.transport.answer = lambda attempt: Deferred()
    for number in range(30):
        result_of(setup.rpc.disconnect(SessionView(str(number), USER, ENV), {}))
    spin(setup.clock, 1)
    assert len(setup.asked) == 14  # half of the calls that there may be at a time
    assert setup.metrics.value("disconnect_queue_size") == 16


def test_only_the_end_of_a_resumable_session_is_held_and_can_be_withdrawn() -> None:
    setup = Setup(disconnect_grace=10)
    result_of(setup.rpc.disconnect(SessionView("plain", USER, ENV), {}))
    result_of(setup.rpc.disconnect(SessionView("back", USER, ENV, resumable=True), {}))
    result_of(setup.rpc.disconnect(SessionView("late", USER, ENV, resumable=True), {}))
    spin(setup.clock, 9.9)
    assert [sid for _, _, sid in setup.asked] == ["plain"]
    assert result_of(setup.rpc.withdraw("back")) is False
    spin(setup.clock, 10.1)
    assert [sid for _, _, sid in setup.asked] == ["plain", "late"]
    assert result_of(setup.rpc.withdraw("late")) is True
    assert result_of(setup.rpc.withdraw("unknown")) is False


@pytest.mark.statement("RA-39")
def test_an_end_that_could_not_be_reported_is_logged_and_reported_again(logged: list[LogEvent]) -> None:
    setup = Setup(failed(Code.TIMEOUT), ERROR)
    result_of(setup.rpc.disconnect(SESSION, {}))
    spin(setup.clock, 60)
    assert len(setup.asked) == 3
    assert [attrs["sid"] for _, attrs in warnings(logged)] == ["S", "S"]


# -- sessions that come back


def test_without_the_option_the_backend_is_not_asked_about_resumed_sessions() -> None:
    setup = Setup()
    assert setup.restore() is None
    assert setup.asked == []
    assert not setup.rpc.verifies_restores


def test_only_verify_makes_the_client_wait() -> None:
    assert Setup(rpc_restore="verify").rpc.verifies_restores
    assert not Setup(rpc_restore="notify").rpc.verifies_restores


@pytest.mark.parametrize("mode", ["notify", "verify"])
@pytest.mark.parametrize(
    ("status", "read"), [(RpcStatus.SUCCESS, Status.SUCCESS), (RpcStatus.FAILURE, Status.FAILURE)]
)
def test_what_the_backend_says_of_a_resumed_session_is_passed_on(mode: str, status: int, read: Status) -> None:
    said = RpcReply(
        status,
        identifiers="new",
        transmissions=["t"],
        cstate={"a": "1"},
        istate={CHAT: '{"room":"8","gone":""}'},
        rejected_subscriptions=[OTHER],
        restored_streams=[RestoredStreams(CHAT, True, ["x"], ["y", "z"])],
    )
    assert Setup(said, rpc_restore=mode).restore() == RestoreReply(
        read,
        identifiers="new",
        transmissions=[b"t"],
        cstate={"a": "1"},
        istate={CHAT: {"room": "8", "gone": ""}},
        streams={CHAT: StreamsChange(True, ["x"], ["y", "z"])},
        rejected=[OTHER],
    )


@pytest.mark.parametrize(("mode", "status"), [("notify", Status.ERROR), ("verify", Status.FAILURE)])
def test_a_restore_that_failed_refuses_only_where_it_verifies(mode: str, status: Status) -> None:
    setup = Setup(failed(Code.TIMEOUT), ERROR, rpc_restore=mode)
    assert setup.restore() == RestoreReply(status, reason="timeout")
    assert setup.restore() == RestoreReply(status, reason="error")
    assert setup.metrics.value("rpc_error_total") == 2


@pytest.mark.parametrize("text", ["{", "", "[]", '"x"', '{"a":1}', '{"a":null}'])
def test_state_that_cannot_be_read_is_an_error(text: str, logged: list[LogEvent]) -> None:
    setup = Setup(ok(istate={CHAT: text}), ok(istate={CHAT: text}), rpc_restore="notify")
    assert setup.restore() == RestoreReply(Status.ERROR, reason="unreadable")
    assert len(warnings(logged)) == 1
    verifying = Setup(ok(istate={CHAT: text}), rpc_restore="verify")
    assert verifying.restore() == RestoreReply(Status.FAILURE, reason="unreadable")


@pytest.mark.parametrize("mode", ["notify", "verify"])
def test_a_backend_without_restore_is_not_asked_for_a_while_and_sessions_come_back(
    mode: str, logged: list[LogEvent]
) -> None:
    setup = Setup(*[failed(Code.UNIMPLEMENTED) for _ in range(2)], rpc_restore=mode)
    assert [setup.restore() for _ in range(3)] == [None] * 3
    assert len(setup.asked) == 1
    setup.clock.advance(RESTORE_PAUSE - 1)
    assert setup.restore() is None
    assert len(setup.asked) == 1
    setup.clock.advance(1)
    assert setup.restore() is None
    assert len(setup.asked) == 2
    assert setup.metrics.value("rpc_error_total") == 0
    assert [e["log_level"] for e in logged if e["log_level"] is not LogLevel.debug] == [LogLevel.info]
    setup.clock.advance(RESTORE_PAUSE)
    assert setup.restore() == RestoreReply(Status.SUCCESS)  # it has learned it


def test_a_backend_that_was_away_may_be_a_newer_one() -> None:
    setup = Setup(failed(Code.UNIMPLEMENTED), failed(Code.UNAVAILABLE), rpc_restore="notify")
    assert setup.restore() is None
    call = Begun(setup.rpc.subscribe(SESSION, CHAT))
    spin(setup.clock, 5)
    assert call.done
    assert setup.restore() == RestoreReply(Status.SUCCESS)


def test_a_backend_without_restore_is_asked_everything_else() -> None:
    setup = Setup(failed(Code.UNIMPLEMENTED), rpc_restore="verify")
    setup.restore()
    answer = setup.subscribe()
    assert answer is not None
    assert answer.status is Status.SUCCESS


# -- start and stop


def test_it_starts_its_transport_and_tells_its_trouble() -> None:
    setup = Setup()
    result_of(setup.rpc.start())
    assert setup.transport.log == ["start"]
    assert setup.rpc.problem() == ""
    setup.transport.trouble = "no connection"
    assert setup.rpc.problem() == "no connection"


@pytest.mark.statement("RA-27", "RA-40")
def test_a_stop_reports_the_ended_sessions_and_lets_calls_end_before_the_connections_close() -> None:
    answer: Deferred[RpcReply] = Deferred()
    setup = Setup(answer, disconnect_grace=60)
    running = Begun(setup.rpc.subscribe(SESSION, CHAT))
    result_of(setup.rpc.disconnect(SessionView("held", USER, ENV, resumable=True), {}))
    stop = Begun(setup.rpc.stop())
    assert [method for method, _, _ in setup.asked] == ["command", "disconnect"]
    assert setup.transport.log == []
    answer.callback(ok())
    assert running.result == Reply(Status.SUCCESS)
    assert setup.transport.log == ["stop"]
    assert stop.done
    assert result_of(setup.rpc.authenticate("T", ENV)) == ConnectReply(Status.ERROR, reason="canceled")


@pytest.mark.statement("RA-27", "RA-40")
@pytest.mark.parametrize("ends", [0, 3])
def test_a_stop_that_is_cancelled_gives_up_what_is_under_way(ends: int) -> None:
    setup = Setup()
    setup.transport.answer = lambda attempt: Deferred()
    running = Begun(setup.rpc.subscribe(SESSION, CHAT))
    for number in range(ends):
        result_of(setup.rpc.disconnect(SessionView(str(number), USER, ENV), {}))
    stop = Begun(setup.rpc.stop())
    stop.deferred.cancel()
    assert isinstance(stop.error, CancelledError)
    assert isinstance(running.error, CancelledError)
    assert setup.transport.log == ["stop"]
    assert counted(setup.metrics) == {
        name: number
        for name, number in (("disconnect_dropped_total{stopped}", ends), ("rpc_canceled_total", 1 + ends))
        if number
    }
    assert setup.clock.getDelayedCalls() == []


# -- how it is made


def test_it_says_how_the_backend_is_called() -> None:
    assert Setup().rpc.announcement == (
        'RPC controller initialized: "localhost:50051" (concurrency: 28, impl: grpc, enable_tls: false, '
        "proto_versions: v1, proxy_headers: cookie, proxy_cookies: all)"
    )
    given = {
        "rpc_host": "https://user:hunter2@app.example/_anycable?key=hunter2",
        "rpc_concurrency": 0,
        "headers": ("cookie", "origin"),
        "proxy_cookies": ("_sid", "lang"),
    }
    announcement = RpcController(Scripted(), settings(**given), Clock(), Metrics(), impl="http").announcement
    assert announcement == (
        'RPC controller initialized: "https://user:***@app.example/_anycable" (concurrency: auto, impl: http, '
        "enable_tls: true, proto_versions: v1, proxy_headers: cookie, origin, proxy_cookies: _sid, lang)"
    )


@pytest.mark.statement("RA-42")
@pytest.mark.parametrize("impl", ["grpc", "http"])
def test_only_the_way_of_calling_that_was_chosen_is_imported(impl: str, monkeypatch: pytest.MonkeyPatch) -> None:
    made = []

    def create(*args: Any) -> Scripted:
        made.append(args)
        return Scripted()

    module = ModuleType(f"anycable_tx.rpc.{impl}_transport")
    module.create = create  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, module.__name__, module)
    other = f"anycable_tx.rpc.{'http' if impl == 'grpc' else 'grpc'}_transport"
    monkeypatch.setitem(sys.modules, other, None)  # importing it fails
    context = ProviderContext(settings(), Clock(), None, Metrics())
    controller = getattr(rpc, f"create_{impl}")(context)
    assert verifyObject(IController, controller)
    assert f"impl: {impl}" in controller.announcement
    assert made == [(context.settings, context.reactor, context.metrics)]


def test_attempts_are_what_the_transport_is_given() -> None:
    setup = Setup(rpc_request_timeout=1500)
    result_of(setup.rpc.authenticate("S", ENV))
    assert setup.transport.attempts == [Attempt("connect", {"env": WIRE_ENV}, "S", 1.5, 0.0)]
