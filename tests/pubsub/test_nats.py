"""The bus over NATS: who hears what, and what happens when it is lost, silent or spoilt."""

from __future__ import annotations

import json
from typing import Any

import pytest
from twisted.internet.defer import Deferred
from twisted.logger import formatEvent, globalLogPublisher

from anycable_tx.cable.messages import RemoteCommand, StreamMessage
from anycable_tx.errors import BrokerUnavailable
from anycable_tx.nats.api import Message, NatsUnavailable, TooLarge
from anycable_tx.nats.wire import headers_of
from anycable_tx.pubsub import nats as module
from anycable_tx.pubsub import nats_commands, probe
from anycable_tx.pubsub.nats import create
from anycable_tx.testing.nats_servers import NatsCluster
from anycable_tx.tokens import token
from tests.pubsub.nats_support import NatsPlace, Watched, place, servers

INTERNAL = "__anycable_internal__"
VERBATIM = "nats_verbatim_subjects"
ODD = [
    "a b", "a..b", ".a", "a.", ">", "*", "chat.*", "chat.>", "chat.one", INTERNAL, "__anycable__", "chat/1", "\t\r\n",
    "x" * 3000, "y" * 2000, "\U0001f600 {tag}", "$JS.API.STREAM.DELETE.A", "$SYS.REQ", "_INBOX.a", "\x00", "\x7f",
]  # fmt: skip


@pytest.fixture(scope="module")
def running():
    with servers() as get:
        yield get


@pytest.fixture
def site(running):
    with place(running("nats")) as site:
        yield site


@pytest.fixture(params=["nats", "nats-2.9"])
def each(request, running):
    with place(running(request.param)) as site:
        yield site


@pytest.fixture
def logged():
    events: list[Any] = []
    globalLogPublisher.addObserver(events.append)
    yield lambda text: [formatEvent(event) for event in events if text in formatEvent(event)]
    globalLogPublisher.removeObserver(events.append)


def message(stream: str, number: int = 1, **more: Any) -> StreamMessage:
    return StreamMessage(stream, b'{"n":%d}' % number, number, number - 1, "e", 5.0, **more)


def live(site: NatsPlace, stream: str) -> str:
    return f"{site.prefix}.r.default.{token(stream)}"


def commands(site: NatsPlace) -> str:
    return f"{site.prefix}.c"


def heard(bus: Any) -> list[tuple[str, int]]:
    return [(m.stream, m.offset) for m in bus.node.delivered]


def lose(bus: Any) -> None:
    """Its connection is gone."""
    bus._nats._upkeep.connection.lose("a test")


def _current(cluster: NatsCluster, log: str) -> int:
    """So many replicas have everything its leader has."""
    replicas = cluster.ask_api(f"STREAM.INFO.{log}")["cluster"].get("replicas", ())
    return sum(each["current"] for each in replicas)


class Held:
    """A bus that does not find back before it is let go."""

    def __init__(self, bus: Any) -> None:
        self._free: Deferred[None] = Deferred()
        bus._nats._upkeep._pause.wait = lambda: self._free
        lose(bus)

    def let_go(self) -> None:
        self._free.callback(None)


@pytest.mark.statement("BR-35")
def test_a_message_reaches_the_node_that_subscribed_with_its_position(each):
    a, b = each.start(create), each.start(create)
    each.result(b.subscribe("chat"))
    sent = message("chat", 7, exclude_socket="s", broadcast_type="note", id="i")
    each.result(a.publish(sent))
    each.until(lambda: b.node.delivered)
    assert b.node.delivered == [sent]
    assert a.node.delivered == []


