"""Every error this package raises on purpose, and the one table that says what each becomes on the wire.

``AnyCableError``
├── ``ConfigurationError``      a value, option or file the server cannot start with
├── ``ProviderError``           a provider that is unknown or could not be loaded
├── ``BadPublication``          a publication that cannot be understood
├── ``BadCommand``              a client frame that cannot be understood
├── ``HistoryRefused``          a history answer that could not be proven whole
├── ``BrokerUnavailable``       the broker cannot store or answer now
├── ``PresenceRefused``         a presence request the broker cannot honour
└── ``ControllerError``         the controller could not decide
"""

from __future__ import annotations

from typing import NamedTuple

__all__ = [
    "OUTCOMES",
    "AnyCableError",
    "BadCommand",
    "BadPublication",
    "BrokerUnavailable",
    "ConfigurationError",
    "ControllerError",
    "HistoryRefused",
    "Outcome",
    "PresenceRefused",
    "ProviderError",
    "outcome_of",
]


class AnyCableError(Exception):
    """Base of all errors of this package. ``code`` is stable and safe to show; the text is for people."""

    code = "internal"


class ConfigurationError(AnyCableError):
    """The server cannot start like this: the text names the key, the value and what is accepted."""

    code = "bad_configuration"


class ProviderError(ConfigurationError):
    """No provider of that kind has that name, or it could not be loaded; the text lists the names found."""

    code = "unknown_provider"


class BadPublication(AnyCableError):
    """A publication that cannot be understood; nothing of it was stored or delivered."""

    code = "bad_publication"


class BadCommand(AnyCableError):
    """A client frame that cannot be understood; it is counted and ignored, the connection stays readable."""

    code = "bad_command"


class HistoryRefused(AnyCableError):
    """A history answer could not be proven whole, so nothing of it is sent (P4).

    ``reason`` is one of ``unknown_epoch``, ``future_offset``, ``trimmed``, ``expired``, ``unsupported``,
    ``unavailable``, ``behind``, ``unnamed`` and is the label of the counter ``history_rejects_total``.
    """

    code = "history_refused"

    def __init__(self, reason: str) -> None:
        super().__init__(reason)
        self.reason = reason


class BrokerUnavailable(AnyCableError):
    """The broker cannot store or answer now; nothing was acknowledged."""

    code = "broker_unavailable"


class PresenceRefused(AnyCableError):
    """The broker has no presence, or the session is already present under another id."""

    code = "presence_refused"


class ControllerError(AnyCableError):
    """The controller could not decide (it is down, timed out, or failed); this is not a refusal."""

    code = "controller_error"


class Outcome(NamedTuple):
    """What an error becomes: HTTP status, WebSocket close code (0: the connection stays) and its counter."""

    status: int
    close_code: int
    counter: str


OUTCOMES: dict[str, Outcome] = {
    "internal": Outcome(500, 1011, "internal_errors_total"),
    "bad_configuration": Outcome(500, 0, "internal_errors_total"),
    "unknown_provider": Outcome(500, 0, "internal_errors_total"),
    "bad_publication": Outcome(422, 0, "failed_broadcast_msg_total"),
    "bad_command": Outcome(400, 0, "failed_client_msg_total"),
    "history_refused": Outcome(410, 0, "history_rejects_total"),
    "broker_unavailable": Outcome(501, 0, "broker_errors_total"),
    "presence_refused": Outcome(501, 0, "presence_refused_total"),
    "controller_error": Outcome(503, 1011, "controller_errors_total"),
}


def outcome_of(error: BaseException) -> Outcome:
    """The outcome of *error*; anything that is not ours is ``internal``."""
    return OUTCOMES[error.code if isinstance(error, AnyCableError) else "internal"]
