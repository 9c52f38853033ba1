"""RPC over HTTP: anycable-tx asks here who connects, and what a subscription or a message means."""

import hmac
import json

from flask import Blueprint, abort, current_app, request
from itsdangerous import BadSignature
from werkzeug.http import parse_cookie

from . import realtime, rooms

SUCCESS, FAILURE = 1, 2

calls = Blueprint("anycable", __name__, url_prefix="/_anycable")


@calls.before_request
def authorize():
    expected = f"Bearer {realtime.digest('rpc-cable')}"
    if not hmac.compare_digest(request.headers.get("Authorization", "").encode(), expected.encode()):
        abort(401)


@calls.post("/connect")
def connect():
    user = user_of_cookie(request.json["env"].get("headers", {}).get("cookie", ""))
    if user is None:
        refusal = {"type": "disconnect", "reason": "unauthorized", "reconnect": False}
        return {"status": FAILURE, "transmissions": [json.dumps(refusal)]}
    welcome = {"type": "welcome", "sid": request.headers["x-anycable-meta-sid"]}
    return {
        "status": SUCCESS,
        "identifiers": realtime.identifiers_of(user),
        "transmissions": [json.dumps(welcome)],
    }


@calls.post("/command")
def command():
    call = request.json
    identifier = call["identifier"]
    user, room = user_of(call["connection_identifiers"]), room_of(identifier)
    if call["command"] == "subscribe":
        answer = {"type": "confirm_subscription" if room else "reject_subscription", "identifier": identifier}
        if room is None:
            return {"status": FAILURE, "transmissions": [json.dumps(answer)]}
        return {"status": SUCCESS, "streams": [rooms.stream_of(room)], "transmissions": [json.dumps(answer)]}
    if call["command"] == "unsubscribe":
        return {"status": SUCCESS, "stop_streams": True}
    text = said(call["data"])
    if room is None or text is None:
        return {"status": FAILURE}
    rooms.say(room, user, text)
    return {"status": SUCCESS}


@calls.post("/disconnect")
def disconnect():
    call = request.json
    user = user_of(call["identifiers"])
    for room in filter(None, map(room_of, call.get("subscriptions", []))):
        rooms.say(room, user, "has left")
    return {"status": SUCCESS}


def user_of_cookie(header):
    """Who is logged in with these cookies: Flask's own session, which came in a request of its own."""
    cookie = parse_cookie(header).get(current_app.config["SESSION_COOKIE_NAME"], "")
    serializer = current_app.session_interface.get_signing_serializer(current_app)
    try:
        return serializer.loads(cookie).get("user")
    except BadSignature:
        return None


def user_of(identifiers):
    return json.loads(identifiers)["user"]


def fields_of(text):
    """The JSON object in *text*, or an empty one."""
    try:
        found = json.loads(text)
    except ValueError:
        return {}
    return found if isinstance(found, dict) else {}


def room_of(identifier):
    """The room of a subscription; None if there is none, or this user may not read it."""
    fields = fields_of(identifier)
    room = fields.get("room") if fields.get("channel") == "ChatChannel" else None
    return room if room in rooms.ROOMS else None


def said(data):
    """What a client says, if that is what it does."""
    fields = fields_of(data)
    text = fields.get("text") if fields.get("action") == "say" else None
    return text if isinstance(text, str) and 1 <= len(text) <= 1000 else None
