"""What the NATS broker keeps of a session, and how it is written."""

from __future__ import annotations

from hashlib import sha256
from typing import NamedTuple

from anycable_tx.brokers.nats_values import decode, encode
from anycable_tx.nats.bucket import Entry

__all__ = ["Held", "State", "held_in", "stand_in"]


class State(NamedTuple):
    """What is known of a session besides its record.

    *alike* stands for its identifiers; the key ``<alike>.<sid>`` is at revision *link*. *deadline* in milliseconds
    at the servers, 0 while it is connected to *node*. *heir* claimed it, after *rival*. *inherited*: an heir of it
    was saved, whose *previous* it is. *teller*: the node that ends it, and tells that unless *silent*.
    """

    node: str = ""
    deadline: int = 0
    alike: str = ""
    link: int = 0
    heir: str = ""
    rival: str = ""
    inherited: bool = False
    previous: str = ""
    teller: str = ""
    silent: bool = False

    def encode(self) -> str:
        """As the text that is kept with the record."""
        return encode(self).decode()


class Held(NamedTuple):
    """A session as it is kept, at a revision of its key."""

    state: State
    revision: int
    record: bytes = b""


def held_in(entry: Entry | None) -> Held | None:
    """What is in a key. What nobody here wrote is a session of no node, without a record: it ends in its time."""
    if entry is None:
        return None
    state = decode(State, entry.meta)
    return Held(state, entry.revision, entry.value if state != State() else b"")


def stand_in(identifiers: str) -> str:
    """What stands for identifiers in keys: short, and it tells nothing of them."""
    return "i" + sha256(identifiers.encode()).hexdigest()[:32]
