"""The JWT controller: who may connect, who may resume, and where the token is looked for."""

from __future__ import annotations

from urllib.parse import quote

import pytest
from hypothesis import given
from hypothesis import strategies as st
from twisted.internet.task import Clock
from zope.interface.verify import verifyObject

from anycable_tx.cable.replies import ConnectReply, RequestEnv, Status
from anycable_tx.controllers.jwt import JWTController, create, query_value
from anycable_tx.controllers.tokens import TokenVerifier
from anycable_tx.errors import ConfigurationError
from anycable_tx.interfaces import IController
from anycable_tx.testing.sync import result_of
from tests.controllers import vectors
from tests.controllers.vectors import NOW, SECRET, SESSION, USER, context, request, token

OTHER = token({"ext": '{"user_id":7}'}, "s3cr3t" * 6)
LONG = "s3cr3t" * 6  # long enough for the library that makes the tokens
FORGED = vectors.VALID[:-1] + "A"


def controller(
    enforce: bool = False, resume_expired: bool = False, param: str = "jid", now: float = NOW
) -> JWTController:
    return JWTController(
        TokenVerifier((SECRET, LONG)), param, enforce=enforce, resume_expired=resume_expired, now=lambda: now
    )


def authenticate(env: RequestEnv, jwt: JWTController | None = None, sid: str = "S") -> ConnectReply | None:
    return result_of((jwt or controller()).authenticate(sid, env))


def check_restore(env: RequestEnv, jwt: JWTController | None = None, identifiers: str = USER) -> ConnectReply | None:
    return result_of((jwt or controller()).check_restore(identifiers, env))


def refusal(reason: str, frame: bytes) -> ConnectReply:
    return ConnectReply(Status.FAILURE, transmissions=[frame], disconnect_interest=-1, reason=reason)


UNAUTHORIZED = refusal("unauthorized", vectors.UNAUTHORIZED)
TOKEN_EXPIRED = refusal("token_expired", vectors.TOKEN_EXPIRED)


def test_it_provides_the_interface() -> None:
    assert verifyObject(IController, controller())


@pytest.mark.statement("CP-20")
def test_a_valid_token_is_welcome_and_names_the_user() -> None:
    assert authenticate(request(f"jid={vectors.VALID}")) == ConnectReply(
        Status.SUCCESS,
        identifiers=USER,
        transmissions=[b'{"type":"welcome","sid":"S"}'],
        disconnect_interest=-1,
    )


@pytest.mark.statement("CP-21", "RA-14")
def test_an_expired_token_is_told_so() -> None:
    assert authenticate(request(f"jid={vectors.EXPIRED}")) == TOKEN_EXPIRED


@pytest.mark.parametrize("text", [FORGED, "garbage", "a.b.c", "eyJhbGciOiJub25lIn0.eyJleHQiOiJ1In0.", quote("é\x00")])
@pytest.mark.statement("CP-22", "RA-14")
def test_a_bad_token_is_unauthorized(text: str) -> None:
    assert authenticate(request(f"jid={text}")) == UNAUTHORIZED


@pytest.mark.parametrize("claims", [{"nbf": NOW + 1}, {"exp": None}, {"nbf": "soon"}])
def test_a_token_whose_time_claims_are_wrong_is_unauthorized(claims: dict[str, object]) -> None:
    text = token({"ext": USER, **claims}, LONG)
    assert authenticate(request(f"jid={text}")) == UNAUTHORIZED


@pytest.mark.statement("CP-25", "RA-12")
def test_a_token_without_a_string_ext_is_unauthorized() -> None:
    assert authenticate(request(f"jid={vectors.WITHOUT_EXT}")) == UNAUTHORIZED
    assert authenticate(request(f"jid={token({'ext': {'user_id': 42}}, LONG)}")) == UNAUTHORIZED


@pytest.mark.statement("CP-23")
@pytest.mark.parametrize("env", [request(), request("jid="), request("x=1"), request(x_jid="")])
def test_without_a_token_the_next_controller_is_asked_unless_tokens_are_enforced(env: RequestEnv) -> None:
    assert authenticate(env) is None
    assert authenticate(env, controller(enforce=True)) == UNAUTHORIZED


