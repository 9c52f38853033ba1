"""Derivation: what follows from the given values, in one fixed order."""

from __future__ import annotations

import re
from contextlib import suppress
from pathlib import Path

from anycable_tx import providers
from anycable_tx.cable.ids import new_node_id
from anycable_tx.config.draft import Draft
from anycable_tx.config.files import read_secret
from anycable_tx.config.given import Given
from anycable_tx.config.presets import CLOUD, apply_presets, exists
from anycable_tx.config.secrets import API, BROADCAST, RPC, derive_key
from anycable_tx.config.values import parse
from anycable_tx.config.workers import check_shared, choose_shared
from anycable_tx.errors import ConfigurationError
from anycable_tx.metrics import COUNTERS, GAUGES
from anycable_tx.nats.place import client_url, place

__all__ = ["derive"]

#: Old names that beat their successor, and switches that an old name turns on.
_STRONGER = frozenset({"http_broadcast_secret", "http_rpc_timeout"})
_SWITCHES = {"turbo_rails_key": "turbo_streams", "cable_ready_key": "cable_ready"}

#: Brokers that nodes share, each of which hands messages on itself, over the bus of the same name.
_SHARED = {"nats": "NATS", "redis": "Redis"}

#: What Prometheus takes for the name of a label.
_LABEL = re.compile(r"[A-Za-z_][A-Za-z0-9_]*", re.ASCII)
_HOST_AND_PORT = re.compile(r"(?P<host>\[[^\]]+\]|[^:\[\]\s]+):(?P<port>[0-9]{1,5})", re.ASCII)

#: The port of HTTP broadcasts that no key protects.
OPEN_BROADCAST_PORT = 8090


def derive(draft: Draft) -> None:
    """Take every step, in order. Raises ConfigurationError for what cannot work together."""
    for step in (
        _old_names,
        _ignored_names,
        _switches,
        _secret_files,
        choose_shared,
        apply_presets,
        _embedded_nats,
        _logs,
        _paths,
        _secrets,
        _broadcast_port,
        _metrics,
        _public_mode,
        _admin,
        _certificate,
        _backend,
        _providers,
        check_shared,
        _channels,
        _node,
    ):
        step(draft)


def _old_names(draft: Draft) -> None:
    """Deprecated options become their successors (CO-11)."""
    for option in draft.schema:
        if option.tag != "D" or option.name not in draft.given:
            continue
        old = draft.given.pop(option.name)
        if old.value == "":
            continue
        if not option.successor:
            draft.notices.append(f"{old.origin}: {option.name} is deprecated and has no effect any more")
            continue
        draft.notices.append(f"{old.origin}: {option.name} is deprecated, use {option.successor}")
        if option.name in _STRONGER or not draft.on(option.successor):
            draft.given[option.successor] = old
        switch = _SWITCHES.get(option.name)
        if switch and switch not in draft.given:
            draft.given[switch] = Given(True, old.source, old.origin)


def _ignored_names(draft: Draft) -> None:
    """Options without a meaning here are accepted with one notice (CO-12)."""
    for option in draft.schema:
        if option.tag == "G" and option.name in draft.given:
            draft.notices.append(f"{draft.given.pop(option.name).origin}: {option.name} has no effect here")


def _switches(draft: Draft) -> None:
    """Switches that stand for a value of another option; they win over it."""
    for switch, name, value in (("norpc", "rpc_impl", "none"), ("disable_disconnect", "disconnect_mode", "never")):
        given = draft.given.pop(switch, None)
        if given is not None and given.value:
            draft.given[name] = Given(value, given.source, given.origin)


def _secret_files(draft: Draft) -> None:
    """A secret and the file with it: the stronger source counts; the content of the file is put in place."""
    for option in draft.schema:
        variant = f"{option.name}_file"
        if not option.secret or variant not in draft.schema:
            continue
        direct, file = draft.given.get(option.name), draft.given.get(variant)
        if file is None:
            continue
        if not file.value or (direct and direct.rank > file.rank):
            del draft.given[variant]
            continue
        if direct and direct.value and direct.rank == file.rank:
            raise ConfigurationError(f"{direct.origin} and {file.origin} are both given; give one of them")
        draft.given.pop(option.name, None)
        content = read_secret(file.value, draft.cwd, file.origin)
        if option.kind == "list":
            content = ",".join(content.splitlines())
        draft.put(option.name, parse(option, content, file.origin))


