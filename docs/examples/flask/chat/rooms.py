"""The chat itself: which rooms there are, and what is said in them."""

from . import realtime

ROOMS = ("lobby", "kitchen")


def stream_of(room: str) -> str:
    return f"chat/{room}"


def say(room: str, user: str, text: str) -> None:
    realtime.publish(stream_of(room), {"from": user, "text": text})
