"""The chain: who is asked, whose answer wins, and that no controller's failure leaves it."""

from __future__ import annotations

from asyncio import CancelledError as AsyncioCancelledError
from typing import Any

import pytest
from twisted.internet.defer import CancelledError, Deferred, ensureDeferred
from zope.interface.verify import verifyObject

from anycable_tx.cable.replies import ConnectReply, Reply, Status
from anycable_tx.controllers import jwt, noauth, null, streams
from anycable_tx.controllers.base import BaseController
from anycable_tx.controllers.chain import Chain
from anycable_tx.errors import ControllerError
from anycable_tx.interfaces import IController
from anycable_tx.metrics import Metrics
from anycable_tx.testing.sync import result_of
from tests.controllers import vectors
from tests.controllers.vectors import SECRET, SESSION, context, request

CALLS: dict[str, tuple[Any, ...]] = {
    "authenticate": ("S", request()),
    "subscribe": (SESSION, "{}"),
    "unsubscribe": (SESSION, "{}"),
    "perform": (SESSION, "{}", "data"),
}
every_call = pytest.mark.parametrize("method", CALLS)


class Scripted:
    """Does the same in every method: answers, raises, or waits; remembers what it was asked."""

    def __init__(self, outcome: Any = None, log: list[Any] | None = None) -> None:
        self.outcome = outcome
        self.announcement = ""
        self.asked: list[Any] = [] if log is None else log

    def __getattr__(self, method: str) -> Any:
        async def call(*args: Any) -> Any:
            self.asked.append((method, *args))
            if isinstance(self.outcome, BaseException):
                raise self.outcome
            return await self.outcome if isinstance(self.outcome, Deferred) else self.outcome

        return call


def reply_of(method: str, status: Status, reason: str = "") -> ConnectReply | Reply:
    return (ConnectReply if method == "authenticate" else Reply)(status, reason=reason)


def ask(chain: Chain, method: str) -> Any:
    return result_of(getattr(chain, method)(*CALLS[method]))


def test_it_provides_the_interface() -> None:
    assert verifyObject(IController, Chain([], Metrics()))
    assert verifyObject(IController, BaseController())


@every_call
@pytest.mark.parametrize("status", Status)
def test_the_first_answer_wins_and_nobody_after_it_is_asked(method: str, status: Status) -> None:
    answer = reply_of(method, status)
    first, second, third = Scripted(), Scripted(answer), Scripted(reply_of(method, Status.SUCCESS))
    metrics = Metrics()
    assert ask(Chain([first, second, third], metrics), method) is answer
    assert first.asked == second.asked == [(method, *CALLS[method])]
    assert third.asked == []
    assert metrics.value("controller_errors_total") == 0


@every_call
def test_nobody_answers(method: str) -> None:
    assert ask(Chain([], Metrics()), method) is None
    assert ask(Chain([Scripted(), BaseController()], Metrics()), method) is None


@every_call
@pytest.mark.parametrize("error", [ControllerError("down"), ZeroDivisionError(), TypeError("bug")])
def test_an_error_becomes_a_status_and_is_counted(method: str, error: Exception) -> None:
    metrics, after = Metrics(), Scripted(reply_of(method, Status.SUCCESS))
    chain = Chain([Scripted(), Scripted(error), after], metrics)
    assert ask(chain, method) == reply_of(method, Status.ERROR, "controller_error")
    assert metrics.value("controller_errors_total", method) == metrics.value("controller_errors_total") == 1
    assert after.asked == []


@every_call
def test_a_method_that_is_no_method_becomes_a_status(method: str) -> None:
    metrics = Metrics()
    assert ask(Chain([object()], metrics), method).status is Status.ERROR
    assert metrics.value("controller_errors_total") == 1


@every_call
def test_a_late_answer_is_waited_for(method: str) -> None:
    answer = reply_of(method, Status.SUCCESS)
    late: Deferred[Any] = Deferred()
    after = Scripted(answer)
    result = ensureDeferred(getattr(Chain([Scripted(late), after], Metrics()), method)(*CALLS[method]))
    assert not result.called
    assert after.asked == []
    late.callback(None)
    assert result_of(result) is answer


@every_call
@pytest.mark.parametrize("error", [CancelledError(), AsyncioCancelledError()])
def test_a_cancelled_call_is_a_status_but_no_error(method: str, error: BaseException) -> None:
    metrics = Metrics()
    assert ask(Chain([Scripted(error)], metrics), method) == reply_of(method, Status.ERROR, "cancelled")
    assert metrics.value("controller_errors_total") == 0


def test_cancelling_reaches_the_controller() -> None:
    cancelled = []
    waiting: Deferred[Any] = Deferred(lambda _: cancelled.append(True))
    result = ensureDeferred(Chain([Scripted(waiting)], Metrics()).authenticate("S", request()))
    result.cancel()
    assert cancelled == [True]
    assert result_of(result).reason == "cancelled"


YES, NO, NOT_SO = (ConnectReply(s) for s in (Status.SUCCESS, Status.FAILURE, Status.ERROR))