@pytest.mark.statement("CP-24")
def test_the_header_beats_the_query() -> None:
    assert authenticate(request("jid=garbage", x_jid=vectors.VALID)).status is Status.SUCCESS
    assert authenticate(request(f"jid={vectors.VALID}", x_jid="garbage")) == UNAUTHORIZED
    assert authenticate(request(f"jid={vectors.VALID}", x_jid="")).status is Status.SUCCESS


def test_the_parameter_has_the_name_that_was_chosen() -> None:
    jwt = controller(param="Token")
    assert authenticate(request(f"Token={vectors.VALID}"), jwt).status is Status.SUCCESS
    assert authenticate(request(x_token=vectors.VALID), jwt).status is Status.SUCCESS
    assert authenticate(request(f"jid={vectors.VALID}", x_jid=vectors.VALID), jwt) is None


@pytest.mark.statement("RA-12")
def test_a_query_that_cannot_be_decoded_is_unauthorized() -> None:
    assert authenticate(request("jid=%zz")) == UNAUTHORIZED
    assert authenticate(request(f"bad=%zz&%=%&jid={vectors.VALID}")).status is Status.SUCCESS


@pytest.mark.parametrize(
    ("query", "value"),
    [
        ("", ""),
        ("jid", ""),
        ("jid=a", "a"),
        ("jid=a&jid=b", "a"),
        ("jid=&jid=b", ""),
        ("x=1&jid=a=b", "a=b"),
        ("j%69d=a", "a"),
        ("jid=a%2Eb+c", "a.b c"),
        ("JID=a", ""),
        ("xjid=a&jidx=b", ""),
        ("jid=%ff%zz%", "\ufffd%zz%"),
        ("a?jid=b&jid=c?d", "c?d"),
        ("&&=&jid=a", "a"),
    ],
)
def test_the_first_value_of_the_parameter_counts(query: str, value: str) -> None:
    assert query_value(f"http://host/cable?{query}", "jid") == value


def test_the_path_is_not_the_query() -> None:
    assert query_value("http://host/jid=a", "jid") == ""


def test_a_parameter_name_may_be_any_text() -> None:
    assert query_value("http://host/?my+tok%3Den=a", "my tok=en") == "a"


@pytest.mark.statement("RA-5")
def test_a_session_id_cannot_add_to_the_welcome() -> None:
    reply = authenticate(request(f"jid={vectors.VALID}"), sid='x","restored":true,"y":"')
    assert reply.transmissions == [b'{"type":"welcome","sid":"x\\",\\"restored\\":true,\\"y\\":\\""}']


@pytest.mark.statement("RA-10")
def test_tokens_of_a_rotated_secret_are_accepted() -> None:
    jwt = create(context(jwt_secret="new", jwt_rotated_secrets=[SECRET]))
    assert authenticate(request(f"jid={vectors.VALID}"), jwt).identifiers == USER
    assert authenticate(request(f"jid={vectors.VALID}"), create(context(jwt_secret="new"))) == UNAUTHORIZED


@pytest.mark.statement("RA-4", "CP-101")
def test_a_session_resumes_with_a_token_of_its_user() -> None:
    reply = check_restore(request(f"jid={vectors.VALID}"))
    assert (reply.status, reply.identifiers, reply.transmissions) == (Status.SUCCESS, USER, [])


@pytest.mark.statement("RA-4", "CP-101")
def test_a_session_does_not_resume_with_a_token_of_somebody_else() -> None:
    assert check_restore(request(f"jid={OTHER}")) == ConnectReply(Status.ERROR, reason="other_identifiers")
    assert check_restore(request(f"jid={vectors.VALID}"), identifiers=USER + " ").status is Status.ERROR


