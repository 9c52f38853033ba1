"""Publications: what is understood, what it becomes, and that nothing else is ever raised."""

from __future__ import annotations

import json

import orjson
import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from anycable_tx.cable.messages import Publication, RemoteCommand
from anycable_tx.cable.publications import decode
from anycable_tx.errors import BadPublication


def publications(body: bytes, *, lenient: bool = True, key: str = "") -> list[Publication]:
    decoded = decode(body, lenient=lenient, idempotency_key=key)
    assert isinstance(decoded, list)
    return decoded


def one(body: bytes, *, lenient: bool = True, key: str = "") -> Publication:
    [publication] = publications(body, lenient=lenient, key=key)
    return publication


def with_data(data: str) -> bytes:
    """The payload that *data*, sent as text, becomes."""
    return one(json.dumps({"stream": "a", "data": data}).encode()).payload


def refusal(body: bytes, *, lenient: bool = True) -> str:
    with pytest.raises(BadPublication) as caught:
        decode(body, lenient=lenient)
    return str(caught.value)


@pytest.mark.statement("BR-1")
def test_a_single_publication_has_its_stream_and_its_data():
    assert one(b'{"stream":"a","data":"x"}') == Publication("a", b'"x"')


@pytest.mark.statement("BR-2")
@pytest.mark.parametrize("text", ['{"a":1}', '"s"', "true", "[1]", "0", "[]", '{"b":1,"a":2}', '{"a":1,"a":2}'])
def test_data_that_is_json_text_is_taken_as_it_was_written(text):
    assert with_data(text) == text.encode()


@pytest.mark.statement("BR-2")
@pytest.mark.parametrize(
    "text", ["hi", "NaN", "Infinity", "1:1", "123abc", '{"a":1} x', "null", " null ", "", "  ", "1e400", "\x0b1"]
)
def test_data_that_is_no_json_text_becomes_a_string(text):
    assert orjson.loads(with_data(text)) == text


def test_space_around_json_text_is_dropped():
    assert with_data(' \r\n\t{"a": 1}\n') == b'{"a": 1}'


@pytest.mark.statement("BR-2")
@pytest.mark.parametrize("body", [b'{"stream":"a"}', b'{"stream":"a","data":null}'])
@pytest.mark.parametrize("lenient", [True, False])
def test_missing_data_is_an_empty_string(body, lenient):
    assert one(body, lenient=lenient).payload == b'""'


@pytest.mark.statement("BR-3", "CP-52")
@pytest.mark.parametrize("digits", ["9007199254740993", "12345678901234567890123", "1.10", "1E5", "-0"])
def test_numbers_keep_their_digits(digits):
    assert with_data(f'{{"id":{digits}}}') == f'{{"id":{digits}}}'.encode()
    assert one(f'{{"stream":"a","data":{{"id":{digits}}}}}'.encode()).payload == f'{{"id":{digits}}}'.encode()


@pytest.mark.statement("BR-4")
def test_a_batch_keeps_its_order():
    body = json.dumps([{"stream": "a", "data": str(n)} for n in range(10)]).encode()
    assert [p.payload for p in publications(body)] == [str(n).encode() for n in range(10)]


@pytest.mark.statement("BR-5")
@pytest.mark.parametrize(
    "body",
    [
        b'[{"data":"y"},{"stream":"a","data":"x"}]',
        b'[{"stream":"a","data":"x"},{"data":"y"}]',
        b'[{"stream":"a","data":"x"},{"stream":1}]',
        b'[{"stream":"a","data":"x"},{"stream":"b","meta":"{}"}]',
        b'[{"stream":"a","data":"x"},{"stream":"b","offset":"1"}]',
        b'[{"stream":"a","data":"x"},{"command":"disconnect","payload":{"identifier":"i"}}]',
    ],
)
def test_a_batch_with_a_bad_element_is_refused_whole(body):
    assert "of the batch" in refusal(body)


@pytest.mark.statement("BR-5")
def test_data_of_another_type_spoils_a_batch_only_when_not_lenient():
    body = b'[{"stream":"a","data":"x"}, {"stream":"b","DATA": {"n" : 1.0} },{"stream":"c","data":[2]}]'
    assert refusal(body, lenient=False) == (
        "'data' in element 1 of the batch is an object; "
        "a string (other values only with broadcast_lenient) is accepted"
    )
    assert [p.payload for p in publications(body)] == [b'"x"', b'{"n" : 1.0}', b"[2]"]


