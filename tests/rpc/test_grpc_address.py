"""Addresses of gRPC backends."""

from __future__ import annotations

from typing import Any

import pytest

from anycable_tx.errors import ConfigurationError
from anycable_tx.rpc.grpc_address import Addresses, Host, parse
from tests.rpc.support import settings


def read(host: str, **given: Any) -> Addresses:
    return parse(settings(rpc_host=host, **given))


@pytest.mark.parametrize(
    ("text", "host"),
    [
        ("localhost:50051", Host("dns:///localhost:50051", "localhost", 50051)),
        (" rpc.test:1 ", Host("dns:///rpc.test:1", "rpc.test", 1)),
        ("rpc.test", Host("dns:///rpc.test", "rpc.test", 443)),
        ("[::1]:50051", Host("dns:///[::1]:50051", "::1", 50051)),
        ("dns:///rpc.test:50051", Host("dns:///rpc.test:50051", "rpc.test", 50051)),
        ("dns://9.9.9.9:53/rpc.test:50051", Host("dns://9.9.9.9:53/rpc.test:50051", "rpc.test", 50051)),
        ("unix:/run/rpc.sock", Host("unix:/run/rpc.sock")),
    ],
)
def test_an_address_names_one_host(text: str, host: Host) -> None:
    assert read(text) == Addresses((host,), False)


@pytest.mark.statement("RA-24")
@pytest.mark.parametrize(("text", "tls"), [("grpc://a:1", False), ("grpcs://a:1", True), ("GRPCS://a:1/", True)])
def test_the_scheme_tells_whether_tls_is_spoken(text: str, tls: bool) -> None:
    assert read(text) == Addresses((Host("dns:///a:1", "a", 1),), tls)


@pytest.mark.parametrize("given", [{"rpc_enable_tls": True}, {"rpc_tls_root_ca": "ca.pem"}])
@pytest.mark.parametrize("text", ["a:1", "grpc://a:1", "grpc-list://a:1", "dns:///a:1"])
def test_an_option_turns_tls_on_for_every_form(text: str, given: dict[str, Any]) -> None:
    assert read(text, **given).tls


@pytest.mark.statement("RA-23")
def test_a_list_is_trimmed_and_its_empty_entries_are_skipped() -> None:
    assert read("grpc-list://a:1, b:2 ,,[::1]:3,").hosts == (
        Host("dns:///a:1", "a", 1),
        Host("dns:///b:2", "b", 2),
        Host("dns:///[::1]:3", "::1", 3),
    )


@pytest.mark.statement("RA-23")
@pytest.mark.parametrize("text", ["grpc-list://", "grpc-list:// , ,"])
def test_an_empty_list_is_refused(text: str) -> None:
    with pytest.raises(ConfigurationError, match="rpc_host: grpc-list:// names no host; accepted: grpc-list://host"):
        read(text)


@pytest.mark.parametrize(
    "text",
    [
        "",
        "a:1,b:2",
        "a:0",
        "a:65536",
        "a:b",
        "tcp://a:1",
        "grpc://me:hush@a:1",
        "dns://a:1",
        "dns://hush@9/a:1",
        "a b:1",
    ],
)
def test_anything_else_is_refused_without_being_shown(text: str) -> None:
    with pytest.raises(ConfigurationError, match="rpc_host: not an address for gRPC; accepted: host:port, ") as error:
        read(text)
    assert "hush" not in str(error.value)


def test_an_http_address_is_refused_with_the_way_out() -> None:
    with pytest.raises(ConfigurationError, match="https:// is not called over gRPC; set rpc_impl=http"):
        read("https://a/_anycable")


def test_an_ipv6_host_is_in_brackets_where_it_is_named_with_its_port() -> None:
    assert [host.authority for host in read("grpc-list://a:1,[::1]:3").hosts] == ["a:1", "[::1]:3"]
