"""The shared client and one server: messages, requests, losses, and coming back."""

from __future__ import annotations

import time
from contextlib import suppress
from types import SimpleNamespace
from typing import Any

import pytest
from twisted.internet.defer import CancelledError, Deferred, gatherResults

from anycable_tx.errors import ConfigurationError
from anycable_tx.metrics import Metrics
from anycable_tx.nats import connection as connection_module
from anycable_tx.nats import inbox as inbox_module
from anycable_tx.nats.api import Message, NatsUnavailable, TooLarge
from anycable_tx.nats.client import Client, shared
from anycable_tx.testing.nats_servers import NatsServer
from anycable_tx.testing.processes import free_port
from tests.nats.conftest import Make
from tests.nats.support import SETTINGS, FakeServer, Kept
from tests.rpc.http_support import RealReactor


def turn(it: Kept, seconds: float) -> None:
    """Turn for so long, where what is to be seen is that nothing happens."""
    end = it.reactor.loop.time() + seconds
    it.until(lambda: it.reactor.loop.time() >= end)


class TestMessages:
    def test_they_arrive_as_they_were_sent_and_in_their_order(self, server: NatsServer, make: Make) -> None:
        it, other = make(server.url), make(server.url)
        heard, _ = it.subscribe("a.*")
        data = bytes(range(256)) * 1000
        other.client.publish("a.b", b"1")
        other.client.publish("a.c", data, {"Ac-Id": "x", "Ac-Meta": '{"ä": 1}'})
        other.client.publish("a.b.c", b"not this")
        other.client.publish("a.b")
        it.until(lambda: len(heard) == 3)
        assert heard == [
            Message("a.b", b"1", {}),
            Message("a.c", data, {"Ac-Id": "x", "Ac-Meta": '{"ä": 1}'}),
            Message("a.b", b"", {}),
        ]

    def test_one_may_be_as_large_as_the_server_takes(self, server: NatsServer, make: Make) -> None:
        it = make(server.url)
        heard, _ = it.subscribe("a")
        it.client.publish("a", bytes(1_048_576))
        for headers in (None, {"A": "b"}):
            with pytest.raises(TooLarge, match=r"a: .* bytes, and the server takes 1048576"):
                it.client.publish("a", bytes(1_048_577 if headers is None else 1_048_576), headers)
        with pytest.raises(TooLarge):
            it.request("a", bytes(2_000_000))
        it.until(lambda: heard)
        assert it.problem == ""
        assert it.metrics.value("nats_refused_messages_total", "too_large") == 3

    @pytest.mark.parametrize("subject", ["", "a b", "a\r\nPUB b 0\r\n", "a\tb", "a\0", "ä" * 1001])
    def test_what_is_no_subject_is_not_sent(self, server: NatsServer, make: Make, subject: str) -> None:
        it = make(server.url)
        with pytest.raises(ValueError, match="no subject"):
            it.client.publish(subject)
        with pytest.raises(ValueError, match="no subject"):
            it.request(subject)
        with pytest.raises(ValueError, match="no subject"):
            it.subscribe(subject)
        assert it.problem == ""

    @pytest.mark.parametrize("subject", ["a..b", ".a", "a.", "a.>.b", ">.a"])
    def test_nor_is_it_subscribed_to(self, server: NatsServer, make: Make, subject: str) -> None:
        with pytest.raises(ValueError, match="no subject"):
            make(server.url).subscribe(subject)

    def test_a_header_that_would_not_arrive_is_refused(self, server: NatsServer, make: Make) -> None:
        with pytest.raises(ValueError, match="header"):
            make(server.url).client.publish("a", b"", {"A": "b\r\nC: d"})

    def test_a_receiver_that_fails_is_reported_and_the_others_go_on(self, server: NatsServer, make: Make) -> None:
        it = make(server.url)

        def fail(message: Message) -> None:
            raise ZeroDivisionError

        it.reactor.result(it.client.subscribe("a", fail))
        heard, _ = it.subscribe("a")
        it.client.publish("a")
        it.client.publish("a")
        it.until(lambda: len(heard) == 2)
        assert it.metrics.value("internal_errors_total") == 2

    def test_nothing_is_received_after_the_end_of_a_subscription(self, server: NatsServer, make: Make) -> None:
        it = make(server.url)
        heard, subscription = it.subscribe("a")
        others, _ = it.subscribe("a")
        it.client.publish("a", b"1")
        it.until(lambda: others)
        subscription.end()
        subscription.end()
        it.client.publish("a", b"2")
        it.until(lambda: len(others) == 2)
        assert [each.data for each in heard] == [b"1"]
        assert it.reactor.result(it.jetstream.api("INFO"))["type"]

    def test_the_server_knows_of_a_subscription_when_that_is_done(self, server: NatsServer, make: Make) -> None:
        it = make(server.url)
        for n in range(20):
            heard, _ = it.subscribe(f"a.{n}")
            server.publish(f"a.{n}")
            it.until(lambda heard=heard: heard)

    def test_many_subscriptions_are_confirmed_together(self, make: Make) -> None:
        with FakeServer() as server:
            it = make(server.url)
            before = server.heard.count(b"PING\r\n")
            work = [Deferred.fromCoroutine(it.client.subscribe(f"a.{n}", lambda m: None)) for n in range(1000)]
            it.reactor.result(gatherResults(work))
            assert len([line for line in server.heard if line.startswith(b"SUB a.")]) == 1000
            assert server.heard.count(b"PING\r\n") == before + 1

    def test_one_that_is_given_up_before_it_is_confirmed_is_ended(self, make: Make) -> None:
        with FakeServer() as server:
            it = make(server.url)
            server.answers = False
            work = it.begin(it.client.subscribe("a", lambda m: None))
            it.until(lambda: any(line.startswith(b"SUB a ") for line in server.heard))
            work.cancel()
            with pytest.raises(CancelledError):
                it.reactor.result(work)
            it.until(lambda: any(line.startswith(b"UNSUB") for line in server.heard))
            server.answers = True
            server.say(b"PONG\r\n")


