"""The registry of sessions: findable by sid, earlier sid and identifiers, and gone without a trace."""

from __future__ import annotations

from typing import Any

import pytest

from anycable_tx.cable.session import Session
from anycable_tx.sessions import Sessions

anything: Any = None


def session(sid: str, identifiers: str = "u", *previous: str) -> Session:
    made = Session(sid, anything, anything, extended=True, resumable=True)
    made.identifiers = identifiers
    made.previous = previous
    return made


def registry(*sessions: Session) -> Sessions:
    made = Sessions()
    for one in sessions:
        made.add(one)
    return made


def test_a_session_is_found_by_its_sid_and_its_earlier_ones():
    one = session("S3", "u", "S1", "S2")
    there = registry(one)
    assert there.get("S3") is one
    assert there.get("S1") is None
    assert [there.find(sid) for sid in ("S1", "S2", "S3", "S4")] == [one, one, one, None]


@pytest.mark.statement("CP-139", "BR-12", "RA-15")
def test_all_sessions_with_the_same_identifiers_are_found():
    sessions = [session(f"S{n}", "u") for n in range(3)]
    there = registry(*sessions, session("T", "other"))
    assert there.of("u") == sessions
    assert there.of("nobody") == []


def test_distinct_identifiers_are_counted():
    there = registry(session("S1", "u"), session("S2", "u"), session("S3", "v"))
    assert (len(there), there.distinct()) == (3, 2)


def test_nothing_is_left_of_removed_sessions():
    sessions = [session(f"S{n}", "u", f"P{n}") for n in range(3)]
    there = registry(*sessions)
    for one in sessions:
        there.remove(one)
    assert (len(there), there.distinct(), there.of("u"), list(there)) == (0, 0, [], [])
    assert there.find("P1") is None


def test_removing_one_keeps_the_others_of_its_identifiers():
    one, other = session("S1"), session("S2")
    there = registry(one, other)
    there.remove(one)
    assert there.of("u") == [other]


def test_an_unknown_session_is_not_removed():
    one = session("S1")
    there = registry(one)
    there.remove(session("S1"))
    there.remove(session("S9"))
    assert there.get("S1") is one


def test_an_earlier_sid_belongs_to_the_latest_heir():
    first, second = session("S2", "u", "S1"), session("S3", "u", "S1")
    there = registry(first, second)
    assert there.find("S1") is second
    there.remove(first)
    assert there.find("S1") is second
    there.remove(second)
    assert there.find("S1") is None


def test_it_may_change_while_it_is_walked_through():
    there = registry(session("S1"), session("S2"))
    for one in there:
        there.remove(one)
    assert len(there) == 0


@pytest.mark.statement("CP-102")
def test_a_session_that_is_being_let_in_is_found_too():
    arriving, others = session("S1"), [session("S2"), session("S3")]
    there = registry()
    there.arrives(arriving)
    assert (there.get("S1"), there.of("u"), len(there)) == (arriving, [arriving], 0)
    for n, one in enumerate(others, 1):
        there.add(one)
        assert there.of("u") == [*others[:n], arriving]
    there.add(arriving)
    assert there.of("u") == [*others, arriving]


def test_nothing_is_left_of_a_session_that_was_not_let_in():
    arriving = session("S1")
    there = registry()
    there.arrives(arriving)
    there.remove(arriving)
    assert (there.get("S1"), there.of("u"), there.unused("S1")) == (None, [], "S1")


def test_identifiers_nobody_knows_yet_are_nobodys():
    there = registry()
    there.arrives(session("S1", ""))
    assert there.of("") == []


@pytest.mark.statement("CP-15", "RA-6")
@pytest.mark.parametrize("sid", ["abc", "A-b_c.d:e/f=g+h", "x" * 128])
def test_a_well_formed_sid_may_be_used(sid):
    assert Sessions().unused(sid) == sid


@pytest.mark.statement("CP-15", "RA-5", "RA-6")
@pytest.mark.parametrize("sid", ["", 'a"b', "a b", "a\n", "ü", "x" * 129, "a{b}"])
def test_an_ill_formed_sid_is_not_used(sid):
    assert Sessions().unused(sid) == ""


@pytest.mark.statement("CP-15", "RA-6")
def test_a_sid_in_use_is_not_used_again():
    there = registry(session("S2", "u", "S1"))
    assert there.unused("S1") == there.unused("S2") == ""
    assert there.unused("S3") == "S3"
