"""The cable in somebody else's web site: over both ways to write of the server's own ports, on real sockets."""

from __future__ import annotations

from typing import Any

import pytest
from twisted.internet.defer import Deferred
from twisted.internet.ssl import DefaultOpenSSLContextFactory
from twisted.logger import globalLogPublisher
from twisted.web.resource import Resource
from twisted.web.server import Site
from twisted.web.util import DeferredResource

from anycable_tx.embedding import CableResource
from anycable_tx.service import AnyCableService
from tests.transports.support import CLOSE, EXTENDED, Cable, Client, command, identifier, upgrade_request
from tests.transports.test_tls import files, trust

__all__ = ["files", "trust"]

TOO_SLOW = {"type": "disconnect", "reason": "too_slow", "reconnect": True}


class Page(Resource):
    def render_GET(self, request: Any) -> bytes:
        return b"a page"


class House:
    """A site with a page, and the cable at /inside/cable."""

    def __init__(self, made: Cable, tls: Any = None) -> None:
        self.made = made
        service = AnyCableService(made.server.settings, made.reactor)  # type: ignore[arg-type]
        service.server = made.server
        root, inside = Resource(), Resource()
        root.putChild(b"page", Page())
        root.putChild(b"inside", inside)
        inside.putChild(b"cable", CableResource(service))
        #: Its callback lets those in who wait at /guarded.
        self.decision: Deferred[Resource] = Deferred()
        self.resource = CableResource(service)
        root.putChild(b"guarded", DeferredResource(self.decision))
        site = Site(root, timeout=60, reactor=made.reactor)
        if tls is None:
            self.port = made.reactor.listenTCP(0, site, interface="127.0.0.1")
        else:
            self.port = made.reactor.listenSSL(0, site, tls, interface="127.0.0.1")
        self.number = self.port.getHost().port

    def dial(self, **options: Any) -> Client:
        return self.made.dial(self.number, **options)

    def client(self, protocol: str = "", tls: Any = None, **headers: str) -> Client:
        client = self.dial(tls=tls)
        assert client.upgrade("/inside/cable?x=1", protocol, **headers).status == 101
        client.until(bool)
        [client.welcome] = client.messages()
        return client

    def subscriber(self, **options: Any) -> Client:
        client = self.client(**options)
        client.subscribe(identifier())
        return client


@pytest.fixture
def house(cable):
    opened: list[House] = []

    def make(tls: Any = None, **settings: Any) -> House:
        opened.append(House(cable(**settings), tls))
        return opened[-1]

    yield make
    for each in opened:
        each.port.stopListening()
        each.made.run()


def test_its_clients_and_those_of_the_own_ports_get_the_same_in_order(house):
    made = (it := house()).made
    clients = [it.subscriber(), made.subscriber(), it.subscriber(), made.subscriber()]
    for n in range(3):
        made.publish("chat", "x" * 100_000 * n)
    for client in clients:
        client.until(lambda received: len(received) > 300_000)
        assert [len(payload) for payload in client.payloads()] == [0, 100_000, 200_000]


def test_pages_are_served_before_on_the_same_connection_and_beside(house):
    it = house()
    client = it.dial()
    assert client.get("/page").body == b"a page"
    assert client.get("/inside/cable").status == 400
    assert client.get("/page").body == b"a page"
    assert client.upgrade("/inside/cable").status == 101
    client.until(bool)
    assert client.messages()[0]["type"] == "welcome"
    assert it.dial().get("/page").body == b"a page"


def test_what_follows_the_head_at_once_is_not_lost(house):
    client = house().dial()
    client.send(upgrade_request("/inside/cable") + command("subscribe", identifier=identifier()))
    assert client.head().status == 101
    client.until(lambda received: b"confirm" in received)
    assert [message["type"] for message in client.messages()] == ["welcome", "confirm_subscription"]


