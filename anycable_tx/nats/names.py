"""Names on NATS: the subjects of streams, and what holds them."""

from __future__ import annotations

import re

from anycable_tx.errors import ConfigurationError
from anycable_tx.tokens import token

__all__ = ["Names"]


class Names:
    """The names of one installation; *prefix* tells it from others on the same NATS.

    The subject of a stream has its class (see ``cable.rules``) and its token, so no name of a stream can be a
    wildcard, a subject of the server's own, or no subject at all. Raises ConfigurationError.
    """

    def __init__(self, prefix: str) -> None:
        if not re.fullmatch(r"[A-Za-z0-9]+", prefix):
            raise ConfigurationError(f"nats_prefix: {prefix!r} is not accepted; expected letters and digits")
        self.prefix = prefix
        #: Commands between nodes, and what was sent in the last minute.
        self.commands = f"{prefix}.c"

    def stored(self, kind: str, stream: str) -> str:
        """Where messages of *stream*, of the class *kind*, are stored; the server hands them on to ``live``."""
        return f"{self.prefix}.s.{kind}.{token(stream)}"

    def live(self, kind: str, stream: str) -> str:
        """Where subscribers of *stream* listen; what is not stored is published there."""
        return f"{self.prefix}.r.{kind}.{token(stream)}"

    def all_stored(self, kind: str) -> str:
        """The subjects of all streams of a class."""
        return f"{self.prefix}.s.{kind}.>"

    def all_live(self, kind: str) -> str:
        """Where the server hands them on to: ``>`` stands for the token."""
        return f"{self.prefix}.r.{kind}.>"

    def log(self, kind: str, epoch: str) -> str:
        """The JetStream stream that holds a class: its epoch is a part of its name."""
        return f"{self.prefix.upper()}_H_{kind}_{epoch}"

    def epoch_of(self, kind: str, log: str) -> str:
        """The epoch in the name of a JetStream stream, '' if it is none of that class."""
        opening = self.log(kind, "")
        return log[len(opening) :] if log.startswith(opening) else ""

    def bucket(self, what: str) -> str:
        """The key-value bucket of *what*: ``sessions``, ``presence`` or ``nodes``."""
        return f"{self.prefix}_{what}"