@pytest.mark.statement("BR-34")
def test_payloads_on_verbatim_subjects_are_those_of_anycable_servers(site):
    bus = site.start(create, **{VERBATIM: True})
    found: list[Message] = []
    ear = site.start(create, **{VERBATIM: True})
    for subject in ("chat.1", INTERNAL):
        site.result(ear._nats.subscribe(subject, found.append))
    site.result(bus.publish(message("chat.1", 3, exclude_socket="s")))
    site.result(bus.publish_command(RemoteCommand("disconnect", {"identifier": "u", "reconnect": True})))
    site.until(lambda: len(found) == 2)
    assert [each.subject for each in found] == ["chat.1", INTERNAL]
    document = json.loads(found[0].data)
    assert {key: document[key] for key in ("stream", "data", "meta", "offset", "epoch")} == {
        "stream": "chat.1", "data": '{"n":3}', "meta": {"exclude_socket": "s"}, "offset": 3, "epoch": "e",
    }  # fmt: skip
    document = json.loads(found[1].data)
    assert (document["command"], document["payload"]) == ("disconnect", {"identifier": "u", "reconnect": True})


@pytest.mark.statement("BR-34")
def test_what_anycable_servers_send_is_understood(site):
    bus = site.start(create, **{VERBATIM: True})
    site.result(bus.subscribe("chat/1"))
    site.server.publish("chat/1", b'{"stream":"chat/1","data":"{\\"x\\":1}","offset":5,"epoch":"E"}')
    site.server.publish(INTERNAL, b'{"command":"disconnect","payload":{"identifier":"u","reconnect":false}}')
    site.until(lambda: bus.node.delivered and bus.node.executed)
    assert bus.node.delivered == [StreamMessage("chat/1", b'{"x":1}')]
    assert bus.node.executed == [RemoteCommand("disconnect", {"identifier": "u", "reconnect": False})]


@pytest.mark.statement("BR-36")
def test_only_what_has_subscribers_is_subscribed(each):
    bus = each.start(create)
    assert each.server.subjects() == [commands(each)]
    each.result(bus.subscribe("chat"))
    assert each.server.subjects() == [commands(each), live(each, "chat")]
    each.result(bus.unsubscribe("chat"))
    each.turn()
    assert each.server.subjects() == [commands(each)]
    each.result(bus.unsubscribe("chat"))
    each.result(bus.unsubscribe("never"))


def test_streams_have_subjects_by_their_class(site):
    rules = ({"match": "typing:*", "class": "typing", "history_limit": 0},)
    bus = site.start(create, broker_rules=rules)
    site.result(bus.subscribe("typing:1"))
    assert f"{site.prefix}.r.typing.{token('typing:1')}" in site.server.subjects()


def test_a_subscription_is_confirmed_before_it_is_done(site):
    a, b = site.start(create), site.start(create)
    for number in range(1, 30):
        site.result(b.subscribe(f"s{number}"))
        site.result(a.publish(message(f"s{number}", number)))
    site.until(lambda: len(b.node.delivered) == 29)


@pytest.mark.statement("BR-37")
@pytest.mark.parametrize("subscribed", [True, False])
def test_a_thousand_toggles_end_as_the_last_of_them_says(site, subscribed):
    bus = site.start(create)
    calls: list[Deferred[Any]] = []
    for number in range(1000 + subscribed):
        calls.append(Deferred.fromCoroutine(bus.unsubscribe("a") if number % 2 else bus.subscribe("a")))
    for call in calls:
        site.result(call)
    site.turn()
    assert site.server.subjects() == [commands(site), *([live(site, "a")] if subscribed else [])]
    site.result(bus.publish(message("a")))
    site.turn()
    assert heard(bus) == ([("a", 1)] if subscribed else [])


@pytest.mark.statement("BR-38")
@pytest.mark.parametrize("verbatim", [False, True])
def test_odd_names_are_delivered_once_and_commands_still_work(site, verbatim):
    bus = site.start(create, **{VERBATIM: verbatim})
    own = [commands(site), *([INTERNAL] if verbatim else [])]
    names = [*ODD, commands(site), bus._probes, live(site, "chat/1"), f"{site.prefix}.s.default.x"]
    for stream in names:
        site.result(bus.subscribe(stream))
    for number, stream in enumerate(names, 1):
        site.result(bus.publish(message(stream, number)))
    site.until(lambda: len(bus.node.delivered) >= len(names))
    for stream in names:
        site.result(bus.unsubscribe(stream))
    site.result(bus.publish_command(RemoteCommand("disconnect", {"identifier": "u"})))
    site.until(lambda: bus.node.executed)
    site.turn()
    assert heard(bus) == [(stream, number) for number, stream in enumerate(names, 1)]
    assert bus.node.executed == [RemoteCommand("disconnect", {"identifier": "u"})]
    assert site.server.subjects() == sorted(own)
    assert site.metrics.value("failed_bus_msg_total") == 0
    assert site.metrics.value("nats_errors_total") == 0


