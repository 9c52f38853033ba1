"""Log observers: text and JSON records, and everything else that writes logs led into them.

Code logs with ``twisted.logger.Logger``; what a record carries beside its text goes into the event key
``attrs``, a dict, component attributes first::

    log.info("Accept broadcast requests at {url}", url=url, attrs={"context": "broadcast", "provider": "http"})
"""

from __future__ import annotations

import json
import logging
import math
import re
import warnings
from collections.abc import Callable, Mapping
from datetime import datetime
from typing import Any, TextIO
from urllib.parse import unquote_plus

from twisted.logger import (
    ILogObserver,
    LogEvent,
    Logger,
    LogLevel,
    formatEvent,
    globalLogPublisher,
)
from twisted.python.failure import Failure
from zope.interface import implementer

from anycable_tx.errors import ConfigurationError

__all__ = [
    "FORMATS",
    "LEVELS",
    "Observer",
    "make_observer",
    "masked_url",
    "plain",
    "route_stdlib",
    "shorten",
    "traceback_of",
]

#: The names of the option ``log_level`` and the least level each lets through.
LEVELS = {"debug": LogLevel.debug, "info": LogLevel.info, "warn": LogLevel.warn, "error": LogLevel.error}
FORMATS = ("text", "json")

#: Level -> three letters, JSON name, terminal colour.
_NAMES = {
    LogLevel.debug: ("DBG", "DEBUG", "\x1b[35m"),
    LogLevel.info: ("INF", "INFO", "\x1b[32m"),
    LogLevel.warn: ("WRN", "WARN", "\x1b[33m"),
    LogLevel.error: ("ERR", "ERROR", "\x1b[31m"),
    LogLevel.critical: ("ERR", "ERROR", "\x1b[31m"),
}
_RESET = "\x1b[0m"

#: Libraries whose records below a warning say nothing about this server.
_CHATTER = ("twisted", "autobahn", "txaio", "log_legacy")

#: What may not stand in a text record as it is: control characters and line separators of any kind.
_CONTROL = re.compile(r"[\x00-\x1f\x7f-\x9f\u2028\u2029\ud800-\udfff]")
_QUOTED = re.compile(r'[\s="\\\x00-\x1f\x7f-\x9f\u2028\u2029\ud800-\udfff]')

_SECRET_PARAMETERS = frozenset(("jid", "sid", "token"))
_PASSWORD = re.compile(r"(?<=://)([^/?#@:]*):[^/?#]*@")


def make_observer(stream: TextIO, *, format: str, level: str, node_id: str) -> ILogObserver:
    """An observer that writes records of at least *level* to *stream*, flushed one by one.

    *format* is ``text``, one line ``YYYY-MM-DD HH:MM:SS.mmm INF message key=value ...`` in local time, or
    ``json``, one object with ``time``, ``level``, ``msg`` a line (CO-32, CO-33). ``nodeid`` is the first
    attribute of each. Levels are coloured when *stream* is a terminal. A stream that cannot be written to
    loses the record and harms nobody. Raises ConfigurationError for an unknown *format* or *level* (CO-34).
    """
    if format not in FORMATS:
        raise ConfigurationError(f"log_format: {format!r} is not known; accepted: {', '.join(FORMATS)}")
    if level not in LEVELS:
        raise ConfigurationError(f"log_level: {level!r} is not known; accepted: {', '.join(LEVELS)}")
    # Twisted's log files do not know the question.
    coloured = hasattr(stream, "isatty") and stream.isatty()
    write = _json if format == "json" else _text_writer(coloured)
    return Observer(stream, write, level, node_id)


def shorten(payload: str | bytes, limit: int = 100) -> str:
    """*payload* for a log record: its first *limit* characters and ``...(<length of the rest>)`` (CO-37).

    The rest of bytes is counted in bytes.
    """
    if isinstance(payload, bytes):
        if len(payload) > 4 * limit:
            head = payload[: 4 * limit].decode("utf-8", "replace")[:limit]
            return f"{head}...({len(payload) - len(head.encode())})"
        payload = payload.decode("utf-8", "replace")
    return payload if len(payload) <= limit else f"{payload[:limit]}...({len(payload) - limit})"


def masked_url(url: str, parameters: tuple[str, ...] = ()) -> str:
    """*url* with ``***`` for the password in it and for the query values that let somebody in.

    These are ``jid``, ``sid``, ``token`` and those named by *parameters*, whatever their case.
    """
    secret = _SECRET_PARAMETERS.union(name.lower() for name in parameters)
    url = _PASSWORD.sub(r"\1:***@", url)
    address, mark, query = url.partition("?")
    if not mark:
        return url
    pairs = []
    for pair in query.split("&"):
        name, equals, _ = pair.partition("=")
        pairs.append(f"{name}=***" if equals and unquote_plus(name).lower() in secret else pair)
    return f"{address}?{'&'.join(pairs)}"


def route_stdlib(publish: Callable[[LogEvent], None] = globalLogPublisher) -> Callable[[], None]:
    """Lead the records of ``logging`` (from WARNING on, unless a logger says otherwise) and warnings to *publish*.

    Answers a function that undoes it.
    """
    root, handler, show = logging.getLogger(), _Handler(publish), warnings.showwarning
    logging.captureWarnings(True)
    root.addHandler(handler)

    def undo() -> None:
        root.removeHandler(handler)
        logging.captureWarnings(False)
        warnings.showwarning = show

    return undo


