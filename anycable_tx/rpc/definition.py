"""The service that gRPC backends offer, as ``anycable.proto`` defines it."""

from __future__ import annotations

from importlib.resources import files
from typing import Any, NamedTuple

from google.protobuf import descriptor_pb2, descriptor_pool, message_factory

__all__ = ["METHODS", "SERVICE", "Method"]

SERVICE = "anycable.RPC"


class Method(NamedTuple):
    """One method: its name in the service, its path on the wire, and the classes of its messages."""

    name: str
    path: str
    request: Any
    reply: Any


def _load() -> dict[str, Method]:
    # The compiled definition is loaded rather than the Python code protoc can make of it: that code refuses every
    # runtime older than the compiler. And it is loaded into a pool of its own, because an application in the same
    # process may have loaded its copy of the definition already.
    known = descriptor_pb2.FileDescriptorSet.FromString((files(__package__) / "anycable.binpb").read_bytes())
    pool = descriptor_pool.DescriptorPool()
    for file in known.file:
        pool.Add(file)
    return {
        method.name.lower(): Method(
            method.name,
            f"/{SERVICE}/{method.name}",
            message_factory.GetMessageClass(method.input_type),
            message_factory.GetMessageClass(method.output_type),
        )
        for method in pool.FindServiceByName(SERVICE).methods
    }


#: ``connect``, ``command``, ``disconnect`` and ``restore`` -> what is called.
METHODS = _load()
