"""The service's definition: the compiled form is the written one, and the bytes are those every backend knows."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from google.protobuf import descriptor_pb2

import anycable_tx.rpc
from anycable_tx.rpc.definition import METHODS

HOME = Path(anycable_tx.rpc.__file__).parent

MESSAGES: dict[str, tuple[Any, str]] = {
    "ConnectionRequest": (
        METHODS["connect"].request(
            env={"url": "http://localhost:8080/cable", "headers": {"REMOTE_ADDR": "127.0.0.1"}}
        ),
        "1a370a1b687474703a2f2f6c6f63616c686f73743a383038302f6361626c6512180a0b52454d4f54455f4144445212093132372e302e302e31",
    ),
    "ConnectionResponse": (
        METHODS["connect"].reply(status=1, identifiers='{"user_id":42}', transmissions=['{"type":"welcome"}']),
        "0801120e7b22757365725f6964223a34327d1a127b2274797065223a2277656c636f6d65227d",
    ),
    "CommandResponse": (
        METHODS["command"].reply(
            status=1,
            stop_streams=True,
            streams=["chat/42"],
            env={"istate": {"room": "42"}},
            presence={"type": "join", "id": "7"},
        ),
        "080118012207636861742f34323a0c120a0a04726f6f6d120234324a090a046a6f696e120137",
    ),
    "DisconnectResponse": (METHODS["disconnect"].reply(), ""),
}


@pytest.mark.parametrize("name", MESSAGES)
def test_a_message_has_the_bytes_that_every_backend_knows(name: str) -> None:
    message, data = MESSAGES[name]
    assert message.DESCRIPTOR.name == name
    assert message.SerializeToString(deterministic=True).hex() == data


def test_the_compiled_definition_is_the_written_one(tmp_path: Path) -> None:
    compiled = tmp_path / "definition"
    protoc = (sys.executable, "-m", "grpc_tools.protoc", f"-I{HOME}", f"--descriptor_set_out={compiled}")
    subprocess.run((*protoc, "anycable.proto"), check=True, timeout=60)
    read = descriptor_pb2.FileDescriptorSet.FromString
    assert read((HOME / "anycable.binpb").read_bytes()) == read(compiled.read_bytes())


def test_another_copy_of_the_definition_may_be_loaded_in_the_same_process() -> None:
    from google.protobuf import descriptor_pool

    known = descriptor_pb2.FileDescriptorSet.FromString((HOME / "anycable.binpb").read_bytes())
    known.file[0].message_type[0].field[0].name = "address"
    descriptor_pool.Default().Add(known.file[0])  # would be refused next to one that differs


def test_the_methods_are_those_of_the_service() -> None:
    assert {name: method.path for name, method in METHODS.items()} == {
        "connect": "/anycable.RPC/Connect",
        "command": "/anycable.RPC/Command",
        "disconnect": "/anycable.RPC/Disconnect",
        "restore": "/anycable.RPC/Restore",
    }
