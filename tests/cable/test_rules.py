"""History rules: the first pattern that matches the whole name of a stream."""

import pytest

from anycable_tx.cable.rules import Rule, Rules
from anycable_tx.config.rules import check_rules


def rules(*given):
    return Rules(check_rules(given, "broker.rules"), 100, 300)


def matches(pattern, stream):
    return rules({"match": pattern, "class": "hit"}).rule_for(stream).name == "hit"


@pytest.mark.parametrize(
    ("pattern", "stream", "expected"),
    [
        ("chat", "chat", True),
        ("chat", "chats", False),
        ("chat", "a chat", False),
        ("chat/*", "chat/1", True),
        ("chat/*", "chat/", True),
        ("chat/*", "chat/1/2", False),
        ("chat/*", "chat/1:2", False),
        ("chat/*", "chat", False),
        ("*:typing", "room-1:typing", True),
        ("*:typing", "rooms/1:typing", False),
        ("**:typing", "rooms/1:typing", True),
        ("rooms/**", "rooms/1/2:3", True),
        ("**", "", True),
        ("**", "two\nlines", True),
        ("a.c", "abc", False),
        ("a?c[d]", "a?c[d]", True),
        ("***", "any/thing", True),
        (r"re:room_\d+", "room_17", True),
        (r"re:room_\d+", "room_17b", False),
        (r"re:room_\d+", "a room_17", False),
    ],
)
@pytest.mark.statement("BR-70")
def test_a_pattern_matches_the_whole_name(pattern, stream, expected):
    assert matches(pattern, stream) is expected


def test_the_first_rule_that_matches_wins():
    found = rules({"match": "chat/1", "class": "one"}, {"match": "chat/*", "class": "all"})
    assert found.rule_for("chat/1").name == "one"
    assert found.rule_for("chat/2").name == "all"


@pytest.mark.statement("BR-70")
def test_what_a_rule_leaves_out_is_the_default():
    found = rules({"match": "a", "history_limit": 0}, {"match": "b", "history_ttl": 7, "class": "short"})
    assert found.rule_for("a") == Rule("default", 0, 300)
    assert found.rule_for("b") == Rule("short", 100, 7)
    assert found.rule_for("c") == Rule("default", 100, 300)


def test_the_longest_ttl_is_over_all_rules():
    assert rules().longest_ttl == 300
    assert rules({"match": "a", "history_ttl": 86400}).longest_ttl == 86400
    assert rules({"match": "a", "history_ttl": 1}).longest_ttl == 300


def test_remembered_rules_are_bounded():
    found = rules({"match": "chat/*"})
    for number in range(12_000):
        found.rule_for(f"chat/{number}")
    assert found._remembered.cache_info().currsize == 10_000
