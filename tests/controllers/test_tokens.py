"""Tokens: every rule of their validation, with an independent library as the judge."""

from __future__ import annotations

import base64
import hmac
import json
import string
from typing import Any

import jwt as pyjwt
import pytest
from hypothesis import given
from hypothesis import strategies as st

from anycable_tx.controllers.tokens import (
    ALGORITHM,
    CLAIMS,
    EXPIRED,
    EXT,
    MALFORMED,
    NOT_YET,
    SIGNATURE,
    TokenVerifier,
    Verdict,
)
from tests.controllers import vectors
from tests.controllers.vectors import NOW, SECRET, USER, token

ALGORITHMS = ("HS256", "HS384", "HS512")
HASHES = {"HS256": "sha256", "HS384": "sha384", "HS512": "sha512"}
UNCHECKED = dict.fromkeys(("verify_sub", "verify_jti", "verify_iat", "verify_aud", "verify_iss"), False)
B64URL = string.ascii_letters + string.digits + "-_"

# The library warns about keys shorter than the hash; the secret of the vectors is short.
pytestmark = pytest.mark.filterwarnings("ignore::jwt.warnings.InsecureKeyLengthWarning")


def check(text: str, now: float = NOW, *secrets: str) -> Verdict:
    return TokenVerifier(secrets or (SECRET,)).verify(text, now)


def b64(data: bytes) -> str:
    return base64.urlsafe_b64encode(data).rstrip(b"=").decode()


def signed(header: str, payload: str, algorithm: str = "HS256") -> str:
    """A correctly signed token of raw segments, for what no library would make."""
    message = f"{header}.{payload}"
    return f"{message}.{b64(hmac.digest(SECRET.encode(), message.encode(), HASHES[algorithm]))}"


HEADER = b64(b'{"alg":"HS256"}')


def claiming(payload: str) -> str:
    return signed(HEADER, b64(payload.encode()))


@pytest.mark.statement("CP-20")
def test_the_valid_vector_names_its_user() -> None:
    assert check(vectors.VALID) == Verdict("", USER)


@pytest.mark.statement("CP-21")
def test_the_expired_vector_is_expired_and_still_names_its_user() -> None:
    assert check(vectors.EXPIRED) == Verdict(EXPIRED, USER)


@pytest.mark.statement("CP-25", "RA-12")
def test_the_vector_without_ext_names_nobody() -> None:
    assert check(vectors.WITHOUT_EXT) == Verdict(EXT)


@pytest.mark.parametrize("ext", [None, 42, {"user_id": 42}, ["a"], True])
@pytest.mark.statement("RA-12")
def test_an_ext_that_is_not_a_string_names_nobody(ext: object) -> None:
    assert check(token({"ext": ext})) == Verdict(EXT)


def test_ext_is_verbatim_whatever_text_it_is() -> None:
    for ext in ("", "not json", '{"name":"Zoë \\"q\\""}', "\x00\n"):
        assert check(token({"ext": ext})) == Verdict("", ext)


@pytest.mark.parametrize("algorithm", ALGORITHMS)
def test_the_three_hmac_algorithms_are_accepted(algorithm: str) -> None:
    assert check(token({"ext": USER}, algorithm=algorithm)) == Verdict("", USER)


@pytest.mark.parametrize("algorithm", ["none", "None", "RS256", "ES256", "PS512", "EdDSA", "hs256", "HS1", "", "x"])
@pytest.mark.statement("CP-22")
def test_every_other_algorithm_is_refused_even_when_correctly_signed(algorithm: str) -> None:
    header = b64(json.dumps({"alg": algorithm}).encode())
    assert check(signed(header, b64(b'{"ext":"u"}'))) == Verdict(ALGORITHM)


@pytest.mark.parametrize("header", ["{}", '{"alg":1}', '{"alg":null}', '{"alg":["HS256"]}', '{"typ":"JWT"}'])
def test_a_header_without_a_textual_algorithm_is_refused(header: str) -> None:
    assert check(signed(b64(header.encode()), b64(b'{"ext":"u"}'))) == Verdict(ALGORITHM)


def test_critical_extensions_are_refused_because_none_is_understood() -> None:
    header = b64(b'{"alg":"HS256","crit":["x"],"x":1}')
    assert check(signed(header, b64(b'{"ext":"u"}'))) == Verdict(ALGORITHM)


