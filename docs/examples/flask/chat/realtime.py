"""What the application has to do with anycable-tx: tokens, signed names of streams, publishing."""

import base64
import hashlib
import hmac
import json
import os
import time
import urllib.request
from typing import Any

import jwt

SECRET = os.environ["ANYCABLE_SECRET"]
CABLE_URL = os.environ.get("CABLE_URL", "ws://localhost:8080/cable")  # for browsers
PUBLISH_URL = os.environ.get("PUBLISH_URL", "http://localhost:8080/_broadcast")  # for this process


def digest(text: str) -> str:
    return hmac.new(SECRET.encode(), text.encode(), hashlib.sha256).hexdigest()


def identifiers_of(user: str) -> str:
    """The name of the user's connections, also for disconnecting them."""
    return json.dumps({"user": user})


def token_for(user: str, lifetime: int = 3600) -> str:
    claims = {"ext": identifiers_of(user), "exp": int(time.time()) + lifetime}
    return jwt.encode(claims, SECRET, algorithm="HS256")


def signed_stream(name: str) -> str:
    """Whoever is given this may read the stream."""
    text = base64.b64encode(json.dumps(name).encode()).decode()
    return f"{text}--{digest(text)}"


def publish(stream: str, data: Any) -> None:
    """When this returns, the message is stored. Raises OSError otherwise."""
    body = json.dumps({"stream": stream, "data": json.dumps(data)}).encode()
    headers = {"Authorization": f"Bearer {digest('broadcast-cable')}", "Content-Type": "application/json"}
    request = urllib.request.Request(PUBLISH_URL, body, headers)
    urllib.request.urlopen(request, timeout=10).close()