@pytest.mark.statement("BR-38")
def test_in_verbatim_mode_streams_are_called_like_themselves_where_that_is_harmless(site):
    bus = site.start(create, **{VERBATIM: True})
    for stream in ("chat/1", "a.b", "y" * 2000, "caf\u00e9", *ODD):
        site.result(bus.subscribe(stream))
    verbatim = [each for each in site.server.subjects() if not each.startswith(site.prefix)]
    assert sorted(verbatim) == sorted([INTERNAL, "chat/1", "a.b", "y" * 2000, "caf\u00e9", "chat.one"])


@pytest.mark.statement("BR-38")
def test_in_verbatim_mode_no_stream_takes_the_subjects_of_commands_and_publications(site):
    names = {"nats_internal_channel": "internal", "nats_channel": "broadcasts"}
    bus = site.start(create, **{VERBATIM: True}, **names)
    for number, stream in enumerate(names.values(), 1):
        site.result(bus.subscribe(stream))
        site.result(bus.publish(message(stream, number)))
    site.until(lambda: len(bus.node.delivered) == 2)
    assert "broadcasts" not in site.server.subjects()
    assert site.server.subjects().count("internal") == 1
    assert site.metrics.value("failed_bus_msg_total") == 0


def test_a_message_for_another_stream_on_a_verbatim_subject_is_refused(site):
    bus = site.start(create, **{VERBATIM: True})
    site.result(bus.subscribe("a"))
    site.result(bus.subscribe("b"))
    site.server.publish("a", b'{"stream":"b","data":"1"}')
    site.until(lambda: site.metrics.value("failed_bus_msg_total") == 1)
    assert bus.node.delivered == []


@pytest.mark.parametrize("verbatim", [False, True])
def test_a_command_is_carried_out_once_by_every_node(each, verbatim):
    buses = [each.start(create, **{VERBATIM: verbatim}) for _ in range(3)]
    each.result(buses[0].publish_command(RemoteCommand("takeover", {"sid": "s"})))
    each.until(lambda: all(bus.node.executed for bus in buses))
    each.turn()
    assert [bus.node.executed for bus in buses] == [[RemoteCommand("takeover", {"sid": "s"})]] * 3


def test_what_the_server_hands_on_has_the_position_the_server_gave_it(each):
    log = f"{each.prefix.upper()}_H_default_eP0c"
    config = {
        "name": log,
        "subjects": [f"{each.prefix}.s.default.>"],
        "republish": {"src": f"{each.prefix}.s.default.>", "dest": f"{each.prefix}.r.default.>"},
    }
    assert "error" not in each.server.api(f"STREAM.CREATE.{log}", config)
    bus = each.start(create)
    each.result(bus.subscribe("chat"))
    stored = f"{each.prefix}.s.default.{token('chat')}"
    for subject in (stored, f"{each.prefix}.s.default.other", stored):
        headers = headers_of(message("chat", 0, exclude_socket="s"))
        each.result(bus._nats.request(subject, b'{"n":1}', headers))
    each.until(lambda: len(bus.node.delivered) == 2)
    assert [(m.offset, m.prev, m.epoch, m.exclude_socket) for m in bus.node.delivered] == [
        (1, 0, "eP0c", "s"),
        (3, 1, "eP0c", "s"),
    ]
    assert all(abs(m.time - bus._now()) < 5 for m in bus.node.delivered)


def test_a_message_the_server_does_not_take_is_refused_and_the_bus_stays(site):
    bus = site.start(create)
    site.result(bus.subscribe("a"))
    with pytest.raises(TooLarge):
        site.result(bus.publish(StreamMessage("a", b'"%s"' % (b"x" * 2_000_000))))
    site.result(bus.publish(message("a")))
    site.until(lambda: heard(bus) == [("a", 1)])


