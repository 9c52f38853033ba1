"""The end of the chain: what it refuses, and with which frames."""

from __future__ import annotations

import pytest
from zope.interface.verify import verifyObject

from anycable_tx.cable.replies import ConnectReply, Reply, Status
from anycable_tx.controllers.null import create
from anycable_tx.interfaces import IController
from anycable_tx.testing.sync import result_of
from tests.controllers.vectors import SESSION, UNAUTHORIZED, context, request


@pytest.mark.statement("RA-14")
def test_connections_are_unauthorized() -> None:
    null = create(context())
    assert verifyObject(IController, null)
    assert result_of(null.authenticate("S", request())) == ConnectReply(
        Status.FAILURE, transmissions=[UNAUTHORIZED], disconnect_interest=-1, reason="unauthorized"
    )


def test_subscriptions_are_rejected_with_the_identifier_as_it_came() -> None:
    identifier = '{ "channel" : "Zoë\\n" }'
    assert result_of(create(context()).subscribe(SESSION, identifier)) == Reply(
        Status.FAILURE,
        transmissions=['{"type":"reject_subscription","identifier":"{ \\"channel\\" : \\"Zoë\\\\n\\" }"}'.encode()],
        disconnect_interest=-1,
        reason="unknown_channel",
    )


def test_unsubscribing_leaves_every_stream() -> None:
    reply = result_of(create(context()).unsubscribe(SESSION, "{}"))
    assert reply == Reply(Status.SUCCESS, stop_streams=True, disconnect_interest=-1)


def test_it_performs_nothing_and_has_no_opinion_on_resuming() -> None:
    null = create(context())
    assert result_of(null.perform(SESSION, "{}", "{}")) is None
    assert result_of(null.check_restore("", request())) is None
    assert result_of(null.disconnect(SESSION, {})) is None
