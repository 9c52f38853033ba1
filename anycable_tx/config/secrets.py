"""Keys that follow from the application secret."""

from __future__ import annotations

import hashlib
import hmac

__all__ = ["API", "BROADCAST", "RPC", "derive_key"]

#: The phrases of the keys; backends derive the same ones.
BROADCAST = "broadcast-cable"
API = "api-cable"
RPC = "rpc-cable"


def derive_key(secret: str, phrase: str) -> str:
    """Lower-case hex HMAC-SHA256 of *phrase* under *secret*; '' for an empty secret (CO-14)."""
    if not secret:
        return ""
    return hmac.new(secret.encode(), phrase.encode(), hashlib.sha256).hexdigest()
