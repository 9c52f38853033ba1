"""RPC over HTTP: anycable-tx asks here who connects, and what a subscription or a message means."""

import hmac
import json
from typing import Annotated, Any, Literal

from fastapi import APIRouter, Depends, Header, HTTPException
from pydantic import BaseModel, Field, ValidationError
from starlette.requests import cookie_parser

from . import realtime, rooms, session

SUCCESS, FAILURE = 1, 2


class Env(BaseModel):
    url: str = ""
    headers: dict[str, str] = {}


class Connect(BaseModel):
    env: Env


class Command(BaseModel):
    command: str
    identifier: str
    connection_identifiers: str
    data: str = ""


class Disconnect(BaseModel):
    identifiers: str
    subscriptions: list[str] = []


class ChatChannel(BaseModel):
    """What a client subscribes to: the identifier of a subscription, as JSON."""

    channel: Literal["ChatChannel"]
    room: str


class Say(BaseModel):
    """What a client may do there."""

    action: Literal["say"]
    text: str = Field(min_length=1, max_length=1000)


def authorized(authorization: Annotated[str, Header()] = "") -> None:
    expected = f"Bearer {realtime.digest('rpc-cable')}"
    if not hmac.compare_digest(authorization.encode(), expected.encode()):
        raise HTTPException(401)


router = APIRouter(prefix="/_anycable", dependencies=[Depends(authorized)])


@router.post("/connect")
def connect(call: Connect, x_anycable_meta_sid: Annotated[str, Header()]) -> dict[str, Any]:
    cookies = cookie_parser(call.env.headers.get("cookie", ""))
    user = session.user_of(cookies.get(session.COOKIE))
    if user is None:
        refusal = {"type": "disconnect", "reason": "unauthorized", "reconnect": False}
        return {"status": FAILURE, "transmissions": [json.dumps(refusal)]}
    welcome = {"type": "welcome", "sid": x_anycable_meta_sid}
    return {
        "status": SUCCESS,
        "identifiers": realtime.identifiers_of(user),
        "transmissions": [json.dumps(welcome)],
    }


@router.post("/command")
def command(call: Command) -> dict[str, Any]:
    user, room = user_of(call.connection_identifiers), room_of(call.identifier)
    if call.command == "subscribe":
        answer = {"type": "confirm_subscription" if room else "reject_subscription", "identifier": call.identifier}
        if room is None:
            return {"status": FAILURE, "transmissions": [json.dumps(answer)]}
        return {"status": SUCCESS, "streams": [rooms.stream_of(room)], "transmissions": [json.dumps(answer)]}
    if call.command == "unsubscribe":
        return {"status": SUCCESS, "stop_streams": True}
    try:
        said = Say.model_validate_json(call.data)
    except ValidationError:
        return {"status": FAILURE}
    if room is None:
        return {"status": FAILURE}
    rooms.say(room, user, said.text)
    return {"status": SUCCESS}


@router.post("/disconnect")
def disconnect(call: Disconnect) -> dict[str, Any]:
    user = user_of(call.identifiers)
    for room in filter(None, map(room_of, call.subscriptions)):
        rooms.say(room, user, "has left")
    return {"status": SUCCESS}


def user_of(identifiers: str) -> str:
    return json.loads(identifiers)["user"]


def room_of(identifier: str) -> str | None:
    """The room of a subscription; None if there is none, or this user may not read it."""
    try:
        room = ChatChannel.model_validate_json(identifier).room
    except ValidationError:
        return None
    return room if room in rooms.ROOMS else None
