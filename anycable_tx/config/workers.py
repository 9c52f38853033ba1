"""Workers: what nodes of one machine share, and what cannot be shared."""

from __future__ import annotations

from anycable_tx.config.draft import Draft

__all__ = ["check_shared", "choose_shared"]

#: Whoever gave one of these has chosen what the nodes share.
_CHOICES = ("broker", "pubsub", "redis_url", "redis_sentinels", "nats_servers", "embed_nats")
_BUSES = {"redis", "redisx", "nats"}


def choose_shared(draft: Draft) -> None:
    """Several workers share an embedded NATS server, unless something else was chosen."""
    if draft["workers"] == 1 or any(draft.was_set(name) for name in _CHOICES if name != "embed_nats"):
        return
    if draft.was_set("embed_nats") and not draft["embed_nats"]:
        return
    if draft.was_set("broadcast_adapter") and _BUSES.intersection(draft["broadcast_adapter"]):
        return
    for name, value in (
        ("embed_nats", True),
        ("broker", "nats"),
        ("pubsub", "nats"),
        ("broadcast_adapter", ("http", "nats")),
    ):
        draft.fill("workers", name, value)


def check_shared(draft: Draft) -> None:
    """What is in one process only cannot serve several. Raises ConfigurationError saying what to give."""
    workers = draft["workers"]
    if workers == 1:
        return
    if draft["port"] == 0:
        raise draft.error("port", f"{workers} workers share a port, which has to be known; give its number")
    if draft["broker"] == "memory":
        raise draft.error(
            "broker",
            f"the memory broker lives in one process and cannot be shared by {workers} workers; leave broker out for "
            "embedded NATS, or give redis or nats",
        )
    if draft["pubsub"] == "none":
        raise draft.error(
            "pubsub",
            f"{workers} workers need a bus to hand messages on to each other; leave broker and pubsub out for "
            "embedded NATS, or give redis_url, or pubsub=redis or nats",
        )
    if draft["metrics_http"] and draft["metrics_port"] in (0, draft["port"]):
        raise draft.error(
            "metrics_port",
            f"each of {workers} workers serves metrics of its own and needs a port for that; give a number "
            "other than the main port: the first worker has it, the second the next one, and so on",
        )
    if draft.on("broker_snapshot"):
        raise draft.error(
            "broker_snapshot",
            f"only the memory broker has a snapshot, which {workers} workers cannot use; leave it out",
        )