def test_the_sites_own_timeout_cuts_nobody(house):
    it = house()
    client = it.subscriber()
    it.made.wait(130, 1)
    it.made.publish("chat", 1)
    client.until(bool)
    assert client.payloads() == [1]


def test_a_resource_may_take_its_time_to_let_somebody_in(house):
    it = house()
    client = it.dial()
    client.send(upgrade_request("/guarded"))
    assert not client.received
    it.decision.callback(it.resource)
    assert client.head().status == 101
    client.send(command("subscribe", identifier=identifier()))
    client.until(lambda received: b"confirm" in received)


def test_who_left_before_that_leaves_nothing(house):
    it = house()
    client = it.dial()
    client.send(upgrade_request("/guarded"))
    client.sock.close()
    it.made.run()
    events: list[Any] = []
    observer = events.append
    globalLogPublisher.addObserver(observer)
    try:
        it.decision.callback(it.resource)
        it.made.run()
    finally:
        globalLogPublisher.removeObserver(observer)
    assert [event for event in events if "log_failure" in event] == []
    assert (it.made.factory.connections, len(it.made.node.sessions)) == (0, 0)


def shown(made: Cable) -> list[Any]:
    """What controllers are shown of the requests from now on."""
    seen: list[Any] = []
    read = made.factory.envs.read

    def note(*arguments: Any) -> Any:
        seen.append(read(*arguments))
        return seen[-1]

    made.factory.envs.read = note  # type: ignore[method-assign]
    return seen


def test_the_request_is_shown_as_it_was_sent(house):
    it = house()
    seen = shown(it.made)
    it.client(Cookie="a=1; b=2")
    [env] = seen
    assert env.url == "http://cable.example/inside/cable?x=1"
    assert env.headers == {"cookie": "a=1; b=2", "REMOTE_ADDR": "127.0.0.1"}


def test_a_slow_reader_is_let_go_and_holds_up_nobody(house):
    it = house(ws_max_pending_size=100_000)
    made = it.made
    it.subscriber()
    quick = made.subscriber()
    heard: list[int] = []
    for n in range(1000):
        made.publish("chat", [n, "x" * 60_000])
        made.run()
        heard += [payload[0] for payload in quick.payloads()]
        assert heard == list(range(n + 1))
        if made.metrics.value("disconnected_slow_clients_total"):
            break
    made.wait(10, 0.5)
    assert made.metrics.value("disconnected_slow_clients_total") == 1
    assert len(made.node.sessions) == 1


def test_refusals_are_those_of_the_own_ports(house):
    it = house(allowed_origins=("good.example",), max_conn=1)
    assert it.dial().upgrade("/inside/cable", Origin="https://bad.example").status == 403
    assert it.dial().upgrade("/inside/cable", Origin="https://good.example").status == 101
    assert it.dial().upgrade("/inside/cable", Origin="https://good.example").status == 503


def test_nobody_is_accepted_before_the_start_and_after_the_stop(house):
    it = house()
    it.made.factory.accepting = False
    assert it.dial().upgrade("/inside/cable").status == 503
    it.made.factory.accepting = True
    it.made.close_ports()
    assert it.dial().upgrade("/inside/cable").status == 503


def test_a_stop_tells_its_clients(house):
    it = house(whole=True)
    client = it.client(EXTENDED)
    it.made.stop()
    client.until(lambda received: False)
    [frame] = [frame for frame in client.frames() if frame.opcode == CLOSE]
    assert frame.payload == b"\x03\xe9Server restart"


def test_over_tls_the_url_says_so(house, files, trust):
    it = house(tls=DefaultOpenSSLContextFactory(str(files[1]), str(files[0])))
    seen = shown(it.made)
    client = it.subscriber(tls=trust)
    it.made.publish("chat", 1)
    client.until(bool)
    assert client.payloads() == [1]
    [env] = seen
    assert env.url == "https://cable.example/inside/cable?x=1"
