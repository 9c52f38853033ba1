"""Presets: sets of values for a purpose or a platform, where nobody gave one."""

from __future__ import annotations

from anycable_tx import providers
from anycable_tx.config.draft import Draft
from anycable_tx.config.given import Given
from anycable_tx.errors import ConfigurationError
from anycable_tx.nats.binary import INSTALL, find

__all__ = ["CLOUD", "apply_presets"]

#: The presets whose platform routes one port only.
CLOUD = ("fly", "heroku")

_SIGNS = {
    "fly": ("FLY_APP_NAME", "FLY_ALLOC_ID", "FLY_REGION"),
    "heroku": ("HEROKU_APP_ID", "HEROKU_DYNO_ID"),
}


def apply_presets(draft: Draft) -> None:
    """Fill values from the presets that were asked for, or else from those whose platform this is.

    They work on options that no source set (CO-22), in the order given, but ``broker`` last: what it chooses depends
    on what the platform has. Unknown names are ignored with a notice. Raises ConfigurationError when the platform's
    variables are missing (CO-24).
    """
    if not draft.was_set("presets"):
        found = tuple(name for name, signs in _SIGNS.items() if all(draft.environ.get(sign) for sign in signs))
        if found:
            draft.given["presets"] = Given(found, "preset", "the platform's variables")
    for name in draft["presets"]:
        if name not in _PRESETS and name != "none":
            draft.notices.append(
                f"{draft.where('presets')}: there is no preset {name!r}, it is ignored; known: {', '.join(_PRESETS)}"
            )
    draft.presets = tuple(name for name in draft["presets"] if name in _PRESETS)
    for name in sorted(draft.presets, key="broker".__eq__):
        _PRESETS[name](draft)


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
    _fly_bus(draft)
    if draft["embed_nats"]:
        _fly_nats(draft, draft.environ["FLY_APP_NAME"], draft.environ["FLY_REGION"])
    backend = draft.environ.get("ANYCABLE_FLY_RPC_APP_NAME")
    if backend:
        draft.fill("fly", "rpc_host", f"dns:///{draft.environ['FLY_REGION']}.{backend}.internal:50051")


def _fly_bus(draft: Draft) -> None:
    """Without Redis, the machines of an application reach each other over NATS: the one given, or their own.

    Not with the memory broker, whose messages are for one machine.
    """
    redis = draft.on("redis_url") and exists("pubsub", "redis")
    if redis or draft.on("pubsub") or draft["broker"] == "memory" or not exists("pubsub", "nats"):
        return
    if not draft.on("nats_servers") and not draft["embed_nats"]:
        if draft.was_set("embed_nats"):
            return
        if not find(draft["enats_binary"]):
            draft.notices.append(f"machines on Fly.io do not reach each other: there is no nats-server; {INSTALL}")
            return
        draft.fill("fly", "embed_nats", True)
    draft.fill("fly", "pubsub", "nats")
    draft.fill("fly", "broadcast_adapter", tuple(a for a in ("http", "nats") if exists("broadcaster", a)))


def _fly_nats(draft: Draft, app: str, region: str) -> None:
    """The embedded server, reachable in the private network of the application, one cluster in each region."""
    for name, value in (
        ("enats_addr", "nats://0.0.0.0:4222"),
        ("enats_cluster", "nats://0.0.0.0:5222"),
        ("enats_cluster_name", f"{app}-{region}-cluster"),
        ("enats_cluster_routes", (f"nats://{region}.{app}.internal:5222",)),
        ("enats_gateway_advertise", f"{region}.{app}.internal:7222"),
    ):
        draft.fill("fly", name, value)


def _heroku(draft: Draft) -> None:
    draft.fill("heroku", "host", "0.0.0.0")


_PRESETS = {"broker": _broker, "fly": _fly, "heroku": _heroku}
