"""What is remembered of publishers that left without an answer."""

from __future__ import annotations

from twisted.internet.task import Clock

from anycable_tx.broadcasters.unanswered import Unanswered


def test_the_same_body_from_the_same_publisher_is_recognised_for_a_minute():
    clock = Clock()
    unanswered = Unanswered(clock.seconds)
    assert unanswered.recall("1.1.1.1", b"x") == ""
    unanswered.remember("1.1.1.1", b"x", "id")
    assert unanswered.recall("1.1.1.1", b"x") == "id"
    assert unanswered.recall("1.1.1.2", b"x") == ""
    assert unanswered.recall("1.1.1.1", b"y") == ""
    clock.advance(60)
    assert unanswered.recall("1.1.1.1", b"x") == ""


def test_once_answered_it_is_forgotten():
    unanswered = Unanswered(Clock().seconds)
    unanswered.forget("1.1.1.1", b"x")
    unanswered.remember("1.1.1.1", b"x", "id")
    unanswered.forget("1.1.1.1", b"x")
    assert unanswered.recall("1.1.1.1", b"x") == ""


def test_only_the_newest_are_kept(monkeypatch):
    monkeypatch.setattr(Unanswered, "MAX_KEPT", 2)
    unanswered = Unanswered(Clock().seconds)
    for body in (b"a", b"b", b"a", b"c"):
        unanswered.remember("p", body, body.decode())
    assert [unanswered.recall("p", body) for body in (b"a", b"b", b"c")] == ["a", "", "c"]