@implementer(ILogObserver)
class Observer:
    """Writes to *stream* what *write* makes of each record of at least *level* and its text and attributes."""

    def __init__(
        self, stream: Any, write: Callable[[LogEvent, str, dict[str, Any]], str], level: str, node_id: str
    ) -> None:
        self._stream = stream
        self._write = write
        self._level = LEVELS[level]
        self._node_id = node_id

    def __call__(self, event: LogEvent) -> None:
        level = event.get("log_level", LogLevel.info)
        if level < self._level:
            return
        if level < LogLevel.warn and event.get("log_namespace", "").partition(".")[0] in _CHATTER:
            return
        message = formatEvent(event) if event.get("log_format") is not None else ""
        attributes = {"nodeid": self._node_id, **event.get("attrs", {})}
        failure = event.get("log_failure")
        if failure is not None:
            attributes.setdefault("error", failure.value)
            message = message or "unexpected error"
        self._put(self._write(event, message, attributes))

    def _put(self, text: str) -> None:
        try:
            try:
                self._stream.write(text)
            except UnicodeEncodeError:
                encoding = self._stream.encoding
                self._stream.write(text.encode(encoding, "backslashreplace").decode(encoding))
            self._stream.flush()
        except (OSError, ValueError):
            # There is nobody left to tell: the terminal is gone or the file is closed.
            return


def _text_writer(coloured: bool) -> Callable[[LogEvent, str, dict[str, Any]], str]:
    def write(event: LogEvent, message: str, attributes: dict[str, Any]) -> str:
        time = datetime.fromtimestamp(event["log_time"])
        name, _, colour = _NAMES[event.get("log_level", LogLevel.info)]
        if coloured:
            name = f"{colour}{name}{_RESET}"
        pairs = " ".join([f"{key}={_quoted(value)}" for key, value in attributes.items()])
        stamp = f"{time:%Y-%m-%d %H:%M:%S}.{time.microsecond // 1000:03d}"
        return f"{stamp} {name} {_CONTROL.sub(_escaped, message)} {pairs}\n{traceback_of(event)}"

    return write


def _json(event: LogEvent, message: str, attributes: dict[str, Any]) -> str:
    time = datetime.fromtimestamp(event["log_time"]).astimezone()
    record = {
        "time": time.isoformat(timespec="microseconds"),
        "level": _NAMES[event.get("log_level", LogLevel.info)][1],
        "msg": message,
    }
    for key, value in attributes.items():
        record.setdefault(key, plain(value))
    traceback = traceback_of(event)
    if traceback:
        record.setdefault("traceback", traceback)
    return json.dumps(record) + "\n"


def traceback_of(event: LogEvent) -> str:
    """That of the record's failure, or the one that came with it from another process; '' without."""
    failure: Failure | None = event.get("log_failure")
    text: str = event.get("traceback", "") if failure is None else failure.getTraceback()
    return text and text.rstrip("\n") + "\n"


def _quoted(value: Any) -> str:
    """The value of a text attribute, in double quotes where it would be ambiguous without."""
    text = _word(value)
    if text and not _QUOTED.search(text):
        return text
    escaped = text.replace("\\", "\\\\").replace('"', '\\"')
    return f'"{_CONTROL.sub(_escaped, escaped)}"'


def _word(value: Any) -> str:
    if isinstance(value, str):
        return value
    if isinstance(value, bool):
        return "true" if value else "false"
    if value is None:
        return "null"
    if isinstance(value, bytes):
        return value.decode("utf-8", "replace")
    if isinstance(value, (list, tuple, set, frozenset)):
        return ",".join([_word(part) for part in value])
    if isinstance(value, Mapping):
        return ",".join([f"{_word(key)}:{_word(part)}" for key, part in value.items()])
    if isinstance(value, BaseException):
        return str(value) or type(value).__name__
    return str(value)


def plain(value: Any) -> Any:
    """The value of an attribute as something JSON has."""
    if value is None or isinstance(value, (str, bool, int)):
        return value
    if isinstance(value, float):
        return value if math.isfinite(value) else str(value)
    if isinstance(value, Mapping):
        return {_word(key): plain(part) for key, part in value.items()}
    if isinstance(value, (list, tuple, set, frozenset)):
        return [plain(part) for part in value]
    return _word(value)


def _escaped(match: re.Match[str]) -> str:
    character = match[0]
    short = {"\n": "\\n", "\r": "\\r", "\t": "\\t"}.get(character)
    return short or f"\\u{ord(character):04x}"


class _Handler(logging.Handler):
    """Publishes the records of ``logging`` as Twisted events of the same namespace and level."""

    def __init__(self, publish: Callable[[LogEvent], None]) -> None:
        super().__init__()
        self._publish = publish

    def emit(self, record: logging.LogRecord) -> None:
        try:
            text = record.getMessage().rstrip("\n")
        except (TypeError, ValueError):
            text = str(record.msg)  # its arguments do not fit its format
        level = LogLevel.debug
        for least, name in (
            (logging.INFO, LogLevel.info),
            (logging.WARNING, LogLevel.warn),
            (logging.ERROR, LogLevel.error),
        ):
            if record.levelno >= least:
                level = name
        log = Logger(namespace=record.name, observer=self._publish)  # type: ignore[arg-type]
        failure = None
        if record.exc_info and record.exc_info[1] is not None:
            failure = Failure(record.exc_info[1], record.exc_info[0], record.exc_info[2])  # type: ignore[no-untyped-call]
        if failure is None:
            log.emit(level, "{text}", text=text)
        else:
            log.emit(level, "{text}", text=text, log_failure=failure)
