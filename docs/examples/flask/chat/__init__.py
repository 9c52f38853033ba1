"""A chat: the pages, and what they ask for."""

import os
import secrets
from pathlib import Path

from flask import Flask, abort, jsonify, redirect, request, send_file, session

from . import realtime, rooms, rpc

app = Flask(__name__)
# Signs the cookie of the login. Without a key of its own, logins end with the process.
app.secret_key = os.environ.get("SESSION_KEY") or secrets.token_hex()
app.register_blueprint(rpc.calls)  # only for RPC over HTTP

PAGE = Path(__file__).parent / "room.html"


def current_user():
    if "user" not in session:
        abort(401)
    return session["user"]


def existing_room(room):
    if room not in rooms.ROOMS:
        abort(404)
    return room


def given(name, longest):
    """A text of the request's JSON."""
    text = (request.get_json(silent=True) or {}).get(name)
    if not isinstance(text, str) or not 1 <= len(text) <= longest:
        abort(422)
    return text


@app.get("/")
def start():
    return redirect("/rooms/lobby")


@app.post("/login")
def login():
    session["user"] = given("name", 50)
    return "", 204


@app.get("/rooms/<room>")
def page(room):
    existing_room(room)
    return send_file(PAGE)


@app.get("/rooms/<room>/cable")
def cable(room):
    """What the browser connects with. Here the application decides who may read the room."""
    stream = rooms.stream_of(existing_room(room))
    return jsonify(
        url=realtime.CABLE_URL,
        token=realtime.token_for(current_user()),
        stream=realtime.signed_stream(stream),
    )


@app.post("/rooms/<room>/messages")
def say(room):
    user = current_user()
    rooms.say(existing_room(room), user, given("text", 1000))
    return "", 201
