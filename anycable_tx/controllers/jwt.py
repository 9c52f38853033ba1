"""Authentication by a signed token that names the user: no backend is asked."""

from __future__ import annotations

import time
from collections.abc import Callable
from hmac import compare_digest
from urllib.parse import unquote_plus

from twisted.logger import Logger
from zope.interface import implementer

from anycable_tx.cable.codec import disconnect_frame, welcome_frame
from anycable_tx.cable.replies import ConnectReply, RequestEnv, Status
from anycable_tx.controllers.base import BaseController
from anycable_tx.controllers.tokens import EXPIRED, TokenVerifier, Verdict
from anycable_tx.errors import ConfigurationError
from anycable_tx.interfaces import IController, ProviderContext

__all__ = ["JWTController", "create", "query_value"]


def query_value(url: str, name: str) -> str:
    """The first value of the query parameter *name* in *url*, '' if there is none.

    Lenient, and never raises: a bad percent escape stays as it is, so that the token in it is refused and not
    the connection dropped without a word (RA-12).
    """
    _, _, query = url.partition("?")
    for pair in query.split("&"):
        key, _, value = pair.partition("=")
        if key == name or (("%" in key or "+" in key) and unquote_plus(key) == name):
            return unquote_plus(value)
    return ""


@implementer(IController)
class JWTController(BaseController):
    """Accepts who presents a valid token, refuses who presents a bad one, declines who presents none.

    *param* names the query parameter; the header ``x-<param>`` of the RequestEnv wins over it, and is where
    the transport puts a token that came by header or sub-protocol (CP-24). With *enforce* a missing token is
    refused too. With *resume_expired* an expired token still resumes its own session. *now* answers Unix
    time in seconds.
    """

    log = Logger()

    def __init__(
        self,
        verifier: TokenVerifier,
        param: str = "jid",
        *,
        enforce: bool = False,
        resume_expired: bool = False,
        now: Callable[[], float] = time.time,
    ) -> None:
        self.announcement = f"JWT authentication is enabled param={param} enforced={str(enforce).lower()}"
        self._verifier = verifier
        self._param = param
        self._header = f"x-{param.lower()}"
        self._enforce = enforce
        self._resume_expired = resume_expired
        self._now = now

    def _token(self, env: RequestEnv) -> str:
        return env.headers.get(self._header) or query_value(env.url, self._param)

    def _verify(self, token: str) -> Verdict:
        verdict = self._verifier.verify(token, self._now())
        if verdict.fault:
            self.log.debug("token refused: {fault}", fault=verdict.fault)
        return verdict

    async def authenticate(self, sid: str, env: RequestEnv) -> ConnectReply | None:
        """The user that the token names (CP-20); a refusal for a bad token; None without one (CP-23).

        The refusal is ``token_expired`` for a token that was good once (CP-21), and ``unauthorized`` for
        everything else (CP-22), a token without a string ``ext`` included (RA-12).
        """
        token = self._token(env)
        if not token:
            return _refuse("unauthorized") if self._enforce else None
        fault, ext = self._verify(token)
        if fault == "" and ext is not None:
            return ConnectReply(
                Status.SUCCESS,
                identifiers=ext,
                transmissions=[welcome_frame(sid)],
                disconnect_interest=-1,
            )
        return _refuse("token_expired" if fault == EXPIRED else "unauthorized")

    async def check_restore(self, identifiers: str, env: RequestEnv) -> ConnectReply | None:
        """A session resumes with a token of its own user only (P5, RA-4).

        An expired one is refused with ``token_expired`` unless *resume_expired* was given; any other that
        does not fit, and a missing one where tokens are enforced, means authentication from the start.
        """
        token = self._token(env)
        if not token:
            return ConnectReply(Status.ERROR, reason="no_token") if self._enforce else None
        fault, ext = self._verify(token)
        if fault not in ("", EXPIRED):
            return ConnectReply(Status.ERROR, reason="bad_token")
        if ext is None or not compare_digest(_octets(ext), _octets(identifiers)):
            return ConnectReply(Status.ERROR, reason="other_identifiers")
        if fault == EXPIRED and not self._resume_expired:
            return _refuse("token_expired")
        return ConnectReply(Status.SUCCESS, identifiers=identifiers, disconnect_interest=-1)


def _octets(text: str) -> bytes:
    return text.encode("utf-8", "surrogatepass")


def _refuse(reason: str) -> ConnectReply:
    return ConnectReply(
        Status.FAILURE,
        transmissions=[disconnect_frame(reason, reconnect=False)],
        disconnect_interest=-1,
        reason=reason,
    )


def create(context: ProviderContext) -> IController:
    """The controller that the settings describe; without a ``jwt_secret`` it declines every request.

    Raises ConfigurationError when tokens are enforced, or old secrets kept, and there is no secret.
    """
    settings = context.settings
    secret = settings.get("jwt_secret", "")
    rotated = settings.get("jwt_rotated_secrets", ())
    enforce = settings.get("enforce_jwt", False)
    if not secret:
        for name in ("enforce_jwt", "jwt_rotated_secrets"):
            if settings.get(name):
                raise ConfigurationError(f"{name}: needs a jwt_secret (or secret), and there is none")
        return BaseController()
    return JWTController(
        TokenVerifier((secret, *rotated)),
        settings.get("jwt_param", "jid"),
        enforce=enforce,
        resume_expired=settings.get("resume_expired_tokens", False),
    )