def _embedded_nats(draft: Draft) -> None:
    """An embedded server is the one to connect to, unless others are named."""
    if not draft["embed_nats"]:
        return
    with suppress(ConfigurationError):  # whoever builds the server says what is wrong with it
        if "nats_servers" in draft.schema and not draft.was_set("nats_servers"):
            draft.put("nats_servers", (client_url(draft["enats_addr"]),))
            if draft.was_set("enats_addr") and place("enats_addr", draft["enats_addr"]).is_open:
                draft.notices.append(
                    f"{draft.where('enats_addr')}: whoever reaches the NATS server there may read and publish "
                    "everything; give the address a user and a password, nats://user:password@host:port"
                )


def _logs(draft: Draft) -> None:
    if draft["debug"]:
        draft.put("log_level", "debug")


def _paths(draft: Draft) -> None:
    for name in (
        "health_path",
        "ready_path",
        "http_broadcast_path",
        "sse_path",
        "api_path",
        "metrics_http",
        "admin_path",
    ):
        if draft[name].strip():
            draft.put(name, _slashed(draft, name, draft[name].strip()))
        else:
            draft.put(name, "")
    draft.put("path", tuple(_slashed(draft, "path", path) for path in draft["path"]))
    for name in ("path", "http_broadcast_path", "sse_path", "admin_path"):
        if not draft[name]:
            raise draft.error(name, "a path is expected, such as /cable")


def _slashed(draft: Draft, name: str, path: str) -> str:
    if path.startswith("/"):
        return path
    draft.notices.append(f"{draft.where(name)}: the path {path!r} does not begin with a slash; /{path} is used")
    return f"/{path}"


def _secrets(draft: Draft) -> None:
    """``none`` means absent, and nothing is inherited then; everything else may follow from ``secret`` (RA-8)."""
    absent = set()
    for option in draft.schema:
        if option.secret and draft[option.name] in ("none", ("none",)):
            draft.put(option.name, () if option.kind == "list" else "")
            absent.add(option.name)
    secret = draft["secret"]
    for name, inherited in (
        ("jwt_secret", secret),
        ("streams_secret", secret),
        ("broadcast_key", derive_key(secret, BROADCAST)),
        ("http_rpc_secret", derive_key(secret, RPC)),
        ("api_secret", derive_key(secret, API)),
    ):
        if name in draft.schema and name not in absent and not draft[name]:
            draft.put(name, inherited)
    for name in ("turbo_streams_secret", "cable_ready_secret"):
        if name not in absent and not draft[name]:
            draft.put(name, draft["streams_secret"])


def _broadcast_port(draft: Draft) -> None:
    """Settled after the presets, so that a platform with one port gets the endpoint on it (CO-13, CO-23)."""
    if draft["http_broadcast_port"] == 0:
        main = draft["broadcast_key"] or any(preset in CLOUD for preset in draft.presets)
        draft.put("http_broadcast_port", draft["port"] if main else OPEN_BROADCAST_PORT)


def _metrics(draft: Draft) -> None:
    draft.put("metrics_rotate_interval", draft["metrics_rotate_interval"] or 15)
    if draft["metrics_http"]:
        for name in draft["metrics_tags"]:
            if not _LABEL.fullmatch(name) or name.startswith("__") or name == "reason":
                raise draft.error(
                    "metrics_tags",
                    f"{name!r} cannot be a label for Prometheus; a name has letters, digits and _, does not begin "
                    "with a digit or __, and is not reason",
                )
    if draft["statsd_host"]:
        match = _HOST_AND_PORT.fullmatch(draft["statsd_host"])
        if match is None or not 0 < int(match["port"]) < 65536:
            raise draft.error(
                "statsd_host", f"{draft['statsd_host']!r} is not accepted; expected host:port, such as localhost:8125"
            )
    unknown = [name for name in draft["metrics_log_filter"] if name not in COUNTERS and name not in GAUGES]
    if unknown:
        draft.notices.append(f"{draft.where('metrics_log_filter')}: there is no metric {', '.join(unknown)}")


def _public_mode(draft: Draft) -> None:
    if not draft["public"]:
        return
    draft.put("noauth", True)
    draft.put("public_streams", True)
    draft.put("broadcast_key", "")
    place = f"port {draft['http_broadcast_port']}, {draft['http_broadcast_path']}"
    api = ""
    if draft["api_path"] and not draft["api_secret"]:
        api = f" and use the REST API (port {draft['api_port'] or draft['port']}, {draft['api_path']})"
    tokens = "; a token that is presented is still checked" if draft["jwt_secret"] else ""
    draft.notices.append(
        "Server is running in the public mode: clients need no credentials, may subscribe to any stream by its "
        f"name, and everybody may broadcast over HTTP ({place}){api}{tokens}"
    )


