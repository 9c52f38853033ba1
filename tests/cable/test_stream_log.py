"""The log of one stream, at every edge of what it keeps."""

import pytest

from anycable_tx.cable.messages import HistoryRequest, Position, StreamMessage
from anycable_tx.cable.stream_log import StreamLog
from anycable_tx.errors import HistoryRefused

WALL = 1_700_000_000


class Log:
    """A log of limit 5 and ttl 60 s, and the time."""

    def __init__(self, limit=5, ttl=60, **known):
        self.now = 0.0
        self.jump = 0.0
        self.log = StreamLog(limit, ttl, self.now, **known)

    def publish(self, count=1):
        for _ in range(count):
            message = StreamMessage("chat", b"{}")
            self.log.append(message, self.now, self.wall)
        return message

    @property
    def wall(self):
        return WALL + self.now + self.jump

    def ask(self, request, slack=0):
        return [m.offset for m in self.log.prove(request, "epoch", self.now, self.wall, slack)]

    def after(self, offset, epoch="epoch"):
        return self.ask(HistoryRequest(Position(epoch, offset)))

    def since(self, seconds, slack=0):
        return self.ask(HistoryRequest(None, WALL + seconds), slack)

    def why(self, ask, *args):
        with pytest.raises(HistoryRefused) as refused:
            ask(*args)
        return refused.value.reason


@pytest.mark.statement("BR-42")
def test_offsets_are_contiguous_from_1_and_linked():
    log = Log()
    assert [(m.prev, m.offset) for m in (log.publish() for _ in range(3))] == [(0, 1), (1, 2), (2, 3)]


@pytest.mark.statement("CP-60", "CP-61", "CP-63", "CP-64", "CP-65", "CP-67")
def test_positions_around_the_edges_of_a_log_that_was_trimmed():
    log = Log()
    log.publish(5)
    assert log.after(0) == [1, 2, 3, 4, 5]  # nothing is missing while message 1 is kept
    log.publish(3)  # 4 to 8 are kept
    assert log.why(log.after, 0) == "trimmed"
    assert log.why(log.after, 2) == "trimmed"
    assert log.after(3) == [4, 5, 6, 7, 8]
    assert log.after(4) == [5, 6, 7, 8]
    assert log.after(7) == [8]
    assert log.after(8) == []
    assert log.why(log.after, 9) == "future_offset"
    assert log.why(log.after, 2**63) == "future_offset"


@pytest.mark.statement("CP-62")
def test_another_epoch_is_refused_whatever_the_offset():
    log = Log()
    log.publish()
    for offset in (0, 1, 2):
        assert log.why(log.after, offset, "older") == "unknown_epoch"


@pytest.mark.statement("CP-66", "CP-81", "BR-45", "BR-47")
def test_positions_around_the_edges_of_a_log_that_grew_old():
    log = Log()
    log.publish()
    log.now = 30
    log.publish()
    log.now = 60  # the first is exactly as old as is allowed
    assert log.after(0) == [1, 2]
    for swept in (False, True):
        log.now = 60.5
        if swept:
            log.log.expire(log.now)
            assert len(log.log.entries) == 1
        assert log.why(log.after, 0) == "expired"
        assert log.after(1) == [2]
        log.now = 91
        if swept:
            log.log.expire(log.now)
            assert log.log.entries == []
        assert log.why(log.after, 1) == "expired"
        assert log.after(2) == []
        assert log.why(log.after, 3) == "future_offset"
    assert log.publish().offset == 3
    assert log.after(2) == [3]
    assert log.why(log.after, 1) == "expired"


def test_a_refusal_tells_trimmed_from_expired():
    log = Log()
    log.publish(7)  # 1 and 2 are trimmed
    log.now = 61
    log.log.expire(log.now)
    log.publish()
    assert log.why(log.after, 1) == "trimmed"
    assert log.why(log.after, 2) == "expired"


@pytest.mark.statement("CP-70", "BR-44")
def test_since_compares_whole_seconds_and_is_inclusive():
    log = Log()
    for log.now in (1.2, 1.9, 2.1):
        log.publish()
    log.now = 3.5
    assert log.since(1) == [1, 2, 3]
    assert log.since(2) == [3]
    assert log.since(3) == []


@pytest.mark.statement("CP-71")
def test_since_in_the_future_means_now():
    log = Log()
    log.publish()
    assert log.since(3600) == [1]
    log.now = 1
    assert log.since(3600) == []


def test_slack_is_taken_off_since():
    log = Log()
    for log.now in (1.0, 3.0, 5.0):
        log.publish()
    assert log.since(5, slack=0) == [3]
    assert log.since(5, slack=2) == [2, 3]
    assert log.since(3600, slack=2) == [2, 3]


@pytest.mark.statement("CP-72")
def test_since_is_refused_for_the_second_of_the_newest_message_that_is_gone():
    log = Log(limit=2)
    for log.now in (1.5, 2.5, 3.5):
        log.publish()
    assert log.why(log.since, 1) == "trimmed"
    assert log.since(2) == [2, 3]
    log.now = 62.6
    for swept in (False, True):
        if swept:
            log.log.expire(log.now)
        assert log.why(log.since, 2) == "expired"
        assert log.since(3) == [3]


def test_a_log_that_goes_on_after_a_counter_vouches_for_nothing_before_it():
    log = Log(last=41, lost=WALL - 9)
    log.publish()
    assert log.log.entries[0].offset == 42
    assert log.log.entries[0].prev == 41
    assert log.after(41) == [42]
    assert log.why(log.after, 40) == "trimmed"
    assert log.why(log.after, 0) == "trimmed"
    assert log.why(log.since, -9) == "trimmed"
    assert log.since(-8) == [42]


def test_a_wall_clock_that_is_set_back_hides_no_newer_message_from_since():
    log = Log()
    log.now = 10
    log.publish()
    log.now, log.jump = 11, -3600
    log.publish()
    log.jump = 0
    assert log.since(10) == [1, 2]


@pytest.mark.parametrize("jump", [3600, -3600])
def test_a_jump_of_the_wall_clock_makes_no_message_old(jump):
    log = Log()
    log.publish(3)
    log.now, log.jump = 10, jump
    log.log.expire(log.now)
    assert log.after(0) == [1, 2, 3]


def test_no_more_than_the_limit_is_ever_kept():
    log = Log()
    for _ in range(20):
        log.publish()
        assert len(log.log.entries) <= 5
        assert len(log.log.ages(0)) == len(log.log.entries)


def test_the_next_deadline_is_that_of_the_oldest_message_or_of_idling():
    log = Log()
    assert log.log.deadline(600) == 600
    log.now = 5
    log.publish()
    log.now = 9
    log.publish()
    assert log.log.deadline(600) == 65
    log.log.expire(70)
    assert log.log.deadline(600) == 609
