"""The shared client and one server: commands, scripts, links, losses, and coming back."""

from __future__ import annotations

import socket
import time
from contextlib import closing
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from twisted.internet.defer import CancelledError, Deferred

from anycable_tx.errors import ConfigurationError
from anycable_tx.interfaces import ProviderContext
from anycable_tx.metrics import Metrics
from anycable_tx.redis import connection as connection_module
from anycable_tx.redis.api import RedisError, RedisUnavailable, Script
from anycable_tx.redis.client import Client, shared
from anycable_tx.redis.connection import REPLY_LIMIT
from anycable_tx.testing.processes import free_port
from anycable_tx.testing.redis_servers import RedisServer
from tests.redis.conftest import Make
from tests.redis.support import SETTINGS, turn
from tests.rpc.http_support import RealReactor


def start(work: Any) -> Deferred[Any]:
    """*work*, begun; its end is waited for later."""
    return Deferred.fromCoroutine(work)


class TestCommands:
    def test_answers_are_kept_as_they_were_sent(self, server: RedisServer, make: Make) -> None:
        it = make(server.url)
        assert it.ask("SET", "n", "12") == b"OK"
        assert it.ask("GET", "n") == b"12"
        assert it.ask("GET", "nothing") is None
        assert it.ask("INCR", "n") == 13
        assert it.ask("GET", "n") == b"13"
        data = bytes(range(256)) * 1000
        it.ask("SET", "data", data)
        assert it.ask("MGET", "data", "nothing") == [data, None]

    def test_an_error_has_its_kind(self, server: RedisServer, make: Make) -> None:
        it = make(server.url)
        it.ask("SET", "text", "a")
        with pytest.raises(RedisError) as wrong_type:
            it.ask("LPUSH", "text", "b")
        with pytest.raises(RedisError) as unknown:
            it.ask("NONSENSE", "text")
        assert (wrong_type.value.kind, unknown.value.kind) == ("WRONGTYPE", "ERR")

    def test_in_a_pipeline_an_error_stands_in_the_place_of_its_answer(self, server: RedisServer, make: Make) -> None:
        it = make(server.url)
        one, two, three = it.pipeline("p", ("SET", "p", "a"), ("LPUSH", "p", "b"), ("GET", "p"))
        assert (one, three) == (b"OK", b"a")
        assert isinstance(two, RedisError)
        assert it.pipeline("p") == []

    def test_answers_keep_the_order_of_the_commands(self, server: RedisServer, make: Make) -> None:
        it = make(server.url)
        asked = [start(it.client.execute("k", "ECHO", n)) for n in range(500)]
        it.until(lambda: all(each.called for each in asked))
        assert [it.reactor.result(each) for each in asked] == [b"%d" % n for n in range(500)]

    def test_a_cancelled_command_disturbs_no_other(self, server: RedisServer, make: Make) -> None:
        it = make(server.url)
        first, second = (start(it.client.execute("k", "ECHO", n)) for n in (1, 2))
        first.cancel()
        assert it.reactor.result(second) == b"2"
        with pytest.raises(CancelledError):
            it.reactor.result(first)

    @pytest.mark.statement("F49")
    def test_a_script_is_sent_once_and_again_when_the_server_forgot_it(self, server: RedisServer, make: Make) -> None:
        it = make(server.url)
        script = Script(f"return {{redis.call('INCR', KEYS[1]), ARGV[1]}} -- {server.port}")
        it.ask("SET", "counter", 0)
        assert [it.run(script, ["counter"], n) for n in "ab"] == [[1, b"a"], [2, b"b"]]
        server.ask("SCRIPT", "FLUSH")
        assert it.run(script, ["counter"], "c") == [3, b"c"]

    @pytest.mark.statement("BR-75")
    def test_a_database_is_selected(self, server: RedisServer, make: Make) -> None:
        make(f"{server.url}/3").ask("SET", "where", "in 3")
        assert make(f"{server.url}?db=3").ask("GET", "where") == b"in 3"
        assert make(server.url).ask("GET", "where") is None

    @pytest.mark.statement("BR-75")
    def test_a_unix_socket_is_an_address(self, tmp_path: Path, make: Make) -> None:
        with RedisServer("--unixsocket", str(tmp_path / "redis.sock")) as server:
            it = make(f"unix://{tmp_path}/redis.sock?db=2&client_name=us")
            it.ask("SET", "a", "b")
            assert server.ask("GET", "a") is None
            assert it.ask("CLIENT", "GETNAME") == b"us"

    @pytest.mark.statement("BR-75")
    def test_a_user_and_a_password_are_shown(self, own: RedisServer, make: Make) -> None:
        own.ask("ACL", "SETUSER", "jo", "on", ">s@cret", "~*", "&*", "+@all")
        own.ask("CONFIG", "SET", "requirepass", "pass")
        assert make(f"redis://jo:s%40cret@127.0.0.1:{own.port}").ask("ACL", "WHOAMI") == b"jo"
        assert make(f"redis://:pass@127.0.0.1:{own.port}").ask("ACL", "WHOAMI") == b"default"

    def test_a_refused_login_is_a_problem_and_no_secret(
        self, own: RedisServer, make: Make, capsys: pytest.CaptureFixture[str]
    ) -> None:
        own.ask("CONFIG", "SET", "requirepass", "pass")
        it = make(f"redis://:sesame@127.0.0.1:{own.port}", started=False)
        starting = start(it.client.start())
        it.until(lambda: "WRONGPASS" in it.client.problem())
        assert "sesame" not in it.client.problem()
        own.ask("CONFIG", "SET", "requirepass", "sesame", password="pass")
        it.reactor.result(starting)
        assert it.client.problem() == ""
        it.reactor.result(it.client.stop())

    def test_a_server_that_wants_a_password_is_a_problem(self, own: RedisServer, make: Make) -> None:
        own.ask("CONFIG", "SET", "requirepass", "pass")
        it = make(own.url, started=False)
        starting = start(it.client.start())
        it.until(lambda: "NOAUTH" in it.client.problem())
        it.reactor.result(it.client.stop())
        it.reactor.result(starting)

    def test_a_user_who_may_not_ask_who_the_server_is_gets_a_generation_for_each_connection(
        self, own: RedisServer, make: Make
    ) -> None:
        own.ask("ACL", "SETUSER", "jo", "on", ">pw", "~*", "+get")
        it = make(f"redis://jo:pw@127.0.0.1:{own.port}")
        first = it.client.generation("k")
        assert it.ask("GET", "k") is None
        own.ask("CLIENT", "KILL", "TYPE", "normal")
        it.until(lambda: it.heard.events == ["master down", "master up"])
        assert first
        assert it.client.generation("k") not in ("", first)

    def test_too_many_commands_at_a_time_are_refused_and_counted(
        self, server: RedisServer, make: Make, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(connection_module, "MAX_PENDING", 10)
        it = make(server.url)
        asked = [start(it.client.execute("k", "ECHO", n)) for n in range(12)]
        it.until(lambda: all(each.called for each in asked))
        assert [it.reactor.result(each) for each in asked[:10]] == [b"%d" % n for n in range(10)]
        for each in asked[10:]:
            with pytest.raises(RedisUnavailable, match="too many"):
                it.reactor.result(each)
        assert it.metrics.value("redis_refused_commands_total", "too_many_pending") == 2
        assert it.ask("ECHO", "k") == b"k"

    def test_so_are_too_many_bytes(self, server: RedisServer, make: Make, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(connection_module, "_MAX_PENDING_BYTES", 1000)
        it = make(server.url)
        large, other = (start(it.client.execute("k", "ECHO", size * "x")) for size in (5000, 5))
        assert it.reactor.result(large) == 5000 * b"x"
        with pytest.raises(RedisUnavailable, match="too many"):
            it.reactor.result(other)
        assert it.ask("ECHO", "k") == b"k"


class TestTime:
    def test_it_is_the_time_of_the_server(self, server: RedisServer, make: Make) -> None:
        it = make(server.url)
        assert abs(it.client.now() - time.time()) < 0.5

    def test_it_never_goes_back(self, server: RedisServer, make: Make) -> None:
        it = make(server.url, redis_keepalive_interval=30)
        it.reactor.pass_time(100)  # for us only: the next look at the server shows that it is not so late
        ahead = it.client.now()
        assert ahead - time.time() > 90
        it.until(lambda: it.client._clock._offset + it.reactor.seconds() < ahead - 90)
        assert it.client.now() >= ahead


class TestLosses:
    def test_after_a_restart_it_comes_back_with_another_generation(self, own: RedisServer, make: Make) -> None:
        it = make(own.url)
        first = it.client.generation("k")
        own.kill()
        it.until(lambda: it.heard.events == ["master down"])
        assert it.client.generation("k") == ""
        assert it.client.problem().startswith(f"Redis: 127.0.0.1:{own.port}: ")
        own.start()
        it.until(lambda: it.heard.events == ["master down", "master up"])
        assert it.client.problem() == ""
        assert it.client.generation("k") not in ("", first)
        assert it.metrics.value("redis_reconnects_total", "main") == 1
        assert it.ask("ECHO", "k") == b"k"

    def test_what_is_due_when_the_connection_is_lost_fails(self, own: RedisServer, make: Make) -> None:
        it = make(own.url)
        own.stall()
        asked = start(it.client.execute("k", "INCR", "k"))
        turn(it.reactor, 0.05)
        assert not asked.called
        own.kill()
        with pytest.raises(RedisUnavailable, match="lost"):
            it.reactor.result(asked)

    def test_commands_wait_through_the_first_second_of_an_outage_in_their_order(
        self, own: RedisServer, make: Make
    ) -> None:
        it = make(own.url)
        own.ask("CLIENT", "KILL", "TYPE", "normal")
        it.until(lambda: it.client.problem())
        asked = [start(it.client.execute("list", "RPUSH", "list", n)) for n in range(20)]
        it.until(lambda: all(each.called for each in asked))
        assert [it.reactor.result(each) for each in asked] == list(range(1, 21))
        assert it.ask("LRANGE", "list", 0, -1) == [b"%d" % n for n in range(20)]

    def test_after_that_they_fail_at_once_and_are_counted(self, own: RedisServer, make: Make) -> None:
        it = make(own.url)
        own.kill()
        it.until(lambda: it.client.problem())
        waits = start(it.client.execute("k", "GET", "k"))
        assert not waits.called
        it.reactor.pass_time(1.0)
        with pytest.raises(RedisUnavailable):
            it.reactor.result(waits)
        fails = start(it.client.execute("k", "GET", "k"))
        assert fails.called
        with pytest.raises(RedisUnavailable):
            it.reactor.result(fails)
        assert it.metrics.value("redis_refused_commands_total", "not_connected") == 2

    def test_a_start_without_a_server_goes_on_and_is_no_failure(self, make: Make) -> None:
        server = RedisServer()
        with closing(server):
            it = make(server.url, started=False)
            starting = start(it.client.start())
            it.until(lambda: "refused" in it.client.problem())
            it.reactor.pass_time(5)
            it.reactor.result(starting)
            server.start()
            it.until(lambda: it.client.problem() == "")
            assert it.heard.events == []  # that was no coming back
            it.reactor.result(it.client.stop())

    def test_a_stalled_server_is_given_up_when_an_answer_is_late(self, own: RedisServer, make: Make) -> None:
        it = make(own.url)
        own.stall()
        asked = start(it.client.execute("k", "GET", "k"))
        it.reactor.pass_time(REPLY_LIMIT)
        with pytest.raises(RedisUnavailable, match="no answer for 5 s"):
            it.reactor.result(asked)
        assert it.heard.events == ["master down"]
        assert it.metrics.value("redis_stalls_total") == 1
        own.resume()
        it.until(lambda: it.heard.events == ["master down", "master up"])

    def test_an_idle_connection_that_stalled_is_found_by_its_keepalive(self, own: RedisServer, make: Make) -> None:
        it = make(own.url, redis_keepalive_interval=10)
        own.stall()
        it.reactor.pass_time(10)
        turn(it.reactor, 0.05)
        assert it.heard.events == []
        it.reactor.pass_time(REPLY_LIMIT)
        it.until(lambda: it.heard.events == ["master down"])
        own.resume()
        it.until(lambda: it.heard.events == ["master down", "master up"])

    def test_a_connection_that_answers_its_keepalives_stays(self, own: RedisServer, make: Make) -> None:
        it = make(own.url, redis_keepalive_interval=10)
        for _ in range(5):
            it.reactor.pass_time(10)
            turn(it.reactor, 0.05)
        assert it.heard.events == []
        assert b"cmdstat_role:calls=6" in own.ask("INFO", "commandstats")

    @pytest.mark.statement("F44")
    def test_attempts_get_rarer_up_to_one_in_five_seconds(self, own: RedisServer, make: Make) -> None:
        it = make(own.url)
        own.kill()
        it.until(lambda: it.client.problem())

        def attempts() -> int:
            return it.metrics.value("redis_failed_attempts_total")

        it.until(lambda: attempts() >= 3)
        for _ in range(5):
            made = attempts()
            it.reactor.pass_time(5)
            it.until(lambda made=made: attempts() > made)
        made = attempts()
        it.reactor.pass_time(2.4)
        turn(it.reactor, 0.1)
        assert attempts() == made  # never less than half of five seconds
        it.reactor.pass_time(2.6)
        it.until(lambda: attempts() == made + 1)
        own.start()
        it.reactor.pass_time(5)
        it.until(lambda: it.client.problem() == "")

    @pytest.mark.statement("F47")
    def test_a_server_that_became_a_replica_is_left_at_the_first_write(self, own: RedisServer, make: Make) -> None:
        it = make(own.url)
        own.ask("REPLICAOF", "127.0.0.1", free_port())
        with pytest.raises(RedisUnavailable, match="replica"):
            it.ask("SET", "a", "b")
        it.until(lambda: "no master" in it.client.problem())
        own.ask("REPLICAOF", "NO", "ONE")
        it.until(lambda: it.client.problem() == "")
        assert it.ask("SET", "a", "b") == b"OK"

    @pytest.mark.statement("F47")
    @pytest.mark.parametrize("kind", ["redis", "valkey"])
    def test_a_script_meets_the_same(self, kind: str, make: Make) -> None:
        with RedisServer(kind=kind) as own:
            it = make(own.url)
            own.ask("REPLICAOF", "127.0.0.1", free_port())
            with pytest.raises(RedisUnavailable, match="replica"):
                it.run(Script("return redis.call('SET', KEYS[1], 'b')"), ["a"])

    @pytest.mark.statement("F47")
    def test_an_idle_client_finds_out_with_its_keepalive(self, own: RedisServer, make: Make) -> None:
        it = make(own.url)
        own.ask("REPLICAOF", "127.0.0.1", free_port())
        turn(it.reactor, 0.1)
        assert it.heard.events == []
        it.reactor.pass_time(30)
        it.until(lambda: it.heard.events == ["master down"])

    def test_something_that_is_not_redis_is_a_problem(self, make: Make) -> None:
        with socket.create_server(("127.0.0.1", 0)) as mail:
            it = make(f"redis://127.0.0.1:{mail.getsockname()[1]}", started=False)
            starting = start(it.client.start())
            turn(it.reactor, 0.05)
            connection, _ = mail.accept()
            connection.sendall(b"220 mail.test\r\n")
            it.until(lambda: "does not speak the Redis protocol" in it.client.problem())
            connection.close()
            it.reactor.result(it.client.stop())
            it.reactor.result(starting)


class TestLinks:
    def test_a_blocking_command_holds_up_nobody_else(self, server: RedisServer, make: Make) -> None:
        it = make(server.url)
        link = it.reactor.result(it.client.link("s"))
        blocked = start(link.command("XREAD", "BLOCK", 5000, "STREAMS", "s", "$"))
        turn(it.reactor, 0.05)
        entry = it.ask("XADD", "s", "*", "a", "b")
        assert it.reactor.result(blocked) == [[b"s", [[entry, [b"a", b"b"]]]]]
        with pytest.raises(RedisError, match="ERR unknown"):
            it.reactor.result(link.command("NONSENSE"))
        link.close()
        with pytest.raises(RedisUnavailable, match="closed"):
            it.reactor.result(link.command("PING"))

    def test_cancelling_closes_the_link(self, server: RedisServer, make: Make) -> None:
        it = make(server.url)
        link = it.reactor.result(it.client.link("s"))
        blocked = start(link.command("BLPOP", "nothing", 0))
        turn(it.reactor, 0.05)
        blocked.cancel()
        with pytest.raises(CancelledError):
            it.reactor.result(blocked)
        with pytest.raises(RedisUnavailable):
            it.reactor.result(link.command("PING"))

    def test_it_is_lost_when_an_answer_is_five_seconds_late(self, own: RedisServer, make: Make) -> None:
        it = make(own.url)
        link = it.reactor.result(it.client.link("s"))
        own.stall()
        blocked = start(link.command("XREAD", "BLOCK", "2000", "STREAMS", "s", "$"))
        it.reactor.pass_time(2 + REPLY_LIMIT - 0.5)
        turn(it.reactor, 0.05)
        assert not blocked.called
        it.reactor.pass_time(0.5)
        with pytest.raises(RedisUnavailable, match="no answer for 7 s"):
            it.reactor.result(blocked)

    def test_there_is_none_without_a_connection(self, own: RedisServer, make: Make) -> None:
        it = make(own.url)
        own.kill()
        it.until(lambda: it.client.problem())
        with pytest.raises(RedisUnavailable):
            it.reactor.result(it.client.link("s"))


class TestShared:
    def context(self, node: Any, reactor: RealReactor, url: str) -> ProviderContext:
        return ProviderContext({**SETTINGS, "redis_url": url}, reactor, node, Metrics())

    def test_there_is_one_for_each_node(self, reactor: RealReactor) -> None:
        first, second = Node(), Node()
        one = shared(self.context(first, reactor, "redis://a"))
        assert shared(self.context(first, reactor, "redis://a")) is one
        assert shared(self.context(second, reactor, "redis://a")) is not one

    def test_the_last_of_those_that_started_it_stops_it(self, server: RedisServer, reactor: RealReactor) -> None:
        client = shared(self.context(Node(), reactor, server.url))
        for _ in range(2):
            reactor.result(client.start())
        reactor.result(client.stop())
        assert reactor.result(client.execute("k", "ECHO", "k")) == b"k"
        reactor.result(client.stop())
        reactor.until(reactor.at_rest)
        reactor.result(client.start())
        assert reactor.result(client.execute("k", "ECHO", "k")) == b"k"
        reactor.result(client.stop())
        reactor.until(reactor.at_rest)

    @pytest.mark.statement("BR-75")
    def test_a_wrong_address_stops_the_start(self, reactor: RealReactor) -> None:
        with pytest.raises(ConfigurationError, match="redis_url"):
            shared(self.context(Node(), reactor, "mysql://a"))


class Node(SimpleNamespace):
    """A node; two of them are never the same."""

    __hash__ = object.__hash__
    __eq__ = object.__eq__


def test_a_client_that_is_stopped_at_once_leaves_nothing(reactor: RealReactor) -> None:
    with RedisServer() as server:
        server.stall()
        client = Client({**SETTINGS, "redis_url": server.url}, reactor, Metrics())
        starting = start(client.start())
        turn(reactor, 0.05)
        reactor.result(client.stop())
        reactor.result(starting)
        reactor.until(reactor.at_rest)
