"""Embedded servers on free ports, with the reactor that is turned until they have started or stopped."""

from __future__ import annotations

import os
from collections.abc import Mapping
from typing import Any

from anycable_tx.metrics import Metrics
from anycable_tx.nats.embedded import EmbeddedNats
from tests.rpc.http_support import RealReactor

SETTINGS: dict[str, Any] = {
    "embed_nats": True,
    "broker": "none",
    "nats_servers": ("nats://127.0.0.1:4222",),
    "enats_addr": "nats://127.0.0.1:4222",
    "enats_cluster": "",
    "enats_cluster_name": "anycable-cluster",
    "enats_cluster_routes": (),
    "enats_gateway": "",
    "enats_gateways": "",
    "enats_gateway_advertise": "",
    "enats_store_dir": "",
    "enats_server_name": "",
    "enats_binary": "",
    "enats_debug": False,
    "enats_trace": False,
    "enats_max_payload": 0,
    "enats_jetstream": False,
    "enats_ready_timeout": 10.0,
}


class Embedded:
    """An EmbeddedNats with *settings*."""

    def __init__(self, reactor: RealReactor, settings: Mapping[str, Any]) -> None:
        self.reactor = reactor
        self.metrics = Metrics()
        self.settings = {**SETTINGS, **settings}
        self.nats = EmbeddedNats(self.settings, reactor, self.metrics)

    def start(self, patience: float = 20.0) -> None:
        self.reactor.result(self.nats.start(), patience)

    def stop(self, patience: float = 20.0) -> None:
        self.reactor.result(self.nats.stop(), patience)


def alive(pid: int) -> bool:
    """Is there such a process?"""
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    return True