@pytest.mark.statement("BR-6")
@pytest.mark.parametrize(
    ("verbatim", "subject", "text"),
    [
        (False, "a", b"no JSON"),
        (False, "a", b"[" * 10_000),
        (False, "a", b""),
        (False, "a", b"\xff" * 500_000),
        (False, "c", b"no JSON"),
        (False, "c", b"[1]"),
        (False, "c", b'{"command":5}'),
        (False, "c", b'{"stream":"a","data":"1"}'),
        (False, "c", b"\xff\xfe"),
        (True, "a", b"no JSON"),
        (True, "a", b"[null]"),
        (True, "a", b"[" * 10_000),
        (True, "a", b'{"command":"disconnect","payload":{"identifier":"u"}}'),
        (True, INTERNAL, b"[1]"),
        (True, INTERNAL, b'{"stream":"a","data":"1"}'),
    ],
)
def test_what_cannot_be_understood_is_counted_and_nothing_more(site, verbatim, subject, text):
    bus = site.start(create, **{VERBATIM: verbatim})
    site.result(bus.subscribe("a"))
    full = {"c": commands(site), "a": "a" if verbatim else live(site, "a")}.get(subject, subject)
    site.server.publish(full, text)
    site.until(lambda: site.metrics.value("failed_bus_msg_total") == 1)
    site.result(bus.publish(message("a")))
    site.until(lambda: heard(bus) == [("a", 1)])
    assert bus.node.executed == []
    assert bus.node.bus == []


# -- faults


def test_a_lost_connection_is_told_and_comes_back_with_all_streams(each):
    bus = each.start(create)
    names = [f"s{number}" for number in range(600)]
    for call in [Deferred.fromCoroutine(bus.subscribe(name)) for name in names]:
        each.result(call)
    lose(bus)
    assert bus.node.bus == ["lost"]
    each.until(lambda: bus.node.bus == ["lost", "restored"], 2)  # before the next probe is due
    assert len(each.server.subjects()) == 601
    for number, name in enumerate(names, 1):
        each.result(bus.publish(message(name, number)))
    each.until(lambda: len(bus.node.delivered) == 600)


@pytest.mark.parametrize("verbatim", [False, True])
def test_a_command_sent_while_a_node_was_cut_off_is_carried_out_once_when_it_is_back(each, verbatim):
    a, b = (each.start(create, **{VERBATIM: verbatim}) for _ in range(2))
    for number in range(3):
        each.result(a.publish_command(RemoteCommand("takeover", {"sid": str(number)})))
    each.until(lambda: len(b.node.executed) == 3)
    held = Held(b)
    each.result(a.publish_command(RemoteCommand("disconnect", {"identifier": "u"})))
    each.until(lambda: len(a.node.executed) == 4)
    held.let_go()
    each.until(lambda: len(b.node.executed) == 4)
    each.turn()
    assert [c.command for c in b.node.executed] == ["takeover"] * 3 + ["disconnect"]
    assert [c.command for c in a.node.executed] == ["takeover"] * 3 + ["disconnect"]
    assert b.node.bus == ["lost", "restored"]


def test_a_node_carries_out_no_command_from_before_it_began(site):
    a = site.start(create)
    site.result(a.publish_command(RemoteCommand("disconnect", {"identifier": "u"})))
    site.until(lambda: a.node.executed)
    b = site.start(create)
    lose(b)
    site.until(lambda: b.node.bus == ["lost", "restored"])
    site.result(a.publish_command(RemoteCommand("disconnect", {"identifier": "v"})))
    site.until(lambda: b.node.executed)
    site.turn()
    assert [c.payload["identifier"] for c in b.node.executed] == ["v"]


