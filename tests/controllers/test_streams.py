"""Channels that name their stream: who gets which stream, with which rights, and what is refused."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from zope.interface.verify import verifyObject

from anycable_tx.cable.replies import Reply, Status
from anycable_tx.cable.signing import sign_name
from anycable_tx.controllers.streams import create
from anycable_tx.interfaces import IController
from anycable_tx.testing.sync import result_of
from tests.controllers.vectors import SECRET, SESSION, context

CHAT_42 = "ImNoYXQvNDIi--ed3f0927d13c0c59af99f3ef776af196ea44ff640ab15cf8cf347532daed0c5f"
ARRAY = "WyJjaGF0Iiw0Ml0=--1ba9e8235d75825ffb4db73bd7eb49922805c81d539ad828abfa58c5966b66af"
URL_SAFE = "Im9wcz8-bGl2ZSI=--6ed6679a342fab0b6e1df18874ac96f5d6d208252cb5955de605e807895501bc"
EMPTY_KEY = "ImFkbWluIg==--26bd9588d3776458e6a8accbe888ccde72a3be197819604914e2d710f2866939"


def identifier(channel: str = "$pubsub", **params: Any) -> str:
    return json.dumps({"channel": channel, **params}, separators=(",", ":"))


SIGNED = identifier(signed_stream_name=CHAT_42)
PUBLIC = identifier(stream_name="chat/42")


def subscribe(text: str, **settings: Any) -> Reply | None:
    return result_of(create(context(**settings)).subscribe(SESSION, text))


def unsubscribe(text: str, **settings: Any) -> Reply | None:
    return result_of(create(context(**settings)).unsubscribe(SESSION, text))


def confirmation(text: str, stream: str, **istate: str) -> Reply:
    return Reply(
        Status.SUCCESS,
        transmissions=[b'{"type":"confirm_subscription","identifier":%b}' % json.dumps(text).encode()],
        streams=[stream],
        istate={f"${key}": value for key, value in istate.items()},
        disconnect_interest=-1,
    )


def rejection(text: str, reason: str) -> Reply:
    return Reply(
        Status.FAILURE,
        transmissions=[b'{"type":"reject_subscription","identifier":%b}' % json.dumps(text).encode()],
        disconnect_interest=-1,
        reason=reason,
    )


def test_it_provides_the_interface() -> None:
    assert verifyObject(IController, create(context()))


def test_a_signed_name_gives_its_stream() -> None:
    assert subscribe(SIGNED, streams_secret=SECRET) == confirmation(SIGNED, "chat/42", p="chat/42")


@pytest.mark.statement("RA-34")
def test_a_name_signed_in_the_url_safe_alphabet_gives_its_stream() -> None:
    assert subscribe(identifier(signed_stream_name=URL_SAFE), streams_secret=SECRET).streams == ["ops?>live"]


@pytest.mark.statement("CP-123")
@pytest.mark.parametrize(
    ("settings", "rights"),
    [
        ({}, {"p"}),
        ({"streams_whisper": True}, {"w", "p"}),
        ({"streams_presence": False}, set()),
        ({"streams_presence": False, "streams_whisper": True}, {"w"}),
    ],
)
def test_signed_streams_have_presence_and_whispers_as_set(settings: dict[str, bool], rights: set[str]) -> None:
    reply = subscribe(SIGNED, streams_secret=SECRET, **settings)
    assert reply == confirmation(SIGNED, "chat/42", **dict.fromkeys(rights, "chat/42"))


@pytest.mark.statement("CP-123")
@pytest.mark.parametrize("settings", [{}, {"streams_presence": False, "streams_whisper": False}])
def test_public_streams_have_both_whatever_is_set(settings: dict[str, bool]) -> None:
    reply = subscribe(PUBLIC, public_streams=True, **settings)
    assert reply == confirmation(PUBLIC, "chat/42", w="chat/42", p="chat/42")


def test_public_names_are_refused_unless_enabled() -> None:
    assert subscribe(PUBLIC, streams_secret=SECRET) == rejection(PUBLIC, "not_signed")


def test_a_signed_name_is_the_one_that_counts() -> None:
    both = identifier(stream_name="other", signed_stream_name=CHAT_42)
    assert subscribe(both, streams_secret=SECRET, public_streams=True).streams == ["chat/42"]
    forged = identifier(stream_name="other", signed_stream_name=CHAT_42[:-1])
    assert subscribe(forged, streams_secret=SECRET, public_streams=True) == rejection(forged, "bad_signature")


@pytest.mark.parametrize("empty", ["", None])
def test_an_empty_signed_name_is_none(empty: object) -> None:
    text = identifier(stream_name="news", signed_stream_name=empty)
    assert subscribe(text, streams_secret=SECRET, public_streams=True).streams == ["news"]
    assert subscribe(text, streams_secret=SECRET) == rejection(text, "not_signed")


@pytest.mark.statement("RA-1", "CP-142")
def test_without_a_secret_every_signed_name_is_refused() -> None:
    for name in (EMPTY_KEY, CHAT_42):
        text = identifier(signed_stream_name=name)
        assert subscribe(text) == rejection(text, "no_streams_secret")
        assert subscribe(text, public_streams=True, streams_rotated_secrets=["old"]) == rejection(
            text, "no_streams_secret"
        )


@pytest.mark.parametrize(
    "name", [CHAT_42[:-1] + "0", "chat/42", CHAT_42.upper(), 42, ["a"], {"a": 1}, True, "--", "é"]
)
def test_a_name_that_was_not_signed_is_refused(name: object) -> None:
    text = json.dumps({"channel": "$pubsub", "signed_stream_name": name}, ensure_ascii=False)
    reply = subscribe(text, streams_secret=SECRET)
    assert (reply.status, reply.reason) == (Status.FAILURE, "bad_signature")
    assert json.loads(reply.transmissions[0])["identifier"] == text


@pytest.mark.parametrize("value", [ARRAY, sign_name("", SECRET.encode())])
def test_a_signed_value_that_is_no_stream_name_is_refused(value: str) -> None:
    text = identifier(signed_stream_name=value)
    assert subscribe(text, streams_secret=SECRET) == rejection(text, "bad_stream_name")


@pytest.mark.parametrize("params", [{}, {"stream_name": ""}, {"stream_name": 42}, {"stream_name": None}])
def test_an_identifier_without_a_name_is_refused(params: dict[str, object]) -> None:
    text = identifier(**params)
    assert subscribe(text, streams_secret=SECRET, public_streams=True) == rejection(text, "bad_stream_name")


@pytest.mark.statement("RA-10")
def test_names_signed_with_a_rotated_secret_are_accepted() -> None:
    settings = {"streams_secret": "new", "streams_rotated_secrets": ["older", SECRET]}
    assert subscribe(SIGNED, **settings).streams == ["chat/42"]
    new = identifier(signed_stream_name=sign_name("chat/42", b"new"))
    assert subscribe(new, **settings).streams == ["chat/42"]
    assert subscribe(SIGNED, streams_secret="new").status is Status.FAILURE


@pytest.mark.statement("RA-10")
def test_rotated_secrets_stand_beside_the_streams_secret_only() -> None:
    settings = {
        "streams_secret": "new",
        "streams_rotated_secrets": [SECRET],
        "turbo_streams": True,
        "turbo_streams_secret": "own",
        "cable_ready": True,
        "cable_ready_secret": "new",
    }
    assert subscribe(identifier("Turbo::StreamsChannel", signed_stream_name=CHAT_42), **settings).status is (
        Status.FAILURE
    )
    assert subscribe(identifier("CableReady::Stream", identifier=CHAT_42), **settings).streams == ["chat/42"]


@pytest.mark.parametrize(
    ("channel", "key", "option"),
    [
        ("Turbo::StreamsChannel", "signed_stream_name", "turbo_streams"),
        ("CableReady::Stream", "identifier", "cable_ready"),
    ],
)
class TestRails:
    """Turbo Streams and CableReady: signed names only, no rights, present only with a secret."""

    def test_a_signed_name_gives_its_stream_and_no_rights(self, channel: str, key: str, option: str) -> None:
        text = identifier(channel, **{key: CHAT_42})
        settings = {option: True, f"{option}_secret": SECRET, "streams_secret": "other", "streams_whisper": True}
        assert subscribe(text, **settings) == confirmation(text, "chat/42")

    @pytest.mark.statement("RA-19")
    def test_a_forged_name_is_refused(self, channel: str, key: str, option: str) -> None:
        text = identifier(channel, **{key: CHAT_42})
        assert subscribe(text, **{option: True, f"{option}_secret": "other"}) == rejection(text, "bad_signature")

    def test_public_names_are_never_accepted(self, channel: str, key: str, option: str) -> None:
        text = identifier(channel, stream_name="news")
        settings = {option: True, f"{option}_secret": SECRET, "public_streams": True}
        assert subscribe(text, **settings) == rejection(text, "not_signed")

    def test_it_is_absent_unless_enabled_and_given_a_secret(self, channel: str, key: str, option: str) -> None:
        text = identifier(channel, **{key: CHAT_42})
        for settings in ({f"{option}_secret": SECRET}, {option: True}, {option: True, f"{option}_secret": ""}):
            assert subscribe(text, **settings) is None
            assert unsubscribe(text, **settings) is None

    def test_unsubscribing_leaves_every_stream(self, channel: str, key: str, option: str) -> None:
        reply = unsubscribe(identifier(channel), **{option: True, f"{option}_secret": SECRET})
        assert reply == Reply(Status.SUCCESS, stop_streams=True, disconnect_interest=-1)


@pytest.mark.statement("RA-19")
def test_neither_a_confirmed_nor_a_rejected_subscription_interests_the_backend() -> None:
    confirmed, rejected = subscribe(SIGNED, streams_secret=SECRET), subscribe(SIGNED, streams_secret="other")
    assert (confirmed.status, confirmed.disconnect_interest) == (Status.SUCCESS, -1)
    assert (rejected.status, rejected.disconnect_interest) == (Status.FAILURE, -1)


@pytest.mark.parametrize(
    "text",
    [
        "",
        "not json",
        "[]",
        "null",
        '"$pubsub"',
        "{}",
        '{"channel":null}',
        '{"channel":["$pubsub"]}',
        '{"channel":{"a":1}}',
        '{"channel":"ChatChannel"}',
        '{"channel":"$pubsub "}',
        "\ud800",
    ],
)
def test_identifiers_of_other_channels_are_left_to_others(text: str) -> None:
    assert subscribe(text, streams_secret=SECRET, public_streams=True) is None
    assert unsubscribe(text, streams_secret=SECRET, public_streams=True) is None


def test_unsubscribing_leaves_every_stream_and_says_nothing() -> None:
    reply = Reply(Status.SUCCESS, stop_streams=True, disconnect_interest=-1)
    assert unsubscribe(SIGNED) == unsubscribe(PUBLIC) == unsubscribe(identifier()) == reply


def test_messages_are_left_to_others() -> None:
    controller = create(context(streams_secret=SECRET))
    assert result_of(controller.perform(SESSION, SIGNED, "{}")) is None


def test_the_channel_can_be_renamed_and_disabled() -> None:
    renamed = identifier("streams", signed_stream_name=CHAT_42)
    assert subscribe(renamed, streams_secret=SECRET, streams_pubsub_channel="streams").streams == ["chat/42"]
    assert subscribe(SIGNED, streams_secret=SECRET, streams_pubsub_channel="streams") is None
    assert subscribe(SIGNED, streams_secret=SECRET, streams_pubsub_channel="") is None


def test_the_announcement_names_the_channels() -> None:
    assert create(context()).announcement == "Using channels router: $pubsub"
    assert create(context(streams_pubsub_channel="")).announcement == ""
    everything = create(
        context(turbo_streams=True, turbo_streams_secret="a", cable_ready=True, cable_ready_secret="b")
    )
    assert everything.announcement == "Using channels router: $pubsub, Turbo::StreamsChannel, CableReady::Stream"


@given(text=st.text())
def test_the_identifier_comes_back_as_it_was(text: str) -> None:
    spaced = json.dumps({"extra": text, "channel": "$pubsub", "stream_name": "news"}, indent=1)
    for settings in ({"public_streams": True}, {}):
        assert json.loads(subscribe(spaced, **settings).transmissions[0])["identifier"] == spaced


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
)


@given(
    text=st.text()
    | st.fixed_dictionaries(
        {"channel": st.sampled_from(["$pubsub", "Turbo::StreamsChannel", "CableReady::Stream"]) | json_values},
        optional={"signed_stream_name": json_values, "stream_name": json_values, "identifier": json_values},
    ).map(json.dumps)
)
def test_no_identifier_raises_or_is_confirmed_unsigned(text: str) -> None:
    settings: dict[str, Any] = dict.fromkeys(("turbo_streams", "cable_ready"), True)
    settings |= dict.fromkeys(("streams_secret", "turbo_streams_secret", "cable_ready_secret"), SECRET)
    reply = subscribe(text, **settings)
    assert reply is None or reply.status is Status.FAILURE
    unsubscribe(text, **settings)
