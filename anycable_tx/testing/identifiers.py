"""Identifiers of subscriptions, made and read as the official client does."""

from __future__ import annotations

import base64
import json
from typing import Any

__all__ = ["identifier_of", "message_id", "streams_of"]


def identifier_of(channel: str, **params: Any) -> str:
    """The identifier the official client makes: keys sorted, no spaces, None left out."""
    values = {k: v for k, v in {"channel": channel, **params}.items() if v is not None}
    return json.dumps(values, sort_keys=True, separators=(",", ":"))


def streams_of(identifier: str) -> tuple[str, ...]:
    """The stream of a ``$pubsub`` identifier; () for other channels, whose streams only the server knows."""
    try:
        params = json.loads(identifier)
        if "stream_name" in params:
            return (params["stream_name"],)
        encoded = params["signed_stream_name"].split("--")[0]
        return (json.loads(base64.b64decode(encoded)),)
    except (ValueError, KeyError, TypeError, AttributeError):
        return ()


def message_id(message: Any) -> Any:
    """The id under which the checker knows a message: its key ``id`` (None, not judged, without one)."""
    return message.get("id") if isinstance(message, dict) else None
