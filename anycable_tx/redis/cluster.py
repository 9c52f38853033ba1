"""A cluster: which master has a slot, as the nodes tell it, and commands that are sent on when a slot has moved."""

from __future__ import annotations

from collections.abc import Callable
from random import sample
from typing import Any

from twisted.internet.defer import CancelledError
from twisted.logger import Logger

from anycable_tx.background import Background, sleep
from anycable_tx.redis.address import Host
from anycable_tx.redis.api import Arg, RedisError, RedisUnavailable
from anycable_tx.redis.connection import Connection
from anycable_tx.redis.dialer import Dialer, Facts
from anycable_tx.redis.master import GRACE, Master, NotSent
from anycable_tx.redis.slots import SLOTS, slot_of

__all__ = ["Cluster"]

#: How often, in seconds, the nodes are asked for the slots: when all is well, and when something is missing.
_CALM, _TROUBLED = 15.0, 0.5
#: A node that a slot is moving to may have none yet: it is kept so many seconds after it was last named.
_KEPT = 60.0
#: Commands are sent on for so many seconds, so often.
_PATIENCE, _REST = 2.0, 0.05

_Command = tuple[Arg, ...]


class Cluster:
    """Routes by slot. Keeps one Master for each node that has slots.

    *up* and *down* are told when all slots are served (again), and when one of the connections is lost. *moved* is
    told of all the nodes whenever the nodes were asked.
    """

    log = Logger()

    def __init__(
        self,
        dialer: Dialer,
        seeds: tuple[Host, ...],
        *,
        keepalive: float,
        up: Callable[[], None],
        down: Callable[[], None],
        moved: Callable[[set[Host]], None],
    ) -> None:
        self._dialer = dialer
        self._reactor = dialer.reactor
        self._seeds = seeds
        self._keepalive = keepalive
        self._up, self._down, self._moved = up, down, moved
        self._background = Background(self._reactor, dialer.metrics)
        self._masters: dict[Host, Master] = {}
        self._named: dict[Host, float] = {}  # when a redirection named it
        self._leaving: set[Master] = set()  # of no use any more, but they owe answers
        self._slots: list[Master | None] = [None] * SLOTS
        self._nodes: set[Host] = set()
        self._timer: Any = None
        self._asking = False
        self._ask_again = False
        self._stopped = False
        self._whole = False
        self._since = 0.0
        self._why = "not connected yet"

    def start(self) -> None:
        """Begin to connect."""
        self._since = self._reactor.seconds()
        self._look()

    def stop(self) -> None:
        """Close all connections."""
        self._stopped = True
        self._background.cancel_all()
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        masters, self._masters = self._masters, {}
        self._slots = [None] * SLOTS
        for master in masters.values():
            master.stop()

    async def ready(self, within: float) -> None:
        """Wait until all is well, at most so many seconds."""
        end = self._reactor.seconds() + within
        while self.problem() and not self._stopped and self._reactor.seconds() < end:
            await sleep(self._reactor, _REST)

    def master(self, key: str) -> Master:
        """Who serves *key*. Raises NotSent when that is not known."""
        master = self._slots[slot_of(key)]
        if master is None:
            raise NotSent(self.problem() or "no node serves this slot")
        return master

    def problem(self) -> str:
        """Why something cannot be asked now; '' when all is well."""
        serving = set(self._slots)
        if None in serving:
            return self._why or "the cluster does not serve all slots"
        return "; ".join(sorted(master.why for master in serving if master is not None and master.why))

    async def open_for_subscriptions(self) -> Connection:
        """A connection to any node: all hear of everything. Raises RedisUnavailable."""
        serving = {host for host, master in self._masters.items() if master.connection is not None}
        why = self._why
        for host in _shuffled(serving) or _shuffled(self._nodes) or _shuffled(self._seeds):
            try:
                return await self._dialer.open(host)
            except RedisUnavailable as e:
                why = str(e)
        raise RedisUnavailable(why)

    async def send(self, key: str, *commands: _Command) -> list[Any]:
        """Their answers, a RedisError standing in an answer's place. Raises RedisUnavailable.

        What a node did not do because it does not have the slot any more is sent on, in its order.
        """
        slot = slot_of(key)
        answers: list[Any] = [None] * len(commands)
        left = list(range(len(commands)))
        end = self._reactor.seconds() + _PATIENCE
        while True:
            try:
                master = await self._serving(slot)
                got = await master.send(*[commands[i] for i in left])
            except NotSent:
                current = self._slots[slot]
                if current is None or current is master or self._reactor.seconds() >= end:
                    raise
                continue
            again = []
            for i, answer in zip(left, got, strict=True):
                if isinstance(answer, RedisError) and answer.kind == "ASK":
                    answer = await self._ask(answer, commands[i])
                answers[i] = answer
                if isinstance(answer, RedisError) and answer.kind in ("MOVED", "TRYAGAIN", "CLUSTERDOWN"):
                    again.append(i)
            if not again:
                return answers
            failed: RedisError = answers[again[0]]
            if self._reactor.seconds() >= end:
                raise RedisUnavailable(str(failed))
            left = again
            self._dialer.metrics.count("redis_redirects_total", len(again), reason=failed.kind.lower())
            if failed.kind == "MOVED":
                self._follow(slot, master, failed)
            else:
                self._look()
                await sleep(self._reactor, _REST)

    async def _serving(self, slot: int) -> Master:
        """The master of *slot*; in the first second of an outage it may still be found."""
        while (master := self._slots[slot]) is None:
            if self._stopped or self._reactor.seconds() >= self._since + GRACE:
                self._dialer.metrics.count("redis_refused_commands_total", reason="not_connected")
                raise NotSent(self.problem())
            await sleep(self._reactor, _REST)
        return master

    def _follow(self, slot: int, old: Master, moved: RedisError) -> None:
        """``MOVED slot host:port``: from now on it is there."""
        if self._slots[slot] is old:  # nobody followed before us
            self._slots[slot] = self._named_master(old, moved)
        self._look()

    async def _ask(self, asked: RedisError, command: _Command) -> Any:
        """``ASK slot host:port``: this time it is there."""
        self._dialer.metrics.count("redis_redirects_total", reason="ask")
        slot = int(str(asked).split(" ")[1])
        old = self._slots[slot]
        return (await self._named_master(old, asked).send(("ASKING",), command))[1]

    def _named_master(self, old: Master | None, redirection: RedisError) -> Master:
        name, _, port = str(redirection).split(" ")[2].rpartition(":")
        if not name and old is not None and old.host is not None:
            name = old.host.name  # the node does not know its own name
        host = Host(name, int(port))
        self._named[host] = self._reactor.seconds()
        return self._master_at(host)

    def _master_at(self, host: Host) -> Master:
        master = self._masters.get(host)
        if master is None:

            async def locate() -> Host:
                return host

            master = self._masters[host] = Master(
                self._dialer, locate, keepalive=self._keepalive, accept=_accept, up=self._came, down=self._went
            )  # fmt: skip
            if not self._stopped:
                master.start()
        return master

    def _came(self) -> None:
        if not self._whole and not self.problem():
            self._whole = True
            self._up()

    def _went(self) -> None:
        self._since = self._reactor.seconds()
        was_whole, self._whole = self._whole, False
        if was_whole:
            self._down()
        self._look()

    def _look(self) -> None:
        """Ask for the slots now, or, if they are just being asked for, once more."""
        if self._asking:
            self._ask_again = True
        elif not self._stopped:
            if self._timer is not None:
                self._timer.cancel()
                self._timer = None
            self._asking = True
            self._background.spawn(self._look_now())

    async def _look_now(self) -> None:
        try:
            answer, host = await self._ask_slots()
        except CancelledError:
            raise
        except Exception as e:
            if not isinstance(e, RedisUnavailable):  # a mistake; and no reason to give up
                self._dialer.metrics.count("internal_errors_total")
                self.log.failure("Redis: unexpected error")
            if str(e) != self._why:
                self.log.warn("Redis: {why}", why=str(e), attrs={"context": "redis"})
            self._why = str(e)
        else:
            self._why = ""
            self._take(answer, host)
        self._asking = False
        if self._stopped:
            return
        self._came()
        again, self._ask_again = self._ask_again, False
        troubled = self.problem() or self._leaving
        pause = 2 * _REST if again else _TROUBLED if troubled else _CALM
        self._timer = self._reactor.callLater(pause, self._on_time)

    def _on_time(self) -> None:
        self._timer = None
        self._look()

    async def _ask_slots(self) -> tuple[list[Any], Host]:
        """A node's answer to CLUSTER SLOTS, and that node; of one who knows of all slots, if there is one.

        A node that has just come knows little yet.
        """
        problems: list[str] = []
        best: tuple[int, list[Any], Host] | None = None
        for master in _shuffled(self._masters.values()):
            if master.connection is not None and master.host is not None:
                host = master.host
                answer = await _slots(master.connection, problems)
                known = sum(last + 1 - first for first, last, *_ in answer or ())
                if answer and (best is None or known > best[0]):
                    best = (known, answer, host)
                if known == SLOTS:
                    break
        if best is not None:
            return best[1:]
        for host in _shuffled(self._nodes | set(self._seeds)):
            try:
                connection = await self._dialer.open(host)
            except RedisUnavailable as e:
                problems.append(str(e))
                continue
            try:
                answer = await _slots(connection, problems)
            finally:
                connection.close()
            if answer is not None:
                return answer, host
        raise RedisUnavailable(f"no node of the cluster says where the slots are: {'; '.join(sorted(problems))}")

    def _take(self, answer: list[Any], asked: Host) -> None:
        """Each range of slots with its nodes, the master first."""
        slots: list[Master | None] = [None] * SLOTS
        nodes: set[Host] = set()
        for first, last, *serving in answer:
            hosts = [Host(node[0].decode() if node[0] else asked.name, node[1]) for node in serving]
            nodes.update(hosts)
            slots[first : last + 1] = [self._master_at(hosts[0])] * (last + 1 - first)
        self._slots, self._nodes = slots, nodes
        serving_now = set(slots)
        now = self._reactor.seconds()
        leaving, self._leaving = self._leaving, set()
        for host, master in list(self._masters.items()):
            if master in serving_now or self._named.get(host, now - _KEPT) + _KEPT > now:
                continue
            if master not in leaving and master.connection is not None and master.connection.pending:
                self._leaving.add(master)  # what is under way there has until the next time
                continue
            del self._masters[host]
            self._named.pop(host, None)
            master.stop()
        self._moved(nodes)


async def _slots(connection: Connection, problems: list[str]) -> list[Any] | None:
    try:
        (answer,) = await connection.send(("CLUSTER", "SLOTS"))
    except RedisUnavailable as e:
        answer = e
    if isinstance(answer, list) and answer:
        return answer
    problems.append(f"{connection.host}: {answer or 'it knows no slots'}")
    return None


def _accept(host: Host, facts: Facts) -> None:
    if not facts.cluster and not facts.run_id.startswith("connection-"):
        raise RedisUnavailable("it is no node of a cluster")


def _shuffled(items: Any) -> list[Any]:
    found = list(items)
    return sample(found, len(found))
