"""Channels that name their stream themselves: signed and public streams, Turbo Streams, CableReady."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple

import orjson
from zope.interface import implementer

from anycable_tx.cable.codec import confirm_frame, reject_frame
from anycable_tx.cable.replies import PRESENCE_STREAM, WHISPER_STREAM, Reply, SessionView, Status
from anycable_tx.cable.signing import decode_name, keys_of, signed_part
from anycable_tx.controllers.base import BaseController
from anycable_tx.interfaces import IController, ProviderContext

__all__ = ["CABLE_READY_CHANNEL", "TURBO_CHANNEL", "Channel", "StreamsController", "create"]

TURBO_CHANNEL = "Turbo::StreamsChannel"
CABLE_READY_CHANNEL = "CableReady::Stream"


class _Refused(NamedTuple):
    reason: str


@dataclass(frozen=True)
class Channel:
    """What one channel accepts and grants.

    ``signed_key`` is the identifier's key that holds the signed stream name, verified with ``keys``.
    ``public``: it also takes an unsigned ``stream_name``. ``whisper`` and ``presence`` are granted to
    signed streams; public ones always have both (CP-123).
    """

    signed_key: str
    keys: tuple[bytes, ...]
    public: bool = False
    whisper: bool = False
    presence: bool = False

    def resolve(self, params: Mapping[str, Any]) -> tuple[str, dict[str, str]] | _Refused:
        """The stream that the identifier's *params* name and the state that goes with it, or a refusal."""
        signed = params.get(self.signed_key)
        if signed is None or signed == "":
            return self._resolve_public(params)
        if not self.keys:
            return _Refused("no_streams_secret")
        encoded = signed_part(signed, self.keys) if isinstance(signed, str) else None
        if encoded is None:
            return _Refused("bad_signature")
        name = decode_name(encoded)
        if name is None:
            return _Refused("bad_stream_name")
        return name, self._rights(name, self.whisper, self.presence)

    def _resolve_public(self, params: Mapping[str, Any]) -> tuple[str, dict[str, str]] | _Refused:
        if not self.public:
            return _Refused("not_signed")
        name = params.get("stream_name")
        if not isinstance(name, str) or not name:
            return _Refused("bad_stream_name")
        return name, self._rights(name, whisper=True, presence=True)

    @staticmethod
    def _rights(name: str, whisper: bool, presence: bool) -> dict[str, str]:
        rights = {}
        if whisper:
            rights[WHISPER_STREAM] = name
        if presence:
            rights[PRESENCE_STREAM] = name
        return rights


@implementer(IController)
class StreamsController(BaseController):
    """Answers subscribe and unsubscribe for its *channels* (name -> Channel); declines everything else.

    A ``message`` to one of them is declined too and reaches the next controller. The backend never needs to
    hear of these subscriptions, confirmed or not (RA-19).
    """

    def __init__(self, channels: Mapping[str, Channel]) -> None:
        self.announcement = f"Using channels router: {', '.join(channels)}" if channels else ""
        self._channels = dict(channels)

    def _route(self, identifier: str) -> tuple[Channel, Mapping[str, Any]] | None:
        try:
            params = orjson.loads(identifier)
        except orjson.JSONDecodeError:
            return None
        name = params.get("channel") if type(params) is dict else None
        channel = self._channels.get(name) if type(name) is str else None
        return None if channel is None else (channel, params)

    async def subscribe(self, session: SessionView, identifier: str) -> Reply | None:
        """SUCCESS with the stream and its rights, FAILURE with the reason, or None for another's channel."""
        route = self._route(identifier)
        if route is None:
            return None
        channel, params = route
        resolved = channel.resolve(params)
        if isinstance(resolved, _Refused):
            return Reply(
                Status.FAILURE,
                transmissions=[reject_frame(identifier)],
                disconnect_interest=-1,
                reason=resolved.reason,
            )
        stream, istate = resolved
        return Reply(
            Status.SUCCESS,
            transmissions=[confirm_frame(identifier)],
            streams=[stream],
            istate=istate,
            disconnect_interest=-1,
        )

    async def unsubscribe(self, session: SessionView, identifier: str) -> Reply | None:
        """SUCCESS, all streams of the identifier are left; or None for another's channel."""
        if self._route(identifier) is None:
            return None
        return Reply(Status.SUCCESS, stop_streams=True, disconnect_interest=-1)


def create(context: ProviderContext) -> IController:
    """The controller that the settings describe.

    ``$pubsub`` (``streams_pubsub_channel``) is there even without a secret, and then refuses every signed
    name (CP-142). Turbo Streams and CableReady exist when enabled and given a secret. The rotated secrets
    stand beside the streams secret, so a channel with a secret of its own does not accept them (RA-10).
    """
    settings = context.settings
    secret = settings.get("streams_secret", "")
    rotated = settings.get("streams_rotated_secrets", ())

    def keys(own: str) -> tuple[bytes, ...]:
        return keys_of((own, *rotated) if own and own == secret else (own,))

    channels = {}
    if pubsub_channel := settings.get("streams_pubsub_channel", "$pubsub"):
        channels[pubsub_channel] = Channel(
            "signed_stream_name",
            keys(secret),
            public=settings.get("public_streams", False),
            whisper=settings.get("streams_whisper", False),
            presence=settings.get("streams_presence", True),
        )
    for enabled, own, name, signed_key in (
        ("turbo_streams", "turbo_streams_secret", TURBO_CHANNEL, "signed_stream_name"),
        ("cable_ready", "cable_ready_secret", CABLE_READY_CHANNEL, "identifier"),
    ):
        own_secret = settings.get(own, "")
        if settings.get(enabled, False) and own_secret:
            channels[name] = Channel(signed_key, keys(own_secret))
    return StreamsController(channels)
