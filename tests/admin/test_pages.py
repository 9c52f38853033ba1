"""What a page is shown, when, and what it can do."""

from __future__ import annotations

import socket
from itertools import pairwise

import pytest
from twisted.logger import Logger

from anycable_tx import __version__
from anycable_tx.admin import overview
from anycable_tx.admin.overview import SHOWN
from anycable_tx.admin.pages import HIGH_WATER
from anycable_tx.admin.troubles import LAST, LastTroubles, LastWarnings
from anycable_tx.cable.messages import StreamMessage
from anycable_tx.metrics import COUNTERS, Metrics
from tests.admin.support import ADMIN, Page, ticket_of
from tests.transports.support import BASE, EXTENDED, Cable, command, identifier


def test_a_client_is_shown_with_what_is_known_of_it(cable):
    it = cable(**ADMIN)
    it.wait(1)
    client = it.subscriber("chat", EXTENDED)
    it.wait(5)
    [shown] = Page(it).first["clients"]["shown"]
    assert shown.pop("age") == pytest.approx(5, abs=0.2)
    assert shown == {
        "sid": client.sid,
        "identifiers": f'{{"sid":"{client.sid}"}}',
        "protocol": "WebSocket, extended",
        "address": "192.0.2.7" if it.direct else shown["address"],
        "subscriptions": [identifier("chat")],
        "more": 0,
        "pending": 0,
    }


def test_the_newest_clients_come_first_and_long_names_are_cut(cable):
    it = cable(**ADMIN)
    first, second = it.client(), it.client()
    for n in range(7):
        second.subscribe(identifier("x" * 200, n=n))
    shown = Page(it).first["clients"]["shown"]
    assert [client["sid"] for client in shown] == [second.sid, first.sid]
    assert (len(shown[0]["subscriptions"]), shown[0]["more"]) == (5, 2)
    assert all(len(name) < 130 for name in shown[0]["subscriptions"])
    assert shown[1]["protocol"] == "WebSocket, base"


def test_a_slow_reader_is_seen(cable):
    it = cable(**ADMIN)
    it.subscriber("chat", buffer=4096)
    for _ in range(10):
        it.publish("chat", "x" * 50_000)
    it.run()
    assert Page(it).first["clients"]["shown"][0]["pending"] > 100_000


def test_a_stream_is_shown_with_its_position_and_its_subscribers(cable):
    it = cable(**ADMIN)
    for _ in range(2):
        it.subscriber("chat")
    epoch = it.publish("chat", 1).epoch
    it.run()
    expected = {"name": "chat", "subscribers": 2, "waiting": 0, "offset": 1, "epoch": epoch, "healing": False}
    page = Page(it)
    assert page.first["streams"] == {"total": 1, "shown": [expected], "more": False}
    it.node.hub.streams["chat"].position.suspect(9)
    assert page.ask(action="show", clients="", streams="")["streams"]["shown"] == [expected | {"healing": True}]


def test_the_server_is_shown_with_its_parts(cable):
    it = cable(**ADMIN, node_id="n1-2", metrics_tags={"worker": "2"})
    it.wait(2)
    first = Page(it).first
    assert (first["node"]["id"], first["node"]["worker"]) == ("n1-2", "2")
    assert first["node"]["version"] == __version__
    assert first["node"]["uptime"] == pytest.approx(2)
    assert {"kind": "broker", "name": "memory", "problem": ""} in first["parts"]
    assert [part["kind"] for part in first["parts"]] == ["broker", "bus", "broadcaster", *["controller"] * 3]


def test_a_part_that_cannot_work_says_why(cable, monkeypatch):
    it = cable(**ADMIN)
    monkeypatch.setattr(it.node.broker, "problem", lambda: "the disk is full")
    assert Page(it).first["parts"][0]["problem"] == "the disk is full"


def test_a_page_is_sent_the_state_every_second(cable):
    it = cable(**ADMIN)
    page = Page(it)
    assert page.first["clients"]["total"] == 0
    it.subscriber("chat")
    it.publish("chat", 1)
    it.wait(3.1)
    shown = page.shown()
    assert [each["clients"]["total"] for each in shown] == [1, 1, 1]
    assert shown[-1]["totals"] == {"publications": 0, "deliveries": 6, "connects": 1, "commands": 1}
    assert [round(b["now"] - a["now"]) for a, b in pairwise(shown)] == [1, 1]


