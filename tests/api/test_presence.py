"""Who is present, over the API."""

from __future__ import annotations

from urllib.parse import quote

import pytest

from anycable_tx.errors import BrokerUnavailable
from anycable_tx.testing.sync import result_of
from tests.api.support import World, content


def users(it: World, name: str):
    """What is answered for a name as it stands in the path."""
    return it.ask("GET", f"/api/presence/{name}/users")


@pytest.mark.statement("HE-39")
def test_nobody_is_present_on_an_unknown_stream(world):
    answer = users(world(), "chat")
    assert (answer.status, answer.headers["content-type"]) == (200, "application/json")
    assert answer.body == b'{"type":"info","total":0}'


@pytest.mark.statement("HE-39")
def test_members_are_listed_with_what_they_said_of_themselves(world):
    it = world()
    result_of(it.node.broker.join("chat", "s1", "7", {"name": "Ada"}))
    result_of(it.node.broker.join("chat", "s2", "8", None))
    assert content(users(it, "chat")) == {
        "type": "info",
        "total": 2,
        "records": [{"info": {"name": "Ada"}, "id": "7"}, {"id": "8"}],
    }


@pytest.mark.statement("HE-39")
def test_a_broker_without_presence_is_answered_501(world):
    answer = users(world(broker="none"), "chat")
    assert (answer.status, content(answer)["code"]) == (501, "presence_refused")


@pytest.mark.statement("HE-39")
@pytest.mark.parametrize(
    "path", ["/api/presence/users", "/api/presence/a/b/users", "/api/presence/a", "/api/presence"]
)
def test_a_path_of_another_shape_is_not_found(world, path):
    assert world().ask("GET", path).status == 404


@pytest.mark.statement("HE-40")
@pytest.mark.parametrize("stream", ["chat/1", "a b", "%2F", "ünï", "..", "?", "#", "a+b", "\x00", "users", "/"])
def test_any_name_is_reachable_percent_encoded(world, stream):
    it = world()
    result_of(it.node.broker.join(stream, "s1", "7", None))
    assert content(users(it, quote(stream, safe="")))["total"] == 1


def test_a_name_that_is_not_utf8_is_answered_400_and_an_empty_one_404(world):
    it = world()
    assert [users(it, name).status for name in ("%FF", "")] == [400, 404]
    assert it.metrics.value("rejected_reads_total", "bad_request") == 1


def test_a_broker_that_is_away_is_answered_501(world, monkeypatch):
    it = world()

    async def unavailable(stream):
        raise BrokerUnavailable("it is down")

    monkeypatch.setattr(it.node.broker, "members", unavailable)
    answer = users(it, "chat")
    assert (answer.status, content(answer)["code"]) == (501, "broker_unavailable")
    assert it.metrics.value("rejected_reads_total", "broker_unavailable") == 1
