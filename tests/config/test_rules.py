"""anycable_tx.config.rules"""

from __future__ import annotations

from typing import Any

import pytest

from anycable_tx.config.load import defaults
from anycable_tx.errors import ConfigurationError
from tests.config.conftest import Load


def test_rules_are_read_from_the_file_in_order(load: Load) -> None:
    settings = load(
        file="""
        broker:
          rules:
            - {match: "chat/*", class: chat, history_limit: 1000, history_ttl: 86400}
            - match: "re:^typing:[0-9]+$"
              history_limit: 0
        """
    )
    assert settings["broker_rules"] == (
        {"match": "chat/*", "class": "chat", "history_limit": 1000, "history_ttl": 86400},
        {"match": "re:^typing:[0-9]+$", "class": "default", "history_limit": 0},
    )
    assert defaults()["broker_rules"] == ()


@pytest.mark.parametrize(
    ("rule", "problem"),
    [
        ("chat", "'chat' is not accepted; expected a mapping with match, class, history_limit, history_ttl"),
        ({"match": "a", "limit": 1}, "there is no key 'limit'; known: match, class, history_limit, history_ttl"),
        ({}, "match None is not accepted; expected a glob or re: and a pattern"),
        ({"match": ""}, "match '' is not accepted"),
        ({"match": "re:"}, "match 're:' is not accepted"),
        ({"match": "re:("}, "match 're:(' is no regular expression: missing )"),
        ({"match": "a", "class": "Chat"}, "class 'Chat' is not accepted; expected 1 to 16 of the characters"),
        ({"match": "a", "class": "a" * 17}, "is not accepted; expected 1 to 16 of the characters"),
        ({"match": "a", "class": 1}, "class 1 is not accepted"),
        (
            {"match": "a", "history_limit": 1.5},
            "history_limit 1.5 is not accepted; expected a whole number, at least 0",
        ),
        ({"match": "a", "history_limit": True}, "history_limit True is not accepted"),
        ({"match": "a", "history_limit": -1}, "history_limit -1 is not accepted"),
        ({"match": "a", "history_ttl": "1h"}, "history_ttl '1h' is not accepted; expected a number of seconds"),
        ({"match": "a", "history_ttl": float("nan")}, "history_ttl nan is not accepted"),
    ],
)
def test_a_bad_rule_is_named_by_its_number(rule: Any, problem: str) -> None:
    with pytest.raises(ConfigurationError) as e:
        defaults(broker_rules=[{"match": "fine"}, rule])
    assert str(e.value).startswith("broker_rules, rule 2: ")
    assert problem in str(e.value)


@pytest.mark.parametrize("rules", ["chat/*", {"match": "a"}, 5])
def test_rules_are_a_list(load: Load, rules: Any) -> None:
    with pytest.raises(ConfigurationError, match=r"conf/anycable.yml: broker.rules: .* expected a list of mappings"):
        load(file={"broker": {"rules": rules}})
