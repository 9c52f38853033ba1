"""anycable_tx.nats.embedded_plan, and the places it is made of"""

from __future__ import annotations

import json
import socket
from pathlib import Path
from typing import Any

import pytest

from anycable_tx.errors import ConfigurationError
from anycable_tx.nats.embedded_plan import Plan
from anycable_tx.nats.place import place
from tests.nats.embedded_support import SETTINGS

CLUSTER = {"enats_cluster": "nats://0.0.0.0:5222", "enats_cluster_routes": ("nats://a:5222", "nats://b:5222")}


def plan(environ: dict[str, str] | None = None, **settings: Any) -> Plan:
    return Plan({**SETTINGS, **settings}, environ or {})


def written(**settings: Any) -> dict[str, Any]:
    """What the server reads."""
    configuration: dict[str, Any] = json.loads(plan(**settings).configuration("/watch"))
    return configuration


def test_alone_it_listens_on_this_machine_and_stores_nothing() -> None:
    assert written() == {
        "server_name": f"ac-{socket.gethostname()}-4222".replace(".", "-"),
        "listen": "127.0.0.1:4222",
        "max_payload": 1_048_576,
        "http": "127.0.0.1:-1",
        "http_base_path": "/watch",
        "debug": False,
        "trace": False,
        "lame_duck_grace_period": "1s",
        "lame_duck_duration": "30s",
    }
    assert plan().lock == ""


@pytest.mark.parametrize("settings", [{"broker": "nats"}, {"enats_jetstream": True}])
def test_it_stores_for_the_broker_or_when_told_to(settings: dict[str, Any], tmp_path: Path) -> None:
    assert written(**settings, enats_store_dir=str(tmp_path))["jetstream"] == {"store_dir": str(tmp_path)}


def test_what_is_configured_is_written() -> None:
    found = written(
        **CLUSTER,
        enats_addr="nats://[::]:4333",
        enats_cluster_name="mine",
        enats_debug=True,
        enats_trace=True,
        enats_max_payload=99,
        enats_gateway="nats://0.0.0.0:7222",
        enats_gateways="east:nats://e1:7222,nats://u:p@e2:7222; west:nats://w:7222",
        enats_gateway_advertise="me:7222",
    )
    assert (found["listen"], found["debug"], found["trace"], found["max_payload"]) == ("[::]:4333", True, True, 99)
    assert found["cluster"] == {
        "name": "mine",
        "listen": "0.0.0.0:5222",
        "routes": ["nats://a:5222", "nats://b:5222"],
    }
    assert found["gateway"] == {
        "name": "mine",
        "listen": "0.0.0.0:7222",
        "advertise": "me:7222",
        "gateways": [
            {"name": "east", "urls": ["nats://e1:7222", "nats://u:p@e2:7222"]},
            {"name": "west", "urls": ["nats://w:7222"]},
        ],
    }


@pytest.mark.parametrize(
    ("settings", "expected"),
    [
        ({"enats_addr": "nats://u:p%22%5Cw@127.0.0.1:4222"}, {"user": "u", "password": 'p"\\w'}),
        ({"enats_addr": "nats://t0ken@127.0.0.1:4222"}, {"token": "t0ken"}),
        ({"nats_servers": ("nats://far:4333", "u:pw@127.0.0.1:4222")}, {"user": "u", "password": "pw"}),
        ({"nats_servers": ("nats://t0ken@127.0.0.1",)}, {"token": "t0ken"}),
        ({"nats_servers": ("nats://u:pw@far:4333",)}, None),
    ],
)
def test_what_opens_it_is_in_its_address_or_in_that_of_the_clients(
    settings: dict[str, Any], expected: dict[str, str] | None
) -> None:
    assert written(**settings).get("authorization") == expected


def test_routes_ask_for_what_is_in_the_address_of_the_cluster() -> None:
    found = written(
        enats_cluster="nats://r:s%40cret@0.0.0.0:5222", enats_cluster_routes=("nats://r:s%40cret@a:5222",)
    )
    assert found["cluster"]["authorization"] == {"user": "r", "password": "s@cret"}
    assert found["cluster"]["routes"] == ["nats://r:s%40cret@a:5222"]


@pytest.mark.statement("BR-79")
@pytest.mark.parametrize(
    ("settings", "expected"),
    [
        ({}, "nats://127.0.0.1:4222 (server_name: me)"),
        ({"enats_addr": "nats://u:hidden@0.0.0.0:4222"}, "nats://0.0.0.0:4222 (server_name: me)"),
        (
            CLUSTER,
            "nats://127.0.0.1:4222 (server_name: me, cluster: nats://0.0.0.0:5222, cluster_name: anycable-cluster, "
            "routes: nats://a:5222,nats://b:5222)",
        ),
        (
            CLUSTER
            | {
                "enats_cluster": "nats://u:hidden@0.0.0.0:5222",
                "enats_cluster_routes": ("nats://u:hidden@a:5222",),
                "enats_gateway": "nats://u:hidden@0.0.0.0:7222",
                "enats_gateways": "east:nats://u:hidden@e1:7222,nats://e2:7222;west:nats://w:7222",
                "enats_gateway_advertise": "me:7222",
            },
            "nats://127.0.0.1:4222 (server_name: me, cluster: nats://0.0.0.0:5222, cluster_name: anycable-cluster, "
            "routes: nats://a:5222, gateway: nats://0.0.0.0:7222, gateways: [east:nats://e1:7222,nats://e2:7222 "
            "west:nats://w:7222], gateway_advertise: me:7222)",
        ),
    ],
)
def test_the_start_line_names_it_and_its_cluster_and_no_secret(settings: dict[str, Any], expected: str) -> None:
    made = plan(**settings, enats_server_name="me")
    assert made.announcement == f"Embedded NATS server started: {expected}"
    assert ("hidden" in made.secrets) == any("hidden" in str(value) for value in settings.values())


