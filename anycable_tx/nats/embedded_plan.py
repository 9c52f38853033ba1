"""What the embedded NATS server is to be like: its name, addresses, files and configuration."""

from __future__ import annotations

import json
import os
import re
import socket
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from anycable_tx.errors import ConfigurationError
from anycable_tx.nats.address import parse
from anycable_tx.nats.place import Place, place

__all__ = ["Plan"]

#: The largest message, unless that is configured.
MAX_PAYLOAD = 1_048_576
#: Where the store directory is, unless that is configured.
STORES = "nats-data"
_NAME = re.compile(r"[^\s.*>/]+")


class Plan:
    """Everything that *settings* say of the server. Raises ConfigurationError.

    The name stays the same: that of ``enats_server_name``, or the one that the store directory knows, or else it is
    made of the machine's name and the port. JetStream clusters count a server under another name as another server,
    and go on waiting for the old one.
    """

    def __init__(self, settings: Mapping[str, Any], environ: Mapping[str, str] = os.environ) -> None:
        self.settings = settings
        self.jetstream = settings["broker"] == "nats" or settings["enats_jetstream"]
        own = place("enats_addr", settings["enats_addr"])
        self.service = own if own.user else _with_login(own, settings)
        cluster = settings["enats_cluster"]
        self.cluster = place("enats_cluster", cluster) if cluster else None
        self.routes = [place("enats_cluster_routes", each) for each in settings["enats_cluster_routes"]]
        gateway = settings["enats_gateway"]
        self.gateway = place("enats_gateway", gateway) if gateway else None
        self.gateways = list(_gateways(settings["enats_gateways"]))
        self.name, self.store = self._identity(environ.get("FLY_MACHINE_ID") or socket.gethostname())

    def _identity(self, machine: str) -> tuple[str, Path]:
        """The name, and the store directory, which need not be there yet."""
        given, directory = self.settings["enats_server_name"], self.settings["enats_store_dir"]
        made = f"ac-{machine}-{self.service.port}".replace(".", "-")
        if given and not _NAME.fullmatch(given):
            raise ConfigurationError(
                f"enats_server_name: {given!r} is not accepted; expected a name without spaces and any of . * > /"
            )
        store = Path(directory or os.path.join(STORES, given or made)).absolute()
        known = self._known(store) if self.jetstream else ""
        if given and known and known != given:
            raise ConfigurationError(
                f"enats_server_name: the directory {store} holds what the server {known!r} stored; give {given!r} "
                "another enats_store_dir, or give the name that it had"
            )
        return given or known or made, store

    def _known(self, store: Path) -> str:
        try:
            return (store / "server_name").read_text("utf-8").strip()
        except FileNotFoundError:
            return ""
        except OSError as e:
            raise ConfigurationError(f"enats_store_dir: cannot read {store}: {e.strerror}") from e

    @property
    def lock(self) -> str:
        """The file whose lock says that the store directory is in use."""
        return str(self.store / "lock") if self.jetstream else ""

    def prepare(self) -> None:
        """Make the store directory, which knows its server's name. Raises ConfigurationError."""
        if not self.jetstream:
            return
        try:
            self.store.mkdir(0o700, parents=True, exist_ok=True)
            if not self._known(self.store):
                (self.store / "server_name").write_text(f"{self.name}\n", "utf-8")
        except OSError as e:
            raise ConfigurationError(f"enats_store_dir: cannot write to {self.store}: {e.strerror}") from e

    @property
    def secrets(self) -> list[str]:
        """What must not be logged."""
        places = [self.service, *self.routes, *(each for _, urls in self.gateways for each in urls)]
        places += [each for each in (self.cluster, self.gateway) if each]
        return [secret for each in places for secret in each.secrets]

    def configuration(self, base_path: str) -> bytes:
        """What the server reads: JSON, which its language includes. It is watched over HTTP below *base_path*."""
        settings = self.settings
        written: dict[str, Any] = {
            "server_name": self.name,
            "listen": self.service.listen,
            "max_payload": settings["enats_max_payload"] or MAX_PAYLOAD,
            "http": "127.0.0.1:-1",
            "http_base_path": base_path,
            "debug": settings["enats_debug"],
            "trace": settings["enats_trace"],
            "lame_duck_grace_period": "1s",
            "lame_duck_duration": "30s",
            **self.service.authorization(),
        }
        if self.jetstream:
            written["jetstream"] = {"store_dir": str(self.store)}
        if self.cluster:
            written["cluster"] = {
                "name": settings["enats_cluster_name"],
                "listen": self.cluster.listen,
                "routes": [each.url for each in self.routes],
                **self.cluster.authorization(),
            }
        if self.gateway:
            written["gateway"] = {
                "name": settings["enats_cluster_name"],
                "listen": self.gateway.listen,
                "gateways": [{"name": name, "urls": [each.url for each in urls]} for name, urls in self.gateways],
                **self.gateway.authorization(),
            }
            if settings["enats_gateway_advertise"]:
                written["gateway"]["advertise"] = settings["enats_gateway_advertise"]
        return json.dumps(written, ensure_ascii=False).encode()

    @property
    def announcement(self) -> str:
        """The start-up log line (BR-79)."""
        parts = [f"server_name: {self.name}"]
        if self.cluster:
            parts += [f"cluster: {self.cluster}", f"cluster_name: {self.settings['enats_cluster_name']}"]
        if self.routes:
            parts.append(f"routes: {','.join(map(str, self.routes))}")
        if self.gateway:
            known = " ".join(f"{name}:{','.join(map(str, urls))}" for name, urls in self.gateways)
            parts += [f"gateway: {self.gateway}", f"gateways: [{known}]"]
            if self.settings["enats_gateway_advertise"]:
                parts.append(f"gateway_advertise: {self.settings['enats_gateway_advertise']}")
        return f"Embedded NATS server started: {self.service} ({', '.join(parts)})"


def _with_login(own: Place, settings: Mapping[str, Any]) -> Place:
    """*own*, opened by what opens that of ``nats_servers`` which is this one."""
    for each in parse(settings) if "nats_servers" in settings else ():
        if each.port == own.port and (each.user or each.token):
            return own._replace(user=each.user or each.token, password=each.password)
    return own


def _gateways(text: str) -> list[tuple[str, list[Place]]]:
    found = []
    for each in filter(None, (part.strip() for part in text.split(";"))):
        name, _, addresses = each.partition(":")
        if not name or not addresses:
            raise ConfigurationError("enats_gateways: expected name:address,address;name:address")
        found.append((name, [place("enats_gateways", address.strip()) for address in addresses.split(",")]))
    return found
