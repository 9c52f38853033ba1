"""RPC over HTTP: anycable-tx asks here who connects, and what a subscription or a message means."""

import hmac
import json
from collections.abc import Callable
from functools import wraps
from importlib import import_module
from typing import Any

from django.conf import settings
from django.http import HttpRequest, HttpResponse, JsonResponse, parse_cookie
from django.views.decorators.csrf import csrf_exempt
from django.views.decorators.http import require_POST

from . import realtime, rooms

SUCCESS, FAILURE = 1, 2
SessionStore = import_module(settings.SESSION_ENGINE).SessionStore


def rpc(answer: Callable[[dict[str, Any], str], dict[str, Any]]) -> Callable[[HttpRequest], HttpResponse]:
    """A view for calls of the realtime server only: JSON in and out."""

    @csrf_exempt
    @require_POST
    @wraps(answer)
    def view(request: HttpRequest) -> HttpResponse:
        expected = f"Bearer {realtime.digest('rpc-cable')}"
        if not hmac.compare_digest(request.headers.get("Authorization", "").encode(), expected.encode()):
            return HttpResponse(status=401)
        return JsonResponse(answer(json.loads(request.body), request.headers.get("x-anycable-meta-sid", "")))

    return view


@rpc
def connect(call: dict[str, Any], sid: str) -> dict[str, Any]:
    cookies = parse_cookie(call["env"]["headers"].get("cookie", ""))
    user = SessionStore(cookies.get(settings.SESSION_COOKIE_NAME)).get("user")
    if user is None:
        refusal = {"type": "disconnect", "reason": "unauthorized", "reconnect": False}
        return {"status": FAILURE, "transmissions": [json.dumps(refusal)]}
    welcome = {"type": "welcome", "sid": sid}
    return {
        "status": SUCCESS,
        "identifiers": realtime.identifiers_of(user),
        "transmissions": [json.dumps(welcome)],
    }


@rpc
def command(call: dict[str, Any], sid: str) -> dict[str, Any]:
    identifier = call["identifier"]
    user, room = user_of(call["connection_identifiers"]), room_of(identifier)
    if call["command"] == "subscribe":
        answer = {"type": "confirm_subscription" if room else "reject_subscription", "identifier": identifier}
        if room is None:
            return {"status": FAILURE, "transmissions": [json.dumps(answer)]}
        return {"status": SUCCESS, "streams": [rooms.stream_of(room)], "transmissions": [json.dumps(answer)]}
    if call["command"] == "unsubscribe":
        return {"status": SUCCESS, "stop_streams": True}
    text = text_of(call.get("data", ""))
    if room is None or text is None:
        return {"status": FAILURE}
    rooms.say(room, user, text)
    return {"status": SUCCESS}


@rpc
def disconnect(call: dict[str, Any], sid: str) -> dict[str, Any]:
    user = user_of(call["identifiers"])
    for room in filter(None, map(room_of, call.get("subscriptions", []))):
        rooms.say(room, user, "has left")
    return {"status": SUCCESS}


def user_of(identifiers: str) -> str:
    return json.loads(identifiers)["user"]


def room_of(identifier: str) -> str | None:
    """The room of a subscription; None if there is none, or this user may not read it."""
    match parsed(identifier):
        case {"channel": "ChatChannel", "room": room} if room in rooms.ROOMS:
            return room
    return None


def text_of(data: str) -> str | None:
    """What a client says; None if it does something else."""
    match parsed(data):
        case {"action": "say", "text": str(text)} if 0 < len(text) <= 1000:
            return text
    return None


def parsed(text: str) -> Any:
    try:
        return json.loads(text)
    except ValueError:
        return None
