"""The delivery checker passes clean logs and catches every kind of fault."""

from __future__ import annotations

import json
from random import Random
from typing import Any

import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from anycable_tx.testing.checker import EventLog, check, main, read


class Honest:
    """A server and clients without a fault: every log it writes must pass."""

    def __init__(self, random: Random, positions: bool = True):
        self.random = random
        self.positions = positions
        self.log = EventLog()
        self.streams = ["a", "b"]
        self.messages: dict[str, list[str]] = {s: [] for s in self.streams}
        self.connections = dict.fromkeys(("ann", "bob", "cid"), 0)
        self.online: set[str] = set()
        self.reached: dict[tuple[str, str], int] = {}

    def run(self, steps: int) -> list[dict[str, Any]]:
        for client in self.connections:
            self.connect(client, restored=False)
            for stream in self.streams:
                if self.random.random() < 0.7:
                    self.subscribe(client, stream, None)
        for _ in range(steps):
            self.random.choice([self.publish, self.publish, self.publish, self.publish, self.disturb])()
        for client in self.connections:
            if client not in self.online:
                self.come_back(client)
        return [dict(event) for event in self.log.events]

    def connect(self, client: str, restored: bool) -> None:
        self.connections[client] += 1
        self.online.add(client)
        self.log.record("connected", client=client, connection=self.connections[client], restored=restored)

    def subscribe(self, client: str, stream: str, origin: dict[str, Any] | None) -> None:
        self.log.record("subscribed", client=client, identifier="#" + stream, stream=stream, **{"from": origin})
        if origin is None:
            self.reached[client, stream] = len(self.messages[stream])

    def publish(self) -> None:
        stream = self.random.choice(self.streams)
        id = f"{stream}{len(self.messages[stream]) + 1}"
        fate = self.random.choice(["published"] * 6 + ["publish_unknown", "publish_failed"])
        self.log.record("publishing", id=id if fate != "publish_failed" else id + "-failed", stream=stream)
        if fate == "publish_failed":
            self.log.record(fate, id=id + "-failed", stream=stream)
            return
        if fate == "publish_unknown" and self.random.random() < 0.5:
            self.messages[stream].append(id)
            self.log.record(fate, id=id, stream=stream)
            self.deliver(stream)
            return
        if fate == "publish_unknown":
            self.log.record(fate, id=id + "-unknown", stream=stream)
            fate = "published"
        self.messages[stream].append(id)
        early = self.random.random() < 0.5
        if early:
            self.deliver(stream)
        self.log.record(fate, id=id, stream=stream)
        if not early:
            self.deliver(stream)

    def deliver(self, stream: str, only: str | None = None, how: str = "live") -> None:
        for client in self.online if only is None else {only}:
            reached = self.reached.get((client, stream))
            if reached is None:
                continue
            for offset in range(reached + 1, len(self.messages[stream]) + 1):
                position = {"stream": stream, "epoch": "e", "offset": offset} if self.positions else {}
                self.log.record(
                    "received",
                    client=client,
                    connection=self.connections[client],
                    identifier="#" + stream,
                    id=self.messages[stream][offset - 1],
                    how=how,
                    **position,
                )
            self.reached[client, stream] = len(self.messages[stream])

    def disturb(self) -> None:
        client = self.random.choice(list(self.connections))
        if client not in self.online:
            self.come_back(client)
        elif self.random.random() < 0.6:
            self.log.record("cut", client=client, connection=self.connections[client])
            self.online.discard(client)
        else:
            stream = self.random.choice(self.streams)
            if self.reached.pop((client, stream), None) is None:
                self.subscribe(client, stream, None)
            else:
                self.log.record("unsubscribed", client=client, identifier="#" + stream)

    def come_back(self, client: str) -> None:
        restored = self.random.random() < 0.5
        self.connect(client, restored)
        for (owner, stream), reached in list(self.reached.items()):
            if owner != client:
                continue
            way = self.random.choice(["positions", "refused", "from now on"])
            if restored or way == "positions":
                if not restored:
                    self.subscribe(client, stream, {stream: {"epoch": "e", "offset": reached}} if reached else {})
                self.deliver(stream, only=client, how="replay")
            elif way == "refused":
                self.subscribe(client, stream, {})
                self.reached[client, stream] = len(self.messages[stream])
                self.log.record("refused", client=client, identifier="#" + stream)
            else:
                self.subscribe(client, stream, None)