@pytest.mark.statement("BR-6")
@pytest.mark.parametrize(
    "body",
    [
        b"[null]",
        b'[{"stream":"a","data":"x"},null]',
        b"[" * 10_000 + b"]" * 10_000,
        b'{"stream":"a","data":' + b"[" * 10_000 + b"]" * 10_000 + b"}",
        b'{"stream":"a","data":' + b'{"a":' * 1_020 + b"1" + b"}" * 1_021,
        b"\\" * 5_000_000,
        b"\xff" * 5_000_000,
        b'"' + b"\\ud800" * 500_000,
    ],
    ids=["null", "null-behind", "deep", "deep-data", "nearly-too-deep", "backslashes", "no-utf8", "surrogates"],
)
def test_hostile_bodies_are_refused(body):
    assert refusal(body)


@pytest.mark.statement("BR-6")
def test_deep_nesting_inside_the_text_is_a_string():
    text = "[" * 10_000 + "]" * 10_000
    assert orjson.loads(with_data(text)) == text


@pytest.mark.statement("BR-19")
@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"null",
        b'"str"',
        b"42",
        b"[]",
        b"[[]]",
        b"{}",
        b'{"data":"x"}',
        b'{"payload":{}}',
        b'{"stream":1,"data":"x"}',
        b'{"stream":null}',
        b'{"stream":""}',
        b'{"stream":false}',
        b'\xef\xbb\xbf{"stream":"a"}',
        b'{"stream":"a"} x',
        b'{"stream":"a","data":NaN}',
        b'{"stream":"a","offset":-5}',
        b'{"stream":"a","offset":1.5}',
        b'{"stream":"a","offset":true}',
        b'{"stream":"a","epoch":1}',
    ],
)
def test_what_is_no_publication_is_refused(body):
    assert refusal(body)


def test_a_refusal_names_the_member_what_it_is_and_what_is_accepted():
    assert refusal(b'{"stream":7}') == "'stream' is the number 7; a string that is not empty is accepted"


def test_keys_match_in_any_case_and_the_last_of_equal_ones_wins():
    assert one(b'{"STREAM":"a","Data":"1","data":"2"}') == Publication("a", b"2")
    assert one(b'{"stream":"a","data":"1","data":"2"}') == Publication("a", b"2")
    assert one(b'{"stream":"a","Meta":{"Transient":true,"transienT":null,"EXCLUDE_socket":"s"}}') == Publication(
        "a", b'""', exclude_socket="s"
    )


def test_unknown_keys_are_ignored():
    assert one(b'{"stream":"a","data":"x","extra":{}}') == Publication("a", b'"x"')


def test_a_position_from_the_publisher_is_ignored():
    assert one(b'{"stream":"a","data":"x","offset":7,"epoch":"e"}') == Publication("a", b'"x"')


def test_broken_text_becomes_the_replacement_character():
    assert one(b'{"stream":"a\xff","data":"x\\ud800y\\ud83d\\ude00"}') == Publication(
        "a\ufffd", '"x\ufffdy\U0001f600"'.encode()
    )
    assert with_data('{"a":"\\ud800","b":"\\\\ud800","c":"\\uD83D\\uDE00"}') == (
        b'{"a":"\\ufffd","b":"\\\\ud800","c":"\\uD83D\\uDE00"}'
    )


@pytest.mark.statement("BR-8")
def test_meta_modifies_the_delivery():
    body = b'{"stream":"a","data":"1","meta":{"exclude_socket":"s","broadcast_type":"presence","transient":true}}'
    assert one(body) == Publication("a", b"1", exclude_socket="s", broadcast_type="presence", transient=True)


@pytest.mark.statement("BR-10")
@pytest.mark.parametrize("meta", ["null", "{}", '{"later":[1]}', '{"id":null,"transient":null}'])
def test_absent_and_unknown_meta_changes_nothing(meta):
    assert one(f'{{"stream":"a","data":"1","meta":{meta}}}'.encode()) == Publication("a", b"1")


@pytest.mark.statement("BR-10")
@pytest.mark.parametrize(
    "meta",
    ['"{}"', "[]", "1", '{"transient":"true"}', '{"exclude_socket":1}', '{"broadcast_type":{}}', '{"id":5}'],
)
def test_meta_of_a_wrong_type_is_refused(meta):
    assert "'meta" in refusal(f'{{"stream":"a","data":"1","meta":{meta}}}'.encode())


