"""The official client @anycable/core against a real server."""

from __future__ import annotations

import random
import time

import jwt
import pytest

from anycable_tx.testing.checker import EventLog
from anycable_tx.testing.processes import ProxyProcess, Publisher, Server, server
from tests.e2e.node import BASE, Node, NodeFailed

pytestmark = pytest.mark.e2e

IDENTIFIER = '{"channel":"$pubsub","stream_name":"a"}'


def ids(node: Node, client: str, stream: str = "a") -> list[str]:
    return [message["id"] for message in node.messages(client, stream)]


def received(node: Node, client: str, expected: list[str], stream: str = "a") -> None:
    """The client was shown exactly these, once and in order."""
    node.wait_for(len(expected), event="received", client=client, stream=stream)
    assert ids(node, client, stream) == expected


@pytest.mark.statement("CP-4", "CP-30", "CP-48")
def test_subscribes_and_receives_with_positions(node: Node, cable: Server, publisher: Publisher) -> None:
    node.open("ann", cable.url)
    node.do("subscribe", client="ann", stream="a")
    sent = [publisher.publish("a", text="ünïcødé <&>") for _ in range(3)]
    received(node, "ann", sent)
    events = node.find(event="received")
    assert [e["offset"] for e in events] == [1, 2, 3]
    assert {e["message"]["text"] for e in events} == {"ünïcødé <&>"}


@pytest.mark.statement("CP-90", "CP-99", "CP-60")
def test_resumes_after_a_cut_and_shows_what_it_missed_once_in_order(
    node: Node, cable: Server, proxy: ProxyProcess, publisher: Publisher, log: EventLog
) -> None:
    node.open("ann", proxy.url(), reconnect=500)
    node.do("subscribe", client="ann", stream="a")
    node.do("subscribe", client="ann", stream="b")
    sent = {stream: [publisher.publish(stream) for _ in range(3)] for stream in "ab"}
    node.wait_for(6, event="received", client="ann")
    proxy.do("refuse")
    proxy.do("cut")
    node.wait_for(event="cut", client="ann")
    for stream, there in sent.items():
        there += [publisher.publish(stream) for _ in range(5)]
    proxy.do("accept")
    assert [e["restored"] for e in node.wait_for(2, event="connected")] == [False, True]
    for stream in "ab":
        received(node, "ann", sent[stream], stream)
    assert len(node.find(event="subscribed")) == len(node.find(event="kept")) == 2
    report = log.check()
    assert report.ok, str(report)
    assert report.counts["refusals"] == 0


@pytest.mark.statement("CP-100", "CP-103", "CP-106")
def test_many_cuts_under_constant_publishing_lose_and_repeat_nothing(
    node: Node, cable: Server, proxy: ProxyProcess, publisher: Publisher, log: EventLog
) -> None:
    chance = random.Random(1)
    clients = [f"client-{n}" for n in range(6)]
    for client in clients:
        node.open(client, proxy.url(), reconnect=60)
        for stream in ("a", "b"):
            node.do("subscribe", client=client, stream=stream)
    until, next_cut = time.monotonic() + 8, 0.0
    while (now := time.monotonic()) < until:
        publisher.publish(chance.choice("ab"))
        time.sleep(0.004)
        if now > next_cut:
            next_cut = now + 0.08
            open_now = proxy.do("connections")
            if open_now:
                side = chance.choice(["both", "both", "client"])
                proxy.do("cut", connection=chance.choice(open_now), side=side)
    last = {publisher.publish(stream) for stream in "ab"}
    for client in clients:
        for id in last:
            node.wait_for(event="received", client=client, message={"id": id})
    report = log.check()
    assert report.ok, str(report)
    assert report.counts["fresh_authentications"] == 0
    assert report.counts["refusals"] == 0
    assert report.counts["resumes"] >= 20


@pytest.mark.statement("CP-90")
def test_resumes_after_the_server_was_restarted_from_its_snapshot(
    node: Node, cable: Server, publisher: Publisher, log: EventLog
) -> None:
    node.open("ann", cable.url, reconnect=200)
    node.do("subscribe", client="ann", stream="a")
    sent = [publisher.publish("a") for _ in range(3)]
    node.wait_for(3, event="received")
    assert cable.restart() == 0
    sent += [publisher.publish("a") for _ in range(3)]
    assert [e["restored"] for e in node.wait_for(2, event="connected")] == [False, True]
    sent += [publisher.publish("a") for _ in range(3)]
    received(node, "ann", sent)
    assert not node.find(event="history_not_found")
    report = log.check()
    assert report.ok, str(report)


