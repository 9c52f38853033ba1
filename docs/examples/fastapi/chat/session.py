"""Who is logged in: a name in a signed cookie. An application has a real login instead."""

import os
import secrets

import jwt

COOKIE = "chat_session"
KEY = os.environ.get("SESSION_KEY") or secrets.token_hex()  # without one, logins end with the process


def cookie_of(user: str) -> str:
    return jwt.encode({"sub": user}, KEY, algorithm="HS256")


def user_of(cookie: str | None) -> str | None:
    try:
        return jwt.decode(cookie or "", KEY, algorithms=["HS256"])["sub"]
    except (jwt.InvalidTokenError, KeyError):
        return None