def _admin(draft: Draft) -> None:
    """Nobody is let in without a key, and no other secret is one."""
    if draft["admin"] and not draft["admin_key"]:
        raise draft.error("admin", "the admin page needs a key; give admin_key, or a file with it as admin_key_file")


def _certificate(draft: Draft) -> None:
    certificate, key = draft["ssl_cert"], draft["ssl_key"]
    if bool(certificate) != bool(key):
        given, lacking = ("ssl_cert", "ssl_key") if certificate else ("ssl_key", "ssl_cert")
        raise draft.error(given, f"{given} needs {lacking} too; give both for TLS or none")
    for name in ("ssl_cert", "ssl_key"):
        if draft[name]:
            try:
                with Path(draft.cwd, draft[name]).open("rb"):
                    pass
            except (OSError, ValueError) as e:
                raise draft.error(name, f"cannot read {draft[name]!r}: {getattr(e, 'strerror', None) or e}") from e


def _backend(draft: Draft) -> None:
    """RPC is on when the backend was named, or how it is called; ``none`` turns it off."""
    impl = draft["rpc_impl"]
    if not impl:
        http = draft["rpc_host"].startswith(("http://", "https://"))
        named = "rpc_host" in draft.given and draft["rpc_host"]
        draft.put("rpc_impl", "none" if not named else "http" if http else "grpc")
    if draft["disconnect_mode"] == "deferred" and draft["disconnect_grace"]:
        draft.notices.append(
            f"{draft.where('disconnect_grace')}: has no effect with disconnect_mode=deferred, which waits for as "
            "long as a session can be resumed"
        )


def _providers(draft: Draft) -> None:
    """Settle who does what, and check that they are installed (BR-80)."""
    draft.put("broker", draft["broker"] or "none")
    if not draft["pubsub"]:
        draft.put("pubsub", _bus(draft))
    if not draft["controllers"]:
        tokens = ("jwt",) if draft["jwt_secret"] else ()
        anybody = ("noauth",) if draft["noauth"] else ()
        impl = draft["rpc_impl"]
        draft.put("controllers", (*tokens, *anybody, "streams", "null" if impl == "none" else impl))
        if not tokens and not anybody and impl == "none":
            draft.notices.append(
                "nobody can connect: there is no secret to check tokens with and no backend to ask; give secret, "
                "jwt_secret or rpc_host, or noauth to let everybody in"
            )
    for service, title in _SHARED.items():
        if draft["broker"] == service and draft["pubsub"] != service:
            raise draft.error(
                "pubsub", f"the broker {service} hands messages on over {title}; leave pubsub out, or give {service}"
            )
    if draft["broker"] == "nats" and draft.on("nats_verbatim_subjects"):
        raise draft.error(
            "nats_verbatim_subjects",
            "the broker nats hands messages on over subjects of its own, where AnyCable servers do not hear them; "
            "share a bus with these by pubsub=nats without a broker",
        )
    if draft["broker"] == "memory" and draft["pubsub"] != "none":
        raise draft.error(
            "pubsub",
            f"the memory broker numbers the messages of one node, so with {draft['pubsub']} nobody's positions would "
            "hold; give a broker that nodes share, or none",
        )
    providers.find("broker", draft["broker"])
    providers.find("pubsub", draft["pubsub"])
    for name in draft["broadcast_adapter"]:
        providers.find("broadcaster", name)
    for name in draft["controllers"]:
        providers.find("controller", name)


def _bus(draft: Draft) -> str:
    """That of the broker, if it has one; Redis if that is named. What the memory broker keeps is one node's."""
    broker = draft["broker"]
    if broker in _SHARED:
        return str(broker)
    redis = draft.on("redis_url") or "redisx" in draft["broadcast_adapter"]
    return "redis" if redis and broker != "memory" and exists("pubsub", "redis") else "none"


def _channels(draft: Draft) -> None:
    """Publications and the commands between nodes are not heard on one channel (CO-20)."""
    if "redis" not in draft["broadcast_adapter"]:
        return
    internal = draft["redis_internal_channel"]
    if internal == draft["redis_channel"]:
        draft.put("redis_internal_channel", f"{internal}-int")
        draft.notices.append(
            "the same Redis channel is given for broadcasts and for pub/sub: the latter becomes "
            f"{draft['redis_internal_channel']}"
        )


def _node(draft: Draft) -> None:
    if not draft["node_id"]:
        draft.put("node_id", new_node_id())
