"""What JetStream stores, through the calls of ours, on the oldest and the newest server."""

from __future__ import annotations

import time
from collections.abc import Iterator
from itertools import count
from typing import Any

import pytest
from twisted.internet.defer import Deferred

from anycable_tx.nats.api import Message, NatsUnavailable
from anycable_tx.nats.jetstream import JetStream, JetStreamError, Stored
from anycable_tx.testing.nats_servers import NatsServer
from tests.nats.conftest import Make
from tests.nats.support import Kept

_numbers = count()


@pytest.fixture
def it(server: NatsServer, make: Make) -> Iterator[Kept]:
    return make(server.url)


@pytest.fixture
def log(it: Kept) -> str:
    """The name of a log, which has the subjects that begin with it."""
    name = f"L{next(_numbers)}"
    api(it, f"STREAM.CREATE.{name}", {"name": name, "subjects": [f"{name}.>"], "allow_direct": True})
    return name


def api(it: Kept, operation: str, request: dict[str, Any] | None = None) -> dict[str, Any]:
    answer: dict[str, Any] = it.reactor.result(it.jetstream.api(operation, request))
    return answer


def publish(it: Kept, subject: str, data: bytes = b"", headers: dict[str, str] | None = None) -> Any:
    return it.reactor.result(it.jetstream.publish(subject, data, headers))


def read(it: Kept, log: str, subject: str, offset: int, number: int) -> list[Stored]:
    found: list[Stored] = it.reactor.result(it.jetstream.read(log, subject, offset, number))
    return found


def test_what_is_published_is_stored_in_the_log_of_its_subject(it: Kept, log: str) -> None:
    assert publish(it, f"{log}.a", b"1") == (log, 1, False)
    assert publish(it, f"{log}.b", b"2") == (log, 2, False)
    assert api(it, f"STREAM.INFO.{log}")["state"]["messages"] == 2


def test_the_same_id_is_stored_once(it: Kept, log: str) -> None:
    assert publish(it, f"{log}.a", b"1", {"Nats-Msg-Id": "x"}) == (log, 1, False)
    assert publish(it, f"{log}.a", b"2", {"Nats-Msg-Id": "x"}) == (log, 1, True)


def test_a_publication_for_another_log_is_refused(it: Kept, log: str) -> None:
    with pytest.raises(JetStreamError, match="stream does not match") as caught:
        publish(it, f"{log}.a", b"1", {"Nats-Expected-Stream": "OTHER"})
    assert (caught.value.status, caught.value.err_code) == (400, 10060)
    assert caught.value.code == "broker_unavailable"


def test_a_subject_that_no_log_has_is_nobodys(it: Kept) -> None:
    with pytest.raises(NatsUnavailable, match="nobody is there to answer"):
        publish(it, "no.log.has.this", b"1")


def test_an_answer_that_is_not_of_a_log_is_no_acknowledgement(it: Kept) -> None:
    answers = iter((b"pong", b"[]", b'{"type":"x"}'))
    other = JetStream(Answering(lambda: Message("", next(answers), {})))  # type: ignore[arg-type]
    for _ in range(3):
        with pytest.raises(JetStreamError, match="not"):
            it.reactor.result(other.publish("a", b""))


def test_the_newest_message_of_a_subject(it: Kept, log: str) -> None:
    headers = {"Ac-Meta": '{"a": "ä"}', "X": "y"}
    publish(it, f"{log}.a", b"1")
    publish(it, f"{log}.a", b"\x002", headers)
    publish(it, f"{log}.b", b"3")
    found = it.reactor.result(it.jetstream.last(log, f"{log}.a"))
    assert found == Stored(f"{log}.a", 2, found.time, headers, b"\x002")
    assert found.time == pytest.approx(time.time(), abs=5)
    assert it.reactor.result(it.jetstream.last(log, f"{log}.none")) is None


def test_the_next_message_of_a_subject(it: Kept, log: str) -> None:
    for subject in "abba":
        publish(it, f"{log}.{subject}", subject.encode())
    found = [it.reactor.result(it.jetstream.next(log, f"{log}.a", offset)) for offset in range(6)]
    assert [each and each.offset for each in found] == [1, 1, 4, 4, 4, None]


def test_a_log_that_is_not_there_is_an_error(it: Kept) -> None:
    for work in (it.jetstream.last("NONE", "a"), it.jetstream.next("NONE", "a", 1)):
        with pytest.raises(JetStreamError) as caught:
            it.reactor.result(work)
        assert (caught.value.status, caught.value.err_code) == (404, 10059)
    with pytest.raises(NatsUnavailable):  # no server says so when any replica may answer
        it.reactor.result(it.jetstream.read("NONE", "a", 1, 1, within=0.3))