def test_commands_of_a_lagging_replica_are_completed_by_the_leader(site):
    a, b = site.start(create), site.start(create)
    held = Held(b)
    for number in range(3):
        site.result(a.publish_command(RemoteCommand("takeover", {"sid": str(number)})))
    read = b._commands._jetstream.read

    async def lagging(*args: Any) -> Any:
        return (await read(*args))[:1]

    b._commands._jetstream.read = lagging
    held.let_go()
    site.until(lambda: len(b.node.executed) == 3)
    assert [c.payload["sid"] for c in b.node.executed] == ["0", "1", "2"]


@pytest.mark.statement("BR-12")
def test_in_a_cluster_commands_are_kept_by_several_servers_as_soon_as_there_are_several():
    with NatsCluster() as cluster, place(cluster) as site:
        log = f"{site.prefix.upper()}_C"
        cluster.ask_api(f"STREAM.CREATE.{log}", {"name": log, "subjects": [commands(site)], "allow_direct": True})
        urls = {"nats_servers": cluster.urls}
        a, b = site.start(create, **urls), site.start(create, **urls)
        assert cluster.ask_api(f"STREAM.INFO.{log}")["config"]["num_replicas"] == 3
        site.until(lambda: _current(cluster, log) == 2, 20)
        held = Held(b)
        site.result(a.publish_command(RemoteCommand("disconnect", {"identifier": "u"})))
        cluster.leader(log).kill()
        held.let_go()
        site.until(lambda: b.node.executed, 20)
        assert b.node.executed == [RemoteCommand("disconnect", {"identifier": "u"})]


def test_the_log_of_commands_is_made_again_if_it_is_gone(site):
    bus = site.start(create)
    log = f"{site.prefix.upper()}_C"
    assert site.server.api(f"STREAM.INFO.{log}")["config"]["max_msgs"] == 1000
    site.server.api(f"STREAM.DELETE.{log}")
    sending = Deferred.fromCoroutine(bus.publish_command(RemoteCommand("takeover", {"sid": "s"})))
    site.until(lambda: bus.node.executed)
    site.reactor.pass_time(nats_commands.PATIENCE)
    site.result(sending)
    site.result(bus.publish_command(RemoteCommand("takeover", {"sid": "t"})))
    site.reactor.pass_time(nats_commands.LOOK_EACH)
    site.until(lambda: "config" in site.server.api(f"STREAM.INFO.{log}"))
    site.until(lambda: bus._commands._kept)


def test_without_jetstream_commands_are_carried_out_by_who_is_there(running, logged):
    with place(running("nats-core")) as site:
        a, b, c = (site.start(create) for _ in range(3))
        held = Held(b)
        sending = Deferred.fromCoroutine(a.publish_command(RemoteCommand("disconnect", {"identifier": "u"})))
        assert sending.called  # there is no answer to wait for
        site.until(lambda: a.node.executed and c.node.executed)
        held.let_go()
        site.until(lambda: b.node.bus == ["lost", "restored"])
        site.turn()
        assert [len(bus.node.executed) for bus in (a, b, c)] == [1, 0, 1]
        assert len(logged("JetStream does not keep them")) == 3


@pytest.mark.statement("BR-40")
def test_a_server_killed_and_started_again_is_found_again():
    with Watched() as server, place(server) as site:
        bus = site.start(create)
        site.result(bus.subscribe("a"))
        server.kill()
        site.until(lambda: bus.node.bus == ["lost"])
        with pytest.raises(NatsUnavailable):
            site.result(bus.publish(message("a")))
        with pytest.raises(NatsUnavailable):
            site.result(bus.publish_command(RemoteCommand("takeover", {"sid": "s"})))
        assert bus.problem() == ""
        site.reactor.pass_time(module.LOST_TOO_LONG)
        assert bus.problem().startswith("NATS: ")
        server.start()
        site.reactor.pass_time(20)
        site.until(lambda: bus.node.bus == ["lost", "restored"])
        assert bus.problem() == ""
        site.result(bus.publish(message("a")))
        site.until(lambda: heard(bus) == [("a", 1)])


