"""A chat: the pages, and what they ask for."""

from pathlib import Path
from typing import Annotated

from fastapi import Depends, FastAPI, HTTPException, Request, Response
from fastapi.responses import FileResponse, RedirectResponse
from pydantic import BaseModel, Field

from . import realtime, rooms, rpc, session

app = FastAPI()
app.include_router(rpc.router)  # only for RPC over HTTP

PAGE = Path(__file__).parent / "room.html"


class Login(BaseModel):
    name: str = Field(min_length=1, max_length=50)


class Message(BaseModel):
    text: str = Field(min_length=1, max_length=1000)


def current_user(request: Request) -> str:
    user = session.user_of(request.cookies.get(session.COOKIE))
    if user is None:
        raise HTTPException(401)
    return user


def existing_room(room: str) -> str:
    if room not in rooms.ROOMS:
        raise HTTPException(404)
    return room


User = Annotated[str, Depends(current_user)]
Room = Annotated[str, Depends(existing_room)]


@app.get("/")
def start() -> Response:
    return RedirectResponse("/rooms/lobby")


@app.post("/login", status_code=204)
def login(form: Login, response: Response) -> None:
    response.set_cookie(session.COOKIE, session.cookie_of(form.name), httponly=True, samesite="lax")


@app.get("/rooms/{room}")
def page(room: Room) -> Response:
    return FileResponse(PAGE)


@app.get("/rooms/{room}/cable")
def cable(room: Room, user: User) -> dict[str, str]:
    """What the browser connects with. Here the application decides who may read the room."""
    return {
        "url": realtime.CABLE_URL,
        "token": realtime.token_for(user),
        "stream": realtime.signed_stream(rooms.stream_of(room)),
    }


@app.post("/rooms/{room}/messages", status_code=201)
def say(room: Room, user: User, message: Message) -> None:
    rooms.say(room, user, message.text)