def honest(random: Random, positions: bool = True) -> list[dict[str, Any]]:
    return Honest(random, positions).run(random.randrange(20, 80))


def owed_until_the_end(events: list[dict[str, Any]]) -> list[int]:
    """Indices of the deliveries whose subscription is never ended, refused or begun anew afterwards."""
    indices, closed = [], set()
    for index in range(len(events) - 1, -1, -1):
        event = events[index]
        key = (event.get("client"), event.get("identifier"))
        if event["event"] in ("unsubscribed", "refused") or (
            event["event"] == "subscribed" and event["from"] is None
        ):
            closed.add(key)
        elif event["event"] == "received" and key not in closed:
            acked = any(e["event"] == "published" and e["id"] == event["id"] for e in events)
            if acked:
                indices.append(index)
    return indices


seeds = st.randoms(use_true_random=False)


@given(seeds, st.booleans())
@settings(max_examples=150, deadline=None)
def test_passes_every_log_of_an_honest_server(random: Random, positions: bool) -> None:
    events = honest(random, positions)
    report = check(events)
    assert report.ok, str(report)
    assert report.counts["deliveries"] == sum(e["event"] == "received" for e in events)


def faulty(random: Random, positions: bool) -> tuple[list[dict[str, Any]], int]:
    events = honest(random, positions)
    indices = owed_until_the_end(events)
    assume(indices)
    return events, random.choice(indices)


@given(seeds, st.booleans())
@settings(max_examples=100, deadline=None)
def test_catches_a_dropped_message(random: Random, positions: bool) -> None:
    events, index = faulty(random, positions)
    dropped = events.pop(index)
    lost = check(events).lost
    assert [(w.client, w.identifier, w.id) for w in lost] == [
        (dropped["client"], dropped["identifier"], dropped["id"])
    ]


@given(seeds, st.booleans())
@settings(max_examples=100, deadline=None)
def test_catches_a_message_delivered_twice(random: Random, positions: bool) -> None:
    events, index = faulty(random, positions)
    events.insert(index + 1, events[index])
    report = check(events)
    assert [w.id for w in report.duplicate] == [events[index]["id"]]
    assert not report.lost


@given(seeds)
@settings(max_examples=100, deadline=None)
def test_catches_two_messages_in_the_wrong_order(random: Random) -> None:
    events, first = faulty(random, True)
    same = ("client", "identifier", "connection")
    second = next(
        (
            i
            for i in range(first + 1, len(events))
            if events[i]["event"] == "received" and all(events[i][k] == events[first][k] for k in same)
        ),
        None,
    )
    assume(second is not None)
    between = events[first:second]
    assume(not any(e["event"] in ("unsubscribed", "subscribed", "refused") for e in between))
    events[first], events[second] = events[second], events[first]
    report = check(events)
    assert events[second]["id"] in [w.id for w in report.misordered]
    assert not report.lost
    assert not report.duplicate


@given(seeds, st.booleans())
@settings(max_examples=100, deadline=None)
def test_catches_a_delivery_after_unsubscribe(random: Random, positions: bool) -> None:
    events, index = faulty(random, positions)
    victim = dict(events[index])
    ended = {"event": "unsubscribed", "client": victim["client"], "identifier": victim["identifier"]}
    events += [ended, victim]
    assert [w.id for w in check(events).leaked] == [victim["id"]]