@pytest.mark.statement("BR-68")
def test_reading_gives_the_first_messages_after_an_offset(it: Kept, log: str) -> None:
    for n in range(1, 41):
        publish(it, f"{log}.{'ab'[n % 2]}", b"%d" % n, {"N": str(n)})
    found = read(it, log, f"{log}.a", 5, 4)
    assert [(each.subject, each.offset, each.data) for each in found] == [
        (f"{log}.a", n, b"%d" % n) for n in (6, 8, 10, 12)
    ]
    assert [each.headers for each in found] == [{"N": str(n)} for n in (6, 8, 10, 12)]
    assert found[0].time == pytest.approx(time.time(), abs=5)
    assert [each.offset for each in read(it, log, f"{log}.a", 0, 1000)] == list(range(2, 41, 2))
    assert [each.offset for each in read(it, log, f"{log}.a", 39, 1000)] == [40]
    assert read(it, log, f"{log}.a", 41, 1000) == []
    assert read(it, log, f"{log}.none", 1, 1000) == []
    assert read(it, log, f"{log}.a", 1, 0) == []


@pytest.mark.statement("BR-68")
def test_a_batch_that_the_server_ends_early_is_gone_on_with(it: Kept, log: str) -> None:
    for _ in range(30):
        publish(it, f"{log}.a", b"x" * 900_000)
    assert [each.offset for each in read(it, log, f"{log}.a", 1, 30)] == list(range(1, 31))
    assert it.events == []


@pytest.mark.statement("BR-68", "F58")
def test_what_is_read_never_waits_at_the_server_until_it_gives_up(make: Make) -> None:
    with NatsServer("max_pending: 2000000") as server:
        it = make(server.url)
        api(it, "STREAM.CREATE.L", {"name": "L", "subjects": ["l.>"], "allow_direct": True})
        for _ in range(60):
            publish(it, "l.a", b"x" * 100_000)
        assert len(read(it, "L", "l.a", 1, 60)) == 60
        assert it.events == []


@pytest.mark.statement("BR-68")
def test_a_replica_that_knows_no_batches_is_read_one_by_one(it: Kept) -> None:
    stored = [Message("_INBOX.x", b"%d" % n, {"Nats-Subject": "s", "Nats-Sequence": str(n)}) for n in (3, 5)]
    answers = iter([*stored, Message("_INBOX.x", b"", {}, 404, "Message Not Found")])
    nats = Answering(lambda: next(answers), level=1)
    found = it.reactor.result(JetStream(nats).read("L", "s", 2, 10))  # type: ignore[arg-type]
    assert [(each.offset, each.time) for each in found] == [(3, 0.0), (5, 0.0)]


def test_a_read_that_is_refused_is_an_error(it: Kept) -> None:
    nats = Answering(lambda: Message("", b"", {}, 408, "Bad Request"), level=1)
    with pytest.raises(JetStreamError, match="Bad Request") as caught:
        it.reactor.result(JetStream(nats).read("L", "s", 2, 10))  # type: ignore[arg-type]
    assert caught.value.status == 408


def test_the_level_is_asked_for_once_for_each_connection(it: Kept, server: NatsServer) -> None:
    level = it.reactor.result(it.jetstream.level())
    assert level == api(it, "INFO")["api"].get("level", 0)
    nats = Answering(lambda: Message("", b'{"api":{"level":%d}}' % next(levels), {}))
    levels = iter((3, 4, 5))
    jetstream = JetStream(nats)  # type: ignore[arg-type]
    assert [it.reactor.result(jetstream.level()) for _ in range(3)] == [3, 3, 3]
    for tell in nats.watching:
        tell()
    assert it.reactor.result(jetstream.level()) == 4


def test_without_jetstream_nobody_answers(make: Make, own: NatsServer) -> None:
    it = make(own.url)
    with pytest.raises(NatsUnavailable, match=r"\$JS.API.INFO: nobody is there to answer"):
        api(it, "INFO")


def test_many_are_stored_at_a_time(it: Kept, log: str) -> None:
    work = [Deferred.fromCoroutine(it.jetstream.publish(f"{log}.a", b"%d" % n)) for n in range(500)]
    assert sorted(it.reactor.result(each).offset for each in work) == list(range(1, 501))


class Answering:
    """Answers every request with what *answer* gives."""

    def __init__(self, answer: Any, level: int = 0) -> None:
        self._answer, self._level = answer, level
        self.watching: list[Any] = []

    def watch(self, *, up: Any, down: Any) -> None:
        self.watching += [up, down]

    async def request(self, subject: str, data: bytes = b"", headers: Any = None, within: float = 5.0) -> Message:
        if self._level and subject == "$JS.API.INFO":
            return Message("", b'{"api":{"level":%d}}' % self._level, {})
        message: Message = self._answer()
        return message

    async def request_many(self, *args: Any, within: float = 5.0) -> list[Message]:
        return [self._answer()]
