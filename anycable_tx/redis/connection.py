"""One connection to a Redis server: commands out, answers in, in order."""

# txredisapi and much of Twisted carry no annotations:
# mypy: disable-error-code="no-untyped-call"

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from contextlib import suppress
from typing import Any

# It imports the global reactor; so this module is imported by nothing but what the redis providers import.
import txredisapi
from twisted.internet.defer import Deferred, fail
from twisted.internet.protocol import connectionDone
from twisted.python.failure import Failure

from anycable_tx.metrics import Metrics
from anycable_tx.redis.address import Host
from anycable_tx.redis.api import Arg, RedisError, RedisUnavailable
from anycable_tx.redis.resp import BadAnswer, Reader, encode

__all__ = ["MAX_PENDING", "REPLY_LIMIT", "Connection"]

#: So many commands may wait for their answers on one connection; more fail at once.
MAX_PENDING = 20_000
#: And so many bytes, where a single command is always taken.
_MAX_PENDING_BYTES = 64 * 2**20
#: A server that answers nothing for so many seconds is taken for dead.
REPLY_LIMIT = 5.0


class _Due:
    """Answers that are due to one caller."""

    __slots__ = ("answers", "deferred", "limit", "missing", "since", "size")

    def __init__(self, missing: int, size: int, since: float, limit: float | None) -> None:
        # A caller that went away leaves its place in the queue behind.
        self.deferred: Deferred[list[Any]] = Deferred()
        self.answers: list[Any] = []
        self.missing = missing
        self.size = size
        self.since = since
        self.limit = limit


class Connection(txredisapi.BaseRedisProtocol):  # type: ignore[misc]
    """txredisapi's connection with a reader that keeps errors, texts and lists as they were sent.

    The library's own reader needs one turn of the global reactor for each bulk string. Whoever opens a connection
    logs in.
    """

    def __init__(self, reactor: Any, metrics: Metrics, host: Host) -> None:
        super().__init__(charset=None, convertNumbers=False)
        self.host = host
        self._reactor = reactor
        self._metrics = metrics
        self._reader = Reader()
        self._due: deque[_Due] = deque()
        self._timer: Any = None
        self._why = "the connection was lost"
        self._ended: list[Deferred[str]] = []
        self.alive = False
        self.pending = 0
        self._bytes = 0  # of the commands that are not answered
        self.heard = 0.0  # when something came
        #: Gets whatever comes, once set: for a connection in subscribed mode.
        self.push: Callable[[Any], None] | None = None

    def connectionMade(self) -> None:
        """Ready for commands; nothing was sent yet."""
        self.alive = True
        self.connected = 1
        self.heard = self._reactor.seconds()
        with suppress(AttributeError, OSError):  # a Unix socket has neither
            self.transport.setTcpKeepAlive(True)
            self.transport.setTcpNoDelay(True)

    def send(self, *commands: tuple[Arg, ...], limit: float | None = REPLY_LIMIT) -> Deferred[list[Any]]:
        """Write *commands* at once; the Deferred gets as many answers, a RedisError standing in an answer's place.

        It fails with RedisUnavailable when the connection is lost first. When one of the answers has not come after
        *limit* seconds, the connection is given up (None: never). Cancelling does not undo a command.
        """
        if not self.alive:
            return fail(RedisUnavailable(self._why))
        data = b"".join([encode(command) for command in commands])
        if self.pending + len(commands) > MAX_PENDING or (self._due and self._bytes + len(data) > _MAX_PENDING_BYTES):
            self._metrics.count("redis_refused_commands_total", len(commands), reason="too_many_pending")
            return fail(RedisUnavailable("too many commands wait for their answers"))
        due = _Due(len(commands), len(data), self._reactor.seconds(), limit)
        if not commands:
            due.deferred.callback([])
            return due.deferred
        self.pending += len(commands)
        self._bytes += len(data)
        self._due.append(due)
        self.transport.write(data)
        if self._timer is None and limit is not None:
            self._timer = self._reactor.callLater(limit, self._check)
        return due.deferred

    def execute_command(self, *args: Any, **kwargs: Any) -> Deferred[Any]:
        """What txredisapi's own commands are made of: the answer to one; an error answer fails it."""
        return self.send(args).addCallback(_only)

    def tell(self, *command: Arg) -> None:
        """Write a command whose answer goes to ``push``."""
        if self.alive:
            self.transport.write(encode(command))

    def dataReceived(self, data: bytes, unpause: bool = False) -> None:
        """Hand the answers to those who asked."""
        self.heard = self._reactor.seconds()
        try:
            answers = self._reader.feed(data)
        except BadAnswer as e:
            self.abort(f"it does not speak the Redis protocol: {e}")
            return
        for answer in answers:
            self.replyReceived(answer)

    def replyReceived(self, reply: Any) -> None:
        """One answer is complete."""
        if not self.alive:
            return
        if self.push is not None:
            self.push(reply)
            return
        if not self._due:
            why = reply if isinstance(reply, RedisError) else "it answered without having been asked"
            self.abort(str(why))
            return
        due = self._due[0]
        due.answers.append(reply)
        self.pending -= 1
        due.missing -= 1
        if not due.missing:
            self._due.popleft()
            self._bytes -= due.size
            if not due.deferred.called:
                due.deferred.callback(due.answers)

    def abort(self, why: str) -> None:
        """Close it at once; everybody who waits learns *why*."""
        if self.alive:
            self._end(why)
            self.transport.abortConnection()

    def close(self) -> None:
        """Close it once what was written is sent; what is due fails now."""
        if self.alive:
            self._end("the connection was closed")
            self.transport.loseConnection()

    def ended(self) -> Deferred[str]:
        """Gets the reason when the connection ends."""
        ended: Deferred[str] = Deferred()
        if self.alive:
            self._ended.append(ended)
        else:
            ended.callback(self._why)
        return ended

    def connectionLost(self, why: Failure = connectionDone) -> None:
        """What is due will not come."""
        if self.alive:
            self._end(f"the connection was lost: {why.getErrorMessage()}")

    def _end(self, why: str) -> None:
        self.alive = False
        self.connected = 0
        self._why = why
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        due, self._due = self._due, deque()
        self.pending = self._bytes = 0
        ended, self._ended = self._ended, []
        # Those who keep the connection first, so that nobody who is told below uses it again.
        for deferred in ended:
            if not deferred.called:
                deferred.callback(why)
        for each in due:
            if not each.deferred.called:
                each.deferred.errback(RedisUnavailable(why))

    def _check(self) -> None:
        """Give the connection up when the oldest answer is overdue and nothing at all comes."""
        self._timer = None
        oldest = next((each for each in self._due if each.limit is not None), None)
        if oldest is None or oldest.limit is None:
            return
        left = max(oldest.since, self.heard) + oldest.limit - self._reactor.seconds()
        if left <= 0:
            self._metrics.count("redis_stalls_total")
            self.abort(f"no answer for {oldest.limit:g} s")
        else:
            self._timer = self._reactor.callLater(left, self._check)


def _only(answers: list[Any]) -> Any:
    if isinstance(answers[0], RedisError):
        raise answers[0]
    return answers[0]