@given(seeds, st.booleans())
@settings(max_examples=100, deadline=None)
def test_catches_a_delivery_to_a_wrong_client(random: Random, positions: bool) -> None:
    events, index = faulty(random, positions)
    events.insert(0, {"event": "connected", "client": "eve", "connection": 1, "restored": False})
    events.insert(1, {"event": "subscribed", "client": "eve", "identifier": "#c", "stream": "c", "from": None})
    stray = events[index + 2]
    events.insert(index + 3, {**stray, "client": "eve", "identifier": random.choice(["#c", stray["identifier"]])})
    report = check(events)
    assert [w.client for w in report.leaked] == ["eve"]
    assert not report.lost


@given(seeds, st.booleans())
@settings(max_examples=100, deadline=None)
def test_catches_a_message_nobody_published(random: Random, positions: bool) -> None:
    events, index = faulty(random, positions)
    failed = [e["id"] for e in events[:index] if e["event"] == "publish_failed"]
    phantom = random.choice(["never", *failed])
    events.insert(
        index, {**events[index], "id": phantom, "offset": 10**6} if positions else {**events[index], "id": phantom}
    )
    assert phantom in [w.id for w in check(events).phantom]


def log(*events: tuple[str, dict[str, Any]]) -> list[dict[str, Any]]:
    return [{"event": name, **values} for name, values in events]


def subscribed(client: str = "ann", origin: Any = None) -> tuple[str, dict[str, Any]]:
    return "subscribed", {"client": client, "identifier": "#a", "stream": "a", "from": origin}


def connected(connection: int = 1, restored: bool = False, client: str = "ann") -> tuple[str, dict[str, Any]]:
    return "connected", {"client": client, "connection": connection, "restored": restored}


def published(offset: int) -> tuple[str, dict[str, Any]]:
    return "published", {"id": offset, "stream": "a", "offset": offset, "epoch": "e"}


def received(offset: int, client: str = "ann", connection: int = 1, **more: Any) -> tuple[str, dict[str, Any]]:
    values = {"client": client, "connection": connection, "identifier": "#a", "id": offset, "how": "live"}
    return "received", {**values, "stream": "a", "offset": offset, "epoch": "e", **more}


def about(name: str, **values: Any) -> tuple[str, dict[str, Any]]:
    return name, {"client": "ann", "identifier": "#a", **values}


def test_new_epochs_explain_refusals_until_the_client_has_a_message_of_another_one() -> None:
    new_epochs: tuple[str, dict[str, Any]] = ("new_epochs", {})

    def unexplained(*events: tuple[str, dict[str, Any]]) -> int:
        before = (connected(), subscribed(), published(1), published(2), received(1))
        return check(log(*before, *events)).counts["unexplained_refusals"]

    refused, old, new = about("refused"), received(2), received(2, epoch="f")
    assert unexplained(refused) == 1
    assert unexplained(new_epochs, refused, refused) == 0
    assert unexplained(new_epochs, old, refused, refused) == 0
    assert unexplained(new_epochs, new, refused) == 0
    assert unexplained(new_epochs, new, refused, refused) == 1
    assert unexplained(new_epochs, refused, new, refused) == 1
    assert unexplained(new_epochs, refused, new, new_epochs, refused) == 0


def test_a_refused_span_is_not_a_loss_but_a_hole_before_it_is() -> None:
    events = log(
        connected(),
        subscribed(),
        *[published(n) for n in (1, 2, 3)],
        received(1),
        received(3),
        about("cut", connection=1),
        published(4),
        connected(2),
        subscribed(origin={"a": {"epoch": "e", "offset": 3}}),
        about("refused"),
        published(5),
        received(5, connection=2),
    )
    report = check(events)
    assert [w.offset for w in report.lost] == [2]
    assert report.counts["refusals"] == 1
    assert report.counts["fresh_authentications"] == 1


def test_a_client_that_left_is_charged_with_holes_only() -> None:
    start = [connected(), subscribed(), published(1), published(2), published(3)]
    left = check(log(*start, received(1), about("gone")))
    assert left.ok, str(left)
    assert [w.offset for w in check(log(*start, received(1), received(3), about("gone"))).lost] == [2]
    never_back = check(log(*start, received(1), about("cut", connection=1)))
    assert never_back.ok, str(never_back)