@pytest.mark.statement("CP-22")
def test_an_unsigned_token_is_refused() -> None:
    unsigned = pyjwt.encode({"ext": USER}, None, algorithm="none")
    assert check(unsigned) == Verdict(ALGORITHM)


@pytest.mark.statement("CP-22")
def test_another_secret_is_refused() -> None:
    assert check(vectors.VALID, NOW, "other") == Verdict(SIGNATURE)


def test_a_signature_of_another_algorithm_than_the_header_names_is_refused() -> None:
    assert check(signed(HEADER, b64(b'{"ext":"u"}'), "HS512")) == Verdict(SIGNATURE)


@pytest.mark.statement("RA-7")
def test_signatures_are_compared_in_constant_time(monkeypatch: pytest.MonkeyPatch) -> None:
    compared = []
    real = hmac.compare_digest

    def spy(a: bytes, b: bytes) -> bool:
        compared.append(b)
        return real(a, b)

    monkeypatch.setattr(hmac, "compare_digest", spy)
    assert check(vectors.VALID).fault == ""
    assert compared == [vectors.VALID.rpartition(".")[2].encode()]


def test_a_signature_has_one_accepted_spelling() -> None:
    # The last character of a 32-byte signature carries two bits that no byte needs.
    assert vectors.VALID.endswith("w")
    assert check(vectors.VALID[:-1] + "x") == Verdict(SIGNATURE)
    assert check(vectors.VALID + "=") == Verdict(SIGNATURE)


@pytest.mark.statement("RA-10")
def test_old_and_new_secrets_are_both_accepted_and_no_third_one() -> None:
    verifier = TokenVerifier(("new", "old", "older"))
    for secret in ("new", "old", "older"):
        assert verifier.verify(token({"ext": USER}, secret), NOW) == Verdict("", USER)
    assert verifier.verify(token({"ext": USER}, "oldest"), NOW) == Verdict(SIGNATURE)


@pytest.mark.statement("RA-10")
def test_a_secret_is_never_split_on_commas() -> None:
    verifier = TokenVerifier(("a,b",))
    assert verifier.verify(token({"ext": USER}, "a,b"), NOW).fault == ""
    assert verifier.verify(token({"ext": USER}, "a"), NOW).fault == SIGNATURE


def test_an_empty_secret_verifies_nothing() -> None:
    message = vectors.VALID.rpartition(".")[0]
    forged = f"{message}.{b64(hmac.digest(b'', message.encode(), 'sha256'))}"
    assert TokenVerifier(("",)).verify(forged, NOW) == Verdict(SIGNATURE)
    assert TokenVerifier(()).verify(forged, NOW) == Verdict(SIGNATURE)


@pytest.mark.parametrize(
    "text",
    [
        "",
        ".",
        "..",
        "...",
        "a.b",
        "a.b.c.d",
        "é.b.c",
        vectors.VALID + ".",
        "." + vectors.VALID,
        "%2E%2E",
        "\x00.\x00.\x00",
    ],
)
@pytest.mark.statement("CP-22")
def test_garbage_is_malformed(text: str) -> None:
    assert check(text) == Verdict(MALFORMED)


@pytest.mark.parametrize("header", ["[]", "1", '"HS256"', "null", "{", "\xff"])
def test_a_header_that_is_no_object_is_malformed(header: str) -> None:
    assert check(signed(b64(header.encode("latin-1")), b64(b'{"ext":"u"}'))) == Verdict(MALFORMED)


@pytest.mark.parametrize("payload", ["[]", "1", '"u"', "null", "{", "", '{"exp":NaN}', '{"exp":1e999}', "[" * 2000])
def test_a_payload_that_is_no_object_is_malformed(payload: str) -> None:
    assert check(claiming(payload)) == Verdict(MALFORMED)


@pytest.mark.parametrize("ending", ["=", "\n", " ", "a", "aa", "!"])
def test_segments_are_strict_unpadded_base64url(ending: str) -> None:
    assert check(signed(HEADER, "eyJleHQiOiJ1In0")) == Verdict("", "u")
    assert check(signed(HEADER, "eyJleHQiOiJ1In0" + ending)) == Verdict(MALFORMED)