def test_nothing_runs_while_no_page_is_open(cable, monkeypatch):
    plain, it = cable(), cable(**ADMIN)
    reads = []
    read = overview.Overview.read
    monkeypatch.setattr(overview.Overview, "read", lambda *a: reads.append(1) or read(*a))

    def timers(server: Cable) -> int:
        return len(server.reactor.getDelayedCalls())

    assert timers(it) == timers(plain)
    pages = [Page(it), Page(it)]
    it.wait(2.1)
    assert len(reads) == 6
    pages[0].client.sock.close()
    it.wait(1)
    assert len(reads) == 7
    pages[1].client.sock.close()
    it.wait(15)
    assert len(reads) == 7
    assert timers(it) == timers(plain)
    assert len(it.server.admin.node.sessions) == 0


def test_a_page_that_unsubscribes_is_sent_nothing_more(cable):
    it = cable(**ADMIN)
    page = Page(it)
    page.client.send(command("unsubscribe", identifier='{"channel":"admin"}'))
    it.wait(3)
    assert page.shown() == []


def test_a_page_that_does_not_read_keeps_little_and_is_let_go(cable):
    it = cable(**ADMIN, ws_write_timeout=30)
    for _ in range(60):
        it.subscriber("s" * 80)
    page = Page(it)
    [session] = it.server.admin.node.sessions
    backlogs = []
    for _ in range(50):
        it.wait(1, 0.5)
        backlogs.append(session.outlet.backlog)
    one = len(str(page.first))
    assert 0 < max(backlogs) < HIGH_WATER + 2 * one
    it.wait(20, 0.5)
    assert len(it.server.admin.node.sessions) == 0


def test_pages_are_not_among_the_clients(cable):
    it = cable(**ADMIN)
    it.client()
    page = Page(it)
    assert page.first["clients"]["total"] == 1
    assert (it.metrics.value("clients_num"), it.metrics.value("connections_total")) == (1, 1)


# -- filters


def test_each_page_filters_for_itself(cable):
    it = cable(**ADMIN)
    clients = [it.subscriber(name) for name in ("red", "green")]
    one, other = Page(it), Page(it)
    shown = one.ask(action="show", clients=clients[0].sid[:8], streams="gre")
    assert [client["sid"] for client in shown["clients"]["shown"]] == [clients[0].sid]
    assert [stream["name"] for stream in shown["streams"]["shown"]] == ["green"]
    assert (shown["clients"]["total"], shown["streams"]["total"]) == (2, 2)
    it.wait(1)
    assert [len(page.shown()[0]["clients"]["shown"]) for page in (one, other)] == [1, 2]


def test_lists_are_cut(cable, monkeypatch):
    it = cable(**ADMIN)
    client = it.client()
    for n in range(SHOWN + 1):
        client.subscribe(identifier(f"s{n:03}"))
    page = Page(it)
    streams = page.first["streams"]
    assert (len(streams["shown"]), streams["total"], streams["more"]) == (SHOWN, SHOWN + 1, True)
    assert streams["shown"][0]["name"] == f"s{SHOWN:03}"
    shown = page.ask(action="show", clients="", streams="s000")["streams"]
    assert ([s["name"] for s in shown["shown"]], shown["more"]) == (["s000"], False)
    monkeypatch.setattr(overview, "LOOKED_AT", 50)
    shown = page.ask(action="show", clients="", streams="s000")["streams"]
    assert (shown["shown"], shown["more"]) == ([], True)


@pytest.mark.parametrize(
    "data",
    ["", "[]", '"x"', '{"action":"x"}', '{"action":"show","clients":1,"streams":""}', '{"action":"disconnect"}'],
)
def test_anything_else_that_is_asked_is_ignored(cable, data):
    it = cable(**ADMIN)
    page = Page(it)
    page.client.send(command("message", identifier='{"channel":"admin"}', data=data))
    assert page.shown() == []
    it.wait(1)
    assert len(page.shown()) == 1


# -- disconnecting


def test_a_client_can_be_disconnected(cable):
    it = cable(**ADMIN)
    client, other = it.client(EXTENDED), it.client(EXTENDED)
    shown = Page(it).ask(action="disconnect", sid=client.sid)
    assert shown["notice"] == "disconnected"
    assert client.farewell()[0] == [{"type": "disconnect", "reason": "remote", "reconnect": False}]
    assert other.is_served()
    again = it.client(EXTENDED, path=f"/cable?sid={client.sid}")
    assert "restored" not in again.welcome


def test_one_that_is_gone_cannot_be_disconnected(cable):
    assert Page(cable(**ADMIN)).ask(action="disconnect", sid="x")["notice"] == "this client is gone"


# -- what went wrong


