"""The messages of gRPC calls: requests written and replies read in one step."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from google.protobuf.message import DecodeError

from anycable_tx.rpc.definition import METHODS
from anycable_tx.rpc.transport import CallFailed, Code, RestoredStreams, RpcReply

__all__ = ["decode", "encode"]

#: What is read of a presence; its ``ttl`` is not.
_PRESENCE = ("type", "id", "info")


def encode(method: str, request: dict[str, Any]) -> bytes:
    """The message of a request in the shape of the HTTP body. Raises CallFailed if it cannot be written."""
    try:
        data: bytes = METHODS[method].request(**request).SerializeToString()
    except (TypeError, ValueError) as e:
        # The texts of these errors quote what could not be written, and that may be a user's.
        text = f"the request cannot be written as a protobuf message: {type(e).__name__}"
        raise CallFailed(Code.INVALID, text, delivered=False) from None
    return data


def decode(method: str, data: bytes) -> RpcReply:
    """What a reply says. Raises CallFailed (UNKNOWN) for what is not a message of *method*'s kind."""
    try:
        message = METHODS[method].reply.FromString(data)
    except DecodeError as e:
        raise CallFailed(Code.UNKNOWN, f"the answer cannot be read: {e}", delivered=True) from None
    return _READERS[method](message)


def _connect(message: Any) -> RpcReply:
    return RpcReply(
        message.status,
        message.identifiers,
        list(message.transmissions),
        message.error_msg,
        dict(message.env.cstate),
    )


def _command(message: Any) -> RpcReply:
    reply = RpcReply(
        message.status,
        "",
        list(message.transmissions),
        message.error_msg,
        disconnect=message.disconnect,
        stop_streams=message.stop_streams,
        streams=list(message.streams),
        stopped_streams=list(message.stopped_streams),
    )
    if message.HasField("env"):
        reply.cstate = dict(message.env.cstate)
        reply.istate = dict(message.env.istate)
    if message.HasField("presence"):
        presence = message.presence
        reply.presence = {name: getattr(presence, name) for name in _PRESENCE}
    return reply


def _disconnect(message: Any) -> RpcReply:
    return RpcReply(message.status, error_msg=message.error_msg)


def _restore(message: Any) -> RpcReply:
    return RpcReply(
        message.status,
        message.identifiers,
        list(message.transmissions),
        message.error_msg,
        dict(message.env.cstate),
        dict(message.env.istate),
        rejected_subscriptions=list(message.rejected_subscriptions),
        restored_streams=[
            RestoredStreams(each.identifier, each.stop_streams, list(each.stopped_streams), list(each.streams))
            for each in message.streams
        ],
    )


_READERS: dict[str, Callable[[Any], RpcReply]] = {
    "connect": _connect,
    "command": _command,
    "disconnect": _disconnect,
    "restore": _restore,
}