def test_a_subscription_during_an_outage_fails_in_time_and_leaves_nothing():
    with Watched() as server, place(server) as site:
        bus = site.start(create)
        server.kill()
        site.until(lambda: bus.node.bus == ["lost"])
        opening = Deferred.fromCoroutine(bus.subscribe("a"))
        site.turn()
        assert not opening.called
        site.reactor.pass_time(module.PATIENCE)
        with pytest.raises(BrokerUnavailable, match="not confirmed"):
            site.result(opening)
        site.result(bus.unsubscribe("a"))
        server.start()
        site.reactor.pass_time(20)
        site.until(lambda: bus.node.bus == ["lost", "restored"])
        assert server.subjects() == [commands(site)]


def test_a_start_without_nats_is_a_lost_bus_that_comes_back():
    with Watched() as server, place(server) as site:
        server.kill()
        bus = site.make(create)
        starting = Deferred.fromCoroutine(bus.start())
        site.turn()
        site.reactor.pass_time(5)
        site.result(starting)
        assert bus.node.bus == ["lost"]
        server.start()
        site.reactor.pass_time(20)
        site.until(lambda: bus.node.bus == ["lost", "restored"])
        assert server.subjects() == [commands(site)]


@pytest.mark.statement("F31")
def test_a_server_that_stands_still_is_a_lost_bus_until_it_goes_on():
    with Watched() as server, place(server) as site:
        bus = site.start(create, nats_ping_interval=1000.0)
        site.result(bus.subscribe("a"))
        server.stall()
        for _ in range(probe.MAX_MISSED + 1):
            site.reactor.pass_time(probe.PROBE_EACH)
            site.turn()
        assert bus.node.bus == ["lost"]
        site.reactor.pass_time(module.LOST_TOO_LONG)
        assert bus.problem() == "nothing comes back from NATS"
        server.resume()
        site.reactor.pass_time(probe.PROBE_EACH)
        site.until(lambda: bus.node.bus == ["lost", "restored"])
        site.result(bus.publish(message("a")))
        site.until(lambda: heard(bus) == [("a", 1)])


def test_a_quiet_bus_is_not_taken_for_a_silent_one(site):
    bus = site.start(create)
    for _ in range(5):
        site.reactor.pass_time(probe.PROBE_EACH)
        site.turn()
    assert bus._probe._returned >= 4
    assert bus.node.bus == []


def test_a_probe_from_before_the_loss_does_not_end_it(site):
    bus = site.start(create)
    site.result(bus._probe.send())  # it is on its way
    for interest in bus._nats._subscriptions:
        if interest.lost is not None:
            interest.lost()
    site.turn()
    assert bus.node.bus == ["lost"]


def test_a_probe_does_not_end_a_loss_before_everything_is_subscribed_anew(site):
    bus = site.start(create)
    held = Held(bus)
    bus._probe._sent += 1
    bus._receive_probe(Message(bus._probes, b"%d" % bus._probe._sent, {}))
    assert bus.node.bus == ["lost"]
    held.let_go()
    site.until(lambda: bus.node.bus == ["lost", "restored"])


@pytest.mark.statement("F58")
def test_messages_that_were_dropped_because_they_came_too_fast_are_a_lost_bus_for_a_moment(site):
    bus = site.start(create)
    site.result(bus.subscribe("a"))
    for interest in bus._nats._subscriptions:
        if interest.lost is not None:
            interest.lost()
    assert bus.node.bus == ["lost"]
    site.reactor.pass_time(probe.PROBE_EACH)
    site.until(lambda: bus.node.bus == ["lost", "restored"])


def test_nothing_is_delivered_after_the_stop(site):
    a, b = site.start(create), site.start(create)
    site.result(b.subscribe("a"))
    waiting = Deferred.fromCoroutine(b.subscribe("b"))
    site.stop(b)
    site.result(waiting.addErrback(lambda failure: None))
    site.result(a.publish(message("a")))
    site.turn()
    assert b.node.delivered == []
    assert site.server.subjects() == [commands(site)]
    assert b.node.bus == []


def test_the_start_says_where_it_connects_to(site):
    bus = site.start(create)
    assert bus.announcement == f"Starting NATS pub/sub: {bus._nats.log_name}"
    assert str(site.server.port) in bus.announcement