@pytest.mark.parametrize(
    ("answers", "verdict"),
    [
        ([], None),
        ([None, None], None),
        ([None, YES], YES),
        ([YES, None], YES),
        ([YES, NO], NO),
        ([YES, NOT_SO], NOT_SO),
        ([NO, NOT_SO], NO),
        ([None, NOT_SO, NO], NOT_SO),
    ],
)
@pytest.mark.statement("RA-4")
def test_a_resume_needs_everybodys_consent(answers: list[Any], verdict: Any) -> None:
    chain = Chain([Scripted(answer) for answer in answers], Metrics())
    assert result_of(chain.check_restore("ids", request())) is verdict


@pytest.mark.statement("RA-4")
def test_a_controller_that_cannot_decide_prevents_the_resume() -> None:
    metrics = Metrics()
    chain = Chain([Scripted(YES), Scripted(ControllerError("down"))], metrics)
    assert result_of(chain.check_restore("ids", request())) == ConnectReply(Status.ERROR, reason="controller_error")
    assert metrics.value("controller_errors_total", "check_restore") == 1


def test_disconnect_reaches_all_even_if_some_fail() -> None:
    metrics, log = Metrics(), []
    outcomes = [None, ValueError(), ControllerError("x"), CancelledError(), None]
    chain = Chain([Scripted(outcome, log) for outcome in outcomes], metrics)
    result_of(chain.disconnect(SESSION, {"id": {"k": "v"}}))
    assert log == [("disconnect", SESSION, {"id": {"k": "v"}})] * 5
    assert metrics.value("controller_errors_total", "disconnect") == 2


def test_stop_reaches_all_in_reverse_even_if_some_fail() -> None:
    metrics = Metrics()
    order: list[str] = []

    class Named(BaseController):
        def __init__(self, name: str) -> None:
            self.name = name

        async def start(self) -> None:
            order.append(f"start {self.name}")

        async def stop(self) -> None:
            order.append(f"stop {self.name}")
            if self.name == "b":
                raise ValueError

    chain = Chain([Named("a"), Named("b"), Named("c")], metrics)
    result_of(chain.start())
    result_of(chain.stop())
    assert order == ["start a", "start b", "start c", "stop c", "stop b", "stop a"]
    assert metrics.value("controller_errors_total", "stop") == 1


def test_a_start_that_fails_stops_what_was_started_and_is_reported() -> None:
    log: list[Any] = []

    class Broken(BaseController):
        async def start(self) -> None:
            raise ControllerError("no backend")

    chain = Chain([Scripted(None, log), Broken(), Scripted(None, log)], Metrics())
    with pytest.raises(ControllerError, match="no backend"):
        result_of(chain.start())
    assert log == [("start",), ("stop",)]


def test_the_announcements_are_those_of_the_controllers() -> None:
    chain = Chain([noauth.create(context()), BaseController(), null.create(context())], Metrics())
    assert chain.announcement == "connection authentication is disabled\nno RPC configured"


def test_requests_are_kept_for_a_controller_that_looks_at_them_again() -> None:
    class Keeper(BaseController):
        keeps_env = True

    assert not Chain([BaseController(), object()], Metrics()).keeps_env
    assert Chain([BaseController(), Keeper()], Metrics()).keeps_env


class TestStandalone:
    """The built-in controllers together, without a backend."""

    @staticmethod
    def chain(*, no_auth: bool = False, **settings: Any) -> Chain:
        made = context(jwt_secret=SECRET, streams_secret=SECRET, **settings)
        parts = [jwt.create(made), *([noauth.create(made)] if no_auth else [])]
        return Chain([*parts, streams.create(made), null.create(made)], Metrics())

    def authenticate(self, query: str, **settings: Any) -> ConnectReply:
        reply = result_of(self.chain(**settings).authenticate("S", request(query)))
        assert reply is not None
        return reply

    @pytest.mark.statement("CP-20")
    def test_a_valid_token_connects(self) -> None:
        assert self.authenticate(f"jid={vectors.VALID}").identifiers == vectors.USER

    @pytest.mark.statement("CP-23")
    def test_no_token_falls_through(self) -> None:
        assert self.authenticate("").transmissions == [vectors.UNAUTHORIZED]
        assert self.authenticate("", no_auth=True).identifiers == '{"sid":"S"}'
        assert self.authenticate("", no_auth=True, enforce_jwt=True).transmissions == [vectors.UNAUTHORIZED]

    @pytest.mark.statement("CP-22")
    def test_a_bad_token_is_refused_even_where_no_token_is_needed(self) -> None:
        assert self.authenticate("jid=bad", no_auth=True).transmissions == [vectors.UNAUTHORIZED]
        assert self.authenticate(f"jid={vectors.EXPIRED}", no_auth=True).transmissions == [vectors.TOKEN_EXPIRED]

    def test_only_channels_of_its_own_are_confirmed(self) -> None:
        chain = self.chain(public_streams=True)
        mine = '{"channel":"$pubsub","stream_name":"a"}'
        assert result_of(chain.subscribe(SESSION, mine)).streams == ["a"]
        assert result_of(chain.subscribe(SESSION, '{"channel":"Chat"}')).reason == "unknown_channel"
        assert result_of(chain.subscribe(SESSION, "not json")).reason == "unknown_channel"
        assert result_of(chain.unsubscribe(SESSION, mine)).stop_streams
        assert result_of(chain.perform(SESSION, mine, "{}")) is None
