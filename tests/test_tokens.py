"""Safe names for names."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from anycable_tx.tokens import token


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("", "b"),
        ("chat:1", "bY2hhdDox"),
        ("chat/1", "bY2hhdC8x"),
        ("a.b", "bYS5i"),
        ("room *>", "bcm9vbSAqPg"),
        ("Zürich/42", "bWsO8cmljaC80Mg"),
    ],
)
def test_a_token_is_legal_everywhere(name: str, expected: str) -> None:
    assert token(name) == expected


@given(st.text(st.characters(exclude_categories=("Cs",)), max_size=300), st.text(max_size=5))
def test_tokens_differ_where_names_do(one: str, other: str) -> None:
    name = token(one)
    assert len(name) <= 200
    assert not set(name) & set("{}:* ")
    if one + "x" != one:
        assert token(one + "x") != name
