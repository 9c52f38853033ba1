"""Who gets to see the page's content: those with the key, and nobody else in whatever mode."""

from __future__ import annotations

import hmac
import json
import re
from base64 import b64encode
from hashlib import sha256
from importlib.resources import files

import pytest
from twisted.logger import formatEvent, globalLogPublisher

from anycable_tx.admin.pages import IDENTIFIER
from anycable_tx.config.load import defaults
from anycable_tx.errors import ConfigurationError
from tests.admin.support import ADMIN, KEY, Page, knock, ticket_of
from tests.transports.support import BASE, EXTENDED, command, identifier

PAGE = files("anycable_tx.admin").joinpath("page.html").read_text("utf-8")
UNAUTHORIZED = {"type": "disconnect", "reason": "unauthorized", "reconnect": False}


def test_it_is_off_by_default(cable):
    it = cable(admin_key=KEY)
    assert it.connect().get("/admin").status == 404
    assert it.connect().get("/admin/ticket", "POST", Authorization=f"Bearer {KEY}").status == 404
    assert it.connect().upgrade("/admin/cable", BASE).status == 404


@pytest.mark.parametrize("more", [{}, {"admin_key": "none"}, {"secret": "s"}, {"public": True}])
def test_it_does_not_start_without_a_key_of_its_own(more):
    with pytest.raises(ConfigurationError, match="the admin page needs a key; give admin_key"):
        defaults(admin=True, **more)


def test_the_name_that_the_key_has_elsewhere_is_known():
    assert defaults(admin=True, admin_secret="s")["admin_key"] == "s"


def test_a_wrong_key_is_refused_and_counted_and_no_key_is_logged(cable):
    logged = []
    globalLogPublisher.addObserver(logged.append)
    try:
        it = cable(**ADMIN, public=True, log_level="debug")
        for headers in (
            {},
            {"Authorization": "Bearer wr0ng"},
            {"Authorization": KEY},
            {"Authorization": "Bearer k3y "},
        ):
            client = it.connect()
            answer = client.get("/admin/ticket", "POST", **headers)
            expected = 200 if headers.get("Authorization") == "Bearer k3y " else 401  # blanks around are HTTP's
            assert answer.status == expected
            assert answer.headers["cache-control"] == "no-store"
        assert it.metrics.value("admin_refusals_total", "unauthorized") == 3
        Page(it)
    finally:
        globalLogPublisher.removeObserver(logged.append)
    text = "\n".join(f"{formatEvent(event)} {event.get('attrs')}" for event in logged)
    assert "request refused" in text
    assert KEY not in text
    assert "wr0ng" not in text


def test_a_key_is_compared_in_constant_time(cable, monkeypatch):
    it, compared = cable(**ADMIN), []
    real = hmac.compare_digest
    monkeypatch.setattr(hmac, "compare_digest", lambda a, b: compared.append((a, b)) or real(a, b))
    it.connect().get("/admin/ticket", "POST", Authorization="Bearer x")
    assert set(compared) == {(b"Bearer x", b"Bearer k3y")}


def test_a_key_in_the_address_is_none(cable):
    it = cable(**ADMIN)
    assert it.connect().get(f"/admin/ticket?key={KEY}", "POST").status == 401
    client = it.connect()
    client.upgrade(f"/admin/cable?jid={ticket_of(it)}", BASE)
    assert client.farewell()[0] == [UNAUTHORIZED]


def test_other_methods_are_refused(cable):
    it = cable(**ADMIN)
    assert it.connect().get("/admin/ticket", Authorization=f"Bearer {KEY}").status == 405
    assert it.connect().get("/admin", "POST").status == 405
    head = it.connect().get("/admin", "HEAD")
    assert (head.status, head.body) == (200, b"")


def test_without_a_ticket_there_is_no_page(cable):
    it = cable(**ADMIN, public=True)
    used = ticket_of(it)
    knock(it, used)
    for ticket in ("", "x", used, KEY):
        client = knock(it, ticket)
        assert client.farewell()[:2] == ([UNAUTHORIZED], 1000)
    assert it.metrics.value("admin_refusals_total", "ticket") == 4
    assert it.server.admin.node.metrics.value("clients_num") == 1


