"""What the parts that live on Redis ask of the shared client."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from hashlib import sha1
from typing import Any, Protocol

from anycable_tx.errors import BrokerUnavailable

__all__ = ["Arg", "Link", "Redis", "RedisError", "RedisUnavailable", "Script", "Subscriber"]

#: Texts are sent as UTF-8, numbers as decimals. Answers hold bytes, ints, None and lists of them.
Arg = str | bytes | int | float


class RedisUnavailable(BrokerUnavailable):
    """No connection, or it was lost before the answer came: what was asked may have been done or not."""

    code = "broker_unavailable"


class RedisError(BrokerUnavailable):
    """Redis answered with an error; ``kind`` is its first word, such as ``WRONGTYPE`` or ``BUSYGROUP``."""

    code = "broker_unavailable"

    def __init__(self, text: str) -> None:
        super().__init__(text)
        self.kind = text.partition(" ")[0]


@dataclass(frozen=True)
class Script:
    """A Lua script. All its keys share one hash tag, so that it runs in a cluster."""

    source: str
    sha: str = field(init=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "sha", sha1(self.source.encode()).hexdigest())


class Link(Protocol):
    """A connection of one's own, for commands that block. It does not come back by itself once it is lost."""

    async def command(self, *args: Arg) -> Any:
        """The answer. Raises RedisUnavailable or RedisError. Cancelling closes the link if an answer is due."""

    def close(self) -> None:
        """Close it."""


class Subscriber(Protocol):
    """A connection in subscribed mode that comes back by itself, with all its channels."""

    async def subscribe(self, channels: Iterable[str]) -> None:
        """Done when Redis has confirmed all of them; while there is no connection, when there is one again."""

    async def unsubscribe(self, channels: Iterable[str]) -> None:
        """Done when Redis has confirmed, or the connection is gone."""

    def move(self, why: str) -> None:
        """Leave the connection, which is of no use any more, and make another at once."""

    async def stop(self) -> None:
        """Close it for good."""


class Redis(Protocol):
    """One client for the whole process, shared by broker, pub/sub and broadcasters (see ``shared``).

    Keys are routed: *key* names the slot of a cluster; elsewhere everything goes to the one master. After a command
    failed with RedisUnavailable the outcome is unknown. Nothing waits for a connection to come back: what is asked
    while there is none fails at once, except during the first second of an outage.
    """

    #: Where it connects to, for people and without secrets.
    log_name: str

    async def start(self) -> None:
        """Begin to connect, and wait up to five seconds for that; it goes on trying for ever, with jitter."""

    async def stop(self) -> None:
        """Close everything. Counted: the last of those that started it stops it."""

    async def execute(self, key: str, *args: Arg) -> Any:
        """The answer to one command. Raises RedisUnavailable or RedisError."""

    async def pipeline(self, key: str, commands: Iterable[tuple[Arg, ...]]) -> list[Any]:
        """The answers to several commands in one round trip; a RedisError stands in the place of its answer."""

    async def run(self, script: Script, keys: list[str], *args: Arg) -> Any:
        """Run *script* (EVALSHA, or EVAL once where it is not known)."""

    def generation(self, key: str) -> str:
        """The ``run_id`` of the master that serves *key*, as read on connecting; '' while there is none."""

    def now(self) -> float:
        """The server's Unix time in seconds, estimated; never goes back."""

    def problem(self) -> str:
        """Why nothing can be asked now, '' when all is well; for readiness."""

    def watch(self, *, up: Callable[[], None], down: Callable[[], None]) -> None:
        """Call *down* when a master is lost and *up* when all are there again (not for the first time)."""

    async def link(self, key: str) -> Link:
        """A connection of one's own to the master of *key*. Raises RedisUnavailable."""

    def subscriber(
        self, receive: Callable[[bytes, bytes], None], *, up: Callable[[], None], down: Callable[[], None]
    ) -> Subscriber:
        """A connection for subscriptions; *receive* gets channel and payload of each message, in order.

        *down* is called when it is lost (or silent for too long), *up* when it is back with all channels confirmed.
        """
