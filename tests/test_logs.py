"""Log records: their shapes, what is let through, what is cut and masked."""

from __future__ import annotations

import io
import json
import logging
import re
import warnings
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from twisted.logger import Logger, LogLevel
from twisted.python.failure import Failure

from anycable_tx.errors import BrokerUnavailable, ConfigurationError
from anycable_tx.logs import make_observer, masked_url, route_stdlib, shorten


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


class Log:
    """A logger, and what its observer wrote."""

    def __init__(self, namespace: str = "anycable_tx.x", stream: Any = None, **options: str) -> None:
        self.stream = io.StringIO() if stream is None else stream
        options = {"format": "text", "level": "info", "node_id": "n1", **options}
        self.observer = make_observer(self.stream, **options)
        self.log = Logger(namespace=namespace, observer=self.observer)

    @property
    def text(self) -> str:
        return self.stream.getvalue()

    @property
    def record(self) -> dict[str, Any]:
        [line] = self.text.splitlines()
        return json.loads(line)


def attributes(text: str) -> str:
    """The part of the one record in *text* behind its message ``m``."""
    return text.partition(" m ")[2].removesuffix("\n")


@pytest.mark.statement("CO-32")
def test_a_text_record_has_time_level_message_and_the_node_id_first():
    log = Log()
    log.log.info("Accept at {url}", url="http://x", attrs={"context": "broadcast", "provider": "http"})
    assert re.fullmatch(
        r"\d{4}-\d\d-\d\d \d\d:\d\d:\d\d\.\d{3} INF Accept at http://x nodeid=n1 context=broadcast provider=http\n",
        log.text,
    )


@pytest.mark.statement("CO-32")
def test_the_time_is_local_and_in_milliseconds(monkeypatch):
    monkeypatch.setenv("TZ", "UTC+3")
    import time

    time.tzset()
    try:
        log = Log()
        log.observer({"log_time": 1_700_000_000.0123, "log_level": LogLevel.warn, "log_format": "m"})
        assert log.text == "2023-11-14 19:13:20.012 WRN m nodeid=n1\n"
        log = Log(format="json")
        log.observer({"log_time": 1_700_000_000.0123, "log_level": LogLevel.warn, "log_format": "m"})
        assert log.record["time"] == "2023-11-14T19:13:20.012300-03:00"
    finally:
        monkeypatch.undo()
        time.tzset()


@pytest.mark.statement("CO-32")
@pytest.mark.parametrize(("level", "name"), [("debug", "DBG"), ("info", "INF"), ("warn", "WRN"), ("error", "ERR")])
def test_levels_have_three_letters(level, name):
    log = Log(level="debug")
    getattr(log.log, level)("m")
    assert f" {name} m nodeid=n1\n" in log.text


@pytest.mark.statement("CO-33")
def test_a_json_record_has_time_level_message_node_id_and_its_attributes():
    log = Log(format="json")
    log.log.warn(
        "m {x}", x=1, attrs={"n": 1, "on": True, "none": None, "list": ("a", 2), "map": {"k": b"v"}, "f": 0.5}
    )
    assert list(log.record) == ["time", "level", "msg", "nodeid", "n", "on", "none", "list", "map", "f"]
    assert re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{6}[+-]\d\d:\d\d", log.record.pop("time"))
    assert {k: v for k, v in log.record.items() if k != "time"} == {
        "level": "WARN",
        "msg": "m 1",
        "nodeid": "n1",
        "n": 1,
        "on": True,
        "none": None,
        "list": ["a", 2],
        "map": {"k": "v"},
        "f": 0.5,
    }


def test_attributes_do_not_replace_the_frame_of_a_json_record():
    log = Log(format="json")
    log.log.info("m", attrs={"msg": "other", "level": "x", "nan": float("nan")})
    assert (log.record["msg"], log.record["level"], log.record["nan"]) == ("m", "INFO", "nan")


