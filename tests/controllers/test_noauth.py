"""The controller that lets everybody in."""

from __future__ import annotations

import json

import pytest
from zope.interface.verify import verifyObject

from anycable_tx.cable.replies import ConnectReply, Status
from anycable_tx.controllers.noauth import create
from anycable_tx.interfaces import IController
from anycable_tx.testing.sync import result_of
from tests.controllers.vectors import SESSION, context, request


def test_everybody_is_welcome_and_named_after_the_session() -> None:
    noauth = create(context())
    assert verifyObject(IController, noauth)
    assert result_of(noauth.authenticate("S", request())) == ConnectReply(
        Status.SUCCESS,
        identifiers='{"sid":"S"}',
        transmissions=[b'{"type":"welcome","sid":"S"}'],
        disconnect_interest=-1,
    )


@pytest.mark.statement("RA-5")
@pytest.mark.parametrize("sid", ['a"b', 'x","user_id":"1', "\\", "é\n", ""])
def test_a_session_id_cannot_add_identifiers(sid: str) -> None:
    reply = result_of(create(context()).authenticate(sid, request()))
    assert json.loads(reply.identifiers) == {"sid": sid}
    assert json.loads(reply.transmissions[0]) == {"type": "welcome", "sid": sid}


def test_it_has_no_opinion_on_anything_else() -> None:
    noauth = create(context())
    assert result_of(noauth.check_restore('{"sid":"S"}', request())) is None
    assert result_of(noauth.subscribe(SESSION, '{"channel":"C"}')) is None
    assert result_of(noauth.unsubscribe(SESSION, '{"channel":"C"}')) is None
    assert result_of(noauth.perform(SESSION, '{"channel":"C"}', "{}")) is None
    assert result_of(noauth.disconnect(SESSION, {})) is None
