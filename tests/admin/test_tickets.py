"""Tickets are good once, for a while, for servers with the same key."""

from __future__ import annotations

import hmac

import pytest

from anycable_tx.admin.tickets import LIFETIME, Tickets


class Time:
    now = 1000.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def time() -> Time:
    return Time()


def test_a_ticket_is_taken_once(time):
    tickets = Tickets("key", time)
    ticket = tickets.make()
    assert tickets.take(ticket)
    assert not tickets.take(ticket)
    assert tickets.take(tickets.make())


def test_another_server_with_the_same_key_takes_it(time):
    assert Tickets("key", time).take(Tickets("key", time).make())
    assert not Tickets("other", time).take(Tickets("key", time).make())


def test_a_ticket_is_over_after_a_while(time):
    tickets = Tickets("key", time)
    early, late = tickets.make(), tickets.make()
    time.now += LIFETIME
    assert tickets.take(early)
    time.now += 1
    assert not tickets.take(late)


def test_those_that_were_taken_are_forgotten_when_they_are_over(time):
    tickets = Tickets("key", time)
    for _ in range(100):
        assert tickets.take(tickets.make())
        time.now += 1
    assert len(tickets._taken) <= LIFETIME + 1


@pytest.mark.parametrize("ticket", ["", ".", "..", "9999999999.x.", "9999999999.x.0", "é.é.é", "\udcff"])
def test_nothing_else_is_a_ticket(time, ticket):
    assert not Tickets("key", time).take(ticket.encode("utf-8", "replace").decode())


def test_no_part_of_a_ticket_can_be_changed(time):
    tickets = Tickets("key", time)
    ticket = tickets.make()
    for at in range(len(ticket)):
        other = "1" if ticket[at] != "1" else "2"
        assert not tickets.take(ticket[:at] + other + ticket[at + 1 :])
    assert tickets.take(ticket)


def test_a_ticket_is_compared_in_constant_time(time, monkeypatch):
    tickets, compared = Tickets("key", time), []
    monkeypatch.setattr(hmac, "compare_digest", lambda a, b: compared.append((a, b)) or False)
    assert not tickets.take("a.b.c")
    assert compared[0][0] == b"c"