@pytest.mark.parametrize(
    ("value", "written"),
    [
        ("plain", "plain"),
        ("", '""'),
        ("a b", '"a b"'),
        ("a=b", '"a=b"'),
        ('say "x"', '"say \\"x\\""'),
        ("a\nb\t", '"a\\nb\\t"'),
        ("\x1b[31m", '"\\u001b[31m"'),
        ("back\\slash", '"back\\\\slash"'),
        ("é", "é"),
        (7, "7"),
        (True, "true"),
        (None, "null"),
        (b"x", "x"),
        (["a", 1], "a,1"),
        ({"k": 1}, "k:1"),
        (BrokerUnavailable("it is down"), '"it is down"'),
        (BrokerUnavailable(), "BrokerUnavailable"),
    ],
)
def test_values_are_quoted_where_they_would_be_ambiguous(value, written):
    log = Log()
    log.log.info("m", attrs={"k": value})
    assert attributes(log.text) == f"nodeid=n1 k={written}"


@given(st.text(), st.text())
def test_a_text_record_is_one_line_whatever_it_carries(message, value):
    log = Log()
    log.log.info("{message}", message=message, attrs={"k": value})
    assert len(log.text.splitlines()) == 1
    assert log.text.isprintable() or not re.search(r"[\x00-\x09\x0b-\x1f\x7f-\x9f]", log.text)


@pytest.mark.statement("CO-34")
def test_a_level_hides_what_is_below_it():
    log = Log(level="warn")
    log.log.info("start-up")
    assert log.text == ""
    log.log.warn("trouble")
    assert "trouble" in log.text
    log = Log(level="info")
    log.log.debug("detail")
    assert log.text == ""


@pytest.mark.statement("CO-34")
@pytest.mark.parametrize("options", [{"level": "WARN"}, {"level": "critical"}, {"format": "xml"}, {"format": ""}])
def test_an_unknown_level_or_format_is_refused(options):
    with pytest.raises(ConfigurationError, match=r"log_(level|format): .* accepted: "):
        Log(**options)


@pytest.mark.parametrize(
    "namespace", ["twisted.web.server.Site", "twisted", "autobahn.twisted.websocket", "log_legacy"]
)
def test_the_chatter_of_libraries_is_dropped_but_not_their_warnings(namespace):
    log = Log(namespace=namespace, level="debug")
    log.log.info("Starting factory")
    log.log.debug("detail")
    assert log.text == ""
    log.log.warn("bad")
    log.log.error("worse")
    assert len(log.text.splitlines()) == 2


def test_a_namespace_that_only_begins_like_a_library_is_kept():
    log = Log(namespace="twistedness")
    log.log.info("m")
    assert "m" in log.text


def failure() -> Failure:
    try:
        raise BrokerUnavailable("it is down")
    except BrokerUnavailable:
        return Failure()


def test_a_failure_comes_with_its_traceback():
    log = Log()
    log.log.failure("m", failure=failure(), attrs={"context": "node"})
    first, *rest = log.text.splitlines()
    assert attributes(first) == 'nodeid=n1 context=node error="it is down"'
    assert rest[0].startswith("Traceback")
    assert "anycable_tx.errors.BrokerUnavailable: it is down" in rest[-1]

    log = Log(format="json")
    log.log.failure("m", failure=failure())
    assert log.record["level"] == "ERROR"
    assert log.record["error"] == "it is down"
    assert "BrokerUnavailable" in log.record["traceback"]


def test_a_record_that_cannot_be_formatted_is_still_written():
    log = Log()
    log.log.info("{missing}")
    assert "missing" in log.text


def test_colours_only_on_a_terminal():
    log = Log(stream=Terminal())
    log.log.error("m")
    assert " \x1b[31mERR\x1b[0m m " in log.text
    log = Log(stream=Terminal(), format="json")
    log.log.error("m")
    assert "\x1b" not in log.text