class TestRequests:
    def test_the_first_answer_is_the_answer(self, server: NatsServer, make: Make) -> None:
        it, other = make(server.url), make(server.url)
        replies: list[str] = []

        def see(message: Message) -> None:
            replies.append(message.subject)

        it.reactor.result(it.client.subscribe("_INBOX.>", see))
        # Whoever listens may answer: here, on the subject that the inbox of the other has.
        asked, _ = it.subscribe("service")
        work = other.begin(other.client.request("service", b"?", {"A": "b"}))
        it.until(lambda: asked)
        assert asked == [Message("service", b"?", {"A": "b"})]
        (reply,) = other.client._inbox._expected
        it.client.publish(reply, b"first", {"C": "d"})
        it.client.publish(reply, b"second")
        assert other.reactor.result(work) == Message(reply, b"first", {"C": "d"})
        it.until(lambda: len(replies) == 2)

    def test_nobody_there_to_answer_is_known_at_once(self, server: NatsServer, make: Make) -> None:
        it = make(server.url)
        began = time.monotonic()
        with pytest.raises(NatsUnavailable, match=r"nobody.here: nobody is there to answer"):
            it.request("nobody.here")
        assert time.monotonic() - began < 1

    def test_an_answer_is_waited_for_only_so_long(self, server: NatsServer, make: Make) -> None:
        it = make(server.url)
        asked, _ = it.subscribe("silent")
        with pytest.raises(NatsUnavailable, match=r"silent: no answer within 0.05 s"):
            it.request("silent", within=0.05)
        it.until(lambda: asked)
        assert it.client._inbox._expected == {}

    def test_one_that_is_given_up_is_forgotten(self, server: NatsServer, make: Make) -> None:
        it = make(server.url)
        it.subscribe("silent")
        work = it.begin(it.client.request("silent"))
        work.cancel()
        with pytest.raises(CancelledError):
            it.reactor.result(work)
        assert it.client._inbox._expected == {}
        with pytest.raises(ValueError):
            it.request("bad subject")
        assert it.client._inbox._expected == {}

    def test_several_answers_end_with_a_status(self, make: Make) -> None:
        with FakeServer() as server:
            it = make(server.url)
            work = it.begin(it.client.request_many("read", within=0.5))
            reply = asked(it, server, b"read")
            for n in (2, 1, 0):
                server.say(message(reply, b"NATS/1.0\r\nNats-Num-Pending: %d\r\n\r\n" % n, b"%d" % n))
                turn(it, 0.2)  # the time is that between two
            server.say(message(reply, b"NATS/1.0 204 EOB\r\n\r\n", b""))
            answers = it.reactor.result(work)
            assert [(each.data, each.status, each.description) for each in answers] == [
                (b"2", 0, ""), (b"1", 0, ""), (b"0", 0, ""), (b"", 204, "EOB"),
            ]  # fmt: skip

    def test_several_that_do_not_end_are_none(self, make: Make) -> None:
        with FakeServer() as server:
            it = make(server.url)
            work = it.begin(it.client.request_many("read", within=0.1))
            server.say(message(asked(it, server, b"read"), b"NATS/1.0\r\nNats-Num-Pending: 1\r\n\r\n", b"x"))
            with pytest.raises(NatsUnavailable, match="no answer within"):
                it.reactor.result(work)

    def test_a_server_without_batches_gives_one(self, make: Make) -> None:
        with FakeServer() as server:
            it = make(server.url)
            work = it.begin(it.client.request_many("read"))
            server.say(message(asked(it, server, b"read"), b"NATS/1.0\r\nA: b\r\n\r\n", b"x"))
            (answer,) = it.reactor.result(work)
            assert (answer.data, answer.status) == (b"x", 0)

    def test_there_are_only_so_many_at_a_time(
        self, server: NatsServer, make: Make, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(inbox_module, "MAX_PENDING", 3)
        it = make(server.url)
        it.subscribe("silent")
        work = [it.begin(it.client.request("silent", within=0.1)) for _ in range(3)]
        with pytest.raises(NatsUnavailable, match="3 requests without an answer"):
            it.request("silent")
        for each in work:
            with pytest.raises(NatsUnavailable, match="no answer"):
                it.reactor.result(each)


def asked(it: Kept, server: FakeServer, subject: bytes) -> bytes:
    """Where to answer the request that was made about *subject*."""
    found: list[bytes] = []

    def there() -> bool:
        found[:] = [line.split()[2] for line in server.heard if line.startswith(b"PUB " + subject)]
        return bool(found)

    it.until(there)
    return found[-1]


def message(subject: bytes, headers: bytes, data: bytes, sid: int = 1) -> bytes:
    return b"HMSG %s %d %d %d\r\n%s%s\r\n" % (subject, sid, len(headers), len(headers) + len(data), headers, data)


class TestStart:
    def test_it_waits_five_seconds_and_goes_on_trying(self, make: Make, reactor: RealReactor) -> None:
        server = NatsServer(jetstream=False)
        it = make(server.url, started=False)
        work = it.begin(it.client.start())
        it.until(lambda: "Connect" in it.problem)
        assert not work.called
        reactor.pass_time(5)
        reactor.result(work)
        assert it.events == []
        with server:
            it.until_up()
            assert it.events == ["up"]
            reactor.result(it.client.stop())

    def test_it_is_done_as_soon_as_there_is_a_connection(self, own: NatsServer, make: Make) -> None:
        it = make(own.url)
        assert (it.problem, it.events) == ("", [])
        assert it.client.log_name == own.url.removeprefix("nats://")

    def test_before_there_is_a_connection_everything_fails_at_once(self, make: Make) -> None:
        it = make(f"nats://127.0.0.1:{free_port()}", started=False)
        with pytest.raises(NatsUnavailable, match="NATS: not connected yet"):
            it.client.publish("a")
        with pytest.raises(NatsUnavailable, match="NATS: not connected yet"):
            it.request("a")
        assert it.metrics.value("nats_refused_messages_total", "unavailable") == 2

    def test_who_starts_it_last_stops_it(self, own: NatsServer, make: Make, reactor: RealReactor) -> None:
        it = make(own.url)
        reactor.result(it.client.start())
        reactor.result(it.client.stop())
        assert it.problem == ""
        it.stop()
        assert it.problem == "NATS: stopped"
        assert it.events == []

    def test_it_can_be_started_again(self, own: NatsServer, make: Make) -> None:
        it = make(own.url)
        it.subscribe("a")
        it.stop()
        it.start()
        heard, _ = it.subscribe("b")
        it.client.publish("b")
        it.until(lambda: heard)
        assert it.metrics.value("nats_reconnects_total") == 0

    def test_a_stop_sends_what_waits(self, own: NatsServer, make: Make) -> None:
        it, other = make(own.url), make(own.url)
        heard, _ = other.subscribe("a")
        for _ in range(500):
            it.client.publish("a", bytes(10_000))
        it.stop()
        other.until(lambda: len(heard) == 500)

    def test_a_stop_ends_whatever_waits(self, make: Make, reactor: RealReactor) -> None:
        it = make(f"nats://127.0.0.1:{free_port()}", started=False)
        start = it.begin(it.client.start())
        joining = it.begin(it.client.subscribe("a", lambda m: None))
        it.until(lambda: "Connect" in it.problem)
        reactor.result(it.client.stop())
        reactor.result(start)
        with pytest.raises(NatsUnavailable, match="was stopped"):
            reactor.result(joining)

    def test_a_stop_ends_requests(self, own: NatsServer, make: Make, reactor: RealReactor) -> None:
        it = make(own.url)
        it.subscribe("silent")
        work = it.begin(it.client.request("silent"))
        it.stop()
        with pytest.raises(NatsUnavailable, match="stopped"):
            reactor.result(work)

    def test_a_stop_while_it_connects_leaves_nothing_behind(self, make: Make, reactor: RealReactor) -> None:
        with FakeServer(greeting=b" ") as server:  # says nothing
            it = make(server.url, started=False)
            start = it.begin(it.client.start())
            it.until(lambda: server.talks)
            reactor.result(it.client.stop())
            reactor.result(start)

    def test_a_stop_does_not_wait_for_a_server_that_says_nothing(self, make: Make, reactor: RealReactor) -> None:
        with FakeServer() as server:
            it = make(server.url)
            server.answers = False
            stop = it.begin(it.client.stop())
            turn(it, 0.1)
            assert not stop.called
            reactor.pass_time(2)
            reactor.result(stop)
            it._running = False

    def test_a_node_has_one(self, own: NatsServer) -> None:
        node = Metrics()
        settings = {**SETTINGS, "nats_servers": (own.url,)}
        context: Any = SimpleNamespace(settings=settings, reactor=None, metrics=Metrics(), node=node)
        other: Any = SimpleNamespace(**{**vars(context), "node": Metrics()})
        assert shared(context) is shared(context)
        assert shared(context) is not shared(other)

    def test_a_mistake_in_the_settings_stops_the_start(self) -> None:
        with pytest.raises(ConfigurationError, match="nats_servers"):
            Client({**SETTINGS, "nats_servers": ("http://x",)}, None, Metrics())


class TestLosses:
    def test_after_a_restart_everything_is_as_before(self, own: NatsServer, make: Make) -> None:
        it = make(own.url)
        heard, _ = it.subscribe("a")
        _, ended = it.subscribe("b")
        ended.end()
        own.stop()
        it.until(lambda: it.events == ["down"])
        assert f"127.0.0.1:{own.port}" in it.problem
        with pytest.raises(NatsUnavailable, match=r"127.0.0.1"):
            it.client.publish("a")
        late = it.begin(it.client.subscribe("late", heard.append))
        turn(it, 0.3)
        own.start()
        it.until(lambda: it.events == ["down", "up"])
        it.reactor.result(late)
        own.publish("a", b"1")
        own.publish("late", b"2")
        it.until(lambda: len(heard) == 2)
        assert [each.data for each in heard] == [b"1", b"2"]
        assert it.metrics.value("nats_reconnects_total") == 1
        assert it.metrics.value("nats_failed_attempts_total") >= 1
        assert "b" not in [each.subject for each in it.client._subscriptions]

    def test_what_is_asked_when_it_is_lost_fails_at_once(self, own: NatsServer, make: Make) -> None:
        it = make(own.url)
        it.subscribe("silent")
        work = [it.begin(it.client.request("silent", within=60)) for _ in range(100)]
        turn(it, 0.05)
        own.kill()
        for each in work:
            with pytest.raises(NatsUnavailable, match=r"closed the connection|reset"):
                it.reactor.result(each)

    def test_nothing_is_written_to_a_connection_that_closes(
        self, own: NatsServer, make: Make, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        it = make(own.url)
        socket = it.client._upkeep.connection._socket  # type: ignore[union-attr]
        write = socket.write

        def strict(data: bytes) -> None:
            if socket._io_writer.transport.is_closing():
                raise RuntimeError("the handler is closed")  # as uvloop says
            write(data)

        monkeypatch.setattr(socket, "write", strict)
        it.client.publish("a", b"1")
        socket._io_writer.transport.abort()
        errors: list[Any] = []
        it.reactor.loop.set_exception_handler(lambda _, context: errors.append(context))
        it.until(lambda: it.events == ["down", "up"])
        assert errors == []

    @pytest.mark.statement("F45")
    def test_many_subscriptions_are_back_together(self, own: NatsServer, make: Make) -> None:
        it = make(own.url)
        heard: list[Message] = []
        work = [Deferred.fromCoroutine(it.client.subscribe(f"a.{n}", heard.append)) for n in range(10_000)]
        it.reactor.result(gatherResults(work))
        own.kill()
        it.until(lambda: it.events == ["down"])
        own.start()
        it.until(lambda: it.events == ["down", "up"])
        for n in (0, 5000, 9999):
            own.publish(f"a.{n}")
        it.until(lambda: len(heard) == 3)

    def test_a_server_that_just_stands_there_is_left(self, own: NatsServer, make: Make) -> None:
        with NatsServer(jetstream=False) as other:
            it = make(own.url, other.url, nats_dont_randomize_servers=True, nats_ping_interval=0.1)
            assert connected_to(it) == own.port
            heard, _ = it.subscribe("a")
            own.stall()
            it.until(lambda: it.events == ["down", "up"])
            assert connected_to(it) == other.port
            other.publish("a")
            it.until(lambda: heard)
            assert it.metrics.value("nats_stalls_total") == 1
            own.resume()

    def test_one_that_works_is_not(self, own: NatsServer, make: Make) -> None:
        it = make(own.url, nats_ping_interval=0.1)
        turn(it, 1.0)
        assert it.events == []

    def test_one_that_stands_there_and_has_much_to_take_is_left_too(self, own: NatsServer, make: Make) -> None:
        it = make(own.url, nats_ping_interval=0.1)
        own.stall()
        with suppress(NatsUnavailable):
            for _ in range(100):
                it.client.publish("a", bytes(1_000_000))
        with pytest.raises(NatsUnavailable, match="does not take what it is sent"):
            it.client.publish("a", bytes(1_000_000))
        assert it.metrics.value("nats_refused_messages_total", "too_many") == 2
        it.until(lambda: it.events == ["down"])
        own.resume()
        it.until(lambda: it.events == ["down", "up"])
        assert connection_module.OUTPUT_LIMIT <= 64 * 1024 * 1024

    def test_one_that_stands_there_is_not_waited_for_at_the_start(self, own: NatsServer, make: Make) -> None:
        with NatsServer(jetstream=False) as other:
            own.stall()
            began = time.monotonic()
            it = make(own.url, other.url, nats_dont_randomize_servers=True)
            assert it.problem == ""
            assert connected_to(it) == other.port
            assert time.monotonic() - began < 4.5
            own.resume()

    def test_a_server_that_is_about_to_end_is_left_before_it_does(self, make: Make) -> None:
        slowly = ('lame_duck_duration: "30s"', 'lame_duck_grace_period: "20s"')
        with NatsServer(*slowly, jetstream=False) as old, NatsServer(jetstream=False) as other:
            it = make(old.url, other.url, nats_dont_randomize_servers=True)
            heard, _ = it.subscribe("a")
            old.retire()
            it.until(lambda: it.events == ["down", "up"], 5)
            assert connected_to(it) == other.port
            other.publish("a")
            it.until(lambda: heard)

    def test_unless_there_is_no_other(self, make: Make) -> None:
        with NatsServer('lame_duck_duration: "30s"', 'lame_duck_grace_period: "20s"', jetstream=False) as old:
            it = make(old.url)
            heard, _ = it.subscribe("a")
            old.retire()
            turn(it, 0.3)
            it.client.publish("a")
            it.until(lambda: heard)
            assert it.events == []

    @pytest.mark.statement("F58")
    def test_messages_nobody_takes_wait_at_the_server_until_it_gives_up(self, make: Make) -> None:
        with NatsServer("max_pending: 2000000", 'write_deadline: "500ms"', jetstream=False) as server:
            it = make(server.url)
            heard, _ = it.subscribe("a")
            for _ in range(200):
                server.publish("a", bytes(100_000))
            time.sleep(0.7)
            it.until(lambda: it.events == ["down", "up"])
            assert 0 < len(heard) < 200

    def test_a_burst_is_taken_as_a_whole(self, server: NatsServer, make: Make) -> None:
        it, other = make(server.url), make(server.url)
        heard, _ = it.subscribe("a")
        for n in range(20_000):
            other.client.publish("a", b"%d" % n, {"A": "b"})
        it.until(lambda: len(heard) == 20_000)
        assert [int(each.data) for each in heard] == list(range(20_000))
        assert it.events == []

    def test_watchers_that_fail_do_not_end_the_attempts(self, own: NatsServer, make: Make) -> None:
        it = make(own.url)

        def fail() -> None:
            raise ZeroDivisionError

        it.client.watch(up=fail, down=fail)
        own.kill()
        it.until(lambda: it.events == ["down"])
        own.start()
        it.until(lambda: it.events == ["down", "up"])
        assert it.metrics.value("internal_errors_total") == 2


class TestOddServers:
    @pytest.mark.statement("F44")
    def test_one_that_closes_at_once_is_tried_again_but_not_all_the_time(self, make: Make) -> None:
        with FakeServer(closes_on=b"PING") as server:
            it = make(server.url, started=False)
            it.begin(it.client.start())
            turn(it, 1.0)
            assert 2 <= len(server.talks) <= 8
            assert "closed the connection" in it.problem
            server.closes_on = b"\0"
            it.until_up()
            it.reactor.result(it.client.stop())

    def test_one_that_closes_after_the_login_is_tried_again_but_not_all_the_time(self, make: Make) -> None:
        with FakeServer(closes_on=b"SUB") as server:
            it = make(server.url, started=False)
            it.begin(it.client.start())
            turn(it, 1.0)
            assert 2 <= len(server.talks) <= 8
            assert it.events == []
            it.reactor.result(it.client.stop())

    @pytest.mark.parametrize("greeting", [b"HTTP/1.1 400 Bad Request\r\n\r\n", b"INFO {nonsense\r\n", b"INFO []\r\n"])
    def test_one_that_is_none_is_no_reason_to_give_up(self, make: Make, greeting: bytes) -> None:
        with FakeServer(greeting=greeting) as server:
            it = make(server.url, started=False)
            it.begin(it.client.start())
            it.until(lambda: len(server.talks) > 2)
            assert it.problem != ""
            it.reactor.result(it.client.stop())

    @pytest.mark.parametrize("nonsense", [b"NONSENSE\r\n", b"INFO {nonsense\r\n", b"-ERR\r\n", b"MSG a b c\r\n"])
    def test_one_that_talks_nonsense_is_left(self, make: Make, nonsense: bytes) -> None:
        with FakeServer() as server:
            it = make(server.url)
            server.say(nonsense)
            it.until(lambda: it.events == ["down", "up"])

    def test_what_it_says_is_wrong_is_told(self, make: Make) -> None:
        with FakeServer() as server:
            it = make(server.url)
            server.say(b"-ERR 'Permissions Violation for Publish to \"a\"'\r\n")
            it.until(lambda: it.metrics.value("nats_errors_total"))
            assert it.problem == ""

    def test_why_it_closes_is_told(self, make: Make) -> None:
        with FakeServer(closes_on=b"PUB") as server:
            it = make(server.url)
            server.say(b"-ERR 'User Authentication Expired'\r\n")
            turn(it, 0.05)
            server.answers = False
            it.client.publish("a")
            it.until(lambda: "user authentication expired" in it.problem)

    def test_what_it_has_dropped_is_told_to_who_subscribed(self, make: Make) -> None:
        with FakeServer(closes_on=b"PUB") as server:
            it = make(server.url)
            lost: list[str] = []
            it.subscribe("a", lambda: lost.append("a"))
            it.subscribe("b")
            server.say(b"-ERR 'Slow Consumer'\r\n")
            turn(it, 0.05)
            it.client.publish("a")
            it.until(lambda: lost == ["a"])
            assert it.metrics.value("nats_slow_consumers_total") == 1

    def test_its_pings_are_answered(self, make: Make) -> None:
        with FakeServer() as server:
            it = make(server.url)
            server.say(b"PING\r\n")
            it.until(lambda: b"PONG\r\n" in server.heard)

    def test_servers_it_names_are_tried_as_well(self, own: NatsServer, make: Make) -> None:
        with FakeServer(connect_urls=[f"127.0.0.1:{own.port}"]) as server:
            it = make(server.url)
            server.closes_on = b"PUB"
            it.client.publish("a")
            it.until(lambda: it.events == ["down", "up"])
            assert connected_to(it) == own.port


def connected_to(it: Kept) -> int:
    connection = it.client._upkeep.connection
    assert connection is not None
    return connection.server.port