@pytest.mark.parametrize(
    ("environ", "settings", "name"),
    [
        ({}, {"enats_server_name": "mine"}, "mine"),
        ({"FLY_MACHINE_ID": "e28"}, {}, "ac-e28-4222"),
        ({"FLY_MACHINE_ID": "e28"}, {"enats_addr": "nats://127.0.0.1:4333"}, "ac-e28-4333"),
        ({"FLY_MACHINE_ID": "e28"}, {"enats_server_name": "mine"}, "mine"),
    ],
)
def test_the_name_is_the_same_at_every_start(environ: dict[str, str], settings: dict[str, Any], name: str) -> None:
    assert plan(environ, **settings).name == plan(environ, **settings).name == name


def test_a_store_is_kept_under_the_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert plan(broker="nats", enats_server_name="mine").store == tmp_path / "nats-data/mine"


def test_the_name_stays_with_the_store_when_the_machine_gets_another(tmp_path: Path) -> None:
    store = str(tmp_path / "store")
    first = plan({"FLY_MACHINE_ID": "one"}, broker="nats", enats_store_dir=store)
    first.prepare()
    assert plan({"FLY_MACHINE_ID": "two"}, broker="nats", enats_store_dir=store).name == first.name == "ac-one-4222"


def test_another_name_for_a_store_is_refused(tmp_path: Path) -> None:
    plan(broker="nats", enats_store_dir=str(tmp_path), enats_server_name="a").prepare()
    with pytest.raises(ConfigurationError) as e:
        plan(broker="nats", enats_store_dir=str(tmp_path), enats_server_name="b")
    assert str(e.value) == (
        f"enats_server_name: the directory {tmp_path} holds what the server 'a' stored; give 'b' another "
        "enats_store_dir, or give the name that it had"
    )
    assert plan(enats_store_dir=str(tmp_path), enats_server_name="b").name == "b"  # it stores nothing


def test_a_store_that_cannot_be_made_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    made = plan({"FLY_MACHINE_ID": "m"}, broker="nats", enats_store_dir=f"{tmp_path}/other")
    (tmp_path / "other").write_text("")
    with pytest.raises(ConfigurationError, match=f"enats_store_dir: cannot write to {tmp_path}/other: File exists"):
        made.prepare()
    with pytest.raises(ConfigurationError, match=f"enats_store_dir: cannot read {tmp_path}/file: Not a directory"):
        plan(broker="nats", enats_store_dir=f"{tmp_path}/file")


@pytest.mark.parametrize(
    ("settings", "option"),
    [
        ({"enats_addr": "nats://127.0.0.1"}, "enats_addr"),
        ({"enats_addr": ""}, "enats_addr"),
        ({"enats_addr": "tls://127.0.0.1:4222"}, "enats_addr"),
        ({"enats_addr": "nats://127.0.0.1:x"}, "enats_addr"),
        ({"enats_addr": "nats://127.0.0.1:4222/x"}, "enats_addr"),
        ({"enats_addr": "nats://u:s%0Aecret@127.0.0.1:4222"}, "enats_addr"),
        ({"enats_cluster": "nats://:secret@:5222"}, "enats_cluster"),
        ({"enats_cluster_routes": ("nats://u:secret@a",)}, "enats_cluster_routes"),
        ({"enats_gateway": "0.0.0.0"}, "enats_gateway"),
        ({"enats_gateways": "nats://u:secret@a:7222/"}, "enats_gateways"),
        ({"enats_gateways": "east"}, "enats_gateways"),
        ({"enats_server_name": "a b"}, "enats_server_name"),
        ({"enats_server_name": "a.b"}, "enats_server_name"),
    ],
)
def test_what_cannot_be_is_refused_and_names_the_option_and_no_secret(settings: dict[str, Any], option: str) -> None:
    with pytest.raises(ConfigurationError) as e:
        plan(**settings)
    assert str(e.value).startswith(f"{option}: ")
    assert "secret" not in str(e.value)


@pytest.mark.parametrize("text", ["nats://u:p%40w@[::1]:4222", "nats://t%3Ao@a:1", "nats://a:1"])
def test_an_address_is_what_it_was(text: str) -> None:
    assert place("x", text).url == text
    assert "p@w" not in repr(place("x", text))