@pytest.mark.statement("CP-110", "CP-113", "CP-114")
def test_presence_lasts_over_a_resume(node: Node, cable: Server, proxy: ProxyProcess) -> None:
    node.open("ann", cable.url)
    node.open("bob", proxy.url(), reconnect=100)
    for client in ("ann", "bob"):
        node.do("subscribe", client=client, stream="a")
    assert node.do("present", client="ann", stream="a") == {}
    node.do("join", client="bob", stream="a", id=7, info={"name": "Bob"})
    joined = {"type": "join", "id": "7", "info": {"name": "Bob"}}
    for client in ("ann", "bob"):
        node.wait_for(event="presence", client=client, message=joined)
    proxy.do("cut")
    assert node.wait_for(2, event="connected", client="bob")[1]["restored"]
    node.do("whisper", client="bob", stream="a", data={"id": "barrier"})
    node.wait_for(event="received", client="ann", message={"id": "barrier"})
    assert node.do("present", client="bob", stream="a") == {"7": {"name": "Bob"}}
    news = [e["message"] for e in node.find(event="presence", client="ann") if e["message"]["type"] != "info"]
    assert news == [joined]
    node.do("leave", client="bob", stream="a")
    node.wait_for(event="presence", client="ann", message={"type": "leave", "id": "7"})


@pytest.mark.statement("CP-121", "CP-78")
def test_a_whisper_reaches_the_others_and_is_not_replayed(
    node: Node, cable: Server, proxy: ProxyProcess, publisher: Publisher
) -> None:
    node.open("ann", proxy.url(), reconnect=100)
    node.open("bob", cable.url)
    for client in ("ann", "bob"):
        node.do("subscribe", client=client, stream="a")
    node.do("whisper", client="bob", stream="a", data={"id": "psst"})
    (heard,) = node.wait_for(event="received", client="ann")
    assert heard["message"] == {"id": "psst"}
    assert "offset" not in heard
    proxy.do("cut")
    node.wait_for(2, event="connected", client="ann")
    id = publisher.publish("a")
    received(node, "ann", ["psst", id])
    received(node, "bob", [id])


@pytest.mark.statement("CP-3", "CP-92")
def test_a_base_client_subscribes_again_after_a_cut(
    node: Node, cable: Server, proxy: ProxyProcess, publisher: Publisher, log: EventLog
) -> None:
    node.open("ann", proxy.url(), protocol=BASE)
    node.do("subscribe", client="ann", stream="a")
    before = publisher.publish("a")
    received(node, "ann", [before])
    proxy.do("cut")
    assert [e["restored"] for e in node.wait_for(2, event="connected")] == [False, False]
    node.wait_for(2, event="subscribed")
    received(node, "ann", [before, publisher.publish("a")])
    report = log.check()
    assert report.ok, str(report)


@pytest.mark.statement("CP-35")
def test_unsubscribed_is_silent_and_subscribing_again_catches_up(
    node: Node, cable: Server, publisher: Publisher
) -> None:
    node.open("ann", cable.url)
    for stream in ("a", "b"):
        node.do("subscribe", client="ann", stream=stream)
    sent = [publisher.publish("a")]
    received(node, "ann", sent)
    node.do("unsubscribe", client="ann", stream="a")
    node.wait_for(event="ended", stream="a")
    missed = publisher.publish("a")
    received(node, "ann", [publisher.publish("b")], "b")
    assert ids(node, "ann") == sent
    node.do("subscribe", client="ann", stream="a")
    received(node, "ann", [*sent, missed, publisher.publish("a")])


@pytest.mark.statement("CP-31")
def test_a_rejected_subscription_ends_the_channel(node: Node) -> None:
    with server("--noauth", "--norpc", "--broker=memory") as private:
        node.open("ann", private.url)
        with pytest.raises(NodeFailed, match="Rejected"):
            node.do("subscribe", client="ann", stream="a")
        assert node.find(event="ended")


def token(seconds: float) -> str:
    return jwt.encode({"ext": '{"user":7}', "exp": int(time.time() + seconds)}, "a secret " * 5, "HS256")


@pytest.mark.statement("CP-20", "CP-21", "CP-101")
def test_an_expired_token_is_refreshed_also_when_it_expires_before_a_resume(node: Node) -> None:
    options = ("--presets=broker", "--norpc", "--public_streams", "--enforce_jwt", "--broadcast_adapter=http")
    with (
        server(*options, env={"ANYCABLE_JWT_SECRET": "a secret " * 5}) as guarded,
        ProxyProcess(guarded.port) as proxy,
    ):
        node.open("ann", guarded.url, token=token(-60), fresh=token(60))
        assert node.wait_for(event="closed", client="ann")[0]["reason"] == "token_expired"
        node.wait_for(event="connected", client="ann")
        node.open("bob", proxy.url(), token=token(2), fresh=token(60))
        for client in ("ann", "bob"):
            node.do("subscribe", client=client, stream="a")
        with guarded.publisher() as publisher:
            sent = [publisher.publish("a")]
            received(node, "bob", sent)
            time.sleep(2.5)
            proxy.do("cut")
            node.wait_for(event="cut", client="bob")
            sent.append(publisher.publish("a"))
            assert node.wait_for(event="closed", client="bob")[0]["reason"] == "token_expired"
            assert [e["restored"] for e in node.wait_for(2, event="connected", client="bob")] == [False, False]
            for client in ("ann", "bob"):
                received(node, client, sent)