def test_what_a_client_without_a_ticket_asks_for_meanwhile_is_not_answered(cable):
    it = cable(**ADMIN, public=True)
    client = it.connect()
    client.upgrade("/admin/cable", EXTENDED)
    client.send(command("subscribe", identifier=IDENTIFIER))
    assert client.farewell()[0] == [UNAUTHORIZED]


@pytest.mark.parametrize("protocol", [BASE, EXTENDED])
def test_no_client_of_the_server_can_read_what_a_page_is_sent(cable, protocol):
    it = cable(**ADMIN, public=True)
    page = Page(it)
    client = it.client(protocol)
    names = [IDENTIFIER, *(json.dumps({"channel": c}) for c in ("$admin", "$pubsub"))]
    for name in names:
        client.send(command("subscribe", identifier=name))
        assert [m.get("type") for m in client.messages()] in ([], ["reject_subscription"])
    for stream in ("admin", IDENTIFIER, "*", "", ">", page.first["node"]["id"]):
        client.send(command("subscribe", identifier=identifier(stream)))
    client.messages()
    it.wait(3.1)
    assert len(page.shown()) == 3
    assert client.payloads() == []


@pytest.mark.parametrize("protocol", [BASE, EXTENDED])
def test_a_ticket_opens_nothing_at_the_door_of_the_clients(cable, protocol):
    it = cable(**ADMIN, public=True)
    client = it.connect()
    assert client.upgrade("/cable", f"{protocol}, anycable-token.{ticket_of(it)}").status == 101
    client.messages()
    client.send(command("subscribe", identifier=IDENTIFIER))
    it.wait(2)
    assert [m for m in client.messages() if "message" in m] == []


def test_a_page_can_do_nothing_that_clients_can(cable):
    it = cable(**ADMIN, public=True)
    page = Page(it)
    page.client.send(command("subscribe", identifier=identifier("chat")))
    assert [m["type"] for m in page.client.messages()] == ["reject_subscription"]
    it.publish("chat", "x")
    it.wait(1)
    assert [set(shown) & {"x"} for shown in page.shown()] == [set()]


def test_a_page_that_comes_back_with_its_sid_is_a_stranger(cable):
    it = cable(**ADMIN, public=True)
    client = knock(it, ticket_of(it))
    [welcome] = client.messages()
    stranger = it.connect()
    stranger.upgrade(f"/admin/cable?sid={welcome['sid']}", EXTENDED)
    assert stranger.farewell()[0] == [UNAUTHORIZED]


def test_the_page_may_run_only_what_it_brings(cable):
    answer = cable(**ADMIN).connect().get("/admin")
    assert answer.body.decode() == PAGE
    policy = dict(part.split(" ", 1) for part in answer.headers["content-security-policy"].split("; "))
    for kind in ("script", "style"):
        [text] = re.findall(f"<{kind}>(.*?)</{kind}>", PAGE, re.DOTALL)
        digest = b64encode(sha256(text.encode()).digest()).decode()
        assert policy.pop(f"{kind}-src") == f"'sha256-{digest}'"
    assert policy.pop("connect-src") == "'self'"
    assert policy.pop("img-src") == "data:"
    assert set(policy.values()) == {"'none'"}
    assert policy.keys() >= {"default-src", "base-uri", "form-action", "frame-ancestors"}
    assert answer.headers["x-content-type-options"] == "nosniff"


def test_the_page_makes_no_markup_of_what_it_is_told_and_loads_nothing():
    assert not re.search(r"innerHTML|outerHTML|insertAdjacent|document\.write|eval|new Function", PAGE)
    assert not re.search(r"https?://|\bsrc=|\bon\w+=|@import|url\(| style=", PAGE)
    assert "localStorage" not in PAGE
    assert "sessionStorage" not in PAGE


def test_limits_and_origins_of_clients_are_not_for_pages(cable):
    it = cable(**ADMIN, public=True, max_conn=1, max_conn_per_address=1, allowed_origins=["app.example"])
    it.client(Origin="http://app.example")
    assert it.connect().upgrade("/cable", BASE, Origin="http://app.example").status == 503
    assert Page(it).first["clients"]["total"] == 1