def test_a_narrow_encoding_escapes_what_it_cannot_write():
    raw = io.BytesIO()
    log = Log(stream=io.TextIOWrapper(raw, encoding="ascii"))
    log.log.info("grün")
    assert b"gr\\xfcn" in raw.getvalue()


def test_a_closed_stream_harms_nobody():
    log = Log()
    log.stream.close()
    log.log.info("m")


@pytest.mark.statement("CO-37")
def test_long_payloads_are_cut_at_100_characters():
    assert shorten("x" * 100) == "x" * 100
    assert shorten("x" * 142) == "x" * 100 + "...(42)"
    assert shorten(b"x" * 142) == "x" * 100 + "...(42)"
    assert shorten(b"x" * 5_000_000) == "x" * 100 + "...(4999900)"
    assert shorten(b"\xff" * 3) == "\ufffd" * 3
    assert shorten(("é" * 500).encode()) == "é" * 100 + "...(800)"
    assert shorten("abcdef", limit=2) == "ab...(4)"


@pytest.mark.parametrize(
    ("url", "masked"),
    [
        ("ws://h/cable?jid=secret&a=1&sid=s", "ws://h/cable?jid=***&a=1&sid=***"),
        ("/cable?a=%20b&TOKEN=x=y", "/cable?a=%20b&TOKEN=***"),
        ("/cable?%6Aid=secret", "/cable?%6Aid=***"),
        ("/cable?jid", "/cable?jid"),
        ("/cable?auth=t", "/cable?auth=***"),
        ("redis://:pw@host:6379/1", "redis://:***@host:6379/1"),
        ("redis://user:p@w@host:6379", "redis://user:***@host:6379"),
        ("nats://a:b@one,nats://c:d@two", "nats://a:***@one,nats://c:***@two"),
        ("http://h:8090/_broadcast", "http://h:8090/_broadcast"),
        ("/cable", "/cable"),
    ],
)
def test_what_lets_somebody_in_is_masked_in_urls(url, masked):
    assert masked_url(url, ("auth",)) == masked


# -- everything else that logs


@pytest.fixture
def routed():
    log = Log(level="debug")
    undo = route_stdlib(log.observer)
    yield log
    undo()


def test_the_logging_module_is_led_into_the_log(routed):
    logging.getLogger("nats.aio").warning("lost %s", "it")
    logging.getLogger("nats.aio").error("worse")
    logging.getLogger("nats.aio").info("chatter")
    misfit = logging.LogRecord("nats.aio", logging.WARNING, "", 0, "%d", ("wrong",), None)
    [ours] = [h for h in logging.getLogger().handlers if type(h).__module__ == "anycable_tx.logs"]
    ours.handle(misfit)
    lines = routed.text.splitlines()
    assert [line.split(" ", 2)[2] for line in lines] == [
        "WRN lost it nodeid=n1",
        "ERR worse nodeid=n1",
        "WRN %d nodeid=n1",
    ]


def test_exceptions_of_the_logging_module_keep_their_traceback(routed):
    try:
        raise BrokerUnavailable("it is down")
    except BrokerUnavailable:
        logging.getLogger("nats").exception("m")
    assert 'ERR m nodeid=n1 error="it is down"\nTraceback' in routed.text


def test_warnings_are_led_into_the_log(routed):
    with warnings.catch_warnings():
        warnings.simplefilter("always")
        logging.captureWarnings(True)
        warnings.warn("old ways", DeprecationWarning, stacklevel=1)
    assert "WRN" in routed.text
    assert "DeprecationWarning: old ways" in routed.text


def test_the_routing_is_undone():
    log = Log()
    show, handlers = warnings.showwarning, list(logging.getLogger().handlers)
    undo = route_stdlib(log.observer)
    assert warnings.showwarning is not show
    undo()
    assert warnings.showwarning is show
    assert logging.getLogger().handlers == handlers
