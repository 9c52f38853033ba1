"""Presets: sets of values for a purpose or a platform, where nobody gave one."""

from __future__ import annotations

from anycable_tx import providers
from anycable_tx.config.draft import Draft
from anycable_tx.config.given import Given
from anycable_tx.errors import ConfigurationError

__all__ = ["CLOUD", "apply_presets"]

#: The presets whose platform routes one port only.
CLOUD = ("fly", "heroku")

_SIGNS = {
    "fly": ("FLY_APP_NAME", "FLY_ALLOC_ID", "FLY_REGION"),
    "heroku": ("HEROKU_APP_ID", "HEROKU_DYNO_ID"),
}


def apply_presets(draft: Draft) -> None:
    """Fill values from the presets that were asked for, or else from those whose platform this is.

    They work in the order given, and on options that no source set (CO-22). Unknown names are ignored with a
    notice. Raises ConfigurationError when the platform's variables are missing (CO-24).
    """
    if not draft.was_set("presets"):
        found = tuple(name for name, signs in _SIGNS.items() if all(draft.environ.get(sign) for sign in signs))
        if found:
            draft.given["presets"] = Given(found, "preset", "the platform's variables")
    names: list[str] = []
    for name in draft["presets"]:
        preset = _PRESETS.get(name)
        if preset is not None:
            preset(draft)
            names.append(name)
        elif name != "none":
            draft.notices.append(
                f"{draft.where('presets')}: there is no preset {name!r}, it is ignored; known: {', '.join(_PRESETS)}"
            )
    draft.presets = tuple(names)


def exists(kind: str, name: str) -> bool:
    """Whether a provider of that kind and name is installed."""
    return any(provider.name == name for provider in providers.providers(kind))


def _broker(draft: Draft) -> None:
    for service, wanted, adapters in (
        ("nats", draft["embed_nats"], ("http", "nats")),
        ("redis", draft.on("redis_url"), ("http", "redisx", "redis")),
        ("nats", draft.on("nats_servers"), ("http", "nats")),
    ):
        if wanted and exists("broker", service):
            draft.fill("broker", "broker", service)
            draft.fill("broker", "broadcast_adapter", tuple(a for a in adapters if exists("broadcaster", a)))
            if exists("pubsub", service) and draft["broker"] != "memory":
                draft.fill("broker", "pubsub", service)
            return
    draft.fill("broker", "broker", "memory")
    draft.fill("broker", "broadcast_adapter", ("http",))


def _fly(draft: Draft) -> None:
    missing = [sign for sign in ("FLY_APP_NAME", "FLY_REGION") if not draft.environ.get(sign)]
    if missing:
        raise ConfigurationError(
            f"{draft.where('presets')}: the preset fly needs the environment variable {' and '.join(missing)}"
        )
    draft.fill("fly", "host", "0.0.0.0")
    backend = draft.environ.get("ANYCABLE_FLY_RPC_APP_NAME")
    if backend:
        draft.fill("fly", "rpc_host", f"dns:///{draft.environ['FLY_REGION']}.{backend}.internal:50051")


def _heroku(draft: Draft) -> None:
    draft.fill("heroku", "host", "0.0.0.0")


_PRESETS = {"broker": _broker, "fly": _fly, "heroku": _heroku}
