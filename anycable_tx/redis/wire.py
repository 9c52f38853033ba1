"""What travels on the Redis bus, and on which channel."""

from __future__ import annotations

from anycable_tx.cable import bus
from anycable_tx.cable.bus import body_of, encode, message_of, opening_of
from anycable_tx.cable.messages import RemoteCommand, StreamMessage

__all__ = ["CHANNEL_PREFIX", "body_of", "channel_of", "decode", "encode", "message_of", "opening_of"]

#: Before the name of a stream in the name of its channel, unless that is verbatim.
CHANNEL_PREFIX = "ac:st:"


def channel_of(stream: str, verbatim: bool) -> str:
    """The channel of *stream*: with the prefix, so that it can be no other channel of the server, or *verbatim*."""
    return stream if verbatim else CHANNEL_PREFIX + stream


def decode(channel: bytes, payload: bytes) -> StreamMessage | RemoteCommand | None:
    """What was published on *channel*; None for what nobody here can have meant.

    A message has to be on the channel of its stream, prefixed or verbatim. Whether commands may be heard on
    *channel* is for the caller to know.
    """
    message = bus.decode(payload)
    if isinstance(message, StreamMessage):
        name = message.stream.encode()
        return message if channel in (name, CHANNEL_PREFIX.encode() + name) else None
    return message
