"""The official client @rails/actioncable against a real server."""

from __future__ import annotations

import pytest

from anycable_tx.testing.checker import EventLog
from anycable_tx.testing.processes import ProxyProcess, Publisher, Server
from tests.e2e.node import Node

pytestmark = pytest.mark.e2e


@pytest.mark.statement("CP-3", "CP-16", "CP-30", "CP-47")
def test_subscribes_receives_and_comes_back_after_a_cut(
    node: Node, cable: Server, proxy: ProxyProcess, publisher: Publisher, log: EventLog
) -> None:
    node.open("ann", proxy.url() + "?pi=1", library="rails")
    node.do("subscribe", client="ann", stream="a")
    before = [publisher.publish("a") for _ in range(3)]
    node.wait_for(3, event="received")
    proxy.do("cut")
    node.wait_for(event="interrupted")
    node.wait_for(2, event="subscribed", within=30)
    after = [publisher.publish("a") for _ in range(3)]
    node.wait_for(6, event="received")
    assert [m["id"] for m in node.messages("ann", "a")] == before + after
    report = log.check()
    assert report.ok, str(report)


@pytest.mark.statement("CP-31")
def test_is_told_of_a_server_restart_and_comes_back(node: Node, cable: Server, publisher: Publisher) -> None:
    node.open("ann", cable.url + "?pi=1", library="rails")
    node.do("subscribe", client="ann", stream="a")
    assert cable.restart() == 0
    node.wait_for(2, event="subscribed", within=30)
    id = publisher.publish("a")
    node.wait_for(event="received", message={"id": id})


@pytest.mark.statement("CP-35")
def test_unsubscribed_is_silent(node: Node, cable: Server, publisher: Publisher) -> None:
    node.open("ann", cable.url, library="rails")
    for stream in ("a", "b"):
        node.do("subscribe", client="ann", stream=stream)
    node.do("unsubscribe", client="ann", stream="a")
    id = publisher.publish("b")
    node.wait_for(event="received", stream="b")
    publisher.publish("a")
    last = publisher.publish("b")
    node.wait_for(event="received", message={"id": last})
    assert [m["id"] for m in node.messages("ann", "b")] == [id, last]
    assert node.messages("ann", "a") == []
