"""A key-value bucket: a JetStream stream that holds the newest value of each key."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from contextlib import suppress
from typing import Any, NamedTuple, TypeVar

from twisted.internet.defer import DeferredSemaphore
from twisted.logger import Logger

from anycable_tx.background import sleep
from anycable_tx.cable.ids import new_epoch
from anycable_tx.errors import AnyCableError, BrokerUnavailable
from anycable_tx.nats.api import TooLarge
from anycable_tx.nats.jetstream import NO_MESSAGE, JetStream, JetStreamError, Stored

__all__ = ["CHECKS", "Bucket", "Conflict", "Entry"]

T = TypeVar("T")

#: How often it is made sure that a bucket is still the same one, in seconds.
CHECKS = 30.0
#: How often it is tried to have all the replicas that are wanted, in seconds.
_RAISES = 60.0
#: What fails is tried again after these many seconds; one attempt takes up to ``_PATIENCE``.
_PAUSES = (0.1, 0.3, 1.0)
_PATIENCE = 1.5
#: So many requests are under way at a time; the others wait.
_REQUESTS = 128
#: So many keys are read with one request, where the server can do that.
_BATCH = 256

# The server's numbers: no such stream; it exists with other settings; there are too few servers for the replicas
# (alone, or in its cluster); not the expected revision; no message with this number, in several words.
_NO_LOG, _IN_USE, _ALONE, _TOO_FEW, _OTHER = 10059, 10058, 10074, 10005, 10071
_NOT_THERE = frozenset((NO_MESSAGE, 10043, 10057))
_PUT, _META, _OPERATION = "Ac-Put", "Ac-Meta", "KV-Operation"

_log = Logger()


class Entry(NamedTuple):
    """The value of a key; *meta* is a line of text kept with it, *time* when it was stored, in Unix seconds.

    *deleted*: what is left of a key that was deleted; see ``Bucket.page``.
    """

    value: bytes
    revision: int
    meta: str = ""
    time: float = 0.0
    deleted: bool = False


class Conflict(AnyCableError):
    """The key has another revision than the one expected: *entry*, or None when there is nothing."""

    def __init__(self, key: str, entry: Entry | None) -> None:
        super().__init__(f"{key} is at revision {entry.revision if entry else 0}")
        self.entry = entry


class Bucket:
    """Keys of ``[A-Za-z0-9_=.-]``, at places that ``nats kv`` can look at; on nats-server 2.9 or later.

    What is written is written by the leader of the replicas and confirmed by their majority, so that all that expects
    a revision is in one order. Raises NatsUnavailable or JetStreamError when that fails for about five seconds; then
    it may have happened or not. A bucket that is not there is made; those in ``lost`` are called when it was there
    before, or when it is an older state of itself.
    """

    def __init__(
        self, js: JetStream, reactor: Any, name: str, *, replicas: int = 1, lost: Callable[[], None] = lambda: None
    ) -> None:
        self.name = name
        self._js = js
        self._reactor = reactor
        self._log_name = f"KV_{name}"
        self._keys = f"$KV.{name}."
        self._replicas = replicas
        #: Called when the bucket lost what it held.
        self.lost = [lost]
        self._slots = DeferredSemaphore(_REQUESTS)
        self._created = ""
        self._highest = 0
        self._checked = self._raised = float("-inf")

    # -- keys

    async def get(self, key: str) -> Entry | None:
        """What *key* has now, by the word of the leader; None: nothing."""
        entry = _entry(await self._patiently(lambda: self._last(key)))
        return None if entry is None or entry.deleted else entry

    async def put(self, key: str, value: bytes, *, expected: int | None = None, meta: str = "") -> int:
        """Have *value* under *key*; answers its revision.

        Raises Conflict when the revision is not *expected* (0: there must be nothing), unless what is there is what
        this very call has put there.
        """
        headers = {_META: meta} if meta else {}
        return await self._put(key, value, expected, headers)

    async def delete(self, key: str, expected: int) -> None:
        """Have nothing under *key*, which is at revision *expected*. Raises Conflict."""
        marker = await self._put(key, b"", expected, {_OPERATION: "DEL"})
        with suppress(BrokerUnavailable):  # whoever reads everything removes it
            await self.remove(marker)

    async def remove(self, revision: int) -> None:
        """Have nothing with that revision any more.

        Nothing else may be under way with it: what expects this revision might be stored afterwards.
        """
        request = {"seq": revision, "no_erase": True}

        async def attempt() -> None:
            try:
                await self._js.api(f"STREAM.MSG.DELETE.{self._log_name}", request, _PATIENCE)
            except JetStreamError as e:
                if e.err_code != _NO_LOG and e.err_code not in _NOT_THERE:
                    raise

        await self._patiently(attempt)

    async def page(self, keys: str, offset: int, number: int = _BATCH) -> tuple[list[tuple[str, Entry]], int]:
        """Up to *number* keys that match *keys* (``*``, ``>``) from the revision *offset* on, and where to go on.

        The latter is 0 at the end. Whatever was written before the call is there, deleted keys too as long as
        something is left of them. A key that is written meanwhile may come twice, the newer one later.
        """
        found = await self._patiently(lambda: self._page(self._keys + keys, offset, number))
        pairs = [(each.subject.removeprefix(self._keys), _entry(each)) for each in found]
        return (
            [(key, entry) for key, entry in pairs if entry is not None],
            found[-1].offset + 1 if len(found) >= number else 0,
        )

    async def entries(self, keys: str) -> dict[str, Entry]:
        """All keys that match *keys*."""
        found: dict[str, Entry] = {}
        offset = 1
        while offset:
            page, offset = await self.page(keys, offset)
            for key, entry in page:
                found.pop(key, None)
                if not entry.deleted:
                    found[key] = entry
        return found

    # -- the bucket

    def doubt(self) -> None:
        """It may be another one now."""
        self._checked = float("-inf")

    async def upkeep(self) -> None:
        """``check``, if it is time to."""
        if self._reactor.seconds() - self._checked >= CHECKS:
            await self.check()

    async def check(self) -> None:
        """Make the bucket if it is not there, give it the replicas that are wanted, and notice another one."""
        highest = self._highest
        try:
            info = await self._js.api(f"STREAM.INFO.{self._log_name}", within=_PATIENCE)
        except JetStreamError as e:
            if e.err_code != _NO_LOG:
                raise
            info = await self._create()
        created, last = info["created"], info["state"]["last_seq"]
        before, self._created = self._created, created
        self._checked = self._reactor.seconds()
        if before and (created != before or last < highest):
            self._highest = last
            _log.warn("the bucket {name} lost what it held", name=self.name, attrs={"context": "broker"})
            for tell in self.lost:
                tell()
        self._highest = max(self._highest, last)
        if info["config"]["num_replicas"] < self._replicas and self._checked - self._raised >= _RAISES:
            await self._raise(info["config"])

    async def _create(self) -> dict[str, Any]:
        config = {
            "name": self._log_name,
            "subjects": [f"{self._keys}>"],
            "retention": "limits",
            "storage": "file",
            "discard": "new",
            "max_msgs_per_subject": 1,
            "max_msgs": -1,
            "max_bytes": -1,
            "max_consumers": -1,
            "num_replicas": self._replicas,
            "allow_direct": True,
            "allow_rollup_hdrs": True,
            "deny_delete": False,
            "deny_purge": False,
        }
        try:
            return await self._js.api(f"STREAM.CREATE.{self._log_name}", config)
        except JetStreamError as e:
            if e.err_code == _IN_USE:  # somebody else was first
                return await self._js.api(f"STREAM.INFO.{self._log_name}")
            if e.err_code not in (_ALONE, _TOO_FEW):
                raise
        self._raised = self._reactor.seconds()
        return await self._js.api(f"STREAM.CREATE.{self._log_name}", {**config, "num_replicas": 1})

    async def _raise(self, config: dict[str, Any]) -> None:
        self._raised = self._checked
        try:
            await self._js.api(f"STREAM.UPDATE.{self._log_name}", {**config, "num_replicas": self._replicas})
        except JetStreamError as e:
            if e.err_code not in (_ALONE, _TOO_FEW):
                raise

    # -- requests

    async def _put(self, key: str, value: bytes, expected: int | None, headers: dict[str, str]) -> int:
        headers = {**headers, _PUT: new_epoch()}
        if expected is not None:
            headers["Nats-Expected-Last-Subject-Sequence"] = str(expected)

        async def attempt() -> int:
            while True:
                try:
                    ack = await self._js.publish(self._keys + key, value, headers, _PATIENCE)
                except JetStreamError as e:
                    if e.err_code != _OTHER:
                        raise
                else:
                    return ack.offset
                last = await self._last(key)
                entry = _entry(last)
                if last is not None and last.headers.get(_PUT) == headers[_PUT]:  # the answer of an attempt was lost
                    return last.offset
                if expected or entry is None or not entry.deleted:
                    raise Conflict(key, None if entry is None or entry.deleted else entry)
                headers["Nats-Expected-Last-Subject-Sequence"] = str(entry.revision)

        revision = await self._patiently(attempt)
        self._highest = max(self._highest, revision)
        return revision

    async def _last(self, key: str) -> Stored | None:
        return await self._js.last(self._log_name, self._keys + key, _PATIENCE)

    async def _page(self, subject: str, offset: int, number: int) -> list[Stored]:
        found = await self._js.read(self._log_name, subject, offset, number, _PATIENCE)
        while len(found) < number:  # the replica that answered may lag behind
            after = found[-1].offset + 1 if found else offset
            stored = await self._js.next(self._log_name, subject, after, _PATIENCE)
            if stored is None:
                break
            found.append(stored)
        return found

    async def _patiently(self, ask: Callable[[], Awaitable[T]]) -> T:
        """What *ask* comes to, with a few attempts at it."""
        async with self._slots:
            for pause in _PAUSES:
                try:
                    return await ask()
                except TooLarge:
                    raise
                except BrokerUnavailable:
                    await sleep(self._reactor, pause)
                with suppress(BrokerUnavailable):
                    await self.check()
            return await ask()


def _entry(stored: Stored | None) -> Entry | None:
    if stored is None:
        return None
    headers = stored.headers
    return Entry(stored.data, stored.offset, headers.get(_META, ""), stored.time, _OPERATION in headers)