def test_plain_base64_is_not_base64url() -> None:
    # 0xfb 0xff gives characters on which the two alphabets differ.
    text = '{"ext":"' + "~~~???" + '"}'
    plain = base64.b64encode(text.encode()).rstrip(b"=").decode()
    assert set("+/") & set(plain)
    assert check(signed(HEADER, plain)) == Verdict(MALFORMED)
    assert check(signed(HEADER, b64(text.encode()))) == Verdict("", "~~~???")


@pytest.mark.parametrize(
    ("exp", "fault"),
    [
        ("1750000000", EXPIRED),  # now < exp, with no leeway
        ("1750000001", ""),
        ("1750000000.9", EXPIRED),  # the fraction is cut
        ("1750000001.9", ""),
        ("0", ""),  # never expires
        ("0.0", ""),
        ("-0.0", ""),
        ("0.5", EXPIRED),
        ("-1", EXPIRED),
        ("1e300", ""),
        ("9" * 40, ""),
        ("null", CLAIMS),
        ("true", CLAIMS),
        ('"4102444800"', CLAIMS),
        ("[]", CLAIMS),
        ("{}", CLAIMS),
    ],
)
def test_exp(exp: str, fault: str) -> None:
    assert check(claiming(f'{{"ext":"u","exp":{exp}}}')).fault == fault


@pytest.mark.parametrize(
    ("nbf", "fault"),
    [
        ("1750000000", ""),
        ("1750000000.9", ""),
        ("1750000001", NOT_YET),
        ("0", ""),
        ("-5", ""),
        ("null", CLAIMS),
        ("false", CLAIMS),
        ('"1"', CLAIMS),
    ],
)
def test_nbf(nbf: str, fault: str) -> None:
    assert check(claiming(f'{{"ext":"u","nbf":{nbf}}}')).fault == fault


def test_time_is_compared_with_its_fraction() -> None:
    text = claiming('{"ext":"u","exp":100,"nbf":50}')
    assert [check(text, now).fault for now in (49.99, 50.0, 99.99, 100.0)] == [NOT_YET, "", "", EXPIRED]


def test_expired_wins_over_every_other_fault_of_the_claims() -> None:
    for rest in ('"nbf":4102444800', '"nbf":"x"', '"ext":1', '"nbf":null,"ext":null'):
        assert check(claiming(f'{{"exp":1,{rest}}}')).fault == EXPIRED
    assert check(claiming('{"exp":1}')) == Verdict(EXPIRED, None)


def test_an_expired_token_with_a_bad_signature_is_not_called_expired() -> None:
    assert check(vectors.EXPIRED, NOW, "other") == Verdict(SIGNATURE)


@pytest.mark.parametrize("name", ["iat", "iss", "aud", "sub", "jti"])
@pytest.mark.parametrize("value", [4_102_444_800, "text", None, ["a"], {"k": 1}, True])
def test_other_claims_are_of_any_type(name: str, value: object) -> None:
    payload = json.dumps({"ext": "u", name: value})
    assert check(claiming(payload)) == Verdict("", "u")


@pytest.mark.parametrize("value", [None, 7, ["a"], {"k": 1}, "text"])
def test_other_header_fields_are_of_any_type(value: object) -> None:
    header = b64(json.dumps({"typ": value, "kid": value, "alg": "HS256"}).encode())
    assert check(signed(header, b64(b'{"ext":"u"}'))) == Verdict("", "u")


def test_the_order_of_the_header_does_not_matter() -> None:
    for header in ('{"alg":"HS384","typ":"JWT"}', '{"typ":"JWT","alg":"HS384"}', '{ "typ" : "JWT" , "alg":"HS384"}'):
        assert check(signed(b64(header.encode()), b64(b'{"ext":"u"}'), "HS384")) == Verdict("", "u")


def test_remembering_a_header_changes_no_answer() -> None:
    verifier = TokenVerifier((SECRET,))
    strange = [signed(b64(json.dumps({"alg": "HS256", "kid": n}).encode()), b64(b'{"ext":"u"}')) for n in range(200)]
    for _ in range(2):
        assert all(verifier.verify(text, NOW) == Verdict("", "u") for text in strange)
        assert verifier.verify(vectors.VALID, NOW) == Verdict("", USER)
        assert verifier.verify(vectors.VALID[:-1] + "A", NOW) == Verdict(SIGNATURE)