@pytest.mark.parametrize("text", [FORGED, "garbage", vectors.WITHOUT_EXT, token({"ext": USER, "nbf": NOW + 9}, LONG)])
@pytest.mark.statement("RA-4")
def test_a_session_does_not_resume_with_a_bad_token(text: str) -> None:
    assert check_restore(request(f"jid={text}")) == ConnectReply(Status.ERROR, reason="bad_token")


@pytest.mark.statement("RA-4", "CP-101")
def test_a_resume_with_an_expired_token_is_told_so_by_default() -> None:
    assert check_restore(request(f"jid={vectors.EXPIRED}")) == TOKEN_EXPIRED


@pytest.mark.statement("RA-4")
def test_expired_tokens_resume_their_own_session_where_the_option_says_so() -> None:
    jwt = controller(resume_expired=True)
    assert check_restore(request(f"jid={vectors.EXPIRED}"), jwt).status is Status.SUCCESS
    others = token({"ext": "other", "exp": 1}, LONG)
    assert check_restore(request(f"jid={others}"), jwt).status is Status.ERROR
    assert authenticate(request(f"jid={vectors.EXPIRED}"), jwt) == TOKEN_EXPIRED


def test_an_expired_token_of_nobody_resumes_nothing() -> None:
    nameless = token({"exp": 1}, LONG)
    for jwt in (controller(), controller(resume_expired=True)):
        assert check_restore(request(f"jid={nameless}"), jwt, identifiers="").status is Status.ERROR


@pytest.mark.statement("RA-4")
def test_without_a_token_a_session_resumes_unless_tokens_are_enforced() -> None:
    assert check_restore(request()) is None
    assert check_restore(request(), controller(enforce=True)) == ConnectReply(Status.ERROR, reason="no_token")


def test_a_token_is_judged_by_the_clock_of_the_moment() -> None:
    clock = Clock()
    jwt = JWTController(TokenVerifier((LONG,)), now=clock.seconds)
    env = request(f"jid={token({'ext': USER, 'exp': 100}, LONG)}")
    clock.advance(99.9)
    assert authenticate(env, jwt).status is Status.SUCCESS
    clock.advance(0.1)
    assert authenticate(env, jwt) == TOKEN_EXPIRED


def test_it_leaves_subscriptions_to_others() -> None:
    jwt = controller()
    assert result_of(jwt.subscribe(SESSION, "{}")) is None
    assert result_of(jwt.unsubscribe(SESSION, "{}")) is None
    assert result_of(jwt.perform(SESSION, "{}", "{}")) is None


def test_the_settings_are_applied() -> None:
    jwt = create(
        context(jwt_secret=SECRET, jwt_param="tok", enforce_jwt=True, resume_expired_tokens=True),
    )
    assert jwt.announcement == "JWT authentication is enabled param=tok enforced=true"
    assert authenticate(request(f"tok={vectors.VALID}"), jwt).status is Status.SUCCESS
    assert authenticate(request(), jwt) == UNAUTHORIZED
    assert check_restore(request(f"tok={vectors.EXPIRED}"), jwt).status is Status.SUCCESS


def test_without_a_secret_it_declines_every_request() -> None:
    jwt = create(context(jwt_secret=""))
    assert jwt.announcement == ""
    assert authenticate(request(f"jid={vectors.VALID}"), jwt) is None
    assert check_restore(request(f"jid={vectors.VALID}"), jwt) is None


@pytest.mark.parametrize("settings", [{"enforce_jwt": True}, {"jwt_rotated_secrets": ["old"]}])
def test_what_needs_a_secret_does_not_start_without_one(settings: dict[str, object]) -> None:
    with pytest.raises(ConfigurationError, match=f"{next(iter(settings))}: needs a jwt_secret") as caught:
        create(context(**settings))
    assert "old" not in str(caught.value)


@given(text=st.text(), header=st.booleans())
def test_no_token_text_raises(text: str, header: bool) -> None:
    env = RequestEnv("http://h/", {"x-jid": text}) if header else RequestEnv(f"http://h/?jid={text}")
    reply = authenticate(env)
    assert reply is None or reply == UNAUTHORIZED
    assert check_restore(env) in (None, ConnectReply(Status.ERROR, reason="bad_token"))
