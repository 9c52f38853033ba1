"""Without a broker everything is transient."""

import pytest
from twisted.internet.task import Clock
from zope.interface.verify import verifyObject

from anycable_tx.brokers.none import create
from anycable_tx.cable.messages import HistoryRequest, Position, Publication, Receipt
from anycable_tx.errors import HistoryRefused, PresenceRefused
from anycable_tx.interfaces import IBroker, ProviderContext
from anycable_tx.metrics import Metrics
from anycable_tx.testing.fakes import RecordingNode, RecordingPubSub
from anycable_tx.testing.sync import result_of


@pytest.fixture
def bus():
    return RecordingPubSub()


@pytest.fixture
def broker(bus):
    made = create(ProviderContext({}, Clock(), RecordingNode(), Metrics(), pubsub=bus))
    result_of(made.start())
    yield made
    result_of(made.stop())


def test_it_is_a_broker_and_says_which(broker):
    assert verifyObject(IBroker, broker)
    assert broker.announcement == "Using no-op (legacy) broker"
    assert not broker.stores


@pytest.mark.statement("BR-55", "CP-49")
def test_messages_go_to_the_bus_without_a_position(broker, bus):
    publication = Publication("chat", b"{}", exclude_socket="sid", broadcast_type="x", id="p-1")
    assert result_of(broker.publish(publication)) == Receipt(0, "")
    (message,) = bus.messages
    assert (message.stream, message.payload, message.offset, message.epoch) == ("chat", b"{}", 0, "")
    assert (message.exclude_socket, message.broadcast_type, message.id) == ("sid", "x", "p-1")
    assert result_of(broker.tail("chat")) is None


def test_the_publisher_is_told_that_the_bus_failed(broker, bus):
    bus.failure = ConnectionError("down")
    with pytest.raises(ConnectionError):
        result_of(broker.publish(Publication("chat", b"{}")))


@pytest.mark.statement("BR-55", "CP-76")
@pytest.mark.parametrize("ask", [HistoryRequest(Position("", 0)), HistoryRequest(None, 1)])
def test_history_is_refused(broker, ask):
    with pytest.raises(HistoryRefused, match="unsupported"):
        result_of(broker.history("chat", ask))


def test_no_session_is_kept(broker):
    result_of(broker.save_session("a", "user-1", b"record"))
    result_of(broker.release_session("a", b"record"))
    assert result_of(broker.claim_session("a", "b")) is None
    assert result_of(broker.forget_sessions("user-1")) == 0
    result_of(broker.forget_session("a"))


@pytest.mark.statement("CP-120")
def test_presence_is_refused(broker):
    with pytest.raises(PresenceRefused):
        result_of(broker.join("room", "a", "alice", None))
    with pytest.raises(PresenceRefused):
        result_of(broker.members("room"))
    assert result_of(broker.leave("room", "a")) is None
    assert result_of(broker.move_presence("a", "b")) == {}
    result_of(broker.release_presence("a"))