def test_what_is_remembered_of_headers_is_bounded() -> None:
    verifier = TokenVerifier((SECRET,))
    for n in range(200):
        header = b64(json.dumps({"alg": "HS256", "kid": n}).encode())
        verifier.verify(f"{header}.e30.forged", NOW)
    assert len(verifier._headers) == 0
    for n in range(200):
        verifier.verify(signed(b64(json.dumps({"alg": "HS256", "kid": n}).encode()), "e30"), NOW)
    assert len(verifier._headers) <= 64


json_values = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**63), 2**63) | st.text(), lambda inner: st.lists(inner, max_size=3)
)
claim_sets = st.dictionaries(
    st.sampled_from(["iss", "aud", "sub", "jti", "iat", "name", "x"]), json_values, max_size=4
)
times = st.integers(int(NOW) - 10, int(NOW) + 10)


@given(
    claims=claim_sets.map(lambda c: {k: v for k, v in c.items() if k != "iss" or isinstance(v, str)}),
    ext=st.text(),
    secret=st.text(min_size=1, max_size=80),
    algorithm=st.sampled_from(ALGORITHMS),
    exp=times,
    kid=st.text(max_size=5),
)
def test_tokens_made_by_another_library_are_judged_as_they_say(
    claims: dict[str, Any], ext: str, secret: str, algorithm: str, exp: int, kid: str
) -> None:
    text = token({**claims, "ext": ext, "exp": exp}, secret, algorithm, {"kid": kid})
    expected = Verdict("", ext) if exp > NOW else Verdict(EXPIRED, ext)
    assert TokenVerifier((secret,)).verify(text, NOW) == expected


@given(
    position=st.integers(0, len(vectors.VALID) - 1),
    replacement=st.sampled_from(B64URL + ".=+/ é\x00") | st.characters(codec="utf-8"),
)
def test_a_token_with_one_character_changed_is_refused(position: int, replacement: str) -> None:
    if vectors.VALID[position] != replacement:
        mutated = vectors.VALID[:position] + replacement + vectors.VALID[position + 1 :]
        assert check(mutated).fault in (MALFORMED, ALGORITHM, SIGNATURE)


@given(data=st.data())
def test_a_token_cut_or_grown_is_refused(data: st.DataObject) -> None:
    start = data.draw(st.integers(0, len(vectors.VALID)))
    end = data.draw(st.integers(start, len(vectors.VALID)))
    grown = data.draw(st.text(alphabet=B64URL + ".", max_size=3))
    mutated = vectors.VALID[:start] + grown + vectors.VALID[end:]
    if mutated != vectors.VALID:
        assert check(mutated).fault in (MALFORMED, ALGORITHM, SIGNATURE)


anything = st.binary(max_size=20) | json_values.map(lambda value: json.dumps(value).encode())
headers = st.dictionaries(st.sampled_from(["typ", "cty", "x"]), json_values, max_size=2).flatmap(
    lambda extra: st.sampled_from(["HS256", "HS512", "RS256", "none", 1, None]).map(
        lambda alg: json.dumps({**extra, "alg": alg}).encode()
    )
)


@given(header=headers | anything, payload=claim_sets.map(lambda claims: json.dumps(claims).encode()) | anything)
def test_another_library_agrees_on_the_structure_and_the_algorithm(header: bytes, payload: bytes) -> None:
    algorithm = "HS512" if b"HS512" in header else "HS256"
    text = signed(b64(header), b64(payload), algorithm)
    try:
        pyjwt.decode(text, SECRET, algorithms=list(ALGORITHMS), options={"verify_signature": True, **UNCHECKED})
    except pyjwt.InvalidTokenError:
        assert check(text).fault in (MALFORMED, ALGORITHM)
    else:
        assert check(text).fault == EXT


@given(st.text(max_size=200) | st.text(alphabet=B64URL + ".=", max_size=200))
@pytest.mark.statement("CP-22")
def test_no_text_raises(text: str) -> None:
    assert check(text).fault


def test_text_that_is_not_unicode_does_not_raise() -> None:
    assert check("\ud800.b.c") == Verdict(MALFORMED)