@pytest.mark.statement("BR-21")
def test_the_id_of_the_publication_comes_before_the_key_of_the_request():
    assert one(b'{"stream":"a","data":"1"}', key="k").id == "k"
    assert one(b'{"stream":"a","data":"1","meta":{"id":"m"}}', key="k").id == "m"
    batch = b'[{"stream":"a"},{"stream":"a","meta":{"id":"m"}},{"stream":"a"}]'
    assert [p.id for p in publications(batch, key="k")] == ["k:0", "m", "k:2"]
    assert [p.id for p in publications(batch)] == ["", "m", ""]


def test_an_id_is_bounded():
    template = '{"stream":"a","meta":{"id":"%s"}}'
    assert one((template % ("é" * 128)).encode()).id == "é" * 128
    assert "129 characters; at most 128" in refusal((template % ("é" * 129)).encode())


@pytest.mark.statement("BR-14")
@pytest.mark.parametrize("value", ['{"x":1}', "[1, 2]", "true", "0", "1.50", '{"data":{"data":2}}'])
def test_lenient_takes_data_of_any_type_as_the_message(value):
    body = f' {{ "meta" : {{"data":0}} , "data" : {value} ,"stream":"a"}} '.encode()
    assert one(body).payload == value.encode()
    assert "'data' is" in refusal(body, lenient=False)


def test_disconnect_has_an_identifier_and_does_not_reconnect_unless_told():
    assert decode(b'{"command":"disconnect","payload":{"identifier":"{\\"u\\":1}"}}', lenient=True) == RemoteCommand(
        "disconnect", {"identifier": '{"u":1}', "reconnect": False}
    )
    assert decode(
        b'{"Command":"disconnect","payload":{"identifier":"u","reconnect":true,"x":1}}', lenient=True
    ) == RemoteCommand("disconnect", {"identifier": "u", "reconnect": True})


@pytest.mark.parametrize(
    "payload", ["null", '"{}"', "{}", '{"identifier":1}', '{"identifier":""}', '{"identifier":"u","reconnect":1}']
)
def test_a_disconnect_that_names_nobody_is_refused(payload):
    assert "of disconnect" in refusal(f'{{"command":"disconnect","payload":{payload}}}'.encode())


@pytest.mark.statement("BR-13")
def test_other_commands_pass():
    assert decode(b'{"command":"dance","payload":{"a":1}}', lenient=True) == RemoteCommand("dance", {"a": 1})
    assert decode(b'{"command":"dance","payload":[1]}', lenient=True) == RemoteCommand("dance", {})
    assert decode(b'{"stream":"","command":"dance"}', lenient=True) == RemoteCommand("dance", {})


def test_commands_between_nodes_are_not_for_publishers():
    assert "reserved" in refusal(b'{"command":"takeover","payload":{}}')


def test_a_stream_makes_it_a_message_whatever_else_there_is():
    assert one(b'{"stream":"a","command":"disconnect","payload":{}}') == Publication("a", b'""')


@pytest.mark.parametrize("command", ["1", "{}", "true"])
def test_a_command_of_a_wrong_type_is_refused(command):
    assert "'command' is" in refusal(f'{{"command":{command}}}'.encode())


anything = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(st.sampled_from(["stream", "data", "meta", "Data", "id", "command", "payload"]), inner)
    ),
    max_leaves=8,
)


@pytest.mark.statement("BR-6")
@given(st.binary(max_size=60), st.booleans())
def test_no_bytes_raise_anything_else(body, lenient):
    try:
        decode(body, lenient=lenient, idempotency_key="k")
    except BadPublication as e:
        assert str(e)  # noqa: PT017


@pytest.mark.statement("BR-6")
@given(anything, st.booleans())
@example({"stream": "a", "data": "\ud800"}, True)
@example({"stream": "a", "data": {"data": "\ud800"}}, True)
def test_no_json_raises_anything_else_and_every_payload_is_json(value, lenient):
    try:
        decoded = decode(json.dumps(value).encode(), lenient=lenient)
    except BadPublication as e:
        assert str(e)  # noqa: PT017
    else:
        if isinstance(decoded, list):
            for publication in decoded:
                assert publication.stream
                orjson.loads(publication.payload)


@given(st.text(), st.sampled_from([" ", "\n", ""]))
def test_text_that_is_no_json_arrives_unchanged(text, space):
    data = space + text
    payload = with_data(data)
    try:
        expected = json.loads(data, parse_constant=lambda _: data)
    except ValueError:
        expected = None
    if expected is None or expected is data:
        expected = data
    assert json.loads(payload) == expected