def test_a_reject_is_shown_with_its_reason_and_its_time(cable):
    it = cable(**ADMIN)
    client = it.client()
    client.send(command("subscribe", identifier='{"channel":"$pubsub","signed_stream_name":"x"}'))
    page = Page(it)
    [before] = page.first["troubles"]
    assert before == {
        "at": None,
        "name": "subscription_rejects_total",
        "reason": "no_streams_secret",
        "count": 1,
        "total": 1,
    }
    for _ in range(2):
        client.send(command("subscribe", identifier='{"channel":"$pubsub","signed_stream_name":"x"}'))
    it.wait(1)
    newest, last = page.shown()[-1]["troubles"]
    assert last == before
    assert newest["at"] is not None
    assert (newest["count"], newest["total"]) == (2, 3)


def test_a_gap_is_shown(cable):
    it = cable(**ADMIN)
    it.subscriber("chat")
    receipt = it.publish("chat", 1)
    page = Page(it)
    it.node.deliver(StreamMessage("chat", b"3", 3, 2, receipt.epoch))
    it.wait(1)
    names = {each["name"] for each in page.shown()[-1]["troubles"]}
    assert "gaps_total" in names


def test_troubles_are_bounded_and_ordinary_counts_are_none():
    metrics, troubles = Metrics(), LastTroubles()
    for name in COUNTERS:
        metrics.count(name, reason="why" if "by" in COUNTERS[name] else "")
    for reason in ("lost", "client", "1001", "no_pong"):
        metrics.count("closed_connections_total", reason=reason)
    troubles.look(metrics, 1.0)
    ends = [each["reason"] for each in troubles.newest_first() if each["name"] == "closed_connections_total"]
    assert sorted(ends) == ["no_pong", "why"]
    names = {each["name"] for each in troubles.newest_first()}
    assert names >= {"history_rejects_total", "disconnected_slow_clients_total", "gaps_total", "admin_refusals_total"}
    assert not names & {"publications_total", "server_msg_total", "connections_total", "data_sent_total"}
    for n in range(2 * LAST):
        metrics.count("gaps_total")
        troubles.look(metrics, float(n))
    assert [each["at"] for each in troubles.newest_first()] == [float(n) for n in range(2 * LAST - 1, LAST - 1, -1)]


def test_warnings_of_the_log_are_shown(cable):
    it = cable(whole=True, **ADMIN)
    page = Page(it)
    it.connect().get("/admin/ticket", "POST")
    it.wait(1)
    assert page.shown()[-1]["warnings"][0]["attrs"]["reason"] == "unauthorized"


def test_warnings_are_kept_from_the_start_and_bounded():
    warnings = LastWarnings()
    log = Logger(namespace="x", observer=warnings)
    log.info("nothing")
    log.debug("nothing")
    for n in range(LAST + 1):
        log.warn("no {n}", n=n, attrs={"stream": "s" * 1000, "bad": "\udcff"})
    try:
        raise ValueError("oh")
    except ValueError:
        log.failure("it {what}", what="failed")
    newest, second, *_ = kept = warnings.newest_first()
    assert len(kept) == LAST
    assert (newest["text"], newest["level"], newest["attrs"]) == ("it failed", "critical", {"error": "oh"})
    assert second["text"] == f"no {LAST}"
    assert len(second["attrs"]["stream"]) < 120
    assert second["attrs"]["bad"] == "?"


# -- where it is, and its end


def test_it_can_have_another_path_and_a_port_of_its_own():
    for way in ("direct", "plain"):
        port = _free()
        it = Cable(way, whole=True, **ADMIN, admin_path="/ops/", admin_port=port)
        assert it.connect().get("/ops").status == 404
        assert it.connect().upgrade("/ops/cable", BASE).status == 404
        assert it.dial(port).get("/ops").status == 200
        assert it.dial(port).get("/ops/").status == 200
        assert it.dial(port).upgrade("/cable", BASE).status == 404
        it.client()
        page = Page(it, "/ops", port)
        assert page.first["clients"]["total"] == 1
        it.wait(1)
        page.client.until(lambda received: b"totals" in received)
        assert page.shown()
        it.close()


def test_the_root_can_be_its_path(cable):
    it = cable(**ADMIN, admin_path="/")
    assert it.connect().get("/").status == 200
    Page(it, "")


def test_a_page_is_told_when_the_server_stops():
    for way in ("direct", "plain"):
        it = Cable(way, whole=True, **ADMIN)
        page = Page(it)
        assert it.stop() < 2
        messages, code, _, _ = page.client.farewell()
        assert (messages[-1], code) == ({"type": "disconnect", "reason": "server_restart", "reconnect": True}, 1001)
        for client in it.clients:
            client.sock.close()


def test_tickets_are_for_one_page_each(cable):
    it = cable(**ADMIN)
    assert ticket_of(it) != ticket_of(it)


def _free() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])