def test_a_message_received_by_nobody_is_lost() -> None:
    assert [w.id for w in check(log(connected(), subscribed(), ("published", {"id": 7, "stream": "a"}))).lost] == [7]


def test_a_subscription_from_a_position_is_owed_what_came_before_it() -> None:
    report = check(
        log(
            published(1),
            published(2),
            published(3),
            connected(),
            subscribed(origin={"a": {"epoch": "e", "offset": 1}}),
            received(3),
        )
    )
    assert [w.offset for w in report.lost] == [2]


def test_history_asked_for_again_may_repeat_but_only_once() -> None:
    events = [connected(), subscribed(), published(1), published(2), received(1), received(2)]
    events.append(about("asked", **{"from": {"a": {"epoch": "e", "offset": 1}}}))
    events.append(received(2, how="replay"))
    report = check(log(*events))
    assert report.ok, str(report)
    assert report.counts["replayed"] == 1
    assert [w.offset for w in check(log(*events, received(2))).duplicate] == [2]
    assert [w.offset for w in check(log(*events, received(1))).duplicate] == [1]


def test_two_messages_at_one_position_are_misordered() -> None:
    other = received(1, client="bob", id="other")
    events = log(
        connected(), connected(client="bob"), subscribed(), subscribed("bob"), published(1),
        ("published", {"id": "other", "stream": "a"}), received(1), received(2, id="other"), other,
    )  # fmt: skip
    assert "same position" in check(events).misordered[0].detail


def test_one_id_stored_at_two_positions_is_a_duplicate() -> None:
    events = log(connected(), subscribed(), published(1), received(1), received(2, id=1))
    assert [w.offset for w in check(events).duplicate] == [2]


def test_a_subscription_that_did_not_survive_the_resume_must_stay_silent() -> None:
    events = log(connected(), subscribed(), about("cut", connection=1), connected(2, True), published(1), received(1))
    assert check(events).ok
    events[3]["identifiers"] = []
    assert [w.offset for w in check(events).leaked] == [1]


def test_messages_in_flight_while_unsubscribing_are_allowed() -> None:
    events = [connected(), subscribed(), about("unsubscribing"), published(1)]
    assert check(log(*events)).ok
    assert check(log(*events, received(1), about("unsubscribed"))).ok
    assert not check(log(*events, about("unsubscribed"), received(1))).ok


def test_messages_without_an_id_are_counted_and_not_judged() -> None:
    report = check(log(connected(), received(1, id=None)))
    assert report.ok
    assert report.counts["deliveries"] == 1


def test_an_unknown_event_is_named() -> None:
    with pytest.raises(ValueError, match="event 0: there is no event 'recieved'"):
        check([{"event": "recieved"}])


def test_the_report_names_the_first_witnesses_and_all_counts() -> None:
    text = str(check(log(connected(), subscribed(), *[published(n) for n in range(1, 9)])))
    assert "lost                   8" in text
    assert "ann: stream 'a', id 1, offset 1 of epoch e" in text
    assert "lost: and 3 more" in text
    assert "publications           8" in text


def test_the_command_reads_merges_and_judges_files(tmp_path: Any, capsys: pytest.CaptureFixture[str]) -> None:
    publisher, client = tmp_path / "publisher.jsonl", tmp_path / "client.jsonl"
    with publisher.open("w") as file:
        recorder = EventLog(file)
        recorder.record("published", t=3.0, id=1, stream="a")
    with client.open("w") as file:
        for at, (name, values) in enumerate([connected(), subscribed()], 1):
            EventLog(file).record(name, t=float(at), **values)
    assert [e["event"] for e in read(str(publisher), str(client))] == ["connected", "subscribed", "published"]
    assert main([str(client), str(publisher)]) == 1
    assert "id 1" in capsys.readouterr().out
    with client.open("a") as file:
        file.write(json.dumps({"event": "received", "t": 4.0, **received(1)[1]}) + "\n\n")
    assert main([str(publisher), str(client)]) == 0
    assert main([]) == 2
