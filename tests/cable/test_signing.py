"""Signed stream names: the vectors, both alphabets, and everything that must not verify."""

from __future__ import annotations

import base64
import hashlib
import hmac
import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from anycable_tx.cable.signing import decode_name, keys_of, sign_name, signed_part, verify_name

KEY = b"s3cr3t"
CHAT_42 = "ImNoYXQvNDIi--ed3f0927d13c0c59af99f3ef776af196ea44ff640ab15cf8cf347532daed0c5f"


def signed(encoded: str, key: bytes = KEY) -> str:
    """*encoded* with its digest, by the definition."""
    return f"{encoded}--{hmac.new(key, encoded.encode(), hashlib.sha256).hexdigest()}"


VECTORS = [
    ("s3cr3t", "chat/42", CHAT_42),
    (
        "s3cr3t",
        "stream/2023",
        "InN0cmVhbS8yMDIzIg==--405241191e17519b2c7d27ab6b86a73694c571acaca7c3845974363601efad7f",
    ),
    ("s3Krit", "chat:2021", "ImNoYXQ6MjAyMSI=--f9ee45dbccb1da04d8ceb99cc820207804370ba0d06b46fc3b8b373af1315628"),
    ("s3cr3t", "ops?>live", "Im9wcz8+bGl2ZSI=--f68c0256715bdb61ae242b7621e6fe5d264c76bec2eddc522591354cb5c77254"),
]
URL_SAFE = "Im9wcz8-bGl2ZSI=--6ed6679a342fab0b6e1df18874ac96f5d6d208252cb5955de605e807895501bc"
ARRAY = "WyJjaGF0Iiw0Ml0=--1ba9e8235d75825ffb4db73bd7eb49922805c81d539ad828abfa58c5966b66af"
EMPTY_KEY = "ImFkbWluIg==--26bd9588d3776458e6a8accbe888ccde72a3be197819604914e2d710f2866939"


@pytest.mark.parametrize(("secret", "name", "text"), VECTORS)
def test_the_vectors_verify_and_are_what_signing_makes(secret: str, name: str, text: str) -> None:
    assert verify_name(text, keys_of([secret])) == name
    assert sign_name(name, secret.encode()) == text


@pytest.mark.statement("RA-34")
def test_the_url_safe_alphabet_verifies() -> None:
    assert verify_name(URL_SAFE, [KEY]) == "ops?>live"


@pytest.mark.statement("RA-34")
def test_a_name_is_split_off_at_the_last_separator() -> None:
    encoded = base64.urlsafe_b64encode('"a\u00fe\u07fe"'.encode()).decode()
    assert encoded == "ImHDvt--Ig=="
    assert verify_name(signed(encoded), [KEY]) == "a\u00fe\u07fe"


@pytest.mark.statement("RA-34")
@pytest.mark.parametrize("encoded", ["ImNoYXQ6MjAyMSI=", "ImNoYXQ6MjAyMSI", "ImNoYXQ6MjAyMSI=="])
def test_padding_does_not_matter(encoded: str) -> None:
    assert verify_name(signed(encoded), [KEY]) == "chat:2021"


def test_a_signed_value_that_is_no_string_is_no_name() -> None:
    assert signed_part(ARRAY, [KEY]) == "WyJjaGF0Iiw0Ml0="
    assert verify_name(ARRAY, [KEY]) is None


@pytest.mark.parametrize("value", [b"", b'""', b"1", b"null", b'{"a":1}', b"chat", b'"\xff"', b'"a" "b"'])
def test_what_is_not_a_json_string_is_no_name(value: bytes) -> None:
    assert decode_name(base64.b64encode(value).decode()) is None


@pytest.mark.parametrize("encoded", ["I", "ImNo YXQi", "ImNoYXQi\n", "Im=NoYXQi", "ImNoYX\u00e9", "\ud800"])
def test_what_is_not_base64_is_no_name(encoded: str) -> None:
    assert decode_name(encoded) is None


@pytest.mark.statement("RA-1", "CP-142")
def test_an_empty_key_verifies_nothing() -> None:
    assert hmac.new(b"", b"ImFkbWluIg==", hashlib.sha256).hexdigest() == EMPTY_KEY[-64:]
    for keys in ([], [b""], [b"", KEY], keys_of(["", ""])):
        assert verify_name(EMPTY_KEY, keys) is None


@pytest.mark.statement("RA-1")
def test_an_empty_key_signs_nothing() -> None:
    with pytest.raises(ValueError, match="empty secret"):
        sign_name("admin", b"")


@pytest.mark.statement("RA-10")
def test_any_of_several_keys_verifies() -> None:
    keys = keys_of(["new", "", "s3cr3t"])
    assert keys == (b"new", b"s3cr3t")
    assert verify_name(CHAT_42, keys) == "chat/42"
    assert verify_name(CHAT_42, [b"new"]) is None


def test_a_secret_that_was_not_utf8_keeps_its_bytes() -> None:
    assert keys_of([b"\xff\xfe".decode("utf-8", "surrogateescape")]) == (b"\xff\xfe",)


@pytest.mark.parametrize(
    "text",
    [
        "",
        "--",
        "ImNoYXQvNDIi",
        "ImNoYXQvNDIi--",
        CHAT_42.upper(),
        CHAT_42[:-64] + CHAT_42[-64:].upper(),
        CHAT_42 + " ",
        CHAT_42[:-1],
        CHAT_42.replace("--", "-"),
        CHAT_42 + "\u00e9",
        "\u00e9" + CHAT_42,
        CHAT_42 + "--" + CHAT_42[-64:],
    ],
)
def test_a_signature_is_exact(text: str) -> None:
    assert signed_part(text, [KEY]) is None


@pytest.mark.statement("RA-7")
def test_signatures_are_compared_in_constant_time(monkeypatch: pytest.MonkeyPatch) -> None:
    compared = []

    def spy(a: str, b: str) -> bool:
        compared.append(b)
        return a == b

    monkeypatch.setattr(hmac, "compare_digest", spy)
    assert verify_name(CHAT_42, [KEY]) == "chat/42"
    assert compared == [CHAT_42[-64:]]


@given(name=st.text(min_size=1), secret=st.text(min_size=1), url_safe=st.booleans(), padded=st.booleans())
@pytest.mark.statement("RA-34")
def test_every_name_survives_signing_however_it_was_encoded(
    name: str, secret: str, url_safe: bool, padded: bool
) -> None:
    key = secret.encode()
    assert verify_name(sign_name(name, key), [key]) == name
    encode = base64.urlsafe_b64encode if url_safe else base64.standard_b64encode
    for text in (json.dumps(name), json.dumps(name, ensure_ascii=False)):
        encoded = encode(text.encode()).decode()
        assert verify_name(signed(encoded if padded else encoded.rstrip("="), key), [key]) == name


@given(position=st.integers(0, len(CHAT_42) - 1), replacement=st.characters(codec="utf-8"))
def test_one_changed_character_breaks_the_signature(position: int, replacement: str) -> None:
    if CHAT_42[position] != replacement:
        assert signed_part(CHAT_42[:position] + replacement + CHAT_42[position + 1 :], [KEY]) is None


@given(st.text() | st.text(alphabet="ab-=", max_size=80))
def test_no_text_raises(text: str) -> None:
    assert verify_name(text, [KEY]) is None
    decode_name(text)
